"""The measures that judge the demo models, on cases small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from scripts.demo.metrics import (
    FoundBoxes,
    TrueBoxes,
    accuracy,
    average_precision,
    class_iou,
    mean_average_precision,
)


def found_boxes(*rows: tuple[float, Sequence[float]]) -> FoundBoxes:
    """Boxes of label 1 with their scores."""
    return FoundBoxes(
        boxes=np.array([box for _, box in rows], float).reshape(-1, 4),
        labels=np.ones(len(rows), int),
        scores=np.array([score for score, _ in rows]),
    )


LEFT, RIGHT, FAR = (0, 0, 10, 10), (20, 0, 30, 10), (50, 50, 60, 60)
HALF_OF_LEFT = (0, 0, 5, 10)


@pytest.mark.parametrize(
    ("found", "ignored", "expected"),
    [
        ([(0.9, LEFT), (0.8, RIGHT)], [False, False], 1.0),
        ([(0.9, LEFT)], [False, False], 0.5),
        ([], [False, False], 0.0),
        ([(0.9, HALF_OF_LEFT), (0.8, RIGHT)], [False, False], 1.0),
        ([(0.9, (0, 0, 4, 10)), (0.8, RIGHT)], [False, False], 0.25),
        ([(0.9, LEFT), (0.8, LEFT), (0.7, RIGHT)], [False, False], 0.5 + 0.5 * 2 / 3),
        ([(0.9, FAR), (0.8, LEFT), (0.7, RIGHT)], [False, False], 2 / 3),
        ([(0.9, LEFT), (0.8, RIGHT), (0.7, FAR)], [False, False], 1.0),
        ([(0.9, LEFT), (0.8, RIGHT)], [True, False], 1.0),
        ([(0.9, RIGHT)], [True, False], 1.0),
    ],
    ids=[
        "all",
        "half",
        "none",
        "loose",
        "too-loose",
        "twice",
        "wrong-first",
        "wrong-last",
        "ignored",
        "unfound",
    ],
)
def test_average_precision(
    found: list[tuple[float, Sequence[float]]], ignored: list[bool], expected: float
) -> None:
    boxes = np.array([LEFT, RIGHT], float)
    truth = TrueBoxes(boxes=boxes, labels=np.ones(2, int), ignored=np.array(ignored))
    assert average_precision([found_boxes(*found)], [truth], label=1) == pytest.approx(expected)
    # Frames that hold nothing change nothing.
    empty = TrueBoxes(boxes=np.zeros((0, 4)), labels=np.zeros(0, int), ignored=np.zeros(0, bool))
    score = mean_average_precision([found_boxes(), found_boxes(*found)], [empty, truth])
    assert score == pytest.approx(expected)


def test_accuracy_passes_over_the_undecided() -> None:
    assert accuracy(np.array([0, 1, 2, 3]), np.array([0, -1, 2, 0])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="none of 2"):
        accuracy(np.array([0, 1]), np.array([-1, -1]))


def test_class_iou() -> None:
    overlaps = class_iou(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), classes=3)
    np.testing.assert_allclose(overlaps, [0.5, 2 / 3, np.nan])
