"""How model pixels lie on source pixels: torchvision's sizes; coordinates there and back; tiles."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.transforms import functional

from pipelines.frames.geometry import Geometry, geometry, tiles
from pipelines.frames.preprocess import Preprocessor
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import TooLarge
from tests.support.pixels import reference

FCN = Preprocessing(resize_px=520)
RESNET = Preprocessing(resize_px=232, crop_px=(224, 224))
DETECTOR = Preprocessing(resize_px=800, max_px=1333, antialias=False, round_pixels=False)
BOX = Preprocessing(resize_px=(640, 640), fit="letterbox", pad_value=114)


@pytest.mark.parametrize(
    ("preprocessing", "hw", "resized_hw", "crop_yxhw"),
    [
        (FCN, (360, 640), (520, 924), (0, 0, 520, 924)),
        (FCN, (640, 361), (921, 520), (0, 0, 921, 520)),
        (RESNET, (720, 1280), (232, 412), (4, 94, 224, 224)),
        (RESNET, (1281, 720), (412, 232), (94, 4, 224, 224)),
        # Half of 5 is rounded to even, as Python does: 2, not 3.
        (Preprocessing(resize_px=(9, 11), crop_px=(4, 4)), (50, 50), (9, 11), (2, 4, 4, 4)),
        (Preprocessing(resize_px=None), (33, 44), (33, 44), (0, 0, 33, 44)),
        (Preprocessing(resize_px=None, crop_px=(36, 36)), (33, 44), (33, 44), (-1, 4, 36, 36)),
    ],
)
def test_sizes_are_torchvisions(
    preprocessing: Preprocessing,
    hw: tuple[int, int],
    resized_hw: tuple[int, int],
    crop_yxhw: tuple[int, int, int, int],
) -> None:
    expected = Geometry(source_hw=hw, resized_hw=resized_hw, crop_yxhw=crop_yxhw)
    assert geometry(preprocessing, *hw) == expected
    pixels = np.zeros((1, *hw, 3), np.uint8)
    assert tuple(reference(preprocessing, pixels).shape[2:]) == expected.model_hw


@pytest.mark.parametrize(
    ("hw", "resized_hw", "top_left"),
    [
        ((720, 1280), (360, 640), (-140, 0)),
        ((1280, 720), (640, 360), (0, -140)),
        ((640, 640), (640, 640), (0, 0)),
        ((320, 321), (638, 640), (-1, 0)),
        # 640 * 427 / 640 is 427: the odd pixel of bar lies below.
        ((427, 640), (427, 640), (-106, 0)),
        ((1, 4000), (1, 640), (-319, 0)),
    ],
)
def test_letterboxes(hw: tuple[int, int], resized_hw: tuple[int, int], top_left: tuple[int, int]) -> None:
    expected = Geometry(source_hw=hw, resized_hw=resized_hw, crop_yxhw=(*top_left, 640, 640))
    assert geometry(BOX, *hw) == expected


def test_a_crop_of_a_letterbox_is_taken_from_its_middle() -> None:
    cropped = Preprocessing(resize_px=(640, 640), fit="letterbox", crop_px=(600, 620))
    assert geometry(cropped, 720, 1280).crop_yxhw == (-120, 10, 600, 620)


def test_centre_crops_are_torchvisions() -> None:
    """Every pixel says where it lies; 0 is what was padded."""
    random = np.random.default_rng(3)
    for _ in range(1500):
        height, width, *crop = (int(side) for side in random.integers(1, 30, 4))
        shape = geometry(Preprocessing(resize_px=None, crop_px=(crop[0], crop[1])), height, width)
        places = torch.arange(1, height * width + 1).reshape(1, height, width)
        expected = functional.center_crop(places, crop)[0]
        top, left, _, _ = shape.crop_yxhw
        rows, columns = torch.arange(crop[0]) + top, torch.arange(crop[1]) + left
        inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
        ours = (rows[:, None] * width + columns + 1) * inside
        assert torch.equal(ours, expected), (height, width, crop)


def test_detectors_sizes_are_torchvisions() -> None:
    """Sizes alone: one channel without memory behind it, so that thousands are quick."""
    random = np.random.default_rng(4)
    for _ in range(3000):
        wanted, longest = int(random.integers(8, 25)), int(random.integers(25, 41))
        preprocessing = Preprocessing(resize_px=wanted, max_px=longest, antialias=False, round_pixels=False)
        transform = GeneralizedRCNNTransform(wanted, longest, [0.0], [1.0]).eval()
        height, width = (int(side) for side in random.integers(1, 64, 2))
        if min(height, width) * longest < max(height, width):
            continue
        resized, _ = transform.resize(torch.zeros(1, height, width))
        assert geometry(preprocessing, height, width).resized_hw == tuple(resized.shape[1:])


def test_real_detectors_sizes_are_torchvisions() -> None:
    transform = GeneralizedRCNNTransform(800, 1333, [0.0], [1.0]).eval()
    random = np.random.default_rng(5)
    for _ in range(60):
        height, width = (int(side) for side in random.integers(100, 2200, 2))
        resized, _ = transform.resize(torch.zeros(1, height, width))
        assert geometry(DETECTOR, height, width).resized_hw == tuple(resized.shape[1:])


@pytest.mark.parametrize("hw", [(8, 9000), (9000, 1)])
def test_a_side_never_comes_to_nothing(hw: tuple[int, int]) -> None:
    for preprocessing in (DETECTOR, BOX):
        assert min(geometry(preprocessing, *hw).resized_hw) >= 1


@pytest.mark.parametrize(
    ("preprocessing", "hw", "message"),
    [
        (FCN, (8000, 8), "8x8000 px becomes 520x520000 px"),
        (Preprocessing(resize_px=None), (4096, 2048), "2048x4096 px"),
    ],
)
def test_sizes_that_the_model_cannot_take_are_errors(
    preprocessing: Preprocessing, hw: tuple[int, int], message: str
) -> None:
    with pytest.raises(TooLarge, match=message):
        geometry(preprocessing, *hw)


WAYS: dict[str, Preprocessing] = {
    "stretch": Preprocessing(resize_px=(300, 300)),
    "shorter side": FCN,
    "detector": DETECTOR,
    "centre crop": RESNET,
    "letterbox": BOX,
    "padded crop": Preprocessing(resize_px=None, crop_px=(900, 2000)),
}


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("name", WAYS)
def test_boxes_go_there_and_back(name: str, kind: str) -> None:
    random = np.random.default_rng(6)
    for height, width in ((720, 1280), (641, 359), (97, 301), (1080, 1080)):
        shape = geometry(WAYS[name], height, width)
        corners = random.uniform(0, 1, (200, 2, 2)) * (width, height)
        boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)
        given: Any = boxes if kind == "numpy" else torch.from_numpy(boxes)
        there = shape.to_model_xy(given)
        back = shape.to_source_xy(there)
        assert type(back) is type(given)
        assert back.dtype == given.dtype
        assert np.abs(np.asarray(back) - boxes).max() <= 0.01
        assert np.array_equal(np.asarray(given), boxes)
        # Through whole model pixels, as a model answers, at most half of one is lost.
        rounded = shape.to_source_xy(there.round())
        scale = max(full / small for full, small in zip((height, width), shape.resized_hw, strict=True))
        assert np.abs(np.asarray(rounded) - boxes).max() <= 0.5 * scale + 0.01


@pytest.mark.parametrize("name", WAYS)
def test_the_window_maps_onto_its_region(name: str) -> None:
    shape = geometry(WAYS[name], 720, 1281)
    model_h, model_w = shape.model_hw
    whole = np.array([[0, 0, model_w, model_h]], np.float64)
    scale_y, scale_x = 720 / shape.resized_hw[0], 1281 / shape.resized_hw[1]
    top, left = shape.crop_yxhw[0] * scale_y, shape.crop_yxhw[1] * scale_x
    bottom, right = top + model_h * scale_y, left + model_w * scale_x
    assert shape.to_source_xy(whole)[0] == pytest.approx([left, top, right, bottom], abs=1e-3)
    clipped = shape.to_source_xy(whole, clip=True)[0]
    assert clipped == pytest.approx([max(0, left), max(0, top), min(1281, right), min(720, bottom)], abs=1e-3)


def test_a_marked_pixel_is_found_again() -> None:
    """A bright square on the frame, looked for in the model's pixels, maps back onto itself."""
    for preprocessing in (WAYS["stretch"], WAYS["shorter side"], RESNET, BOX, DETECTOR):
        pixels = np.zeros((1, 360, 480, 3), np.uint8)
        pixels[0, 160:200, 200:260] = 255
        (model_hw,) = Preprocessor(preprocessing, device="cpu", max_frames=1)(pixels)[:, 1]
        values = model_hw - model_hw.mean()
        bright = (values > (model_hw.max() + model_hw.min()) / 2 - model_hw.mean()).nonzero().double()
        first, last = bright.min(dim=0).values, bright.max(dim=0).values + 1
        box = torch.tensor([[first[1], first[0], last[1], last[0]]])
        found = geometry(preprocessing, 360, 480).to_source_xy(box)[0]
        scale = max(360 / geometry(preprocessing, 360, 480).resized_hw[0], 1)
        assert np.abs(found.numpy() - [200, 160, 260, 200]).max() <= 0.5 * scale + 0.5


def test_detectors_boxes_are_torchvisions_to_the_bit() -> None:
    random = torch.Generator().manual_seed(7)
    for hw in ((720, 1280), (641, 359), (427, 640)):
        shape = geometry(DETECTOR, *hw)
        boxes = torch.rand(500, 4, generator=random) * 800
        assert torch.equal(shape.to_source_xy(boxes), resize_boxes(boxes, shape.resized_hw, hw))


def test_points_of_any_form_map() -> None:
    shape = geometry(BOX, 720, 1280)
    points = np.array([[[0.0, 140.0], [640.0, 500.0]]])
    assert shape.to_source_xy(points).tolist() == [[[0, 0], [1280, 720]]]
    assert shape.to_model_xy(shape.to_source_xy(points)).tolist() == points.tolist()
    assert shape.to_model_xy(np.array([-5.0, 9000.0]), clip=True).tolist() == [0, 640]


@pytest.mark.parametrize(
    ("source_hw", "tile_hw", "overlap_px", "expected"),
    [
        ((100, 100), (100, 100), 0, [(0, 0, 100, 100)]),
        ((80, 90), (100, 100), 10, [(0, 0, 80, 90)]),
        ((80, 250), (100, 100), 0, [(0, 0, 80, 100), (0, 100, 80, 100), (0, 150, 80, 100)]),
        ((100, 200), (100, 100), 0, [(0, 0, 100, 100), (0, 100, 100, 100)]),
        ((100, 101), (100, 100), 99, [(0, 0, 100, 100), (0, 1, 100, 100)]),
        ((100, 190), (100, 100), 10, [(0, 0, 100, 100), (0, 90, 100, 100)]),
    ],
)
def test_tiles(source_hw: Any, tile_hw: Any, overlap_px: int, expected: list[Any]) -> None:
    assert tiles(source_hw, tile_hw, overlap_px) == expected


def test_tiles_cover_all_and_overlap() -> None:
    random = np.random.default_rng(8)
    for _ in range(300):
        height, width, tile_h, tile_w = (int(side) for side in random.integers(1, 90, 4))
        overlap_px = int(random.integers(0, min(tile_h, tile_w)))
        windows = tiles((height, width), (tile_h, tile_w), overlap_px)
        seen = np.zeros((height, width), int)
        for top, left, tall, wide in windows:
            assert (tall, wide) == (min(tile_h, height), min(tile_w, width))
            assert seen[top : top + tall, left : left + wide].shape == (tall, wide)
            seen[top : top + tall, left : left + wide] += 1
        assert seen.min() == 1
        assert len(windows) == len(set(windows))
        for axis, side, tile in ((0, height, tile_h), (1, width, tile_w)):
            starts = sorted({window[axis] for window in windows})
            assert len(starts) == max(1, -(-(side - overlap_px) // (tile - overlap_px)))
            assert all(first + tile - second >= overlap_px for first, second in itertools.pairwise(starts))


def test_tiles_that_cannot_be() -> None:
    for overlap_px in (-1, 50):
        with pytest.raises(ValueError, match="cannot share"):
            tiles((100, 100), (50, 60), overlap_px)
