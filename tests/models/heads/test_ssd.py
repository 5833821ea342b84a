"""The SSD head: what OpenVINO's own DetectionOutput gives, and boxes with labels as of OTX."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import batched_nms

from pipelines.models.heads.ssd import Ssd
from pipelines.protocol.errors import ModelUnavailable

SIZE_HW = (100, 200)
SCALE = torch.tensor([200.0, 100.0, 200.0, 100.0])


def detection_output(box_np4: Tensor, score_npk: Tensor, keep: int = 10) -> Tensor:
    """`(1, 1, N * keep, 7)` as OpenVINO's operator gives it: the best boxes above 0.3 of each picture."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset8 as ops

    pictures, priors, classes = score_npk.shape
    boxes = ops.parameter([pictures, priors * 4], np.float32)
    scores = ops.parameter([pictures, priors * classes], np.float32)
    anchors = ops.constant(np.zeros((1, 1, priors * 4), np.float32))
    how = {
        "background_label_id": 0,
        "top_k": 100,
        "keep_top_k": [keep],
        "nms_threshold": 0.5,
        "confidence_threshold": 0.3,
        "code_type": "caffe.PriorBoxParameter.CORNER",
        "share_location": True,
        "variance_encoded_in_target": True,
        "normalized": True,
        "clip_before_nms": False,
        "clip_after_nms": False,
    }
    model = openvino.Model([ops.detection_output(boxes, scores, anchors, how)], [boxes, scores], "ssd")
    compiled = openvino.compile_model(model, "CPU")
    flat = [box_np4.reshape(pictures, -1).numpy(), score_npk.reshape(pictures, -1).numpy()]
    return torch.from_numpy(compiled(flat)[0].copy())


def drawn(pictures: int, priors: int = 20, classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    top_left = 0.6 * torch.rand(pictures, priors, 2, generator=generator)
    size = 0.1 + 0.3 * torch.rand(pictures, priors, 2, generator=generator)
    scores = (4 * torch.randn(pictures, priors, classes, generator=generator)).softmax(2)
    return torch.cat([top_left, top_left + size], 2), scores


def chosen(box_p4: Tensor, score_pk: Tensor, keep: int = 10) -> dict[str, Tensor]:
    """The same choice by torchvision, in pixels."""
    row, label = (score_pk > 0.3).nonzero(as_tuple=True)
    real = label > 0
    row, label = row[real], label[real]
    kept = batched_nms(box_p4[row], score_pk[row, label], label, 0.5)[:keep]
    row, label = row[kept], label[kept]
    return {"boxes": box_p4[row] * SCALE, "scores": score_pk[row, label], "labels": label}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found["labels"].dtype == torch.int64
    assert found["labels"].tolist() == wanted["labels"].tolist()
    torch.testing.assert_close(found["scores"], wanted["scores"])
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=0)


def test_rows_of_detection_output_go_to_their_pictures() -> None:
    boxes, scores = drawn(4)
    scores[1] = torch.tensor([1.0, 0, 0, 0])  # nothing in this picture
    output = detection_output(boxes, scores)
    assert output.shape == (1, 1, 40, 7)
    assert -1 in output[0, 0, :, 0]
    found = Ssd(output="detection_out")({"detection_out": output}, SIZE_HW)
    assert len(found) == 4
    assert [len(one["scores"]) > 0 for one in found] == [True, False, True, True]
    for ours, box, score in zip(found, boxes, scores, strict=True):
        assert_same(ours, chosen(box, score))


def test_outputs_of_one_picture_each_are_joined() -> None:
    boxes, scores = drawn(3)
    scores[2] = torch.tensor([1.0, 0, 0, 0])
    lone = [detection_output(boxes[one : one + 1], scores[one : one + 1]) for one in range(3)]
    found = Ssd()({"other": torch.zeros(3, 9), "0": torch.cat(lone)}, SIZE_HW)
    assert len(found) == 3
    for ours, box, score in zip(found, boxes, scores, strict=True):
        assert_same(ours, chosen(box, score))


def test_rows_after_the_end_are_not_read() -> None:
    row = [0, 2, 0.9, 0.1, 0.2, 0.3, 0.4]
    rows = torch.tensor([row, [-1.0] + [0.0] * 6, row]).view(1, 1, 3, 7)
    (found,) = Ssd()({"out": rows}, SIZE_HW)
    assert found["labels"].tolist() == [2]
    torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 20.0, 60.0, 40.0]]))
    (same,) = Ssd(output="out")({"out": rows[0, 0]}, SIZE_HW)
    assert_same(same, found)
    (nothing,) = Ssd()({"out": torch.full((1, 1, 5, 7), -1.0)}, SIZE_HW)
    assert nothing["boxes"].shape == (0, 4)


def test_overlapping_boxes_are_left_out_if_asked() -> None:
    boxes = torch.tensor([[10.0, 10, 50, 50, 0.6], [11, 11, 50, 50, 0.9], [10, 10, 50, 50, 0.8]])
    outputs = {"boxes": boxes, "labels": torch.tensor([1, 1, 0])}
    labels = [
        Ssd(iou_threshold=iou, class_agnostic=agnostic)(outputs, SIZE_HW)[0]["labels"].tolist()
        for iou, agnostic in ((None, False), (0.5, False), (0.5, True))
    ]
    assert labels == [[1, 0, 1], [1, 0], [1]]


@settings(deadline=None, max_examples=20)
@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 150),
            st.integers(0, 80),
            st.integers(2, 64).map(lambda one: one / 64),
            st.integers(0, 9),
        ),
        max_size=12,
    ),
    fill=st.integers(0, 4),
    labelled=st.sampled_from(["int64", "int32", "float32", ""]),
    lone=st.booleans(),
)
def test_boxes_in_pixels_with_labels(
    rows: list[tuple[int, int, float, int]], fill: int, labelled: str, lone: bool
) -> None:
    table = [[x, y, x + 20, y + 10, score] for x, y, score, _ in rows] + [[0.0] * 5] * fill
    boxes = torch.tensor(table, dtype=torch.float32).reshape(-1, 5)
    outputs = {"boxes": boxes}
    if labelled:
        numbers = [label for *_, label in rows] + [0] * fill
        outputs["labels"] = torch.tensor(numbers, dtype=getattr(torch, labelled))
    if not lone:
        outputs = {name: torch.stack([one, one.flip(0)]) for name, one in outputs.items()}
    found = Ssd(boxes="boxes", labels="labels" if labelled else "")(outputs, SIZE_HW)
    assert len(found) == (1 if lone else 2)
    wanted = sorted(((row[2], row[3] if labelled else 0, row[0]) for row in rows), reverse=True)
    for one in found:
        ours = zip(one["scores"].tolist(), one["labels"].tolist(), one["boxes"][:, 0].tolist(), strict=True)
        np.testing.assert_allclose(sorted(ours, reverse=True), wanted, rtol=1e-6)
        assert one["scores"].tolist() == sorted(one["scores"].tolist(), reverse=True)


def test_labels_without_a_name_are_the_integers_of_the_boxes_form() -> None:
    outputs = {
        "counts": torch.tensor([2, 2]),
        "dets": torch.tensor([[[0.0, 0, 9, 9, 0.5], [0, 0, 9, 9, 0.4]]] * 2),
        "classes": torch.tensor([[3, 4], [5, 6]], dtype=torch.int32),
    }
    assert [one["labels"].tolist() for one in Ssd()(outputs, SIZE_HW)] == [[3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("head", "shapes", "says"),
    [
        (
            Ssd(),
            {"a": (1, 9, 4), "b": (1, 9)},
            r"\(1, 1, M, 7\) or .*a \(1, 9, 4\), b \(1, 9\)",
        ),
        (Ssd(output="a"), {"a": (9, 6)}, r"detection_output \(1, 1, M, 7\); .* a \(9, 6\)"),
        (Ssd(), {"a": (9, 7)}, r"\(1, 1, M, 7\) or .* a \(9, 7\)"),
        (Ssd(boxes="a"), {"a": (9, 4)}, r"boxes with scores .* a \(9, 4\)"),
        (Ssd(boxes="a", labels="b"), {"a": (9, 5), "b": (8,)}, r"needs labels \(1, 9\).* b \(8,\)"),
        (Ssd(boxes="c"), {"a": (9, 5)}, r"in output c; the model gives a \(9, 5\)"),
    ],
)
def test_other_outputs_are_refused_by_name(head: Ssd, shapes: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        head({name: torch.zeros(shape) for name, shape in shapes.items()}, SIZE_HW)


def test_a_number_that_is_no_picture_is_refused() -> None:
    rows = torch.tensor([[5e8, 1, 0.9, 0, 0, 1, 1]]).view(1, 1, 1, 7)
    with pytest.raises(ModelUnavailable, match="begins with a picture's number, not 500000000"):
        Ssd()({"a": rows}, SIZE_HW)


def test_pixels_are_levels_of_bgr() -> None:
    facts = Ssd().pixels((300, 400))
    assert (facts.fixed_hw, facts.fit, facts.channels, facts.antialias) == (
        (300, 400),
        "stretch",
        "BGR",
        False,
    )
    assert [(255 / 255 - mean) / std for mean, std in zip(facts.mean, facts.std, strict=True)] == [255.0] * 3
    assert Ssd().with_classes(3) == Ssd()


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    boxes, scores = drawn(3)
    output = detection_output(boxes, scores)
    for ours, wanted in zip(Ssd()({"a": output.cuda()}, SIZE_HW), Ssd()({"a": output}, SIZE_HW), strict=True):
        assert ours["boxes"].is_cuda
        assert_same({name: one.cpu() for name, one in ours.items()}, wanted)
