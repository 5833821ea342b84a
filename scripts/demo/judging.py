"""How good answers are, measured against what was drawn. Knows no model and no connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torchvision.ops import box_iou

from pipelines.protocol import answers, rle
from pipelines.protocol.options import Scalar
from pipelines.zoo.demo.networks import ACTION_LABELS, SHAPE_LABELS
from scripts.demo.actions import clip_action
from scripts.demo.shapes import Truth

Integers = npt.NDArray[np.integer[Any]]
# What is true of a clip's frames, as `truth_arrays` makes it.
TruthArrays = Mapping[str, npt.NDArray[Any]]
# The measure under its name, then each class's share in it, of the classes that the truth has.
Quality = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What is measured of a task's answers, the least that is good, and the options that it needs."""

    name: str
    least: float
    judge: Callable[[Any, TruthArrays], Quality]
    options: Mapping[str, Scalar]


def truth_arrays(truths: Sequence[Truth] | Sequence[int]) -> TruthArrays:
    """What is true of a clip's N frames, as it is written: of an action clip `action_id` int8 `(N,)`, else

    `masks` uint8 `(N, H, W)`: 0 background, then the classes. `class_id` int8 `(N,)`: the dominant class, 0
    for the circle, -1 where none leads clearly. One row per visible shape: `boxes` float32 `(D, 4)`, x0 y0 x1
    y1 in source pixels, `box_class` uint8 `(D,)`, 1 for the circle, `box_frame` int32 `(D,)`, `box_ignored`
    bool `(D,)`.
    """
    shapes = [truth for truth in truths if isinstance(truth, Truth)]
    if not shapes:
        return {"action_id": np.array(truths, np.int8)}
    counts = [len(truth.boxes) for truth in shapes]
    return {
        "masks": np.stack([truth.class_ids for truth in shapes]),
        "class_id": np.array([truth.dominant for truth in shapes], np.int8),
        "boxes": np.concatenate([truth.boxes for truth in shapes]),
        "box_class": np.concatenate([truth.box_class for truth in shapes]),
        "box_frame": np.repeat(np.arange(len(shapes), dtype=np.int32), counts),
        "box_ignored": np.concatenate([truth.box_ignored for truth in shapes]),
    }


def read_truth(path: Path) -> TruthArrays:
    """The arrays that `python -m scripts.demo.train --draw --truth` writes."""
    with np.load(path) as arrays:
        return dict(arrays)


def accuracy(found: Integers, truth: Integers) -> float:
    """The share of right class ids where the truth is not -1, which stands for undecided; both `(N,)`."""
    decided = truth >= 0
    if not decided.any():
        raise ValueError(f"none of {len(truth)} truths is decided")
    return float((found[decided] == truth[decided]).mean())


def class_iou(found: Integers, truth: Integers, classes: int) -> npt.NDArray[np.float64]:
    """Intersection over union of each class over all pixels of two equal arrays; nan where neither has it."""
    areas = [np.bincount(ids.ravel(), minlength=classes) for ids in (found, truth, truth[found == truth])]
    union = areas[0] + areas[1] - areas[2]
    return np.divide(areas[2], union, out=np.full(classes, np.nan), where=union > 0)


def average_precisions(
    answer: answers.DetectionAnswer, truth: TruthArrays, iou: float = 0.5
) -> dict[int, float]:
    """Of each label to be found: area under the interpolated precision-recall curve (PASCAL VOC 2010 and on).

    In falling order of score, a box takes the free truth box of its frame and label that it overlaps most, by
    `iou` at least; one that takes none is a false positive, unless it overlaps an ignored one by as much.

    Raises:
        ValueError: no truth box is to be found in the frames that are answered.
    """
    asked = np.isin(truth["box_frame"], answer.frame_index)
    names = ("boxes", "box_class", "box_frame", "box_ignored")
    boxes, labels, frames, ignored = (truth[name][asked] for name in names)
    if ignored.all():
        raise ValueError(f"no truth box to find in {len(answer)} frames")
    alike = (answer.box_frame_index[:, None] == frames) & (answer.class_id[:, None] == labels)
    pair = (torch.from_numpy(each).double() for each in (answer.box, boxes))
    overlaps = np.where(alike, box_iou(*pair).numpy(), 0)
    free, hits = ~ignored, dict[int, list[int]]()
    for row in np.argsort(-answer.score, kind="stable"):
        candidates = np.where(free, overlaps[row], 0)
        hit = candidates.max() >= iou
        if hit:
            free[candidates.argmax()] = False
        if hit or not np.any(overlaps[row, ignored] >= iou):
            hits.setdefault(int(answer.class_id[row]), []).append(int(hit))
    counts = np.bincount(labels[~ignored])
    return {int(k): _area(hits.get(int(k), []), int(counts[k])) for k in np.flatnonzero(counts)}


def _area(hits: Sequence[int], wanted: int) -> float:
    """Under the curve of boxes in falling order of score: 1 for those that hit one of `wanted`."""
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(found / wanted, prepend=0.0) * best_from_here))


def _judge_masks(answer: answers.SegmentationAnswer, truth: TruthArrays) -> Quality:
    size = (answer.height_px, answer.width_px)
    found = np.stack([rle.decode(mask, size) for mask in answer.mask])
    overlaps = class_iou(found, truth["masks"][answer.frame_index], len(answer.class_names))
    return {
        "mean IoU": float(np.nanmean(overlaps)),
        **dict(zip(answer.class_names, overlaps.tolist(), strict=True)),
    }


def _judge_frames(answer: answers.ClassificationAnswer, truth: TruthArrays) -> Quality:
    return _accuracies(answer.class_id[:, 0], truth["class_id"][answer.frame_index], SHAPE_LABELS)


def _judge_boxes(answer: answers.DetectionAnswer, truth: TruthArrays) -> Quality:
    each = average_precisions(answer, truth)
    strict = average_precisions(answer, truth, iou=0.75)
    means = {f"mAP@{iou}": float(np.mean([*by.values()])) for iou, by in ((0.5, each), (0.75, strict))}
    return means | {SHAPE_LABELS[label - 1]: value for label, value in each.items()}


def _judge_clips(answer: answers.ActionAnswer, truth: TruthArrays) -> Quality:
    spans = zip(answer.frame_index, answer.last_frame_index, strict=True)
    shown = [clip_action(truth["action_id"][first : last + 1]) for first, last in spans]
    return _accuracies(answer.class_id[:, 0], np.array(shown), ACTION_LABELS)


def _accuracies(found: Integers, truth: Integers, labels: Sequence[str]) -> Quality:
    """Over all rows that are decided, and over those of each class; `found` and `truth` `(N,)`."""
    rows = {label: truth == index for index, label in enumerate(labels)}
    each = {label: accuracy(found[own], truth[own]) for label, own in rows.items() if own.any()}
    return {"accuracy": accuracy(found, truth), **each}


MEASURES: Mapping[type[answers.Answer], Measure] = {
    answers.SegmentationAnswer: Measure(name="mean IoU", least=0.90, judge=_judge_masks, options={}),
    answers.ClassificationAnswer: Measure(name="accuracy", least=0.95, judge=_judge_frames, options={}),
    answers.DetectionAnswer: Measure(
        name="mAP@0.5", least=0.85, judge=_judge_boxes, options={"score_threshold": 0.05, "mask": "none"}
    ),
    answers.ActionAnswer: Measure(name="accuracy", least=0.95, judge=_judge_clips, options={"tail": "drop"}),
}
