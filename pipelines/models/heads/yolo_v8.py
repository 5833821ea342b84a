"""YOLOv8 and its like (v9, 11, 12): boxes and classes without objectness; masks; keypoints. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from pipelines.models.heads.suppression import best_boxes, candidates, corners
from pipelines.models.heads.tensors import pick
from pipelines.models.heads.yolo import (
    check_extras,
    extra_columns,
    finished,
    letterboxed,
    prototypes_output,
)
from pipelines.models.spec import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class YoloV8:
    """One output `(N, C, A)`: cx, cy, w, h in model pixels, a score 0..1 of each class, and maybe more.

    Attributes:
        classes: K; 0: what is left of C.
        output: its name; empty: the first of that form.
        prototypes: the name of a second output `(N, M, h, w)`; C = 4 + K + M then, and the last M are how
            much of each prototype is in a mask.
        keypoints: P points of D values (x, y in model pixels; with D = 3 how visible, 0..1), which come after
            the classes: C = 4 + K + P * D.
        rows_first: the axes are `(N, A, C)`.
        iou_threshold: boxes of a class that overlap a better one by more are left out.
        class_agnostic: those of other classes too.
    """

    family: ClassVar[str] = "yolo_v8"
    classes: int = 0
    output: str = ""
    prototypes: str = ""
    keypoints: tuple[int, int] | None = None
    rows_first: bool = False
    iou_threshold: float = 0.7
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        check_extras(self.prototypes, self.keypoints)

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        prototype_nmhw = prototypes_output(outputs, self.prototypes, self.family)
        more = extra_columns(prototype_nmhw, self.keypoints)
        raw_nca = self._output(outputs, more)
        classes = raw_nca.shape[1] - 4 - more
        picture, row = candidates(raw_nca[:, 4 : 4 + classes].amax(dim=1))
        chosen = raw_nca[picture, :, row]
        score_c, label_c = chosen[:, 4 : 4 + classes].max(dim=1)
        found = best_boxes(
            corners(chosen[:, :4]),
            score_c,
            label_c,
            picture,
            len(raw_nca),
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
            extras=chosen[:, 4 + classes :],
        )
        return finished(found, prototype_nmhw, self.keypoints, size_hw)

    def _output(self, outputs: Mapping[str, Tensor], more: int) -> Tensor:
        """The output with the axes `(N, C, A)`, whose last `more` columns are no classes."""
        exactly = 4 + self.classes + more if self.classes else 0
        columns = str(exactly) if exactly else f"{4 + more} + K"
        axes = f"(N, A, {columns})" if self.rows_first else f"(N, {columns}, A)"
        parts = f"box, {self.classes or 'K'} classes" + (f" and {more} more" if more else "")

        def fits(tensor: Tensor) -> bool:
            if tensor.ndim != 3:
                return False
            count = tensor.shape[2 if self.rows_first else 1]
            return count == exactly if exactly else count > 4 + more

        tensor = pick(outputs, self.output, fits, f"head {self.family} needs {axes}: {parts}")
        return tensor.transpose(1, 2) if self.rows_first else tensor

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        return letterboxed(size_hw)

    def with_classes(self, count: int) -> Self:
        return replace(self, classes=count)
