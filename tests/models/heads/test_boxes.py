"""The head of boxes that were chosen already: orders, units, labels of any type, with and without a batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.ops import box_convert

from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.suppression import Order
from pipelines.protocol.errors import ModelUnavailable

SIZE_HW = (32, 64)


def outputs_of(boxes: Tensor, labels: Tensor, scores: Tensor, **more: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes, "labels": labels, "scores": scores, **more}


def drawn(seed: int, pictures: int, boxes: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = 20 * torch.rand(pictures, boxes, 2, generator=generator)
    side = 1 + 10 * torch.rand(pictures, boxes, 2, generator=generator)
    return outputs_of(
        torch.cat([corner, corner + side], 2),
        torch.randint(0, 9, (pictures, boxes), generator=generator),
        torch.rand(pictures, boxes, generator=generator),
        masks=torch.rand(pictures, boxes, 1, 4, 4, generator=generator),
        keypoints=torch.rand(pictures, boxes, 2, 3, generator=generator),
    )


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 10**6),
    pictures=st.integers(1, 3),
    boxes=st.integers(0, 20),
    order=st.sampled_from(["xyxy", "yxyx", "cxcywh"]),
    unit=st.booleans(),
    first_label=st.integers(0, 2),
    labels=st.sampled_from([torch.int64, torch.int32, torch.float32, torch.float16, torch.uint8]),
)
def test_all_that_was_given_comes_back_best_first(
    seed: int, pictures: int, boxes: int, order: Order, unit: bool, first_label: int, labels: torch.dtype
) -> None:
    plain = drawn(seed, pictures, boxes)
    corners = plain["boxes"]
    turned = box_convert(corners, "xyxy", "cxcywh") if order == "cxcywh" else corners
    turned = turned[..., [1, 0, 3, 2]] if order == "yxyx" else turned
    by = torch.tensor([32.0, 64, 32, 64] if order == "yxyx" else [64.0, 32, 64, 32])
    head = Boxes(order=order, unit=unit, first_label=first_label)
    outputs = {**plain, "boxes": turned / by if unit else turned}
    outputs["labels"] = (plain["labels"] + first_label).to(labels)
    found = head(outputs, SIZE_HW)
    assert len(found) == pictures
    for number, one in enumerate(found):
        best = np.argsort(-plain["scores"][number].numpy(), kind="stable")
        assert one["labels"].dtype == torch.int64
        assert one["labels"].tolist() == plain["labels"][number][best].tolist()
        torch.testing.assert_close(one["scores"], plain["scores"][number][best])
        torch.testing.assert_close(one["boxes"], corners[number][best], atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(one["masks"], plain["masks"][number][best])
        scale = torch.tensor([64.0, 32, 1]) if unit else 1
        torch.testing.assert_close(one["keypoints"], plain["keypoints"][number][best] * scale)
        lone = head({name: tensor[number] for name, tensor in outputs.items()}, SIZE_HW)
        assert len(lone) == 1
        for name, column in one.items():
            torch.testing.assert_close(lone[0][name], column)


@torch.no_grad()
@pytest.mark.usefixtures("seeded")
def test_a_detector_of_torchvision_is_read_as_it_answers() -> None:
    """As its export gives it: each column for itself, without a batch."""
    network = ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, score_thresh=0, detections_per_img=50
    ).eval()
    (answer,) = network([torch.rand(3, 64, 64)])
    (found,) = Boxes()(answer, (64, 64))
    assert len(found["scores"]) == 50
    for name, column in answer.items():
        torch.testing.assert_close(found[name], column)


def test_boxes_in_0_to_1() -> None:
    boxes = torch.tensor([[[0.1, 0.2, 0.6, 0.7], [0.5, 0.5, 0.9, 0.9]]])
    outputs = outputs_of(boxes, torch.tensor([[1, 2]]), torch.tensor([[0.8, 0.9]]))
    (found,) = Boxes(unit=True)(outputs, (32, 32))
    assert found["labels"].tolist() == [2, 1]
    torch.testing.assert_close(found["boxes"], torch.tensor([[16, 16, 28.8, 28.8], [3.2, 6.4, 19.2, 22.4]]))


def test_boxes_by_their_centre() -> None:
    boxes = torch.tensor([[[16.0, 16, 10, 8], [20, 10, 6, 6]]])
    outputs = outputs_of(boxes, torch.tensor([[1, 2]]), torch.tensor([[0.9, 0.8]]))
    (found,) = Boxes(order="cxcywh")(outputs, (32, 32))
    torch.testing.assert_close(found["boxes"], torch.tensor([[11.0, 12, 21, 20], [17, 7, 23, 13]]))


def test_tensorflows_detection_api() -> None:
    """y before x in 0..1, classes as floats from 1, and rows that fill up."""
    outputs = {
        "detection_boxes": torch.tensor([[[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5], [9.0] * 4]]),
        "detection_classes": torch.tensor([[1.0, 90.0, 3.0]]),
        "detection_scores": torch.tensor([[0.5, 0.75, 0.9]]),
        "num_detections": torch.tensor([2.0]),
    }
    head = Boxes(
        boxes="detection_boxes",
        labels="detection_classes",
        scores="detection_scores",
        count="num_detections",
        unit=True,
        order="yxyx",
        first_label=1,
    )
    (found,) = head(outputs, (100, 200))
    assert found["labels"].tolist() == [89, 0]
    torch.testing.assert_close(found["boxes"], torch.tensor([[0.0, 0, 100, 50], [100, 25, 200, 75]]))
    several = {name: torch.cat([one, one]) for name, one in outputs.items()}
    several["num_detections"] = torch.tensor([[1], [0]])
    assert [one["labels"].tolist() for one in head(several, (100, 200))] == [[0], []]


def test_labels_below_the_first_are_left_out() -> None:
    boxes = torch.tensor([[[0.0, 0, 9, 9]] * 3] * 2)
    labels = torch.tensor([[-1, 0, 1], [1, -1, -1]], dtype=torch.int32)
    found = Boxes()(outputs_of(boxes, labels, torch.full((2, 3), 0.5)), SIZE_HW)
    assert [one["labels"].tolist() for one in found] == [[0, 1], [1]]


def test_overlapping_boxes_are_left_out_if_asked() -> None:
    boxes = torch.tensor([[10.0, 10, 50, 50], [11, 11, 50, 50], [10, 10, 50, 50]])
    outputs = outputs_of(boxes, torch.tensor([1, 1, 0]), torch.tensor([0.6, 0.9, 0.8]))
    labels = [
        Boxes(iou_threshold=iou, class_agnostic=agnostic)(outputs, SIZE_HW)[0]["labels"].tolist()
        for iou, agnostic in ((None, False), (0.5, False), (0.5, True))
    ]
    assert labels == [[1, 0, 1], [1, 0], [1]]


def test_outputs_without_a_name_are_told_by_form_and_type() -> None:
    plain = drawn(3, 2, 5)
    outputs = {"0": plain["boxes"], "1": plain["labels"], "2": plain["scores"][..., None]}
    wanted = Boxes()({name: plain[name] for name in ("boxes", "labels", "scores")}, SIZE_HW)
    for ours, theirs in zip(Boxes(boxes="", labels="", scores="")(outputs, SIZE_HW), wanted, strict=True):
        for name, column in theirs.items():
            torch.testing.assert_close(ours[name], column)


def test_boxes_without_labels_are_of_the_first_class() -> None:
    plain = drawn(3, 2, 5)
    found = Boxes(labels="")({name: plain[name] for name in ("boxes", "scores")}, SIZE_HW)
    assert [one["labels"].tolist() for one in found] == [[0] * 5] * 2


@pytest.mark.parametrize(
    ("head", "shapes", "says"),
    [
        (Boxes(), {"boxes": (1, 5, 4), "labels": (1, 5)}, r"in output scores; the model gives boxes"),
        (Boxes(), {"boxes": (1, 5, 5)}, r"boxes \(N, D, 4\) or \(D, 4\); .* boxes \(1, 5, 5\)"),
        (
            Boxes(),
            {"boxes": (1, 5, 4), "labels": (1, 5), "scores": (1, 4)},
            r"scores \(1, 5\), one for each box; .* scores \(1, 4\)",
        ),
        (
            Boxes(),
            {"boxes": (2, 5, 4), "labels": (5, 2), "scores": (2, 5)},
            r"needs labels \(2, 5\).* labels \(5, 2\)",
        ),
        (
            Boxes(),
            {"boxes": (5, 4), "labels": (5,), "scores": (5,), "masks": (4, 1, 7, 7)},
            r"masks for each of \(5, 4\) boxes, not \(4, 1, 7, 7\)",
        ),
        (
            Boxes(count="n"),
            {"boxes": (2, 5, 4), "labels": (2, 5), "scores": (2, 5), "n": (3,)},
            r"how many boxes each of 2 pictures has; .* n \(3,\)",
        ),
        (Boxes(boxes=""), {"a": (5,)}, r"needs boxes .* a \(5,\)"),
    ],
)
def test_other_outputs_are_refused_by_name(
    head: Boxes, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        head({name: torch.zeros(shape) for name, shape in shapes.items()}, SIZE_HW)


def test_pixels_are_stretched_in_0_to_1() -> None:
    facts = Boxes().pixels((300, 400))
    assert (facts.fixed_hw, facts.fit, facts.channels) == ((300, 400), "stretch", "RGB")
    assert (facts.mean, facts.std) == ((0, 0, 0), (1, 1, 1))
    assert Boxes().with_classes(3) == Boxes()


@pytest.mark.gpu
def test_a_gpu_gives_the_same() -> None:
    plain = drawn(8, 3, 20)
    head = Boxes(iou_threshold=0.5, count="n")
    plain["n"] = torch.tensor([20, 5, 0])
    found = head({name: one.cuda() for name, one in plain.items()}, SIZE_HW)
    for ours, wanted in zip(found, head(plain, SIZE_HW), strict=True):
        assert ours["boxes"].is_cuda
        for name, column in wanted.items():
            torch.testing.assert_close(ours[name].cpu(), column)
