"""What an object covers of its frame: its mask's pixels or its box's; a mask's bytes. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.protocol import rle
from pipelines.protocol.answers import Floats
from pipelines.protocol.options import Mask
from pipelines.rendering import encode
from pipelines.tasks.boxes import Found

# As torchvision's references have it: a pixel more probably the object's than not.
INSIDE = 0.5
# A mask is enlarged whole to a region of up to so many times the frame's pixels; of others, what shows.
WHOLE_REGION = 4
# Beyond it a float32 tells no pixels apart and an int64 in time overflows.
FAR_PX = 1e9
ClassMap = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastedMask:
    """One object's mask: how probably a pixel is its own, float32 0..1, in a region of the frame; else 0."""

    probability_hw: Floats
    rows: slice
    columns: slice
    frame_hw: tuple[int, int]

    @property
    def inside_hw(self) -> npt.NDArray[np.bool_]:
        """The object's pixels in the region."""
        return self.probability_hw > INSIDE

    def on_frame(self, levels_hw: ClassMap) -> ClassMap:
        """Levels uint8 of the region as those of the frame `(H, W)`."""
        canvas = np.zeros(self.frame_hw, np.uint8)
        canvas[self.rows, self.columns] = levels_hw
        return canvas

    def pack(self, form: Mask) -> bytes:
        """The mask in the form that was asked for; with `png` and `raw` 255 is the object."""
        if form == "rle":
            corner = (self.rows.start, self.columns.start)
            return rle.encode_object(self.inside_hw, corner=corner, size=self.frame_hw)
        if form == "probability":
            return encode.png(self.on_frame(np.round(255 * self.probability_hw).astype(np.uint8)))
        grey = self.on_frame(self.inside_hw * np.uint8(255))
        return encode.png(grey) if form == "png" else grey.tobytes()


def object_masks(found: Found, frame_hw: tuple[int, int]) -> Iterator[PastedMask]:
    """The masks of a frame's objects, one after the other, since all at once would be gigabytes.

    They are those of torchvision's `paste_masks_in_image`, which pastes each into a whole frame; here its
    parts paste into what the frame has of the box. Those whose box is far larger than the frame are enlarged
    only to what shows, and equal torchvision's but for rounding.
    """
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

    masks, scale = expand_masks(torch.from_numpy(found.mask_d1mm), padding=1)
    regions = torch.from_numpy(found.region_d4).clamp(-FAR_PX, FAR_PX)
    for mask, box in zip(masks, expand_boxes(regions, scale).to(torch.int64), strict=True):
        left, top, right, bottom = box.tolist()
        height, width = max(1, bottom + 1 - top), max(1, right + 1 - left)
        rows = slice(max(0, top), min(frame_hw[0], bottom + 1))
        columns = slice(max(0, left), min(frame_hw[1], right + 1))
        if height * width <= WHOLE_REGION * frame_hw[0] * frame_hw[1]:
            within = box - torch.tensor([columns.start, rows.start] * 2)
            pasted = paste_mask_in_image(
                mask[0], within, rows.stop - rows.start, columns.stop - columns.start
            )
        else:
            across = _bilinear(mask.shape[2], width, columns.start - left, columns.stop - left)
            pasted = _bilinear(mask.shape[1], height, rows.start - top, rows.stop - top) @ mask[0] @ across.T
        yield PastedMask(probability_hw=pasted.numpy(), rows=rows, columns=columns, frame_hw=frame_hw)


def _bilinear(cells: int, size_px: int, start: int, stop: int) -> Tensor:
    """How much of each cell is in pixels `start` to `stop` of `cells` that are enlarged to `size_px`.

    float32 `(stop - start, cells)`, as `F.interpolate(mode="bilinear", align_corners=False)` weighs them.
    """
    centre = (torch.arange(start, stop, dtype=torch.float64) + 0.5) * (cells / size_px) - 0.5
    distance = centre.clamp(0, cells - 1)[:, None] - torch.arange(cells)
    return (1 - distance.abs()).clamp(min=0).float()


def box_pixels(box_4: Floats) -> tuple[slice, slice]:
    """Rows and columns of all pixels that a box within the frame touches."""
    left, top, right, bottom = (float(edge) for edge in box_4)
    return slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right))
