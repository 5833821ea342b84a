"""Frames of any size → the model's pixels, with DALI: on a GPU, and if only the DALI stage is asked for.

Only the region that survives the crop is resized, directly to the model's size. On a frame of 1280x720 that
halves the work. Pixels are within one level of 255 of torchvision's. Knows no decoder and no model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn
from nvidia.dali.types import DALIDataType, DALIImageType, DALIInterpType
from torch import Tensor

from pipelines.frames.batch import PixelArray
from pipelines.frames.dali import Graph, as_samples, number_input, picture_input, runs
from pipelines.frames.geometry import Geometry, geometry, pads
from pipelines.frames.resize import check_kernel
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import InvalidMedia

INTERPOLATIONS = {
    "nearest": DALIInterpType.INTERP_NN,
    "bilinear": DALIInterpType.INTERP_LINEAR,
    "bicubic": DALIInterpType.INTERP_CUBIC,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """A region of the source, the size that it is resized to, and the padding around it, as DALI takes them.

    All are pairs (y, x): numbers, or a DALI node with one pair per sample.

    Attributes:
        start, end: the region's corners in source pixels.
        size: the region's, in model pixels.
        anchor: the model's first pixel relative to the region's, in model pixels; negative with padding.
        shape: height and width of the model's pixels.
    """

    start: Any
    end: Any
    size: Any
    anchor: Any
    shape: Any

    @classmethod
    def of(cls, shape: Geometry, preprocessing: Preprocessing) -> Region:
        """The region of the frame that survives the crop."""
        scales = [full / resized for full, resized in zip(shape.source_hw, shape.resized_hw, strict=True)]
        firsts = [max(0, first) for first in shape.crop_yxhw[:2]]
        lasts = [
            min(first + side, resized)
            for first, side, resized in zip(
                shape.crop_yxhw[:2], shape.model_hw, shape.resized_hw, strict=True
            )
        ]
        # For `nearest`, torchvision takes the pixel at i * scale, DALI the one at (i + 1/2) * scale. The
        # shift is 0.499, not 1/2, so that rounding errors cannot fall below a whole number.
        nudge = 0.499 if preprocessing.interpolation == "nearest" else 0.0
        return cls(
            start=[(first - nudge) * scale for first, scale in zip(firsts, scales, strict=True)],
            end=[(last - nudge) * scale for last, scale in zip(lasts, scales, strict=True)],
            size=[float(last - first) for first, last in zip(firsts, lasts, strict=True)],
            anchor=[float(min(0, first)) for first in shape.crop_yxhw[:2]],
            shape=[float(side) for side in shape.model_hw],
        )


def prepare_frames(
    frames: Any, region: Region | Geometry, preprocessing: Preprocessing, *, layout: str = "CHW"
) -> Any:
    """A part of a DALI graph: uint8 RGB frames → normalized float32 of the model's size.

    Pixels are rounded to uint8 after resizing, as torchvision does with a uint8 tensor, or left unrounded.

    Args:
        frames: a DALI node, HWC, or FHWC with `layout="FCHW"`; on either device.
        region: where the model's pixels lie on the frames: one for all or, as DALI nodes, one per sample.
    """
    if isinstance(region, Geometry):
        region = Region.of(region, preprocessing)
    swaps, rounds = preprocessing.channels == "BGR", preprocessing.round_pixels
    # DALI swaps only uint8 channels: those of the resized pixels, which are fewer, if these are uint8.
    pixels: Any = _swapped(frames) if swaps and not rounds else frames
    pixels = fn.resize(
        pixels,
        size=region.size,
        roi_start=region.start,
        roi_end=region.end,
        interp_type=INTERPOLATIONS[preprocessing.interpolation],
        antialias=preprocessing.antialias,
        dtype=DALIDataType.UINT8 if rounds else DALIDataType.FLOAT,
    )
    if pads(preprocessing):
        pixels = _padded(pixels, region, preprocessing)
    return fn.crop_mirror_normalize(
        _swapped(pixels) if swaps and rounds else pixels,
        mean=[255 * mean for mean in preprocessing.mean],
        std=[255 * std for std in preprocessing.std],
        dtype=DALIDataType.FLOAT,
        output_layout=layout,
    )


def _swapped(pixels: Any) -> Any:
    return fn.color_space_conversion(pixels, image_type=DALIImageType.RGB, output_type=DALIImageType.BGR)


def _padded(pixels: Any, region: Region, preprocessing: Preprocessing) -> Any:
    """The region with the letterbox's bars, or the crop's black margins, around it."""
    return fn.slice(
        pixels,
        region.anchor,
        region.shape,
        axis_names="HW",
        normalized_anchor=False,
        normalized_shape=False,
        out_of_bounds_policy="pad",
        fill_values=float(preprocessing.pad_value if preprocessing.fit != "stretch" else 0),
    )


class Preprocessor:
    """Frames → the model's pixels; one graph for frames of all sizes. For one thread at a time.

    Args:
        device: where the work is done and the result is, `"cpu"` or `"cuda"`.
        max_frames: most frames in one run; more are prepared in several.

    Raises:
        ModelUnavailable: DALI cannot prepare pixels as this model wants them.
    """

    def __init__(self, preprocessing: Preprocessing, *, device: str, max_frames: int) -> None:
        check_kernel(preprocessing)
        self._preprocessing = preprocessing
        self._device = device
        self._max_frames = max_frames
        self._numbers = ("start", "end", "size", *(("anchor", "shape") if pads(preprocessing) else ()))
        self._graph = Graph(self._define, device=device, max_samples=max_frames)

    def __call__(self, pixels_nhwc: PixelArray) -> Tensor:
        """Frames uint8 RGB `(N, H, W, 3)`, numpy or CUDA → float32 `(N, 3, h, w)` on the device.

        Raises:
            InvalidMedia: the frames have another shape or type.
            TooLarge: the model cannot take frames of this size (`geometry`).
            InternalError: DALI failed.
        """
        count, height_px, width_px = _check_frames(pixels_nhwc)
        shapes = [geometry(self._preprocessing, height_px, width_px)] * count
        return self._in_runs(shapes, lambda run: as_samples(pixels_nhwc[run], self._device))

    def pictures(self, pictures: Sequence[PixelArray]) -> Tensor:
        """The same of N pictures `(H, W, 3)` of any sizes, if what the model sees of them has one size."""
        shapes = [geometry(self._preprocessing, one.shape[0], one.shape[1]) for one in pictures]
        return self._in_runs(
            shapes, lambda run: [as_samples(one[None], self._device)[0] for one in pictures[run]]
        )

    def _in_runs(self, shapes: Sequence[Geometry], samples: Callable[[slice], list[Any]]) -> Tensor:
        """Pictures of these shapes, some at a time, as the graph takes them."""
        regions = {shape: Region.of(shape, self._preprocessing) for shape in set(shapes)}
        pixels_each = max(math.prod(side) for shape in regions for side in (shape.source_hw, shape.model_hw))
        parts = []
        for run in runs(len(shapes), pixels_each, self._max_frames):
            numbers = {
                name: [np.array(getattr(regions[shape], name), np.float32) for shape in shapes[run]]
                for name in self._numbers
            }
            parts.extend(self._graph(frames=samples(run), **numbers))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _define(self, device: str) -> Sequence[Any]:
        nodes = {name: number_input(name) for name in self._numbers}
        region = Region(
            start=nodes["start"],
            end=nodes["end"],
            size=nodes["size"],
            anchor=nodes.get("anchor"),
            shape=nodes.get("shape"),
        )
        return [prepare_frames(picture_input("frames", device), region, self._preprocessing)]


def _check_frames(pixels_nhwc: PixelArray) -> tuple[int, int, int]:
    shape, dtype = tuple(pixels_nhwc.shape), str(getattr(pixels_nhwc, "dtype", None))
    if len(shape) != 4 or shape[3] != 3 or 0 in shape or dtype.removeprefix("torch.") != "uint8":
        raise InvalidMedia(f"frames must be uint8 (N, H, W, 3) with no zero, not {dtype} {shape}")
    return shape[0], shape[1], shape[2]
