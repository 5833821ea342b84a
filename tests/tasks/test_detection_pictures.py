"""Masks of detections against torchvision's; pictures of them: overlays, extracts, redaction, films."""

from __future__ import annotations

import io
import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes

from pipelines.frames.batch import FrameBatch
from pipelines.models.outputs import BoxOutput
from pipelines.protocol import rle
from pipelines.protocol.answers import DetectionAnswer
from pipelines.protocol.options import Options
from pipelines.rendering.dali_graphs import palette
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.boxes import read_frame, to_source
from pipelines.tasks.detection import Detection
from pipelines.tasks.masks import object_masks
from tests.support.toy_boxes import (
    DOG,
    HEIGHT,
    LABELS,
    PERSON,
    WHOLE,
    WIDTH,
    Array,
    Row,
    ask,
    batch,
    masks,
    seen,
    spec,
    tile,
)

EDGES: list[Row] = [
    (0, 0, 64, 48, 1, 0.9),
    (-9, -7, 20, 20.5, 1, 0.9),
    (50.3, 40.2, 80, 70, 1, 0.9),
    (63.9, 47.9, 64, 48, 1, 0.9),
    (0, 0, 0.2, 0.1, 1, 0.9),
    (20.1, 20.2, 20.3, 20.4, 1, 0.9),
    (-40, 10, 100, 11, 1, 0.9),
]


def test_masks_at_the_edges_are_pasted_as_torchvision_does() -> None:
    """Boxes that reach beyond the frame, as those of a letterbox do, and boxes smaller than a pixel."""
    given = masks(len(EDGES))
    frame = seen(*EDGES, masks=given)
    answer = ask(frame)
    boxes = resize_boxes(frame["boxes"], [HEIGHT // 2, WIDTH // 2], [HEIGHT, WIDTH])
    expected = (paste_masks_in_image(given, boxes, (HEIGHT, WIDTH)) > 0.5)[:, 0].numpy()
    assert np.array_equal(np.stack([rle.decode_object(mask) for mask in answer.mask]), expected)


# Far larger than the frame, on one side or on all.
VAST: list[Row] = [
    (-300, -200, 300, 200, 1, 0.9),
    (10, 10, 900, 700, 1, 0.9),
    (-900, 20, 40, 400, 1, 0.9),
    (30, -4000, 34, 4000, 1, 0.9),
]


def test_masks_of_vast_boxes_are_pasted_as_torchvision_does() -> None:
    given = masks(len(VAST))
    frame = seen(*VAST, masks=given)
    boxes = resize_boxes(frame["boxes"], [HEIGHT // 2, WIDTH // 2], [HEIGHT, WIDTH])
    expected = paste_masks_in_image(given, boxes, (HEIGHT, WIDTH))[:, 0].numpy()
    assert expected.any(axis=(1, 2)).all()
    pasted = np.zeros_like(expected)
    view = to_source(read_frame(frame, 0.5, ()), WHOLE)
    for whole, mask in zip(pasted, object_masks(view, (HEIGHT, WIDTH)), strict=True):
        whole[mask.rows, mask.columns] = mask.probability_hw
    np.testing.assert_allclose(pasted, expected, atol=1e-5)


@pytest.mark.parametrize("reach", [1e4, 1e6, 1e20, 1e38])
def test_masks_of_boxes_without_measure_are_those_of_the_middle(reach: float) -> None:
    """A region of any size takes memory for the frame alone."""
    given = torch.zeros(1, 1, 28, 28)
    given[..., 10:18, 10:18] = 1
    answer = ask(seen((-reach, -reach, reach, reach, 1, 0.9), masks=given))
    assert answer.box.tolist() == [[0, 0, WIDTH, HEIGHT]]
    assert rle.decode_object(answer.mask[0]).all()


@pytest.mark.parametrize("tiled", [False, True])
def test_masks_are_pasted_as_torchvision_does(tiled: bool) -> None:
    given = masks(2)
    frame = seen(PERSON, DOG, masks=given)
    if tiled:
        views = [tile(0, 0), tile(40, 60)]
        empty = seen(masks=masks(0))
        answer = ask(empty, frame, views=views)
        shift = torch.tensor([60.0, 40.0, 60.0, 40.0])
        boxes = resize_boxes(frame["boxes"], [24, 32], [48, 64]) + shift
    else:
        answer = ask(frame)
        boxes = resize_boxes(frame["boxes"], [HEIGHT // 2, WIDTH // 2], [HEIGHT, WIDTH])
    expected = (paste_masks_in_image(given, boxes, (HEIGHT, WIDTH)) > 0.5)[:, 0].numpy()
    assert expected.any(axis=(1, 2)).all()
    found = np.stack([rle.decode_object(mask) for mask in answer.mask])
    assert np.array_equal(found, expected)


def test_forms_of_masks_agree() -> None:
    frame = seen(PERSON, DOG, masks=masks(2))
    forms = {form: ask(frame, mask=form).mask for form in ("rle", "png", "raw", "probability", "none")}
    assert forms["none"] == []
    for row in range(2):
        inside = rle.decode_object(forms["rle"][row])
        assert json.loads(forms["rle"][row])["size"] == [HEIGHT, WIDTH]
        png, sure = (np.array(Image.open(io.BytesIO(forms[form][row]))) for form in ("png", "probability"))
        assert np.array_equal(png, inside * np.uint8(255))
        assert forms["raw"][row] == png.tobytes()
        assert np.array_equal(sure[sure != 128] > 127, inside[sure != 128])


def test_masks_follow_what_counts() -> None:
    answer = ask(seen(PERSON, DOG, masks=masks(2)), class_name="dog")
    assert answer.mask == [ask(seen(PERSON, DOG, masks=masks(2))).mask[1]]


def raw(answer: DetectionAnswer) -> Array:
    pictures = [np.frombuffer(one, np.uint8).reshape(HEIGHT, WIDTH, 3) for one in answer.overlay]
    return np.stack(pictures)


BOX = (slice(12, 60), slice(10, 50))


def outside(pixels: Array) -> Array:
    """The frame without the box of PERSON and the caption above it."""
    rest = pixels.copy()
    rest[: BOX[0].stop, :100] = 0
    return rest


def test_overlays_show_boxes_and_captions() -> None:
    frames = batch(2)
    drawn = raw(ask(seen(PERSON), seen(), overlay="raw", pictures=frames))
    pixels = np.asarray(frames.pixels_nhwc)
    assert np.array_equal(drawn[1], pixels[1])
    assert np.array_equal(outside(drawn[0]), outside(pixels[0]))
    colour = palette(len(LABELS))[1]
    assert (drawn[0, 59, 10:50] == colour).all()
    assert (drawn[0, 30, 49] == colour).all()
    # Boxes have no filling.
    assert np.array_equal(drawn[0, 30:50, 20:40], pixels[0, 30:50, 20:40])


def test_classes_have_colours_of_their_own() -> None:
    numbers = [0, 1, 2, 5, 6, 1000]
    rows: list[Row] = [(*PERSON[:4], number, 0.9) for number in numbers]
    corners = [raw(ask(seen(row), overlay="raw"))[0, 59, 49].tolist() for row in rows]
    colours = palette(len(LABELS)).tolist()
    assert corners == [colours[number] for number in (5, 1, 2, 5, 1, 5)]


@pytest.mark.parametrize(("outline_px", "changed"), [(0, 0), (1, 1), (7, 7)])
def test_outlines_are_as_wide_as_asked_for(outline_px: int, changed: int) -> None:
    frames = batch(1)
    drawn = raw(ask(seen(PERSON), overlay="raw", outline_px=outline_px, pictures=frames))[0]
    row = (drawn[45, 10:30] != np.asarray(frames.pixels_nhwc)[0, 45, 10:30]).any(axis=1)
    assert row.tolist() == [True] * changed + [False] * (20 - changed)


def test_overlays_fill_masks() -> None:
    frames = batch(1)
    whole = torch.ones(1, 1, 28, 28)
    drawn = raw(ask(seen(PERSON, masks=whole), overlay="raw", alpha=0.5, pictures=frames))[0]
    pixels = np.asarray(frames.pixels_nhwc)[0, 35:50, 20:40]
    expected = 0.5 * pixels + 0.5 * palette(len(LABELS))[1]
    assert np.abs(drawn[35:50, 20:40] - expected).max() <= 1
    assert np.array_equal(outside(drawn)[62:], outside(np.asarray(frames.pixels_nhwc)[0])[62:])


@pytest.mark.parametrize("with_masks", [False, True])
def test_without_opacity_frames_stay(with_masks: bool) -> None:
    more = {"masks": torch.ones(1, 1, 28, 28)} if with_masks else {}
    frames = batch(1)
    drawn = raw(ask(seen(PERSON, **more), overlay="raw", alpha=0.0, pictures=frames))
    assert np.array_equal(drawn, np.asarray(frames.pixels_nhwc))


def test_extracts_leave_the_boxes_alone() -> None:
    frames = batch(2)
    drawn = raw(
        ask(seen(PERSON), seen(), overlay="raw", style="extract", background="102030", pictures=frames)
    )
    expected = np.empty_like(drawn)
    expected[:] = (0x10, 0x20, 0x30)
    expected[0][BOX] = np.asarray(frames.pixels_nhwc)[0][BOX]
    assert np.array_equal(drawn, expected)


def test_extracts_leave_the_masks_alone() -> None:
    frames, frame = batch(1), seen(PERSON, masks=masks(1))
    answer = ask(frame, overlay="raw", style="extract", pictures=frames)
    inside = rle.decode_object(answer.mask[0])[..., None]
    assert 0 < inside.sum() < 48 * 40
    assert np.array_equal(raw(answer)[0], np.asarray(frames.pixels_nhwc)[0] * inside)


def test_redaction_hides_what_is_in_the_box() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames = FrameBatch.of(noise, pts_s=np.zeros(1), frame_index=np.zeros(1, np.int64))
    drawn = raw(ask(seen(PERSON), overlay="raw", style="redact", pictures=frames))[0]
    outside = np.ones((HEIGHT, WIDTH), bool)
    outside[BOX] = False
    assert np.array_equal(drawn[outside], noise[0][outside])
    # Blocks of 16 pixels, each of one colour, near the mean of noise.
    block = drawn[16:32, 16:32].astype(int)
    assert (block == block[0, 0]).all()
    assert np.abs(block - 127).max() < 40


def test_redaction_hides_the_pixels_of_masks() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, HEIGHT, WIDTH, 3), dtype=np.uint8)
    frames = FrameBatch.of(noise, pts_s=np.zeros(1), frame_index=np.zeros(1, np.int64))
    answer = ask(seen(PERSON, masks=masks(1)), overlay="raw", style="redact", pictures=frames)
    inside = rle.decode_object(answer.mask[0])
    same = (raw(answer)[0] == noise[0]).all(axis=2)
    assert same[~inside].all()
    assert same[inside].mean() < 0.01


def test_the_best_lies_on_top() -> None:
    """Where objects overlap, the better one's colour is seen."""
    rows: list[Row] = [PERSON, (5, 6, 25, 30, 2, 0.8)]
    drawn = raw(ask(seen(*rows, masks=torch.ones(2, 1, 28, 28)), overlay="raw", alpha=1.0))[0]
    assert drawn[45, 30].tolist() == palette(len(LABELS))[1].tolist()


def test_jpegs_and_a_film() -> None:
    frames = batch(3)
    jpegs = ask(seen(PERSON), seen(), seen(DOG), overlay="jpeg", pictures=frames).overlay
    assert [Image.open(io.BytesIO(one)).size for one in jpegs] == [(WIDTH, HEIGHT)] * 3
    film = ask(seen(PERSON), seen(), seen(DOG), overlay="mp4", pictures=frames)
    assert film.overlay == []
    with av.open(io.BytesIO(film.video), mode="r") as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([0, 0.1, 0.2], abs=1e-4)


def test_a_film_goes_on_from_chunk_to_chunk() -> None:
    job = Detection(spec(), Options(overlay="mp4"))
    post = Postprocessor(device="cpu", max_frames=4, classes=len(LABELS))
    parts = [job.read(BoxOutput([seen(PERSON), seen(DOG)]))]
    film = b"".join(
        job.answer(batch(2, first), parts, [WHOLE], post, final=first == 2).video for first in (0, 2)
    )
    with av.open(io.BytesIO(film), mode="r") as container:
        assert len(list(container.decode(video=0))) == 4
