"""How good served answers are, measured against what was drawn. Knows no model and no connection."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.protocol import rle
from pipelines.protocol.answers import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)
from scripts.demo.metrics import FoundBoxes, TrueBoxes, accuracy, class_iou, mean_average_precision

Truth = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """What is measured of a task's answers, the least that is good, and the options that it needs."""

    name: str
    least: float
    judge: Callable[[Any, Truth], float]
    options: Mapping[str, str]


def read_truth(path: Path) -> Truth:
    """The arrays that `python -m scripts.demo.train --draw --truth` writes."""
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _mean_iou(answer: SegmentationAnswer, truth: Truth) -> float:
    size = (answer.height_px, answer.width_px)
    found = np.stack([rle.decode(mask, size) for mask in answer.mask])
    return float(np.nanmean(class_iou(found, truth["masks"][answer.frame_index], len(answer.class_names))))


def _accuracy(answer: ClassificationAnswer, truth: Truth) -> float:
    return accuracy(answer.class_id[:, 0], truth["class_id"][answer.frame_index].astype(int))


def _map(answer: DetectionAnswer, truth: Truth) -> float:
    found, true = [], []
    for index in answer.frame_index:
        ours, theirs = answer.box_frame_index == index, truth["box_frame"] == index
        found.append(
            FoundBoxes(boxes=answer.box[ours], labels=answer.class_id[ours], scores=answer.score[ours])
        )
        boxes, labels, ignored = (truth[name][theirs] for name in ("boxes", "box_class", "box_ignored"))
        true.append(TrueBoxes(boxes=boxes, labels=labels, ignored=ignored))
    return mean_average_precision(found, true)


def _action_accuracy(answer: ActionAnswer, truth: Truth) -> float:
    """Of the clips in which one thing happens from the first frame to the last."""
    spans = zip(answer.frame_index, answer.last_frame_index, strict=True)
    within = [np.unique(truth["action_id"][first : last + 1]) for first, last in spans]
    expected = np.array([ids[0] if len(ids) == 1 else -1 for ids in within])
    return accuracy(answer.class_id[:, 0], expected)


MEASURES: Mapping[type[Answer], Measure] = {
    SegmentationAnswer: Measure(name="mean IoU", least=0.90, judge=_mean_iou, options={}),
    ClassificationAnswer: Measure(name="accuracy", least=0.95, judge=_accuracy, options={}),
    DetectionAnswer: Measure(
        name="mAP@0.5", least=0.85, judge=_map, options={"score_threshold": "0.05", "mask": "none"}
    ),
    ActionAnswer: Measure(name="accuracy", least=0.95, judge=_action_accuracy, options={"tail": "drop"}),
}
