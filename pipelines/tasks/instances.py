"""What each object covers of its frame: its mask's pixels, or its box's; and the bytes of a mask. Draws nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines import encode, rle
from pipelines.contract import Mask
from pipelines.results import Floats
from pipelines.tasks.boxes import Found

# As torchvision's references have it: a pixel more probably the object's than not.
INSIDE = 0.5
ClassMap = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PastedMask:
    """One object's mask: how probable a pixel is the object's, float32 0..1, in a window of the frame; else 0."""

    probability_hw: Floats
    rows: slice
    columns: slice
    frame_hw: tuple[int, int]

    @property
    def inside_hw(self) -> npt.NDArray[np.bool_]:
        """The object's pixels in the window."""
        return self.probability_hw > INSIDE

    def on_frame(self, levels_hw: ClassMap) -> ClassMap:
        """Levels uint8 of the window as those of the frame `(H, W)`."""
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

    They are those of torchvision's `paste_masks_in_image`, which pastes each into a whole frame; here its parts
    paste into what the frame has of the box.
    """
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image

    masks, scale = expand_masks(torch.from_numpy(found.mask_d1mm), padding=1)
    boxes = expand_boxes(torch.from_numpy(found.region_d4), scale).to(torch.int64)
    for mask, box in zip(masks, boxes, strict=True):
        left, top, right, bottom = box.tolist()
        rows = slice(max(0, top), min(frame_hw[0], bottom + 1))
        columns = slice(max(0, left), min(frame_hw[1], right + 1))
        within = box - torch.tensor([columns.start, rows.start] * 2)
        pasted = paste_mask_in_image(mask[0], within, rows.stop - rows.start, columns.stop - columns.start)
        yield PastedMask(probability_hw=pasted.numpy(), rows=rows, columns=columns, frame_hw=frame_hw)


def box_pixels(box_4: Floats) -> tuple[slice, slice]:
    """Rows and columns of all pixels that a box within the frame touches."""
    left, top, right, bottom = (float(edge) for edge in box_4)
    return slice(math.floor(top), math.ceil(bottom)), slice(math.floor(left), math.ceil(right))
