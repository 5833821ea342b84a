"""Pictures like photographs, and what torchvision makes of them: oracles of the tests of preprocessing."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from pipelines.frames.geometry import geometry
from pipelines.models.spec import Preprocessing
from pipelines.zoo.vision.models import transform_preprocessing

Picture = npt.NDArray[np.uint8]


def natural(height: int, width: int, count: int = 1) -> Picture:
    """Pictures `(N, H, W, 3)` with the spectrum of photographs (amplitude falls with frequency)."""
    noise = np.random.default_rng(height + width).standard_normal((count, height, width, 3), np.float32)
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    radius[0, 0] = 1
    shaped = np.fft.ifft2(np.fft.fft2(noise, axes=(1, 2)) / radius[..., None], axes=(1, 2)).real
    shaped /= max(float(shaped.std()), 1e-9)
    return np.ascontiguousarray(np.clip(shaped * 50 + 128, 0, 255), np.uint8)


def to_nchw(pixels_nhwc: Picture) -> Tensor:
    return torch.from_numpy(pixels_nhwc).permute(0, 3, 1, 2)


def preset(weights: Any) -> tuple[Preprocessing, Any]:
    """What a server takes from the weights' own transform, and the transform."""
    transform = weights.transforms()
    return transform_preprocessing(transform), transform


def reference(
    preprocessing: Preprocessing, pixels_nhwc: Picture, *, resize: Any = functional.resize
) -> Tensor:
    """The same by the functions that torchvision's presets are made of, on uint8 tensors.

    Args:
        resize: torchvision's first one, by floats, or that of its second interface, by integers as Pillow's.
    """
    pixels: Any = to_nchw(pixels_nhwc)
    if preprocessing.resize_px is not None:
        size = preprocessing.resize_px
        mode = InterpolationMode(preprocessing.interpolation)
        wanted = [size] if isinstance(size, int) else list(size)
        pixels = resize(pixels, wanted, interpolation=mode, antialias=preprocessing.antialias)
    if preprocessing.crop_px is not None:
        pixels = functional.center_crop(pixels, list(preprocessing.crop_px))
    scaled = functional.convert_image_dtype(pixels)
    normalized: Tensor = functional.normalize(scaled, list(preprocessing.mean), list(preprocessing.std))
    return normalized


def levels_apart(left: Tensor, right: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Absolute difference in levels of 255, before normalization."""
    return (left - right).abs() * torch.tensor(preprocessing.std)[:, None, None] * 255


def letterboxed(
    preprocessing: Preprocessing, pixels_nhwc: Picture, *, resize: Any = functional.resize
) -> Tensor:
    """The same by torchvision's functions: resize, pad, swap, normalize."""
    shape = geometry(preprocessing, *pixels_nhwc.shape[1:3])
    top, left, height, width = shape.crop_yxhw
    resized = resize(to_nchw(pixels_nhwc), list(shape.resized_hw), antialias=preprocessing.antialias)
    below, right = height + top - shape.resized_hw[0], width + left - shape.resized_hw[1]
    padded = functional.pad(resized, [-left, -top, right, below], fill=preprocessing.pad_value)
    swapped = padded.flip(1) if preprocessing.channels == "BGR" else padded
    scaled = functional.convert_image_dtype(swapped)
    normalized: Tensor = functional.normalize(scaled, list(preprocessing.mean), list(preprocessing.std))
    return normalized


PER_CHANNEL: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.25)}
BOX = Preprocessing(resize_px=(96, 128), fit="letterbox", pad_value=114, **PER_CHANNEL)
FORMS = {
    "letterbox": BOX,
    "letterbox, blue first": dataclasses.replace(BOX, channels="BGR"),
    "letterbox, not rounded": dataclasses.replace(BOX, round_pixels=False),
    "letterbox, not rounded, blue first": dataclasses.replace(BOX, round_pixels=False, channels="BGR"),
    "letterbox, black": dataclasses.replace(BOX, pad_value=0, antialias=False),
}
