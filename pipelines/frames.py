"""FrameBatch, Geometry and tiles: decoded frames, and how model pixels lie on them. Knows no decoder, no model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt

# float numpy array or torch tensor of points or boxes: what goes in comes out.
Coordinates = TypeVar("Coordinates")


class PixelArray(Protocol):
    """A numpy array (CPU) or a torch tensor (CUDA): has a shape and speaks DLPack."""

    @property
    def shape(self) -> Sequence[int]: ...

    def __dlpack__(self) -> Any: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Any: ...


class HostCopies:
    """Pictures that were copied from a GPU to the host since the start: none, unless pixels were asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, pictures: int) -> None:
        with self._lock:
            self.count += pictures


# Of a pixel as models take it.
FLOAT_RGB_BYTES = 12
HOST_COPIES = HostCopies()


def to_numpy(pixels: PixelArray) -> npt.NDArray[np.uint8]:
    """Pictures on the host, uint8: the array itself, or a copy of a CUDA tensor, which is counted."""
    if not hasattr(pixels, "cpu"):
        return np.asarray(pixels)
    if getattr(pixels, "is_cuda", False):
        HOST_COPIES.add(len(pixels))
    return np.asarray(pixels.cpu())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FrameBatch:
    """N decoded frames of one medium, upright, with their own times.

    Attributes:
        kept_nhwc: uint8 RGB `(N, H, W, 3)`; numpy on the CPU, a CUDA torch tensor after NVDEC; None where nobody
            draws on them.
        size_hw: height and width of the frames.
        pts_s: float64 `(N,)`, the medium's presentation times in seconds.
        frame_index: int64 `(N,)`, numbers of the frames in presentation order, from 0.
        model_nchw: float32 `(N, 3, h, w)` where the decoder prepared the model's pixels too.
    """

    kept_nhwc: PixelArray | None
    size_hw: tuple[int, int]
    pts_s: npt.NDArray[np.float64]
    frame_index: npt.NDArray[np.int64]
    model_nchw: Any | None = None

    def __post_init__(self) -> None:
        count = len(self.frame_index)
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
        """The frames' pixels. Raises ValueError where they were not kept."""
        if self.kept_nhwc is None:
            raise ValueError("the pixels of these frames were not kept")
        return self.kept_nhwc

    @property
    def height_px(self) -> int:
        return self.size_hw[0]

    @property
    def width_px(self) -> int:
        return self.size_hw[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """How the model's pixels lie on the source: the whole source is resized, then a window is cut out.

    Attributes:
        source_hw: size of the source frame in pixels.
        resized_hw: size of the whole frame after resizing.
        crop_yxhw: top, left, height and width of the model's window in the resized frame; it may reach beyond
            it (a letterbox, a crop of a smaller frame): top and left are negative then.

    Coordinates are continuous: 0 is the left edge of the first pixel, and the width the right edge of the last.
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

    @property
    def _ratios_xy(self) -> tuple[float, float]:
        """Source pixels in one resized pixel, as torchvision has them: divided in float32."""
        x, y = (np.float32(self.source_hw[axis]) / np.float32(self.resized_hw[axis]) for axis in (1, 0))
        return float(x), float(y)

    def to_source_xy(self, points_xy: Coordinates, *, clip: bool = False) -> Coordinates:
        """Model pixels → source pixels, of float `(…, 2)` (x, y), numpy or torch alike.

        The arithmetic is that of torchvision's `resize_boxes`. With `clip` nothing lies outside the source.
        """
        (top, left), (ratio_x, ratio_y) = self.crop_yxhw[:2], self._ratios_xy
        given: Any = points_xy
        moved = given + 0.0
        moved[..., 0::2] = (moved[..., 0::2] + left) * ratio_x
        moved[..., 1::2] = (moved[..., 1::2] + top) * ratio_y
        return cast(Coordinates, _clipped(moved, self.source_hw) if clip else moved)

    def to_model_xy(self, points_xy: Coordinates, *, clip: bool = False) -> Coordinates:
        """Source pixels → model pixels: the other way round. With `clip` nothing lies outside the model's."""
        (top, left), (ratio_x, ratio_y) = self.crop_yxhw[:2], self._ratios_xy
        given: Any = points_xy
        moved = given + 0.0
        moved[..., 0::2] = moved[..., 0::2] / ratio_x - left
        moved[..., 1::2] = moved[..., 1::2] / ratio_y - top
        return cast(Coordinates, _clipped(moved, self.model_hw) if clip else moved)

    def boxes_to_source(self, boxes_n4: Coordinates, *, clip: bool = False) -> Coordinates:
        """Boxes float `(N, 4)` xyxy in model pixels → in source pixels; see `to_source_xy`."""
        return self.to_source_xy(boxes_n4, clip=clip)

    def boxes_to_model(self, boxes_n4: Coordinates, *, clip: bool = False) -> Coordinates:
        """Boxes float `(N, 4)` xyxy in source pixels → in model pixels; see `to_model_xy`."""
        return self.to_model_xy(boxes_n4, clip=clip)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A part of the frame that the model sees: at (top, left) in its pixels, a tile or all of it."""

    top_px: int
    left_px: int
    geometry: Geometry

    @property
    def part_yxhw(self) -> tuple[int, int, int, int]:
        """Top, left, height and width in the frame's pixels."""
        return self.top_px, self.left_px, *self.geometry.source_hw

    @property
    def window(self) -> tuple[slice, slice]:
        """Its rows and columns."""
        top, left, height, width = self.part_yxhw
        return slice(top, top + height), slice(left, left + width)


def _clipped(points_xy: Any, size_hw: tuple[int, int]) -> Any:
    points_xy[..., 0::2] = points_xy[..., 0::2].clip(0, size_hw[1])
    points_xy[..., 1::2] = points_xy[..., 1::2].clip(0, size_hw[0])
    return points_xy


def tiles(
    source_hw: tuple[int, int], tile_hw: tuple[int, int], overlap_px: int
) -> list[tuple[int, int, int, int]]:
    """Windows (top, left, height, width) that cover a frame, row by row, neighbours sharing `overlap_px` or more.

    All have the same size; the last of a row or column is moved inwards, so that none reaches beyond the frame.
    Where the frame is smaller than a tile, the tile is as small. Boxes of a tile lie (left, top) off the frame's.

    Raises:
        ValueError: tiles of this size cannot share so much.
    """
    if not 0 <= overlap_px < min(tile_hw):
        raise ValueError(f"tiles of {tile_hw} px cannot share {overlap_px}")
    height, width = (min(tile, side) for tile, side in zip(tile_hw, source_hw, strict=True))
    tops, lefts = (
        _tile_starts(side, tile, overlap_px) for side, tile in zip(source_hw, tile_hw, strict=True)
    )
    return [(top, left, height, width) for top in tops for left in lefts]


def _tile_starts(side_px: int, tile_px: int, overlap_px: int) -> list[int]:
    """Where tiles begin along one side."""
    room = max(0, side_px - tile_px)
    return [*range(0, room, tile_px - overlap_px), room]
