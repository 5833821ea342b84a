"""The CPU's way to the model's pixels: torchvision's and Pillow's, whatever the form, size and strides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as first_functional
from torchvision.transforms.v2 import functional

from pipelines.frames.batch import FrameBatch
from pipelines.frames.preprocess import Preprocessor
from pipelines.frames.resize import Resizer, check_kernel, normalize, prepare_on_cpu
from pipelines.media.medium import Wanted
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable, TooLarge
from tests.support.pixels import FORMS, letterboxed, levels_apart, natural, reference

SIZES = [(361, 643), (643, 361), (720, 1280), (37, 29), (2, 3), (1, 1), (224, 224)]
WAYS = {
    "FCN": Preprocessing(resize_px=520),
    "ResNet": Preprocessing(resize_px=232, crop_px=(224, 224)),
    "own size": Preprocessing(resize_px=None),
    "own size, cropped": Preprocessing(resize_px=None, crop_px=(31, 30)),
    "both sides": Preprocessing(resize_px=(61, 200), crop_px=(50, 77)),
    "nearest": Preprocessing(resize_px=100, interpolation="nearest"),
    "bicubic": Preprocessing(resize_px=100, crop_px=(90, 90), interpolation="bicubic"),
    "no antialias": Preprocessing(resize_px=100, crop_px=(90, 81), antialias=False),
    "a crop of a smaller frame": Preprocessing(resize_px=24, crop_px=(31, 64), pad_value=200),
}


def resize_of(preprocessing: Preprocessing) -> Any:
    """torchvision's function: without antialiasing, as presets of clips have it, its first one, by floats."""
    return functional.resize if preprocessing.antialias else first_functional.resize


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("name", WAYS)
def test_pixels_are_torchvisions_to_the_bit(name: str, hw: tuple[int, int]) -> None:
    pixels = natural(*hw, count=2)
    got = prepare_on_cpu(pixels, WAYS[name])
    expected = reference(WAYS[name], pixels, resize=resize_of(WAYS[name]))
    assert got.dtype == torch.float32
    assert got.is_contiguous()
    assert got.shape == expected.shape
    assert levels_apart(got, expected, WAYS[name]).max() < 1e-3


@pytest.mark.parametrize("hw", [(70, 53), (53, 70), (300, 401), (8, 8), (97, 128)])
@pytest.mark.parametrize("name", [name for name in FORMS if "not rounded" not in name])
def test_letterboxes_are_torchvisions_to_the_bit(name: str, hw: tuple[int, int]) -> None:
    pixels = natural(*hw, count=2)
    got = prepare_on_cpu(pixels, FORMS[name])
    expected = letterboxed(FORMS[name], pixels, resize=functional.resize)
    assert levels_apart(got, expected, FORMS[name]).max() < 1e-3


@pytest.mark.parametrize("name", [name for name in FORMS if "not rounded" not in name])
def test_letterboxes_without_antialiasing_are_those_of_opencv(name: str) -> None:
    """To a level: the networks that want them were fed by OpenCV."""
    cv2 = pytest.importorskip("cv2")
    preprocessing, pixels = dataclasses.replace(FORMS[name], antialias=False), natural(300, 401)

    def resize(pixels_nchw: Any, size: Sequence[int], **_: Any) -> Any:
        resized = cv2.resize(pixels_nchw[0].permute(1, 2, 0).numpy(), (size[1], size[0]))
        return torch.from_numpy(resized).permute(2, 0, 1)[None]

    expected = letterboxed(preprocessing, pixels, resize=resize)
    assert levels_apart(prepare_on_cpu(pixels, preprocessing), expected, preprocessing).max() < 1.001


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pixels_are_those_of_pillow(interpolation: Literal["bilinear", "bicubic"]) -> None:
    """What a preset does with a picture that was opened by Pillow: a level off at one pixel in a hundred."""
    pixels = natural(361, 643)
    preprocessing = Preprocessing(resize_px=(90, 160), interpolation=interpolation)
    by_pillow = Image.fromarray(pixels[0]).resize((160, 90), getattr(Image.Resampling, interpolation.upper()))
    expected = torch.from_numpy(np.array(by_pillow)).permute(2, 0, 1)
    apart = (Resizer(preprocessing, 361, 643)(pixels[0]).int() - expected.int()).abs()
    assert apart.max() <= 1
    assert apart.float().mean() < 0.01


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_pixels_that_are_not_rounded_are_those_of_floats(channels: Literal["RGB", "BGR"]) -> None:
    preprocessing = Preprocessing(resize_px=(60, 90), antialias=False, round_pixels=False, channels=channels)
    pixels = natural(123, 211, count=3)
    floats = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    expected = torch.nn.functional.interpolate(floats, size=(60, 90), mode="bilinear")
    expected = expected.flip(1) if channels == "BGR" else expected
    got = prepare_on_cpu(pixels, preprocessing)
    assert torch.allclose(got, normalize(list(expected), preprocessing), atol=1e-5)


@pytest.mark.parametrize("name", [*WAYS, *FORMS])
def test_the_dali_graph_gives_the_same(name: str) -> None:
    """To a level, but for the rim and bicubic curves: what a GPU gives is what a CPU gives."""
    preprocessing = {**WAYS, **FORMS}[name]
    pixels = natural(361, 643)
    by_dali = Preprocessor(preprocessing, device="cpu", max_frames=1)(pixels)
    apart = levels_apart(by_dali, prepare_on_cpu(pixels, preprocessing), preprocessing)
    assert apart.mean() < 0.2
    assert apart.quantile(0.95) < 1.01


def test_views_of_other_memory_are_read_right_and_not_kept() -> None:
    """Frames come as views into a decoder's memory, which the next frame fills anew."""
    for resize_px in (None, 40):
        preprocessing = Preprocessing(resize_px=resize_px)
        wide = np.ascontiguousarray(np.pad(natural(80, 60)[0], ((0, 0), (0, 7), (0, 0))))
        frame = wide[:, :60]
        levels = Resizer(preprocessing, 80, 60)(frame)
        before = levels.clone()
        expected = reference(preprocessing, np.ascontiguousarray(frame)[None], resize=functional.resize)
        frame[:] = 0
        assert torch.equal(levels, before)
        assert levels_apart(normalize([levels], preprocessing), expected, preprocessing).max() < 1e-3


def test_what_cannot_be_prepared_is_refused() -> None:
    with pytest.raises(TooLarge, match="for the model"):
        prepare_on_cpu(np.zeros((1, 10, 4000, 3), np.uint8), Preprocessing(resize_px=520))
    with pytest.raises(ModelUnavailable, match="bicubic"):
        check_kernel(Preprocessing(resize_px=64, interpolation="bicubic", antialias=False))


def test_frames_that_nobody_keeps_have_no_pixels() -> None:
    facts = {"size_hw": (4, 6), "pts_s": np.zeros(2), "frame_index": np.arange(2)}
    batch = FrameBatch(kept_nhwc=None, model_nchw=torch.zeros(2, 3, 2, 2), **facts)  # type: ignore[arg-type]
    assert (len(batch), batch.height_px, batch.width_px) == (2, 4, 6)
    with pytest.raises(ValueError, match="not kept"):
        _ = batch.pixels_nhwc
    with pytest.raises(ValueError, match="prepared"):
        Wanted(keep_pixels=False)


@pytest.mark.parametrize("hw", [(1, 30_000), (30_000, 1), (7, 29_989), (3, 20_000)])
@pytest.mark.parametrize("name", ["bilinear", "bilinear, rounded", "no antialias", "nearest", "bicubic"])
def test_of_a_long_narrow_frame_only_the_crop_is_enlarged(name: str, hw: tuple[int, int]) -> None:
    """Whole, the largest would be 24 GB; the pixels are those of its middle, enlarged alone."""
    ways: dict[str, dict[str, Any]] = {
        "bilinear": {"round_pixels": False},
        "bilinear, rounded": {},
        "no antialias": {"antialias": False},
        "nearest": {"interpolation": "nearest"},
        "bicubic": {"interpolation": "bicubic"},
    }
    preprocessing = Preprocessing(resize_px=256, crop_px=(224, 224), **ways[name])
    middle, reach = max(hw) // 2, 16
    levels = (np.arange(max(hw)) - middle + 100).clip(0, 200)
    pixels = np.broadcast_to(levels.reshape([-1 if side == max(hw) else 1 for side in hw] + [1]), (*hw, 3))
    pixels = np.ascontiguousarray(pixels.astype(np.uint8))
    resize = Resizer(preprocessing, *hw)
    got = resize(pixels[resize.part.region]).float()
    # A piece of the middle is enlarged by the same factor, if the factor is a whole number.
    tall = hw[0] > hw[1]
    piece = pixels[middle - reach : middle + reach] if tall else pixels[:, middle - reach : middle + reach]
    assert got.shape == (3, 224, 224)
    if 256 % min(hw) == 0:
        expected = Resizer(preprocessing, *piece.shape[:2])(piece).float()
        assert (got - expected).abs().max() <= (0 if name == "nearest" else 1)
    line = got[0, :, 112] if tall else got[0, 112]
    # A pixel of the frame is wider than what is cut out, or a few are.
    assert 100 - reach <= line.min() <= line.max() <= 100 + reach
    assert (line.diff() >= 0).all()


@pytest.mark.parametrize("hw", [(1, 8000), (8000, 1)])
def test_dali_enlarges_only_the_crop_too(hw: tuple[int, int]) -> None:
    pixels = natural(*hw)
    preprocessing = Preprocessing(resize_px=256, crop_px=(224, 224), antialias=False)
    by_dali = Preprocessor(preprocessing, device="cpu", max_frames=1)(pixels)
    assert levels_apart(by_dali, prepare_on_cpu(pixels, preprocessing), preprocessing).max() < 2
