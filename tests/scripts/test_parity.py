"""DALI's pixels against the transform that torchvision's weights bring along, by its PIL and its tensor path.

The bars are those of scripts.parity; what is wrong by a flag or half a pixel misses them, as tests show.
"""

from __future__ import annotations

import dataclasses
import io
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
from pipelines.frames.preprocess import Preprocessor, Region, prepare_frames
from pipelines.models.spec import Preprocessing
from pipelines.protocol.options import Options
from scripts.parity.measures import Pixels
from scripts.parity.media import Material, decode, materials
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


PICTURES = [one for one in materials() if one.kind == "picture" or one.name == "10 bits"]


def ours(preprocessing: Preprocessing, pixels_nhwc: Picture) -> Tensor:
    return Preprocessor(preprocessing, device="cpu", max_frames=4)(pixels_nhwc)


def passes(got: Tensor, expected: Tensor, preprocessing: Preprocessing) -> bool:
    """A level on average, eight in 999 of 1000; sizes and type are the same."""
    pixels = Pixels(preprocessing)
    pixels.add(got, expected)
    return got.dtype == torch.float32 and all(one.passed for one in pixels.measures("any"))


@pytest.mark.parametrize("material", PICTURES, ids=lambda one: one.name)
@pytest.mark.parametrize("name", PRESETS)
def test_pictures_are_as_their_weights_want_them(name: str, material: Material) -> None:
    if material.missing:
        pytest.skip(f"{material.name} is not there")
    preprocessing, transform = PRESETS[name]
    pixels = np.asarray(decode(material, Options(max_frames=1)).pixels_nhwc)
    picture = Image.fromarray(pixels[0])
    if material.kind == "picture":
        picture = Image.open(io.BytesIO(material.load())).convert("RGB")
    got = ours(preprocessing, pixels)
    assert passes(got, transform(picture)[None], preprocessing)
    assert passes(got, transform(to_nchw(pixels)), preprocessing)


@pytest.mark.parametrize("hw", [(240, 321), (361, 203), (8, 8), (128, 171)])
def test_clips_are_as_their_weights_want_them(hw: tuple[int, int]) -> None:
    pixels = natural(*hw, count=3)
    expected = CLIP_TRANSFORM(to_nchw(pixels)).transpose(0, 1)
    assert passes(ours(ACTION, pixels), expected, ACTION)


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
        assert not passes(got, expected, preprocessing)


@pytest.mark.parametrize("shift_px", [0.0, 0.5])
def test_a_crop_off_by_half_a_pixel_fails_the_check(shift_px: float) -> None:
    preprocessing, transform = PRESETS["bilinear"]
    pixels = natural(480, 640)
    shape = geometry(preprocessing, 480, 640)
    window = Region.of(shape, preprocessing)
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
    assert passes(got, expected, preprocessing) is (shift_px == 0)
