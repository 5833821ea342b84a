"""FrameBatch: decoded frames of one medium, with their numbers and times. Knows no decoder, no model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
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


# Per pixel as models take it.
FLOAT_RGB_BYTES = 12


def to_numpy(pixels: PixelArray) -> npt.NDArray[np.uint8]:
    """Pictures on the host, uint8: the array itself, or a copy of a CUDA tensor."""
    return np.asarray(pixels.cpu() if hasattr(pixels, "cpu") else pixels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameBatch:
    """N decoded frames of one medium, upright, with their own times.

    Attributes:
        kept_nhwc: uint8 RGB `(N, H, W, 3)`; numpy, or after NVDEC a CUDA tensor; None if nothing is drawn.
        size_hw: height and width of the frames.
        pts_s: float64 `(N,)`, the medium's presentation times in seconds.
        frame_index: int64 `(N,)`, numbers of the frames in presentation order, from 0.
        model_nchw: float32 `(N, 3, h, w)` if the decoder prepared the model's pixels too.
        stretch: int64 `(N,)`, numbers of the stretches of time that they lie in: a new one begins where the
            medium's times fall, leap or stand still.
        damaged: bool `(N,)`, whether their pixels are damaged, or depend on others that are damaged or lost.
        played_s: float64 `(N,)`, times that rise over all stretches; in the first they are `pts_s`.
    """

    kept_nhwc: PixelArray | None
    size_hw: tuple[int, int]
    pts_s: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    model_nchw: Any | None = None
    stretch: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    damaged: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    played_s: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def __post_init__(self) -> None:
        count = len(self.frame_index)
        for name in ("stretch", "damaged"):
            if not len(marks := getattr(self, name)):
                object.__setattr__(self, name, np.zeros(count, marks.dtype))
        if not len(self.played_s):
            object.__setattr__(self, "played_s", self.pts_s)
        if not count or 0 in self.size_hw:
            raise ValueError(f"a batch of {count} frames of {self.size_hw} pixels")
        if len(self.pts_s) != count:
            raise ValueError(f"there are {len(self.pts_s)} pts_s, {count} frame_index")
        expected = (count, *self.size_hw, 3)
        if self.kept_nhwc is not None and tuple(self.kept_nhwc.shape) != expected:
            raise ValueError(f"kept_nhwc must be {expected}, not {tuple(self.kept_nhwc.shape)}")
        if self.model_nchw is not None and len(self.model_nchw) != count:
            raise ValueError(f"model_nchw has {len(self.model_nchw)} frames, frame_index {count}")

    @classmethod
    def of(
        cls, pixels_nhwc: PixelArray, *, pts_s: npt.NDArray[np.float64], frame_index: npt.NDArray[np.int64]
    ) -> FrameBatch:
        """Frames whose pixels are kept, uint8 RGB `(N, H, W, 3)`."""
        size_hw = int(pixels_nhwc.shape[1]), int(pixels_nhwc.shape[2])
        return cls(kept_nhwc=pixels_nhwc, size_hw=size_hw, pts_s=pts_s, frame_index=frame_index)

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def pixels_nhwc(self) -> PixelArray:
        """The frames' pixels. Raises ValueError if they were not kept."""
        if self.kept_nhwc is None:
            raise ValueError("the pixels of these frames were not kept")
        return self.kept_nhwc

    @property
    def height_px(self) -> int:
        return self.size_hw[0]

    @property
    def width_px(self) -> int:
        return self.size_hw[1]
