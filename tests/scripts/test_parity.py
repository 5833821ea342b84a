"""Our pixels against the transform that torchvision's weights bring along, by its PIL path and its tensor
path.

The bound is that of a level a pixel on average, and of eight levels of 255 for 999 of 1000; what is wrong by
a flag or half a pixel is farther off, which is tested too.
"""

from __future__ import annotations

import dataclasses
import functools
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.models import EfficientNet_V2_S_Weights, ResNet50_Weights, Swin_V2_T_Weights
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.segmentation import FCN_ResNet101_Weights
from torchvision.models.video import R3D_18_Weights

from pipelines.frames.dali import Graph, picture_input
from pipelines.frames.geometry import geometry
from pipelines.frames.preprocess import Preprocessor, Window, prepare_frames
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.models.spec import Preprocessing
from pipelines.protocol.options import Options
from tests.support.media import as_mode, clip
from tests.support.pixels import Picture, levels_apart, natural, preset, to_nchw

DETECTOR = Preprocessing(resize_px=800, max_px=1333, antialias=False, round_pixels=False)
SSD_MEAN = (0.48235, 0.45882, 0.40784)
SSD = Preprocessing(
    resize_px=(300, 300), antialias=False, round_pixels=False, mean=SSD_MEAN, std=(1 / 255,) * 3
)
PRESETS = {
    "bilinear": preset(ResNet50_Weights.IMAGENET1K_V2),
    "bilinear, square": preset(EfficientNet_V2_S_Weights.DEFAULT),
    "bicubic": preset(Swin_V2_T_Weights.DEFAULT),
    "segmentation": preset(FCN_ResNet101_Weights.DEFAULT),
}
ACTION, CLIP_TRANSFORM = preset(R3D_18_Weights.DEFAULT)


def photograph(height: int, width: int, mode: str = "RGB") -> Image.Image:
    return as_mode(natural(height, width)[0], mode)


def photograph_4k() -> Image.Image:
    """A part of it, mirrored into the rest."""
    part = natural(540, 960)[0]
    return Image.fromarray(np.pad(part, ((0, 1620), (0, 2880), (0, 0)), mode="symmetric"))


def frame_of_10_bits() -> Image.Image:
    """A frame of a 10-bit clip, as we decode it."""
    pictures = [natural(180, 322)[0]]
    data = clip(
        codec="libx265", pix_fmt="yuv420p10le", pictures=pictures, width=322, height=180, container="matroska"
    )
    with open_media(data, options=Options(), limits=Limits(), device="cpu") as medium:
        (chunk,) = medium.chunks()
    return Image.fromarray(np.asarray(chunk.pixels_nhwc)[0])


PICTURES: dict[str, Callable[[], Image.Image]] = {
    "odd": lambda: photograph(361, 643),
    "portrait": lambda: photograph(641, 359),
    "tiny": lambda: photograph(8, 8),
    "4K": photograph_4k,
    "grey": lambda: photograph(300, 401, "L"),
    "alpha": lambda: photograph(301, 400, "RGBA"),
    "10 bits": frame_of_10_bits,
}


@functools.cache
def made(kind: str) -> tuple[Image.Image, Picture]:
    """A picture, and what the server decodes of it, `(1, H, W, 3)`."""
    picture, sink = PICTURES[kind](), io.BytesIO()
    picture.save(sink, "png", compress_level=1)
    with open_media(sink.getvalue(), options=Options(), limits=Limits(), device="cpu") as medium:
        (chunk,) = medium.chunks()
    return picture, np.asarray(chunk.pixels_nhwc)


def ours(preprocessing: Preprocessing, pixels_nhwc: Picture) -> Tensor:
    return Preprocessor(preprocessing, device="cpu", max_frames=4)(pixels_nhwc)


def check(got: Tensor, expected: Tensor, preprocessing: Preprocessing) -> None:
    """A level on average, eight in 999 of 1000; sizes and type are the same."""
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    apart = levels_apart(got, expected, preprocessing).flatten()
    worst = float(apart.kthvalue(max(1, round(len(apart) * 0.999))).values)
    assert apart.mean() <= 1
    assert worst <= 8


@pytest.mark.parametrize("kind", PICTURES)
@pytest.mark.parametrize("name", PRESETS)
def test_pictures_are_as_their_weights_want_them(name: str, kind: str) -> None:
    preprocessing, transform = PRESETS[name]
    picture, pixels = made(kind)
    got = ours(preprocessing, pixels)
    check(got, transform(picture.convert("RGB"))[None], preprocessing)
    check(got, transform(to_nchw(pixels)), preprocessing)


@pytest.mark.parametrize("file", ["baboon_1280px.jpg", "monkey_1920px.jpg"])
@pytest.mark.parametrize("name", PRESETS)
def test_real_pictures_too(shared_media: Path, name: str, file: str) -> None:
    preprocessing, transform = PRESETS[name]
    data = (shared_media / file).read_bytes()
    with open_media(data, options=Options(), limits=Limits(), device="cpu") as medium:
        (chunk,) = medium.chunks()
    with Image.open(io.BytesIO(data)) as picture:
        expected = transform(picture.convert("RGB"))[None]
    check(ours(preprocessing, np.asarray(chunk.pixels_nhwc)), expected, preprocessing)


@pytest.mark.parametrize("hw", [(240, 321), (361, 203), (8, 8), (128, 171)])
def test_clips_are_as_their_weights_want_them(hw: tuple[int, int]) -> None:
    pixels = natural(*hw, count=3)
    expected = CLIP_TRANSFORM(to_nchw(pixels)).transpose(0, 1)
    check(ours(ACTION, pixels), expected, ACTION)


@pytest.mark.parametrize("hw", [(361, 643), (720, 405), (601, 1201), (8, 8), (100, 1000)])
@pytest.mark.parametrize("name", ["R-CNN", "SSD"])
def test_detectors_pixels_are_not_rounded_and_the_same(name: str, hw: tuple[int, int]) -> None:
    """Half a hundredth of a level: both compute in float32."""
    preprocessing = DETECTOR if name == "R-CNN" else SSD
    fixed = (300, 300) if name == "SSD" else None
    transform = GeneralizedRCNNTransform(
        800, 1333, list(preprocessing.mean), list(preprocessing.std), fixed_size=fixed
    ).eval()
    pixels = natural(*hw)
    images, _ = transform([to_nchw(pixels)[0].float() / 255])
    height, width = images.image_sizes[0]
    got = ours(preprocessing, pixels)
    assert got.shape == (1, 3, height, width)
    apart = levels_apart(got, images.tensors[..., :height, :width], preprocessing)
    assert apart.mean() < 1e-3
    assert apart.max() < 0.05


def test_a_detector_that_rounds_is_seen() -> None:
    pixels = natural(361, 643)
    rounded = ours(dataclasses.replace(DETECTOR, round_pixels=True), pixels)
    assert levels_apart(rounded, ours(DETECTOR, pixels), DETECTOR).mean() > 0.1


WRONG: list[dict[str, Any]] = [
    {"interpolation": "nearest"},
    {"interpolation": "bicubic"},
    {"antialias": False},
    {"crop_px": (222, 224)},
    {"resize_px": 231},
    {"mean": (0.485, 0.456, 0.42)},
    {"channels": "BGR"},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_a_wrong_flag_fails_the_check(wrong: dict[str, Any]) -> None:
    preprocessing, transform = PRESETS["bilinear"]
    pixels = natural(480, 640)
    got = ours(dataclasses.replace(preprocessing, **wrong), pixels)
    for expected in (transform(Image.fromarray(pixels[0]))[None], transform(to_nchw(pixels))):
        with pytest.raises(AssertionError):
            check(got, expected, preprocessing)


@pytest.mark.parametrize("shift_px", [0.0, 0.5])
def test_a_crop_off_by_half_a_pixel_fails_the_check(shift_px: float) -> None:
    preprocessing, transform = PRESETS["bilinear"]
    pixels = natural(480, 640)
    shape = geometry(preprocessing, 480, 640)
    window = Window.of(shape, preprocessing)
    off = shift_px * 480 / shape.resized_hw[0]
    moved = dataclasses.replace(
        window, start=[value + off for value in window.start], end=[value + off for value in window.end]
    )
    graph = Graph(
        lambda device: [prepare_frames(picture_input("frames", device), moved, preprocessing)],
        device="cpu",
        max_samples=1,
    )
    (got,) = graph(frames=list(pixels))
    expected = transform(to_nchw(pixels))
    if shift_px == 0:
        check(got, expected, preprocessing)
        return
    with pytest.raises(AssertionError):
        check(got, expected, preprocessing)
