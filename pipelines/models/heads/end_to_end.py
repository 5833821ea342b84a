"""Detectors that chose their boxes already: YOLOv10 and its like, exports with NMS. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

from torch import Tensor

from pipelines.models.heads.suppression import LEAST_SCORE, best_boxes, candidates, corners
from pipelines.models.heads.tensors import pick, picture_numbers
from pipelines.models.heads.yolo import (
    check_extras,
    extra_columns,
    finished,
    letterboxed,
    prototypes_output,
)
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable

Form = Literal["corners", "centres", "picture"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndToEnd:
    """One output of rows, a box each; rows of zeros fill up.

    Attributes:
        output: its name; empty: the first of that form.
        form: `corners` `(N, M, 6)`: x1, y1, x2, y2 in model pixels, score, class. `centres` `(N, M, 6)`:
            cx, cy, w, h in 0..1, score, class. `picture` `(M, 7)`: the picture's number in the batch, x1,
            y1, x2, y2 in model pixels, class, score.
        prototypes: the name of a second output `(N, P, h, w)`; rows end in P numbers then: how much of each
            prototype is in the mask.
        keypoints: P points of D values (x, y in model pixels; with D = 3 how visible, 0..1) at the end of
            each row.
    """

    family: ClassVar[str] = "end_to_end"
    output: str = ""
    form: Form = "corners"
    prototypes: str = ""
    keypoints: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        check_extras(self.prototypes, self.keypoints)
        if self.form == "picture" and (self.prototypes or self.keypoints):
            raise ModelUnavailable(
                "rows with a picture's number have no masks and no keypoints",
                hint="leave out prototypes and keypoints, or give another form",
            )

    @property
    def numbers_pictures(self) -> bool:
        """Whether rows say of which picture they are."""
        return self.form == "picture"

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        prototype_nmhw = prototypes_output(outputs, self.prototypes, self.family)
        more = extra_columns(prototype_nmhw, self.keypoints)
        row_nmc = self._output(outputs, more)
        if self.form == "picture":
            return finished(_by_picture(row_nmc), None, None, size_hw)
        picture, row = candidates(row_nmc[..., 4])
        chosen = row_nmc[picture, row]
        box_c4 = chosen[:, :4]
        if self.form == "centres":
            box_c4 = corners(box_c4) * box_c4.new_tensor([size_hw[1], size_hw[0]] * 2)
        found = _chosen(box_c4, chosen[:, 4], chosen[:, 5], picture, len(row_nmc), chosen[:, 6:])
        return finished(found, prototype_nmhw, self.keypoints, size_hw)

    def _output(self, outputs: Mapping[str, Tensor], more: int) -> Tensor:
        """The output of rows."""
        columns = 7 if self.form == "picture" else 6 + more
        rank = 2 if self.form == "picture" else 3
        axes = f"(M, {columns})" if self.form == "picture" else f"(N, M, {columns})"

        def fits(tensor: Tensor) -> bool:
            return tensor.ndim == rank and tensor.shape[-1] == columns

        return pick(outputs, self.output, fits, f"head {self.family} ({self.form}) needs {axes}")

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        if self.form == "centres":  # that is how RT-DETR is trained
            return Preprocessing(resize_px=size_hw, mean=(0, 0, 0), std=(1, 1, 1), antialias=False)
        return letterboxed(size_hw)

    def with_classes(self, count: int) -> Self:
        """Itself: a row names its class, whatever their number."""
        return self


def _by_picture(row_m7: Tensor) -> list[dict[str, Tensor]]:
    """Rows of picture, x1, y1, x2, y2, class, score → detections of pictures up to the last one named."""
    row_c7 = row_m7[(row_m7[:, 6] > LEAST_SCORE) & (row_m7[:, 0] >= 0)]
    picture_c, count = picture_numbers(row_c7[:, 0], "head end_to_end (picture) needs (M, 7)")
    return _chosen(row_c7[:, 1:5], row_c7[:, 6], row_c7[:, 5], picture_c, count, row_c7[:, 7:])


def _chosen(
    box_c4: Tensor, score_c: Tensor, class_c: Tensor, picture_c: Tensor, count: int, extra_ce: Tensor
) -> list[dict[str, Tensor]]:
    """`best_boxes` of rows that nothing is to be left out of; classes are floating numbers there."""
    return best_boxes(box_c4, score_c, class_c, picture_c, count, iou_threshold=None, extras=extra_ce)
