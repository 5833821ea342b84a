"""PyAV's decoded frames → pixels: upright RGB, and the model's levels, as far as each is wanted. Knows no medium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from torch import Tensor

from pipelines.colours import to_rgb
from pipelines.medium import Orientation, Wanted
from pipelines.resize import Resizer, normalize
from pipelines.selection import Selected


@dataclass(frozen=True, slots=True)
class Pixels:
    """One frame's: uint8 RGB `(H, W, 3)`, and its levels for the model `(3, h, w)`; each where it is wanted."""

    pixels_hwc: npt.NDArray[np.uint8] | None
    levels: Tensor | None


class FrameReader:
    """Decoded frames → pixels, while they are fresh in the cache; a frame that comes again is not read again."""

    def __init__(self, orientation: Orientation, wanted: Wanted, size_hw: tuple[int, int]) -> None:
        self._orientation = orientation
        self._wanted = wanted
        self._reformatter = VideoReformatter()
        self._resize = Resizer(wanted.prepare, *size_hw) if wanted.prepare is not None else None
        self._last: tuple[Selected[VideoFrame], Selected[Pixels]] | None = None

    def __call__(self, picked: Selected[VideoFrame]) -> Selected[Pixels]:
        if self._last is None or self._last[0] is not picked:
            self._last = picked, self._read(picked)
        return self._last[1]

    def _read(self, picked: Selected[VideoFrame]) -> Selected[Pixels]:
        upright = np.ascontiguousarray(self._orientation.apply(to_rgb(picked.frame, self._reformatter)))
        pixels = Pixels(
            pixels_hwc=upright if self._wanted.keep_pixels else None,
            levels=self._resize(upright) if self._resize is not None else None,
        )
        return Selected(picked.frame_index, picked.pts_s, pixels, picked.is_key)

    def kept(self, frames: Sequence[Pixels]) -> npt.NDArray[np.uint8] | None:
        """The frames themselves, uint8 RGB `(N, H, W, 3)`, where they are wanted."""
        kept = [one.pixels_hwc for one in frames if one.pixels_hwc is not None]
        return np.stack(kept) if kept else None

    def normalized(self, frames: Sequence[Pixels]) -> Tensor | None:
        """The model's pixels, float32 `(N, 3, h, w)`, where they are wanted."""
        if self._wanted.prepare is None:
            return None
        return normalize([one.levels for one in frames if one.levels is not None], self._wanted.prepare)
