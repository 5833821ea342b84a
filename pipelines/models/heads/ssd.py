"""SSD as OpenVINO and Caffe give it, and OTX, Geti, MMDeploy: rows of boxes that were chosen already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipelines.models.heads.suppression import LEAST_SCORE, best_boxes, xyxy
from pipelines.models.heads.tensors import pick, picture_numbers
from pipelines.models.spec import Preprocessing

# Picture, label, score, corners; and corners, score.
ROW, BOX_AND_SCORE = 7, 5
OF_ROWS = "detection_output (1, 1, M, 7)"
OF_BOXES = "boxes with scores (N, M, 5) or (M, 5)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ssd:
    """`detection_output` `(1, 1, M, 7)`, or boxes with scores `(N, M, 5)` and maybe labels `(N, M)`.

    Labels are as the network gives them: where the first name is the background's, they count it.

    Attributes:
        output: the name of a `detection_output`: picture, label, score, corners in 0..1. It ends at the first
            negative number of a picture. `(1, 1, M, 7)` is of as many pictures as their highest number says,
            of one at least; `(N, 1, M, 7)` is of N, joined from passes of one picture each. A named one
            may be `(M, 7)`.
        boxes: instead, the name of `(N, M, 5)`, or of one picture's `(M, 5)`: corners in pixels, score.
        labels: the name of their labels; empty: the first integers of that form, else all are 0.
        iou_threshold: the overlap from which the worse box is left out; None: none is.
        class_agnostic: a box removes those of other classes too.
    """

    family: ClassVar[str] = "ssd"

    output: str = ""
    boxes: str = ""
    labels: str = ""
    iou_threshold: float | None = None
    class_agnostic: bool = False

    @property
    def numbers_pictures(self) -> bool:
        """Whether rows say of which picture they are."""
        return bool(self.output)

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        if self.output or (not self.boxes and any(map(_of_rows, outputs.values()))):
            box, score, label, picture, count = self._from_rows(outputs, size_hw)
        else:
            box, score, label, picture, count = self._from_boxes(outputs)
        return best_boxes(
            box.float(),
            score.float(),
            label,
            picture,
            count,
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        """Stretched, in levels 0..255 of blue, green and red, as OpenCV has them."""
        levels = (1 / 255,) * 3
        return Preprocessing(resize_px=size_hw, mean=(0, 0, 0), std=levels, antialias=False, channels="BGR")

    def with_classes(self, count: int) -> Self:
        """The same: labels are numbers here, whatever their number."""
        return self

    def _from_rows(
        self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """The boxes, scores, labels and pictures `(C, …)`, and the number of pictures."""
        output = pick(
            outputs,
            self.output,
            lambda one: _of_rows(one) or (one.ndim == 2 and one.shape[1] == ROW),
            f"head ssd needs {OF_ROWS}",
        )
        part_gm7 = output[None] if output.ndim == 2 else output.flatten(1, -2)
        real = (part_gm7[..., 0] >= 0).cumprod(1).bool() & (part_gm7[..., 2] > LEAST_SCORE)
        part, place = real.nonzero(as_tuple=True)
        row = part_gm7[part, place]
        picture, count = part, len(part_gm7)
        if count == 1:
            picture, count = picture_numbers(row[:, 0], f"head ssd needs {OF_ROWS}")
        return xyxy(row[:, 3:], "xyxy", size_hw), row[:, 2], row[:, 1], picture, count

    def _from_boxes(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
        """The same of boxes in pixels with their scores."""
        needs = OF_BOXES if self.boxes else f"{OF_ROWS} or {OF_BOXES}"
        boxes = pick(outputs, self.boxes, _of_boxes, f"head ssd needs {needs}")
        box_nm5 = boxes[None] if boxes.ndim == 2 else boxes
        labels = self._labels(outputs, box_nm5)
        picture, place = (box_nm5[..., 4] > LEAST_SCORE).nonzero(as_tuple=True)
        row = box_nm5[picture, place]
        return row[:, :4], row[:, 4], labels[picture, place], picture, len(box_nm5)

    def _labels(self, outputs: Mapping[str, Tensor], box_nm5: Tensor) -> Tensor:
        """Labels `(N, M)`; 0 where there are none."""
        rows = box_nm5.shape[:2]
        if self.labels:
            needs = f"head ssd needs labels ({rows[0]}, {rows[1]}), one for each box"
            labels = pick(outputs, self.labels, lambda one: one.numel() == rows.numel(), needs)
            return labels.reshape(rows)
        for labels in outputs.values():
            if not labels.is_floating_point() and labels.ndim in (1, 2) and (1, *labels.shape)[-2:] == rows:
                return labels.reshape(rows)
        return torch.zeros(rows, device=box_nm5.device)


def _of_rows(one: Tensor) -> bool:
    return one.ndim == 4 and one.shape[1] == 1 and one.shape[3] == ROW


def _of_boxes(one: Tensor) -> bool:
    return one.ndim in (2, 3) and one.shape[-1] == BOX_AND_SCORE
