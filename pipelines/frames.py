"""FrameBatch and Geometry: decoded frames, and how model pixels lie on them. Knows no decoder and no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class PixelArray(Protocol):
    """A numpy array (CPU) or a torch tensor (CUDA): has a shape and speaks DLPack."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __dlpack__(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


def to_numpy(pixels: PixelArray) -> npt.NDArray[np.uint8]:
    """Pixels on the host, uint8: the array itself, or a copy of a CUDA tensor."""
    host = pixels.cpu() if hasattr(pixels, "cpu") else pixels
    return np.asarray(host)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameBatch:
    """N decoded frames of one medium, upright, with their own times.

    Attributes:
        pixels_nhwc: uint8 RGB `(N, H, W, 3)`; numpy on the CPU, a CUDA torch tensor after NVDEC.
        pts_s: float64 `(N,)`, the medium's presentation times in seconds.
        frame_index: int64 `(N,)`, numbers of the frames in presentation order, from 0.
        model_nchw: float32 `(N, 3, h, w)` where the decoder's own graph prepared the model's pixels too.
    """

    pixels_nhwc: PixelArray
    pts_s: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    model_nchw: Any | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels_nhwc.shape)
        if len(shape) != 4 or shape[3] != 3 or 0 in shape:
            raise ValueError(f"pixels_nhwc must be (N, H, W, 3) with no zero, not {shape}")
        lengths = (shape[0], len(self.pts_s), len(self.frame_index))
        if len(set(lengths)) != 1:
            raise ValueError(f"pixels_nhwc, pts_s and frame_index disagree on N: {lengths}")
        if self.model_nchw is not None and len(self.model_nchw) != shape[0]:
            raise ValueError(f"model_nchw has {len(self.model_nchw)} frames, pixels_nhwc {shape[0]}")

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def height_px(self) -> int:
        return int(self.pixels_nhwc.shape[1])

    @property
    def width_px(self) -> int:
        return int(self.pixels_nhwc.shape[2])


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How the model's pixels lie on the source: the whole source is resized, then a window is cut out.

    Attributes:
        source_hw: size of the source frame in pixels.
        resized_hw: size of the whole frame after resizing.
        crop_yxhw: top, left, height and width of the model's window in the resized frame.
    """

    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    crop_yxhw: tuple[int, int, int, int]

    @property
    def model_hw(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return self.crop_yxhw[2], self.crop_yxhw[3]

    @property
    def region_yxyx(self) -> tuple[float, float, float, float]:
        """The model's window in source pixels: top, left, bottom, right."""
        (source_h, source_w), (resized_h, resized_w) = self.source_hw, self.resized_hw
        top, left, height, width = self.crop_yxhw
        scale_y, scale_x = source_h / resized_h, source_w / resized_w
        return top * scale_y, left * scale_x, (top + height) * scale_y, (left + width) * scale_x
