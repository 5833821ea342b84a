"""YOLOv5 and its like: against ONNX Runtime's own suppression of the same rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.protocol.errors import ModelUnavailable
from tests.support.detections import assert_equal, drawn_boxes, drawn_scores, suppressed

SIZE_HW = (64, 96)


def drawn(pictures: int, rows: int, classes: int, seed: int) -> Tensor:
    """Rows of box, objectness and classes."""
    generator = torch.Generator().manual_seed(seed)
    boxes = drawn_boxes(pictures, rows, generator, SIZE_HW)
    return torch.cat([boxes, drawn_scores(pictures, rows, 1 + classes, generator)], dim=2)


@given(st.integers(1, 4), st.integers(1, 80), st.integers(1, 6), st.integers(0, 9999))
@settings(deadline=None, max_examples=40)
def test_it_finds_what_another_runtime_leaves(pictures: int, rows: int, classes: int, seed: int) -> None:
    row_nac = drawn(pictures, rows, classes, seed)
    found = YoloV5(classes=classes)({"output0": row_nac}, SIZE_HW)
    score_nak = row_nac[..., 4:5] * row_nac[..., 5:]
    kept = suppressed(row_nac[..., :4], score_nak, 0.45)
    for number, one in enumerate(found):
        assert one["labels"].tolist() == [label for _, label in kept[number]]
        places = [row for row, _ in kept[number]]
        centre, size = (
            (one["boxes"][:, :2] + one["boxes"][:, 2:]) / 2,
            one["boxes"][:, 2:] - one["boxes"][:, :2],
        )
        torch.testing.assert_close(torch.cat([centre, size], dim=1), row_nac[number, places, :4])
        torch.testing.assert_close(one["scores"], score_nak[number, places].amax(dim=1))


@given(st.permutations(range(4)), st.integers(0, 9999))
@settings(deadline=None, max_examples=15)
def test_pictures_in_another_order_have_the_same_boxes(order: list[int], seed: int) -> None:
    row_nac = drawn(4, 60, 3, seed)
    found = YoloV5()({"output0": row_nac}, SIZE_HW)
    assert_equal(YoloV5()({"output0": row_nac[order]}, SIZE_HW), [found[number] for number in order])


def test_rows_of_all_scores_are_compared_by_objectness_times_class() -> None:
    """Many rows: those of high objectness and a low class are not among the best."""
    row_nac = drawn(1, 3_000, 2, 0)
    row_nac[..., 2:4] = 0.5  # small: few overlap
    (found,) = YoloV5()({"output0": row_nac}, SIZE_HW)
    best = (row_nac[0, :, 4] * row_nac[0, :, 5:].amax(dim=1)).sort(descending=True).values[:300]
    assert float(found["scores"][0]) == float(best[0])
    assert float(found["scores"][-1]) >= float(best[-1]) - 0.1


def test_class_agnostic_suppression_and_another_threshold() -> None:
    same = torch.tensor([[[30.0, 30, 20, 20, 1, 0.9, 0], [31, 30, 20, 20, 1, 0, 0.8]]])
    lengths = [
        len(head({"o": same}, SIZE_HW)[0]["boxes"])
        for head in (
            YoloV5(),
            YoloV5(class_agnostic=True),
            YoloV5(class_agnostic=True, iou_threshold=0.95),
        )
    ]
    assert lengths == [2, 1, 2]


def test_nothing_found_is_no_boxes() -> None:
    found = YoloV5()({"o": torch.zeros(2, 30, 8)}, SIZE_HW)
    assert [tuple(one["boxes"].shape) for one in found] == [(0, 4), (0, 4)]
    assert found[0]["labels"].dtype == torch.int64


@pytest.mark.parametrize("shape", [(1, 84, 8400), (1, 30, 5), (30, 85), (1, 3, 8, 8, 85)])
def test_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelUnavailable, match="head yolo_v5 needs") as raised:
        YoloV5(classes=80)({"o": torch.zeros(shape)}, SIZE_HW)
    assert str(shape) in raised.value.message
    assert "(N, A, 85)" in raised.value.message


def test_it_is_fed_letterboxed_rgb() -> None:
    fed = YoloV5().pixels((64, 96))
    assert (fed.resize_px, fed.fit, fed.pad_value, fed.channels) == ((64, 96), "letterbox", 114, "RGB")
    assert (fed.mean, fed.std, fed.antialias) == ((0, 0, 0), (1, 1, 1), False)
    assert YoloV5().with_classes(7) == YoloV5(classes=7)


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    row_nac = drawn(3, 2_000, 4, 0)
    assert_equal(YoloV5()({"o": row_nac.cuda()}, SIZE_HW), YoloV5()({"o": row_nac}, SIZE_HW), atol=1e-4)
