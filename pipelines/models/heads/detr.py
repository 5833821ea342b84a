"""DETR and its kin: a fixed number of queries, each with a box and scores. Knows no anchors and no grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipelines.models.heads.suppression import LEAST_SCORE, best_boxes, xyxy
from pipelines.models.heads.tensors import check_names, pick, without
from pipelines.models.spec import Preprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Detr:
    """Logits `(N, Q, K)` and boxes `(N, Q, 4)` of centre, width and height in 0..1 → the best of them.

    Attributes:
        classes: the number of names; 0: as many as the network has. With `softmax`, "no object" may be one.
        logits, boxes: names of the outputs; empty: the first that fits.
        joined: the name of one output `(N, Q, 4 + K)` instead: boxes, then probabilities.
        softmax: one class for each query, the last of the `K + 1` is "no object" (DETR, YOLOS, Table
            Transformer). Else each class has a sigmoid, and a query may answer with several classes (RT-DETR,
            D-FINE, Conditional DETR, RF-DETR).
        probabilities: the logits are probabilities already; so they are in a joined output.
        most: pairs of a query and a class that are answered without `softmax`; 0: as many as queries.
            Conditional and Deformable DETR have 100.
        iou_threshold: the overlap from which the worse box is left out; None: none is, as in these families.
        class_agnostic: a box removes those of other classes too.
    """

    family: ClassVar[str] = "detr"

    classes: int = 0
    logits: str = "logits"
    boxes: str = "pred_boxes"
    joined: str = ""
    softmax: bool = False
    probabilities: bool = False
    most: int = 0
    iou_threshold: float | None = None
    class_agnostic: bool = False

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        logits, centre_nq4 = self._pair(outputs)
        columns = logits.shape[2]
        classes = columns - 1 if self.softmax else columns
        check_names(self.classes, (classes, columns) if self.softmax else (columns,), self.family, logits)
        score_np, label_np, query_np = self._answers(logits.float())
        picture, place = (score_np > LEAST_SCORE).nonzero(as_tuple=True)
        query = query_np[picture, place]
        return best_boxes(
            xyxy(centre_nq4[picture, query].float(), "cxcywh", size_hw),
            score_np[picture, place],
            label_np[picture, place],
            picture,
            len(logits),
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )

    def _pair(self, outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The logits or probabilities, and the boxes."""
        least = 2 if self.softmax else 1
        if self.joined:
            both = pick(
                outputs,
                self.joined,
                lambda one: one.ndim == 3 and one.shape[2] >= 4 + least,
                f"head detr needs (N, Q, 4 + K): boxes and {least} or more classes",
            )
            return both[..., 4:], both[..., :4]
        boxes = pick(
            without(outputs, self.logits, self.boxes),
            self.boxes,
            lambda one: one.ndim == 3 and one.shape[2] == 4,
            "head detr needs boxes (N, Q, 4)",
        )
        rows = boxes.shape[:2]
        logits = pick(
            without(outputs, boxes, self.logits),
            self.logits,
            lambda one: one.ndim == 3 and one.shape[:2] == rows and one.shape[2] >= least,
            f"head detr needs logits ({rows[0]}, {rows[1]}, K) for its boxes, K from {least}",
        )
        return logits, boxes

    def _answers(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scores, labels and queries `(N, P)` of what may be answered."""
        plain = self.probabilities or bool(self.joined)
        if self.softmax:
            score_nqk = (logits if plain else logits.softmax(2))[..., :-1]
            score, label = score_nqk.max(2)
            return score, label, torch.arange(score.shape[1], device=score.device).expand_as(score)
        score_nqk = logits if plain else logits.sigmoid()
        pairs = score_nqk.flatten(1).nan_to_num(0)
        score, pair = pairs.topk(min(self.most or score_nqk.shape[1], pairs.shape[1]), dim=1)
        classes = score_nqk.shape[2]
        return score, pair % classes, pair // classes

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        """Stretched, with ImageNet's mean and std; in 0..1 where boxes and sigmoids are one tensor."""
        if self.joined:  # as Ultralytics trains and exports RT-DETR
            return Preprocessing(resize_px=size_hw, mean=(0, 0, 0), std=(1, 1, 1), antialias=False)
        return Preprocessing(resize_px=size_hw)

    def with_classes(self, count: int) -> Self:
        return replace(self, classes=count)
