"""Where model pixels lie on a frame, by torchvision's arithmetic, and tiles. Knows no pixels, no decoder."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np

from pipelines.models.spec import Preprocessing, Rounding
from pipelines.protocol.errors import TooLarge

# A float numpy array or torch tensor of points or boxes; the result has the type of the argument.
Coordinates = TypeVar("Coordinates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Where the model's pixels lie on the source: the whole source is resized, then a region is cut out.

    Attributes:
        source_hw: size of the source frame in pixels.
        resized_hw: size of the whole frame after resizing.
        crop_yxhw: top, left, height and width of the model's region in the resized frame. For a letterbox, or
            a crop of a smaller frame, the region reaches beyond the frame; then top and left are negative.

    Coordinates are continuous: 0 is the left edge of the first pixel, the width the right edge of the last.
    """

    source_hw: tuple[int, int]
    resized_hw: tuple[int, int]
    crop_yxhw: tuple[int, int, int, int]

    @classmethod
    def whole(cls, frame_hw: tuple[int, int]) -> Geometry:
        """The geometry of a model that sees the frame as it is."""
        return cls(source_hw=frame_hw, resized_hw=frame_hw, crop_yxhw=(0, 0, *frame_hw))

    @property
    def model_hw(self) -> tuple[int, int]:
        """Height and width of the model's input."""
        return self.crop_yxhw[2], self.crop_yxhw[3]

    @property
    def _ratios_xy(self) -> tuple[float, float]:
        """Source pixels per resized pixel, divided in float32 as in torchvision."""
        x, y = (np.float32(self.source_hw[axis]) / np.float32(self.resized_hw[axis]) for axis in (1, 0))
        return float(x), float(y)

    def to_source_xy(self, points_xy: Coordinates, *, clip: bool = False) -> Coordinates:
        """Model pixels → source pixels, of points `(…, 2)` or boxes `(…, 4)`, float, numpy or torch alike.

        The arithmetic is that of torchvision's `resize_boxes`. With `clip` nothing lies outside the source.
        """
        (top, left), (ratio_x, ratio_y) = self.crop_yxhw[:2], self._ratios_xy
        given: Any = points_xy
        moved = given + 0.0
        moved[..., 0::2] = (moved[..., 0::2] + left) * ratio_x
        moved[..., 1::2] = (moved[..., 1::2] + top) * ratio_y
        return cast(Coordinates, _clipped(moved, self.source_hw) if clip else moved)

    def to_model_xy(self, points_xy: Coordinates, *, clip: bool = False) -> Coordinates:
        """Source pixels → model pixels, the inverse. With `clip` nothing lies outside the model's region."""
        (top, left), (ratio_x, ratio_y) = self.crop_yxhw[:2], self._ratios_xy
        given: Any = points_xy
        moved = given + 0.0
        moved[..., 0::2] = moved[..., 0::2] / ratio_x - left
        moved[..., 1::2] = moved[..., 1::2] / ratio_y - top
        return cast(Coordinates, _clipped(moved, self.model_hw) if clip else moved)


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A part of the frame that the model sees, a tile or all of it; (top, left) are in the frame's pixels."""

    top_px: int
    left_px: int
    geometry: Geometry

    @classmethod
    def whole(cls, frame_hw: tuple[int, int]) -> View:
        """The frame as it is."""
        return cls(top_px=0, left_px=0, geometry=Geometry.whole(frame_hw))

    @property
    def part_yxhw(self) -> tuple[int, int, int, int]:
        """Top, left, height and width in the frame's pixels."""
        return self.top_px, self.left_px, *self.geometry.source_hw

    @property
    def region(self) -> tuple[slice, slice]:
        """The part's rows and columns."""
        top, left, height, width = self.part_yxhw
        return slice(top, top + height), slice(left, left + width)


def _clipped(points_xy: Any, size_hw: tuple[int, int]) -> Any:
    points_xy[..., 0::2] = points_xy[..., 0::2].clip(0, size_hw[1])
    points_xy[..., 1::2] = points_xy[..., 1::2].clip(0, size_hw[0])
    return points_xy


def tiles(
    source_hw: tuple[int, int], tile_hw: tuple[int, int], overlap_px: int
) -> list[tuple[int, int, int, int]]:
    """Regions (top, left, height, width) that cover a frame row by row and overlap by `overlap_px` or more.

    All have the same size. The last one of a row or column is moved inwards, so that none reaches beyond the
    frame. If the frame is smaller than a tile, the tile shrinks to it. Add (left, top) to a tile's boxes to
    get the frame's.

    Raises:
        ValueError: tiles of this size cannot overlap so much.
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


# A frame of 1:15 with a shorter side of 520; in the model, one larger frame could fill a GPU's memory.
MAX_MODEL_PIXELS = 4 << 20
# How far the widest kernel (bicubic) reaches, in pixels of the source, or of the result when downscaling.
KERNEL_RADIUS = 2
# The sides of frames for YOLOS are multiples of its patches.
YOLOS_PATCH_PX = 16


def geometry(preprocessing: Preprocessing, height_px: int, width_px: int) -> Geometry:
    """Where the model's region lies on a frame of this size, in torchvision's integers.

    Sizes are those of torchvision's `Resize` (the longer side is truncated to an integer) and `CenterCrop`
    (Python's `round`, half to even; a side that is too short is padded, the odd pixel last). With `max_px`
    they are those of its detectors' `GeneralizedRCNNTransform`. A letterbox rounds its sides and centres
    them, the odd pixel last; one at the top left truncates them. With padding, the region's top or left is
    negative. Those of transformers are its `get_size_with_aspect_ratio` with `max_px`, and its `center_crop`
    (truncated).

    Raises:
        TooLarge: a frame so long and narrow, or kept at its own size, has too many pixels for the model.
    """
    resized_hw = _resized_hw(preprocessing, height_px, width_px)
    canvas_hw, crop_hw = _canvas_hw(preprocessing, resized_hw), preprocessing.crop_px
    crop_h, crop_w = crop_hw or canvas_hw
    if crop_h * crop_w > MAX_MODEL_PIXELS:
        raise TooLarge(
            f"a frame of {width_px}x{height_px} px becomes {crop_w}x{crop_h} px for the model, "
            f"over the limit of {MAX_MODEL_PIXELS} pixels",
            hint="cut long, narrow frames into pieces",
        )
    centred = preprocessing.fit != "letterbox_top_left"
    top, left = (
        _centred(canvas, crop, preprocessing.rounding) - (canvas - resized) // 2 * centred
        for canvas, crop, resized in zip(canvas_hw, (crop_h, crop_w), resized_hw, strict=True)
    )
    return Geometry(
        source_hw=(height_px, width_px), resized_hw=resized_hw, crop_yxhw=(top, left, crop_h, crop_w)
    )


def needed_part(whole: Geometry) -> View:
    """The part of a frame that the model's region comes from. Resized separately, it gives the same pixels.

    That holds only if the part begins at a whole step, so that the kernels do not shift. A step is the least
    number of source pixels that become a whole number of resized ones. Steps are even, since chroma has one
    sample for two pixels.
    """
    crop_top, crop_left, *crop_hw = whole.crop_yxhw
    (top, height, resized_h, crop_top), (left, width, resized_w, crop_left) = (
        _needed_span(*sides)
        for sides in zip(whole.source_hw, whole.resized_hw, (crop_top, crop_left), crop_hw, strict=True)
    )
    part = Geometry(
        source_hw=(height, width),
        resized_hw=(resized_h, resized_w),
        crop_yxhw=(crop_top, crop_left, *whole.model_hw),
    )
    return View(top_px=top, left_px=left, geometry=part)


def _needed_span(source_px: int, resized_px: int, crop_start: int, crop_px: int) -> tuple[int, int, int, int]:
    """For one side: the part's begin, its length before and after resizing, and the begin of its crop."""
    common = math.gcd(source_px, resized_px)
    step, step_resized = source_px // common, resized_px // common
    if step % 2:
        step, step_resized = 2 * step, 2 * step_resized
    margin = KERNEL_RADIUS * math.ceil(max(1, resized_px / source_px)) + 1
    first = max(0, (crop_start - margin) // step_resized)
    last = math.ceil((crop_start + crop_px + margin) / step_resized)
    begin, begin_resized = first * step, first * step_resized
    if last * step >= source_px:
        return begin, source_px - begin, resized_px - begin_resized, crop_start - begin_resized
    return begin, (last - first) * step, (last - first) * step_resized, crop_start - begin_resized


def _resized_hw(preprocessing: Preprocessing, height_px: int, width_px: int) -> tuple[int, int]:
    """Size of the whole frame after resizing, without bars."""
    wanted, shorter, longer = preprocessing.resize_px, *sorted((height_px, width_px))
    if wanted is None:
        return height_px, width_px
    if isinstance(wanted, tuple):
        if preprocessing.fit == "stretch":
            return wanted
        scale = min(wanted[0] / height_px, wanted[1] / width_px)
        whole = round if preprocessing.fit == "letterbox" else int
        return max(1, whole(height_px * scale)), max(1, whole(width_px * scale))
    if preprocessing.max_px is not None and preprocessing.rounding != "torchvision":
        return _detr_hw(wanted, preprocessing.max_px, height_px, width_px, preprocessing.rounding)
    if preprocessing.max_px is not None:
        scale = min(wanted / shorter, preprocessing.max_px / longer)
        # torchvision fails if a side of an extreme frame shrinks to nothing.
        return max(1, math.floor(height_px * scale)), max(1, math.floor(width_px * scale))
    if width_px <= height_px:
        return int(wanted * height_px / width_px), wanted
    return wanted, int(wanted * width_px / height_px)


def _detr_hw(
    shorter_px: int, longer_px: int, height_px: int, width_px: int, rounding: Rounding
) -> tuple[int, int]:
    """Size with a shorter side and a longest one, as transformers' processors of detectors have it.

    The longer side follows from the shorter one as it was before it was rounded.
    """
    short, long = sorted((height_px, width_px))
    ideal: float = shorter_px
    if long / short * shorter_px > longer_px:
        ideal = longer_px * short / long
    found_short, found_long = round(ideal), int(ideal * long / short)
    patch_px = YOLOS_PATCH_PX if rounding == "yolos" else 1
    # A shorter side that fits stays as it is; that of YOLOS in portraits does not.
    if short == found_short and (patch_px == 1 or width_px >= height_px):
        found_short, found_long = short, long
    found_short, found_long = (max(patch_px, side - side % patch_px) for side in (found_short, found_long))
    return (found_long, found_short) if width_px < height_px else (found_short, found_long)


def _canvas_hw(preprocessing: Preprocessing, resized_hw: tuple[int, int]) -> tuple[int, int]:
    """What the centre crop is taken from: the resized frame, or the letterbox around it."""
    wanted = preprocessing.resize_px
    return wanted if preprocessing.fit != "stretch" and isinstance(wanted, tuple) else resized_hw


def _centred(side_px: int, crop_px: int, rounding: Rounding) -> int:
    """Where a centre crop begins on a side; negative if it pads."""
    if crop_px > side_px:
        return -((crop_px - side_px) // 2)
    return round((side_px - crop_px) / 2.0) if rounding == "torchvision" else (side_px - crop_px) // 2


def pads(preprocessing: Preprocessing) -> bool:
    """Whether the model's region may reach beyond the resized frame."""
    resized, cropped = preprocessing.resize_px, preprocessing.crop_px
    if preprocessing.fit != "stretch" or cropped is None:
        return preprocessing.fit != "stretch"
    if preprocessing.max_px is not None or resized is None:
        return True
    sides = (resized, resized) if isinstance(resized, int) else resized
    return any(crop > side for crop, side in zip(cropped, sides, strict=True))
