"""YOLOX: rows of box, objectness and classes, on three grids of cells. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipelines.models.heads.suppression import best_boxes, corners
from pipelines.models.heads.yolo import BARS, objects_output, rows_of_objects
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable

# Pixels from cell to cell of each grid; the last one is of networks for large pictures.
STRIDES, STRIDES_LARGE = (8, 16, 32), (8, 16, 32, 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Yolox:
    """One output `(N, A, 5 + K)`: cx, cy, w, h, objectness, and a score of each class, both 0..1 already.

    Attributes:
        classes: K; 0: whatever the output has.
        output: its name; empty: the first of that form.
        decoded: boxes are in model pixels; else each is relative to its cell, of strides 8, 16 and 32.
        iou_threshold: boxes of a class that overlap a better one by more are left out.
        class_agnostic: those of other classes too.
    """

    family: ClassVar[str] = "yolox"
    classes: int = 0
    output: str = ""
    decoded: bool = False
    iou_threshold: float = 0.45
    class_agnostic: bool = False

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        row_nac = objects_output(outputs, self.output, self.classes, self.family)
        strides = () if self.decoded else _strides(row_nac, size_hw)
        rows = rows_of_objects(row_nac)
        box_c4 = rows.box_c4 if self.decoded else _decoded(rows.box_c4, rows.row_c, strides, size_hw)
        return best_boxes(
            corners(box_c4),
            rows.score_c,
            rows.label_c,
            rows.picture_c,
            len(row_nac),
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        return Preprocessing(
            resize_px=size_hw,
            fit="letterbox_top_left",
            pad_value=BARS,
            channels="BGR",
            mean=(0, 0, 0),
            std=(1 / 255, 1 / 255, 1 / 255),
            antialias=False,
        )

    def with_classes(self, count: int) -> Self:
        return replace(self, classes=count)


def _cells(strides: tuple[int, ...], size_hw: tuple[int, int]) -> list[tuple[int, int]]:
    """Rows and columns of each grid; a network rounds sides up that are no whole strides."""
    return [(-(-size_hw[0] // stride), -(-size_hw[1] // stride)) for stride in strides]


def _strides(row_nac: Tensor, size_hw: tuple[int, int]) -> tuple[int, ...]:
    """The strides of the grids that have as many cells as the output has rows.

    Raises:
        ModelUnavailable: none have.
    """
    counts = {
        strides: sum(rows * columns for rows, columns in _cells(strides, size_hw))
        for strides in (STRIDES, STRIDES_LARGE)
    }
    for strides, count in counts.items():
        if row_nac.shape[1] == count:
            return strides
    raise ModelUnavailable(
        f"head yolox needs {counts[STRIDES]} rows for {size_hw[0]}x{size_hw[1]} px, a cell each of strides "
        f"8, 16 and 32; the output {tuple(row_nac.shape)} has {row_nac.shape[1]}",
        hint="--resize-px sets the size of the input, --head another family",
    )


def _decoded(box_c4: Tensor, row_c: Tensor, strides: tuple[int, ...], size_hw: tuple[int, int]) -> Tensor:
    """Boxes relative to their cells → centre, width and height in model pixels.

    As YOLOX: the centre is t strides from the cell's corner, a side is exp(t) strides.

    Args:
        row_c: the rows of the boxes: grid after grid, of each row by row.
    """
    cells = _cells(strides, size_hw)
    ends = row_c.new_tensor([rows * columns for rows, columns in cells]).cumsum(dim=0)
    grid_c = torch.bucketize(row_c, ends, right=True)
    number_c = row_c - torch.cat([ends.new_zeros(1), ends])[grid_c]
    columns_c = row_c.new_tensor([columns for _, columns in cells])[grid_c]
    stride_c1 = box_c4.new_tensor(strides)[grid_c][:, None]
    corner_c2 = torch.stack([number_c % columns_c, number_c // columns_c], dim=1)
    return torch.cat([(box_c4[:, :2] + corner_c2) * stride_c1, box_c4[:, 2:].exp() * stride_c1], dim=1)
