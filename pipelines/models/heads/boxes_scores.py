"""Detectors that decode their boxes and leave the choice to others: a box and K scores for each anchor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipelines.models.heads.suppression import (
    LEAST_SCORE,
    Order,
    best_boxes,
    candidates,
    strongest,
    xyxy,
)
from pipelines.models.heads.tensors import check_names, pick, without
from pipelines.models.spec import Activation, Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxesScores:
    """Boxes `(N, A, 4)` or `(N, A, 1, 4)` and scores `(N, A, K)` → the best, without those that overlap.

    For one picture both may be without N.

    Attributes:
        classes: the number of names; 0: as many as there are columns. With `background`, names with or
            without it: if with it, labels count from it.
        boxes, scores: names of the outputs; empty: the first that fits.
        unit: boxes are in 0..1, else in pixels.
        order: of a box's four numbers.
        background: the first column is the background's, and is never answered.
        activation: what makes scores of them; softmax counts the background in.
        iou_threshold: the overlap from which the worse box is left out; None: none is.
        class_agnostic: a box removes those of other classes too.
        multi_label: a box is answered for each of its classes, as by SSD and RetinaNet of torchvision; else
            for its best one.
    """

    family: ClassVar[str] = "boxes_scores"

    unit: bool
    classes: int = 0
    boxes: str = "boxes"
    scores: str = "scores"
    order: Order = "xyxy"
    background: bool = False
    activation: Activation = "none"
    iou_threshold: float | None = 0.45
    class_agnostic: bool = False
    multi_label: bool = False

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        box_na4, score_nac = self._pair(outputs)
        picture, row = candidates(self._best(score_nac))
        score_ck = self._activated(score_nac[picture, row])[:, self._first :]
        score, place, label = self._answers(score_ck, picture, len(box_na4))
        picture, row = picture[place], row[place]
        first_label = self._first if self.classes == score_nac.shape[2] else 0
        return best_boxes(
            xyxy(box_na4[picture, row].float(), self.order, size_hw if self.unit else None),
            score,
            label + first_label,
            picture,
            len(box_na4),
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        """Stretched, in 0..1."""
        return Preprocessing(resize_px=size_hw, mean=(0, 0, 0), std=(1, 1, 1))

    def with_classes(self, count: int) -> Self:
        return replace(self, classes=count)

    def _pair(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The boxes `(N, A, 4)` and the scores `(N, A, C)`, still with the background."""
        boxes = pick(
            without(outputs, self.scores, self.boxes),
            self.boxes,
            _of_boxes,
            "head boxes_scores needs boxes (N, A, 4) or (N, A, 1, 4)",
        )
        box_na4 = boxes[None] if boxes.ndim == 2 else boxes.flatten(1, -2)
        rows = box_na4.shape[:2]
        least = 2 if self.background else 1

        def fits(one: Tensor) -> bool:
            pictures = one.shape[:-2] if one.ndim > 2 else (1,)
            return one.ndim in (2, 3) and (*pictures, one.shape[-2]) == rows and one.shape[-1] >= least

        needs = f"head boxes_scores needs scores ({rows[0]}, {rows[1]}, K) for its boxes, K from {least}"
        scores = pick(without(outputs, boxes, self.scores), self.scores, fits, needs)
        columns = scores.shape[-1]
        allowed = (columns - 1, columns) if self.background else (columns,)
        check_names(self.classes, allowed, self.family, scores)
        return box_na4, scores.reshape(*rows, columns).float()

    @property
    def _first(self) -> int:
        """The first column that is a class."""
        return 1 if self.background else 0

    def _best(self, raw_nac: Tensor) -> Tensor:
        """The best score of each row `(N, A)`: as of all scores, of which most need not be computed."""
        best_na = raw_nac[..., self._first :].amax(2)
        if self.activation == "softmax":
            return (best_na - raw_nac.logsumexp(2)).exp()
        return best_na.sigmoid() if self.activation == "sigmoid" else best_na

    def _activated(self, raw_cc: Tensor) -> Tensor:
        if self.activation == "softmax":
            return raw_cc.softmax(1)
        return raw_cc.sigmoid() if self.activation == "sigmoid" else raw_cc

    def _answers(self, score_ck: Tensor, picture_c: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The scores, places among the candidates, and classes of what may be answered."""
        if not self.multi_label:
            score, label = score_ck.max(1)
            return score, torch.arange(len(score), device=score.device), label
        place, label = (score_ck > LEAST_SCORE).nonzero(as_tuple=True)
        score = score_ck[place, label]
        kept = strongest(score, picture_c[place], count)
        return score[kept], place[kept], label[kept]


def _of_boxes(one: Tensor) -> bool:
    return one.ndim in (2, 3, 4) and one.shape[-1] == 4 and (one.ndim < 4 or one.shape[2] == 1)
