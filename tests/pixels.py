"""Pictures like photographs, and what torchvision makes of them: oracles of the tests of preprocessing."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional

from model_inference import Preprocessing
from pipelines.sources.torchvision_models import transform_preprocessing

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


def reference(preprocessing: Preprocessing, pixels_nhwc: Picture) -> Tensor:
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
    normalized: Tensor = functional.normalize(scaled, list(preprocessing.mean), list(preprocessing.std))
    return normalized


def levels_apart(left: Tensor, right: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Absolute difference in levels of 255, before normalization."""
    return (left - right).abs() * torch.tensor(preprocessing.std)[:, None, None] * 255
