"""The measures that judge the demo models, on cases small enough to work out by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.protocol.answers import DetectionAnswer
from scripts.demo.judging import TruthArrays, accuracy, average_precisions, class_iou


def answer_of(*rows: tuple[float, Sequence[float]], frame: int) -> DetectionAnswer:
    """Boxes of label 1 with their scores in one of two frames."""
    return DetectionAnswer(
        frame_index=np.arange(2),
        pts_s=np.arange(2.0),
        size=np.array([60, 60]),
        box_frame_index=np.full(len(rows), frame),
        box=np.array([box for _, box in rows], np.float32).reshape(-1, 4),
        score=np.array([score for score, _ in rows], np.float32),
        class_id=np.ones(len(rows), int),
        class_name=np.full(len(rows), "circle", object),
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
    truth: TruthArrays = {
        "boxes": np.array([LEFT, RIGHT], np.float32),
        "box_class": np.ones(2, np.uint8),
        "box_frame": np.ones(2, np.int32),
        "box_ignored": np.array(ignored),
    }
    # Frames that hold nothing change nothing.
    assert average_precisions(answer_of(*found, frame=1), truth) == pytest.approx({1: expected})
    # What is found in another frame is not there; what is true of frames that are not answered is not asked.
    assert average_precisions(answer_of(*found, frame=0), truth) == {1: 0}
    with pytest.raises(ValueError, match="no truth box to find in 2 frames"):
        average_precisions(answer_of(*found, frame=1), {**truth, "box_frame": np.full(2, 7)})


def test_accuracy_passes_over_the_undecided() -> None:
    assert accuracy(np.array([0, 1, 2, 3]), np.array([0, -1, 2, 0])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="none of 2"):
        accuracy(np.array([0, 1]), np.array([-1, -1]))


def test_class_iou() -> None:
    overlaps = class_iou(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]), classes=3)
    np.testing.assert_allclose(overlaps, [0.5, 2 / 3, np.nan])
