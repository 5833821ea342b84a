"""PyAV's frames → pixels: upright RGB, and the model's levels, each if it is wanted. Knows no medium."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from torch import Tensor

from pipelines.frames.batch import FLOAT_RGB_BYTES, FrameBatch
from pipelines.frames.resize import Resizer, normalize
from pipelines.media.colours import RgbReader
from pipelines.media.medium import Limits, Orientation, Wanted
from pipelines.media.selection import Selected, columns, in_groups

# Blocks up to this are reused (`memory` has malloc keep them); larger ones are mapped and zeroed anew.
BLOCK_BYTES = (32 << 20) - (64 << 10)


@dataclass(frozen=True, slots=True)
class Pixels:
    """A frame's uint8 RGB `(H, W, 3)`, and its levels for the model `(3, h, w)`; each if wanted."""

    pixels_hwc: npt.NDArray[np.uint8] | None
    levels: Tensor | None


class FrameReader:
    """Decoded frames → pixels, while they are in the cache; a repeated frame is not read again."""

    def __init__(self, orientation: Orientation, wanted: Wanted, size_hw: tuple[int, int]) -> None:
        self._orientation = orientation
        self._wanted = wanted
        self._size_hw = size_hw
        self._resize = Resizer(wanted.prepare, *size_hw) if wanted.prepare is not None else None
        part_yxhw = (0, 0, *size_hw)
        if self._resize is not None and not wanted.keep_pixels:
            part_yxhw = self._resize.part.part_yxhw
        self._to_rgb = RgbReader(orientation.stored_yxhw(part_yxhw, size_hw))
        self._last: tuple[Selected[VideoFrame], Selected[Pixels]] | None = None

    def chunk_length(self, most: int) -> int:
        """How many frames, `most` at most, have their pixels fit into one block of memory that is reused."""
        if self._resize is None:
            return most
        height_px, width_px = self._resize.model_hw
        frame_bytes = FLOAT_RGB_BYTES * height_px * width_px
        if self._wanted.keep_pixels:
            frame_bytes = max(frame_bytes, 3 * math.prod(self._size_hw))
        return max(1, min(most, BLOCK_BYTES // frame_bytes))

    def __call__(self, picked: Selected[VideoFrame]) -> Selected[Pixels]:
        if self._last is None or self._last[0] is not picked:
            self._last = picked, self._read(picked)
        return self._last[1]

    def _read(self, picked: Selected[VideoFrame]) -> Selected[Pixels]:
        upright = np.ascontiguousarray(self._orientation.apply(self._to_rgb(picked.frame)))
        kept, levels = (upright if self._wanted.keep_pixels else None), None
        if self._resize is not None:
            levels = self._resize(upright if kept is None else upright[self._resize.part.region])
        return picked.of(Pixels(kept, levels))

    def kept(self, frames: Sequence[Pixels]) -> npt.NDArray[np.uint8] | None:
        """The frames themselves, uint8 RGB `(N, H, W, 3)`, if they are wanted."""
        kept = [one.pixels_hwc for one in frames if one.pixels_hwc is not None]
        return np.stack(kept) if kept else None

    def normalized(self, frames: Sequence[Pixels]) -> Tensor | None:
        """The model's pixels, float32 `(N, 3, h, w)`, if they are wanted."""
        if self._wanted.prepare is None:
            return None
        return normalize([one.levels for one in frames if one.levels is not None], self._wanted.prepare)

    def batches(
        self, frames: Iterable[Selected[VideoFrame]], limits: Limits
    ) -> Generator[FrameBatch, None, None]:
        """The frames in chunks, of which one at a time is in memory."""
        height_px, width_px = self._size_hw
        length = self.chunk_length(limits.chunk_length(width_px, height_px))
        for group in in_groups(map(self, frames), length):
            yield FrameBatch(
                kept_nhwc=self.kept([one.frame for one in group]),
                size_hw=self._size_hw,
                model_nchw=self.normalized([one.frame for one in group]),
                **columns(group),
            )
