"""Rows that were chosen already: corners, centres of 0..1, rows that name their picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_convert

from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.protocol.errors import ModelUnavailable
from pipelines.tasks.boxes import read_frame
from tests.support.detections import assert_equal, drawn_boxes

SIZE_HW = (64, 96)


def drawn(pictures: int, rows: int, filled: int, seed: int, more: int = 0) -> Tensor:
    """Rows of corners, score, class and more; those after `filled` are zeros."""
    generator = torch.Generator().manual_seed(seed)
    boxes = box_convert(drawn_boxes(pictures, rows, generator, SIZE_HW), "cxcywh", "xyxy")
    scores = torch.rand(pictures, rows, 1, generator=generator) * 0.9 + 0.05
    labels = torch.randint(0, 80, (pictures, rows, 1), generator=generator).float()
    row_nmc = torch.cat(
        [boxes, scores, labels, torch.randn(pictures, rows, more, generator=generator)], dim=2
    )
    row_nmc[:, filled:] = 0
    return row_nmc


@given(st.integers(1, 4), st.integers(0, 30), st.integers(0, 9999))
@settings(deadline=None, max_examples=25)
def test_all_rows_count_best_first_and_zeros_do_not(pictures: int, filled: int, seed: int) -> None:
    row_nmc = drawn(pictures, 40, filled, seed)
    found = EndToEnd()({"output0": row_nmc}, SIZE_HW)
    assert len(found) == pictures
    for one, rows in zip(found, row_nmc, strict=True):
        expected = rows[rows[:, 4].sort(descending=True, stable=True).indices[:filled]]
        assert torch.equal(one["boxes"], expected[:, :4])
        assert torch.equal(one["scores"], expected[:, 4])
        assert torch.equal(one["labels"], expected[:, 5].long())


@given(st.integers(1, 4), st.integers(0, 9999))
@settings(deadline=None, max_examples=15)
def test_centres_of_0_to_1_are_the_same_boxes(pictures: int, seed: int) -> None:
    row_nmc = drawn(pictures, 40, 30, seed)
    centred = row_nmc.clone()
    unit = row_nmc[..., :4] / torch.tensor([96.0, 64, 96, 64])
    centred[..., :4] = box_convert(unit, "xyxy", "cxcywh")
    found = EndToEnd()({"output0": row_nmc}, SIZE_HW)
    assert_equal(EndToEnd(form="centres")({"output0": centred}, SIZE_HW), found, atol=1e-3)


@given(st.integers(1, 4), st.integers(0, 9999))
@settings(deadline=None, max_examples=15)
def test_rows_that_name_their_picture_are_the_same_boxes(pictures: int, seed: int) -> None:
    row_nmc = drawn(pictures, 20, 15, seed)
    numbers = torch.arange(pictures).float()[:, None, None].expand(-1, 20, 1)
    named = torch.cat([numbers, row_nmc[..., :4], row_nmc[..., 5:6], row_nmc[..., 4:5]], dim=2)
    row_m7 = named.flatten(0, 1)[torch.randperm(20 * pictures, generator=torch.Generator().manual_seed(seed))]
    found = EndToEnd()({"output0": row_nmc}, SIZE_HW)
    assert_equal(EndToEnd(form="picture")({"output": row_m7}, SIZE_HW), found)


def test_no_rows_at_all_are_one_picture_without_boxes() -> None:
    row_m7 = torch.tensor([[-1.0, 0, 0, 9, 9, 1, 0.9], [0, 0, 0, 0, 0, 0, 0]])
    for rows in (row_m7, row_m7[:0]):
        (found,) = EndToEnd(form="picture")({"output": rows}, SIZE_HW)
        assert found["boxes"].shape == (0, 4)


def test_classes_are_rounded() -> None:
    row = torch.tensor([[[1.0, 2, 30, 40, 0.9, 15.9999], [1, 2, 30, 40, 0.8, 3.0001]]])
    (found,) = EndToEnd()({"output0": row}, SIZE_HW)
    assert found["labels"].tolist() == [16, 3]


def test_masks_and_keypoints_are_those_of_unchosen_rows() -> None:
    """The same objects as an export without suppression has them."""
    row_nmc = drawn(2, 12, 12, 0, more=6)
    # One class of eighty for each, and no two boxes that overlap.
    row_nmc[..., :4] = torch.arange(12)[None, :, None] * 8.0 + torch.tensor([0.0, 0, 7, 7])
    classes = torch.zeros(2, 12, 80).scatter_(2, row_nmc[..., 5:6].long(), row_nmc[..., 4:5])
    centres = box_convert(row_nmc[..., :4], "xyxy", "cxcywh")
    raw_nca = torch.cat([centres, classes, row_nmc[..., 6:]], dim=2).transpose(1, 2)
    prototypes = torch.randn(2, 6, 16, 24, generator=torch.Generator().manual_seed(0))
    chosen = EndToEnd(prototypes="p")({"output0": row_nmc, "p": prototypes}, SIZE_HW)
    assert_equal(chosen, YoloV8(prototypes="p")({"output0": raw_nca, "p": prototypes}, SIZE_HW), atol=1e-4)
    points = EndToEnd(keypoints=(2, 3))({"output0": row_nmc}, SIZE_HW)
    assert_equal(points, YoloV8(keypoints=(2, 3))({"output0": raw_nca}, SIZE_HW), atol=1e-4)
    assert read_frame(points[0], 0.1, ()).keypoint_dp3.shape[1:] == (2, 3)


def test_seventeen_points_are_57_columns() -> None:
    row_nmc = drawn(1, 3, 1, 0, more=51)
    (found,) = EndToEnd(keypoints=(17, 3))({"output0": row_nmc}, SIZE_HW)
    np.testing.assert_array_equal(found["keypoints"][0, :, :2], row_nmc[0, 0, 6:].reshape(17, 3)[:, :2])


@pytest.mark.parametrize(
    ("head", "shape", "says"),
    [
        (EndToEnd(), (1, 300, 7), "head end_to_end (corners) needs (N, M, 6); the model gives o (1, 300, 7)"),
        (EndToEnd(), (1, 84, 8400), "(N, M, 6)"),
        (EndToEnd(form="centres"), (1, 300, 84), "(centres) needs (N, M, 6)"),
        (EndToEnd(form="picture"), (1, 1, 200, 7), "(M, 7); the model gives o (1, 1, 200, 7)"),
        (EndToEnd(keypoints=(17, 3)), (1, 300, 6), "(N, M, 57)"),
        (EndToEnd(prototypes="p"), (1, 300, 6), "prototypes (N, M, h, w) in output p"),
    ],
)
def test_other_shapes_are_refused(head: EndToEnd, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelUnavailable) as raised:
        head({"o": torch.zeros(shape)}, SIZE_HW)
    assert says in raised.value.message


def test_rows_that_name_their_picture_have_nothing_more() -> None:
    with pytest.raises(ModelUnavailable, match="no masks"):
        EndToEnd(form="picture", keypoints=(17, 3))


def test_it_is_fed_as_its_family_is() -> None:
    fed, stretched = EndToEnd().pixels(SIZE_HW), EndToEnd(form="centres").pixels(SIZE_HW)
    assert (fed.fit, fed.pad_value, fed.channels, fed.antialias) == ("letterbox", 114, "RGB", False)
    assert (stretched.fit, stretched.channels, stretched.mean) == ("stretch", "RGB", (0, 0, 0))
    assert EndToEnd().with_classes(3) == EndToEnd()


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    row_nmc = drawn(3, 300, 100, 0, more=51)
    head = EndToEnd(keypoints=(17, 3))
    assert_equal(head({"o": row_nmc.cuda()}, SIZE_HW), head({"o": row_nmc}, SIZE_HW), atol=1e-4)


@pytest.mark.parametrize("number", [3e6, 1024.0, float("inf")])
def test_a_number_that_no_batch_has_is_no_picture(number: float) -> None:
    rows = torch.tensor([[number, 1.0, 1.0, 9.0, 9.0, 0.0, 0.9]])
    with pytest.raises(ModelUnavailable, match="begins with a picture's number, not"):
        EndToEnd(form="picture")({"out": rows}, (16, 16))
