"""From scores of many rows to the best boxes of each picture: against ONNX Runtime's own suppression."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.models.heads.suppression import (
    LEAST_SCORE,
    MOST_BOXES,
    MOST_CANDIDATES,
    best_boxes,
    candidates,
    corners,
)
from tests.support.detections import assert_equal, drawn_boxes, drawn_scores, suppressed

SEEDS = st.integers(0, 10_000)


def chosen(
    box_na4: Tensor, score_nak: Tensor, iou_threshold: float | None = 0.5, *, class_agnostic: bool = False
) -> list[dict[str, Tensor]]:
    """The best boxes, with the numbers of their rows."""
    best, label = score_nak.max(dim=2)
    picture, row = candidates(best)
    return best_boxes(
        box_na4[picture, row],
        best[picture, row],
        label[picture, row],
        picture,
        len(box_na4),
        iou_threshold=iou_threshold,
        class_agnostic=class_agnostic,
        rows=row,
    )


@given(st.integers(1, 4), st.integers(1, 60), st.integers(1, 5), st.sampled_from([0.3, 0.45, 0.7]), SEEDS)
@settings(deadline=None, max_examples=40)
def test_it_leaves_what_another_runtime_leaves(
    pictures: int, rows: int, classes: int, iou_threshold: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    box_na4, score_nak = (
        drawn_boxes(pictures, rows, generator),
        drawn_scores(pictures, rows, classes, generator),
    )
    found = chosen(corners(box_na4), score_nak, iou_threshold)
    pairs = [list(zip(one["rows"].tolist(), one["labels"].tolist(), strict=True)) for one in found]
    assert pairs == suppressed(box_na4, score_nak, iou_threshold)
    for number, one in enumerate(found):
        torch.testing.assert_close(one["boxes"], corners(box_na4)[number, one["rows"]])
        torch.testing.assert_close(one["scores"], score_nak[number].amax(dim=1)[one["rows"]])
        assert one["labels"].dtype == torch.int64


@given(st.permutations(range(4)), SEEDS)
@settings(deadline=None, max_examples=20)
def test_pictures_in_another_order_have_the_same_boxes(order: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    box_na4, score_nak = corners(drawn_boxes(4, 50, generator)), drawn_scores(4, 50, 3, generator)
    found = chosen(box_na4, score_nak)
    assert_equal(chosen(box_na4[order], score_nak[order]), [found[number] for number in order])


def test_a_box_removes_none_of_another_picture_or_class() -> None:
    box_na4 = torch.tensor([10.0, 10, 50, 50]).expand(3, 2, 4)
    score_nak = torch.tensor([[0.9, 0.0], [0.0, 0.8]]).expand(3, 2, 2)
    assert [len(one["boxes"]) for one in chosen(box_na4, score_nak)] == [2, 2, 2]
    assert [len(one["boxes"]) for one in chosen(box_na4, score_nak, class_agnostic=True)] == [1, 1, 1]
    assert [len(one["boxes"]) for one in chosen(box_na4, score_nak[..., :1])] == [1, 1, 1]


@given(st.floats(0.05, 0.9), SEEDS)
@settings(deadline=None, max_examples=20)
def test_a_threshold_after_it_leaves_what_one_before_it_leaves(threshold: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    box_na4, score_nak = corners(drawn_boxes(2, 60, generator)), drawn_scores(2, 60, 3, generator)
    before = chosen(box_na4, score_nak * (score_nak > threshold))
    after = [
        {name: column[one["scores"] > threshold] for name, column in one.items()}
        for one in chosen(box_na4, score_nak)
    ]
    assert_equal(before, after)


@pytest.mark.parametrize("iou_threshold", [None, 0.5])
def test_of_equal_scores_the_first_rows_lead(iou_threshold: float | None) -> None:
    rows = MOST_CANDIDATES + 500
    corner = torch.arange(rows)[None, :, None] * torch.tensor([20.0, 0])
    apart = torch.cat([corner, corner + 10], dim=2)
    found = chosen(apart, torch.full((1, rows, 1), 0.5), iou_threshold)
    assert found[0]["rows"].tolist() == list(range(MOST_BOXES))
    picture, row = candidates(torch.full((2, rows), 0.5))
    assert row.tolist() == [*range(MOST_CANDIDATES)] * 2
    assert picture.tolist() == [0] * MOST_CANDIDATES + [1] * MOST_CANDIDATES
    (same,) = chosen(torch.tensor([0.0, 0, 9, 9]).expand(1, 9, 4), torch.full((1, 9, 1), 0.5), 0.5)
    assert same["rows"].tolist() == [0]


@given(st.integers(0, 2_000), SEEDS)
@settings(deadline=None, max_examples=20)
def test_of_many_rows_the_best_are_candidates(rows: int, seed: int) -> None:
    score_na = drawn_scores(3, rows, 1, torch.Generator().manual_seed(seed))[..., 0]
    picture, row = candidates(score_na)
    for number, score_a in enumerate(score_na):
        best = score_a.sort(descending=True, stable=True).indices[:MOST_CANDIDATES]
        expected = best[score_a[best] > LEAST_SCORE].sort().values
        assert row[picture == number].tolist() == expected.tolist()


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_a_box_out_of_this_world_changes_nothing_in_others(odd: float) -> None:
    generator = torch.Generator().manual_seed(0)
    box_na4, score_nak = corners(drawn_boxes(2, 40, generator)), drawn_scores(2, 40, 3, generator)
    score_nak[0, 7] = 0
    sound = chosen(box_na4, score_nak)
    box_na4[0, 7] = torch.tensor([0, 0, odd, odd])
    score_nak[0, 7, 1] = 0.99
    found = chosen(box_na4, score_nak)
    kept = found[0]["rows"] != 7
    found[0] = {name: column[kept] for name, column in found[0].items()}
    assert_equal(found, sound)


def test_a_score_that_is_no_number_takes_no_place() -> None:
    score_na = torch.full((1, 3 * MOST_CANDIDATES), torch.nan)
    score_na[0, -MOST_CANDIDATES - 1 :] = torch.linspace(0.1, 0.9, MOST_CANDIDATES + 1)
    _, row = candidates(score_na)
    assert row.tolist() == [*range(2 * MOST_CANDIDATES, 3 * MOST_CANDIDATES)]


def test_pictures_may_be_in_any_order_and_empty() -> None:
    box_c4 = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [40, 40, 50, 50]])
    picture_c = torch.tensor([3, 1, 3])
    found = best_boxes(
        box_c4, torch.tensor([0.5, 0.6, 0.7]), torch.tensor([2, 1, 0]), picture_c, 5, iou_threshold=0.5
    )
    assert [one["labels"].tolist() for one in found] == [[], [1], [], [0, 2], []]
    assert [tuple(one["boxes"].shape) for one in found] == [(0, 4), (1, 4), (0, 4), (2, 4), (0, 4)]


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [60, 3_000])
def test_a_gpu_leaves_the_same(rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    box_na4, score_nak = corners(drawn_boxes(3, rows, generator)), drawn_scores(3, rows, 4, generator)
    assert_equal(chosen(box_na4.cuda(), score_nak.cuda()), chosen(box_na4, score_nak))
