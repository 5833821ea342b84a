"""Preprocessing against torchvision: its sizes, and its pixels to one level of 255."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torchvision.models import ResNet50_Weights
from torchvision.models.segmentation import FCN_ResNet101_Weights
from torchvision.transforms import InterpolationMode, functional

from model_inference import Preprocessing, demo_spec, torchvision_preprocessing
from pipelines.errors import InternalError, InvalidMedia, ModelUnavailable, TooLarge, UnsupportedMedia
from pipelines.frames import Geometry
from pipelines.preprocess import Preprocessor, geometry

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FCN = torchvision_preprocessing(FCN_ResNet101_Weights.DEFAULT.transforms())
RESNET = torchvision_preprocessing(ResNet50_Weights.IMAGENET1K_V2.transforms())
SIZES = [(361, 643), (643, 361), (720, 1280), (37, 29), (2, 3), (1, 1), (224, 224)]
Picture = npt.NDArray[np.uint8]


def natural(height: int, width: int, count: int = 1) -> Picture:
    """Pictures `(N, H, W, 3)` with the spectrum of photographs (amplitude falls with frequency)."""
    noise = np.random.default_rng(height + width).standard_normal((count, height, width, 3))
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    radius[0, 0] = 1
    shaped = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) / radius[..., None], axes=(1, 2)).real
    shaped /= max(float(shaped.std()), 1e-9)
    return np.clip(shaped * 50 + 128, 0, 255).astype(np.uint8)


def to_nchw(pixels_nhwc: Picture) -> torch.Tensor:
    return torch.from_numpy(pixels_nhwc).permute(0, 3, 1, 2)


def reference(preprocessing: Preprocessing, pixels_nhwc: Picture) -> torch.Tensor:
    """The same by the functions that torchvision's presets are made of, on uint8 tensors."""
    pixels: Any = to_nchw(pixels_nhwc)
    if preprocessing.resize_px is not None:
        size = preprocessing.resize_px
        mode = InterpolationMode(preprocessing.interpolation)
        wanted = [size] if isinstance(size, int) else list(size)
        pixels = functional.resize(pixels, wanted, interpolation=mode, antialias=preprocessing.antialias)
    if preprocessing.crop_px is not None:
        pixels = functional.center_crop(pixels, list(preprocessing.crop_px))
    scaled = functional.convert_image_dtype(pixels)
    normalized: torch.Tensor = functional.normalize(scaled, list(preprocessing.mean), list(preprocessing.std))
    return normalized


def levels_apart(left: torch.Tensor, right: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Absolute difference in levels of 255, before normalization."""
    return (left - right).abs() * torch.tensor(preprocessing.std)[:, None, None] * 255


def check(got: torch.Tensor, expected: torch.Tensor, preprocessing: Preprocessing) -> None:
    """One level at most; on the rim of an uncropped picture, where DALI repeats pixels and torchvision does
    not weigh those beyond it, a few more.
    """
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    apart = levels_apart(got.cpu(), expected, preprocessing)
    inner = apart if preprocessing.crop_px else apart[..., 1:-1, 1:-1]
    assert inner.max() < 1.01
    assert apart.max() < 18.01
    assert apart.mean() < 0.02


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("weights", [FCN_ResNet101_Weights.DEFAULT, ResNet50_Weights.IMAGENET1K_V2])
def test_pixels_are_those_of_the_weights_own_transform(
    device: str, hw: tuple[int, int], weights: Any
) -> None:
    transform = weights.transforms()
    preprocessing = torchvision_preprocessing(transform)
    pixels = natural(*hw)
    got = Preprocessor(preprocessing, device=device, max_frames=4)(pixels)
    assert got.device.type == device
    check(got, transform(to_nchw(pixels)), preprocessing)


@pytest.mark.parametrize(
    "preprocessing",
    [
        demo_spec().preprocessing,
        Preprocessing(resize_px=None),
        Preprocessing(resize_px=None, crop_px=(31, 30)),
        Preprocessing(resize_px=(61, 200), crop_px=(50, 77)),
        Preprocessing(resize_px=100, interpolation="nearest"),
        Preprocessing(resize_px=100, crop_px=(90, 81), antialias=False),
    ],
    ids=["demo", "own size", "own size cropped", "both sides", "nearest", "no antialias"],
)
@pytest.mark.parametrize("hw", [(123, 211), (50, 40)])
def test_other_ways_to_resize_are_torchvisions_too(preprocessing: Preprocessing, hw: tuple[int, int]) -> None:
    pixels = natural(*hw, count=2)
    got = Preprocessor(preprocessing, device="cpu", max_frames=4)(pixels)
    apart = levels_apart(got, reference(preprocessing, pixels), preprocessing)
    inner = apart if preprocessing.crop_px else apart[..., 1:-1, 1:-1]
    assert inner.max() < 1.01


def test_bicubic_is_close_to_torchvisions() -> None:
    preprocessing = Preprocessing(resize_px=100, crop_px=(90, 90), interpolation="bicubic")
    pixels = natural(361, 243)
    apart = levels_apart(
        Preprocessor(preprocessing, device="cpu", max_frames=1)(pixels),
        reference(preprocessing, pixels),
        preprocessing,
    )
    assert apart.max() < 3.01
    assert apart.mean() < 0.2
    unsupported = dataclasses.replace(preprocessing, antialias=False)
    with pytest.raises(ModelUnavailable, match="bicubic"):
        Preprocessor(unsupported, device="cpu", max_frames=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"interpolation": "nearest"},
        {"interpolation": "bicubic"},
        {"antialias": False},
        {"crop_px": (222, 224)},
        {"resize_px": 231},
        {"mean": (0.485, 0.456, 0.41)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_wrong_flag_fails_the_check(wrong: dict[str, Any]) -> None:
    pixels = natural(480, 640)
    expected = reference(RESNET, pixels)
    got = Preprocessor(dataclasses.replace(RESNET, **wrong), device="cpu", max_frames=1)(pixels)
    with pytest.raises(AssertionError):
        check(got, expected, RESNET)


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
    ("preprocessing", "hw", "raises", "message"),
    [
        (Preprocessing(resize_px=None, crop_px=(64, 64)), (63, 90), UnsupportedMedia, "90x63 px"),
        (FCN, (8000, 8), TooLarge, "8x8000 px becomes 520x520000 px"),
        (Preprocessing(resize_px=None), (4096, 2048), TooLarge, "2048x4096 px"),
    ],
)
def test_sizes_that_the_model_cannot_take_are_errors(
    preprocessing: Preprocessing, hw: tuple[int, int], raises: type[Exception], message: str
) -> None:
    with pytest.raises(raises, match=message):
        geometry(preprocessing, *hw)


def test_one_graph_serves_all_sizes_and_counts() -> None:
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=3)
    for count, hw in [(2, (300, 300)), (1, (233, 500)), (7, (120, 90)), (3, (300, 301))]:
        pixels = natural(*hw, count=count)
        check(preprocess(pixels), reference(RESNET, pixels), RESNET)


def test_earlier_results_stay_as_they_are() -> None:
    """Results share DALI's memory: a later run must not write into it."""
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=2)
    first = preprocess(natural(240, 320))
    copy = first.clone()
    for hw in [(240, 320), (260, 320), (240, 320)]:
        preprocess(255 - natural(*hw))
    assert torch.equal(first, copy)


def test_frames_may_be_read_only_strided_or_tensors() -> None:
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=4)
    pixels = natural(250, 260, count=2)
    expected = preprocess(pixels)
    frozen = pixels.copy()
    frozen.flags.writeable = False
    flipped = np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1]
    for same in (frozen, flipped, torch.from_numpy(pixels)):
        assert torch.equal(preprocess(same), expected)


def test_after_an_error_the_next_frames_are_right() -> None:
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=2)
    pixels = natural(240, 320)
    expected = preprocess(pixels)
    half_fed = {"frames": [pixels[0]], "start": [np.zeros(2, np.float32)], "end": [np.ones(2, np.float32)]}
    with pytest.raises(InternalError, match="DALI failed: ") as caught:
        preprocess._graph(**half_fed, size=[np.full(3, 9, np.float32)])
    assert "/" not in caught.value.message
    assert torch.equal(preprocess(pixels), expected)
    with pytest.raises(InternalError, match="batch size"):
        preprocess._graph(frames=[pixels[0]] * 3)
    assert torch.equal(preprocess(pixels), expected)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        torch.zeros(1, 8, 8, 3),
    ],
)
def test_frames_of_another_form_are_refused(pixels: Any) -> None:
    with pytest.raises(InvalidMedia, match="uint8"):
        Preprocessor(FCN, device="cpu", max_frames=1)(pixels)


@pytest.mark.gpu
def test_frames_on_the_gpu_are_prepared_as_those_on_the_host() -> None:
    preprocess = Preprocessor(FCN, device="cuda", max_frames=4)
    pixels = natural(240, 320, count=3)
    on_gpu = preprocess(torch.from_numpy(pixels).cuda())
    assert torch.equal(on_gpu, preprocess(pixels))
    apart = levels_apart(on_gpu.cpu(), Preprocessor(FCN, device="cpu", max_frames=4)(pixels), FCN)
    assert apart.max() < 1.01
