"""How good answers are: accuracy, IoU and mean average precision. Knows no model and no clip."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBoxes:
    """What a detector found in one frame: boxes x0 y0 x1 y1 `(D, 4)`, labels `(D,)`, scores `(D,)`."""

    boxes: Floats
    labels: Integers
    scores: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class TrueBoxes:
    """What is in one frame: boxes x0 y0 x1 y1 `(G, 4)`, labels `(G,)`, ignored bool `(G,)`."""

    boxes: Floats
    labels: Integers
    ignored: npt.NDArray[np.bool_]


def accuracy(found: Integers, truth: Integers) -> float:
    """The share of right class ids where the truth is not -1, which stands for undecided; both `(N,)`."""
    decided = truth >= 0
    if not decided.any():
        raise ValueError(f"none of {len(truth)} truths is decided")
    return float((found[decided] == truth[decided]).mean())


def class_iou(found: Integers, truth: Integers, classes: int) -> list[float]:
    """Intersection over union of each class over all pixels of two equal arrays; nan where neither has it."""
    overlaps = []
    for k in range(classes):
        union = int(np.sum((found == k) | (truth == k)))
        overlaps.append(float(np.sum((found == k) & (truth == k)) / union) if union else float("nan"))
    return overlaps


def mean_average_precision(
    found: Sequence[FoundBoxes], truth: Sequence[TrueBoxes], iou: float = 0.5
) -> float:
    """The mean of `average_precision` over the labels that have a truth box which is not ignored.

    Raises:
        ValueError: the two differ in length, or there is no such box.
    """
    if len(found) != len(truth):
        raise ValueError(f"{len(found)} frames found, {len(truth)} true ones")
    labels = {int(label) for frame in truth for label in frame.labels[~frame.ignored]}
    if not labels:
        raise ValueError("no truth box to find")
    return float(np.mean([average_precision(found, truth, label, iou) for label in sorted(labels)]))


def average_precision(
    found: Sequence[FoundBoxes], truth: Sequence[TrueBoxes], label: int, iou: float = 0.5
) -> float:
    """Area under the interpolated precision-recall curve of one label over all frames, as PASCAL VOC 2010 and
    on.

    In falling order of score, a box takes the free truth box of its frame that it overlaps most, by `iou` at
    least; one that takes none is a false positive, unless it overlaps an ignored truth box by as much.
    """
    scores, hits = [], []
    for found_boxes, true_boxes in zip(found, truth, strict=True):
        frame_scores, frame_hits = _match(found_boxes, true_boxes, label, iou)
        scores.append(frame_scores)
        hits.append(frame_hits)
    wanted = sum(int(np.sum((frame.labels == label) & ~frame.ignored)) for frame in truth)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    recall = np.cumsum(hit) / wanted
    precision = np.cumsum(hit) / np.arange(1, len(hit) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * best_from_here))


def _match(
    found: FoundBoxes, truth: TrueBoxes, label: int, iou: float
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Scores of the boxes that count in one frame, and which of them hit."""
    ours = np.nonzero(found.labels == label)[0]
    ours = ours[np.argsort(-found.scores[ours], kind="stable")]
    theirs = truth.labels == label
    ignored = truth.ignored[theirs]
    pair = (torch.from_numpy(np.asarray(boxes, float)) for boxes in (found.boxes[ours], truth.boxes[theirs]))
    overlaps = box_iou(*pair).numpy()
    free = ~ignored
    scores, hits = [], []
    for index, row in zip(ours, overlaps, strict=True):
        candidates = np.where(free, row, 0)
        hit = bool(len(row)) and bool(candidates.max() >= iou)
        if hit:
            free[candidates.argmax()] = False
        elif np.any(row[ignored] >= iou):
            continue
        scores.append(float(found.scores[index]))
        hits.append(hit)
    return np.array(scores, np.float64), np.array(hits, bool)
