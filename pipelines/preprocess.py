"""Frames of any size → the model's pixels, with DALI. Owns torchvision's arithmetic of sizes.

Only the region that survives the crop is resized, straight to the model's size: on a frame of 1280x720 that
halves the work, and it gives torchvision's pixels to one level of 255. Knows no decoder and no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.types import DALIDataType, DALIInterpType
from torch import Tensor

from model_inference import Preprocessing
from pipelines.errors import InvalidMedia, ModelUnavailable, TooLarge, UnsupportedMedia
from pipelines.frames import Geometry, PixelArray
from pipelines.graph import Graph, as_samples, number_input, picture_input, runs

# A frame of 1:15 at a shorter side of 520; beyond it one frame fills the memory of a GPU in the model.
MAX_MODEL_PIXELS = 4 << 20
INTERPOLATIONS = {
    "nearest": DALIInterpType.INTERP_NN,
    "bilinear": DALIInterpType.INTERP_LINEAR,
    "bicubic": DALIInterpType.INTERP_CUBIC,
}


def geometry(preprocessing: Preprocessing, height_px: int, width_px: int) -> Geometry:
    """Where the model's window lies on a frame of this size, in torchvision's integers.

    Sizes are those of torchvision's `Resize` (the longer side is cut to an integer) and `CenterCrop`
    (Python's `round`, half to even).

    Raises:
        UnsupportedMedia: the crop is larger than the resized frame.
        TooLarge: so long and narrow a frame, or one kept at its own size, has too many pixels for the model.
    """
    resized_h, resized_w = _resized_hw(preprocessing.resize_px, height_px, width_px)
    crop_h, crop_w = preprocessing.crop_px or (resized_h, resized_w)
    if crop_h > resized_h or crop_w > resized_w:
        raise UnsupportedMedia(
            f"a frame of {width_px}x{height_px} px becomes {resized_w}x{resized_h} px for the model, "
            f"which cuts {crop_w}x{crop_h} px out of it",
            hint="send larger frames",
        )
    if crop_h * crop_w > MAX_MODEL_PIXELS:
        raise TooLarge(
            f"a frame of {width_px}x{height_px} px becomes {crop_w}x{crop_h} px for the model, "
            f"over the limit of {MAX_MODEL_PIXELS} pixels",
            hint="cut long, narrow frames into pieces",
        )
    top, left = round((resized_h - crop_h) / 2.0), round((resized_w - crop_w) / 2.0)
    return Geometry(
        source_hw=(height_px, width_px),
        resized_hw=(resized_h, resized_w),
        crop_yxhw=(top, left, crop_h, crop_w),
    )


def _resized_hw(resize_px: int | tuple[int, int] | None, height_px: int, width_px: int) -> tuple[int, int]:
    """Size of the whole frame after torchvision's `Resize`."""
    if resize_px is None:
        return height_px, width_px
    if not isinstance(resize_px, int):
        return resize_px
    if width_px <= height_px:
        return int(resize_px * height_px / width_px), resize_px
    return resize_px, int(resize_px * width_px / height_px)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A region of the source and the size that it is resized to, as DALI takes them.

    Attributes:
        start, end: (y, x) of the region's corners in source pixels; numbers, or a DALI node with a pair a sample.
        size: (h, w) in model pixels, the same way.
    """

    start: Any
    end: Any
    size: Any

    @classmethod
    def of(cls, shape: Geometry, preprocessing: Preprocessing) -> Window:
        """The region that survives the crop."""
        top, left, bottom, right = shape.region_yxyx
        start, end = [top, left], [bottom, right]
        if preprocessing.interpolation == "nearest":
            # torchvision takes the pixel at i * scale, DALI the one at (i + 1/2) * scale; 0.499 rather than
            # 1/2, so that rounding cannot fall below a whole number.
            scales = [full / resized for full, resized in zip(shape.source_hw, shape.resized_hw, strict=True)]
            start = [value - 0.499 * scale for value, scale in zip(start, scales, strict=True)]
            end = [value - 0.499 * scale for value, scale in zip(end, scales, strict=True)]
        return cls(start=start, end=end, size=[float(side) for side in shape.model_hw])


def prepare_frames(
    frames: Any, window: Window | Geometry, preprocessing: Preprocessing, *, layout: str = "CHW"
) -> Any:
    """A part of a DALI graph: uint8 RGB frames → normalized float32 of the model's size.

    Pixels are rounded to uint8 after resizing, as torchvision does with a uint8 tensor.

    Args:
        frames: a DALI node, HWC, or FHWC with `layout="FCHW"`; on either device.
        window: where the model's pixels lie on the frames, for all of them or (DALI nodes) a sample each.
    """
    if isinstance(window, Geometry):
        window = Window.of(window, preprocessing)
    resized: Any = fn.resize(
        frames,
        size=window.size,
        roi_start=window.start,
        roi_end=window.end,
        interp_type=INTERPOLATIONS[preprocessing.interpolation],
        antialias=preprocessing.antialias,
        dtype=DALIDataType.UINT8,
    )
    return fn.crop_mirror_normalize(
        resized,
        mean=[255 * mean for mean in preprocessing.mean],
        std=[255 * std for std in preprocessing.std],
        dtype=DALIDataType.FLOAT,
        output_layout=layout,
    )


class Preprocessor:
    """Frames → the model's pixels; one graph for frames of all sizes. For one thread at a time.

    Args:
        device: where the work is done and the result lies, `"cpu"` or `"cuda"`.
        max_frames: most frames in one run; more are prepared in several.

    Raises:
        ModelUnavailable: DALI cannot prepare pixels as this model wants them.
    """

    def __init__(self, preprocessing: Preprocessing, *, device: str, max_frames: int) -> None:
        if preprocessing.interpolation == "bicubic" and not preprocessing.antialias:
            # torchvision's kernel is another one then (a = -0.75): up to 12 of 255 off.
            raise ModelUnavailable("bicubic interpolation without antialias is not supported")
        self._preprocessing = preprocessing
        self._device = device
        self._max_frames = max_frames
        self._graph = Graph(self._define, device=device, max_samples=max_frames)

    def __call__(self, pixels_nhwc: PixelArray) -> Tensor:
        """Frames uint8 RGB `(N, H, W, 3)`, numpy or CUDA → float32 `(N, 3, h, w)` on the device.

        Raises:
            InvalidMedia: the frames have another shape or type.
            UnsupportedMedia, TooLarge: the model cannot take frames of this size (`geometry`).
            InternalError: DALI failed.
        """
        count, height_px, width_px = _check_frames(pixels_nhwc)
        shape = geometry(self._preprocessing, height_px, width_px)
        window = Window.of(shape, self._preprocessing)
        pixels_each = max(height_px * width_px, shape.model_hw[0] * shape.model_hw[1])
        parts = []
        for run in runs(count, pixels_each, self._max_frames):
            frames = as_samples(pixels_nhwc[run], self._device)
            numbers = {
                name: [np.array(getattr(window, name), np.float32)] * len(frames)
                for name in ("start", "end", "size")
            }
            parts.extend(self._graph(frames=frames, **numbers))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _define(self, device: str) -> Sequence[Any]:
        window = Window(start=number_input("start"), end=number_input("end"), size=number_input("size"))
        return [prepare_frames(picture_input("frames", device), window, self._preprocessing)]


def _check_frames(pixels_nhwc: PixelArray) -> tuple[int, int, int]:
    shape, dtype = tuple(pixels_nhwc.shape), str(getattr(pixels_nhwc, "dtype", None))
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or dtype.removeprefix("torch.") != "uint8":
        raise InvalidMedia(f"frames must be uint8 (N, H, W, 3) with no zero, not {dtype} {shape}")
    return shape[0], shape[1], shape[2]
