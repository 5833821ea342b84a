"""YOLOv5 and its like (v3, v7): decoded rows of box, objectness and classes. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from pipelines.models.heads.suppression import best_boxes, corners
from pipelines.models.heads.yolo import letterboxed, objects_output, rows_of_objects
from pipelines.models.spec import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloV5:
    """One output `(N, A, 5 + K)`: cx, cy, w, h in model pixels, objectness, a score 0..1 of each class.

    Attributes:
        classes: K; 0: whatever the output has.
        output: its name; empty: the first of that form.
        iou_threshold: boxes of a class that overlap a better one by more are left out.
        class_agnostic: those of other classes too.
    """

    family: ClassVar[str] = "yolo_v5"
    classes: int = 0
    output: str = ""
    iou_threshold: float = 0.45
    class_agnostic: bool = False

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        row_nac = objects_output(outputs, self.output, self.classes, self.family)
        rows = rows_of_objects(row_nac)
        return best_boxes(
            corners(rows.box_c4),
            rows.score_c,
            rows.label_c,
            rows.picture_c,
            len(row_nac),
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        return letterboxed(size_hw)

    def with_classes(self, count: int) -> Self:
        return replace(self, classes=count)
