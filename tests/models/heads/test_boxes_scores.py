"""The head of decoded boxes and scores: a real face detector, and torchvision's own choice among boxes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.ops import batched_nms, box_convert, box_iou

from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.suppression import MOST_BOXES, Order
from pipelines.protocol.errors import ModelUnavailable

SIZE_HW = (96, 160)
LEAST = 0.3


def drawn(seed: int, pictures: int, rows: int, classes: int) -> tuple[Tensor, Tensor]:
    """Boxes xyxy in pixels within the picture, and logits."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([160.0, 96.0])
    corner = torch.rand(pictures, rows, 2, generator=generator) * size * 0.7
    side = (0.02 + 0.28 * torch.rand(pictures, rows, 2, generator=generator)) * size
    return torch.cat([corner, corner + side], 2), 3 * torch.randn(
        pictures, rows, classes, generator=generator
    )


def above(found: dict[str, Tensor], least: float = LEAST) -> dict[str, Tensor]:
    return {name: one[found["scores"] > least] for name, one in found.items()}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found["labels"].dtype == torch.int64
    assert found["labels"].tolist() == wanted["labels"].tolist()
    torch.testing.assert_close(found["scores"], wanted["scores"])
    torch.testing.assert_close(found["boxes"], wanted["boxes"], atol=1e-3, rtol=1e-5)


def test_a_real_face_detector(shared_media: Path) -> None:
    """RFB-320 gives corners in 0..1, and softmaxes of background and face."""
    session = onnxruntime.InferenceSession(shared_media / "models" / "version-RFB-320.onnx")
    with Image.open(shared_media / "clips" / "grace_hopper.jpg") as opened:
        picture = opened.convert("RGB")
    levels = np.asarray(picture.resize((320, 240), Image.Resampling.BILINEAR), np.float32)
    pixels = ((levels - 127) / 128).transpose(2, 0, 1)[None]
    names = [one.name for one in session.get_outputs()]
    given_ = session.run(names, {"input": np.ascontiguousarray(pixels)})
    outputs = {name: torch.from_numpy(one) for name, one in zip(names, given_, strict=True)}
    head = BoxesScores(unit=True, background=True, iou_threshold=0.3).with_classes(1)
    (found,) = head(outputs, (240, 320))
    faces = above(found, 0.7)
    assert faces["labels"].tolist() == [0]
    assert float(faces["scores"][0]) == pytest.approx(1, abs=0.05)
    scale = torch.tensor([picture.width / 320, picture.height / 240] * 2)
    measured = torch.tensor([[171.0, 120, 357, 334]])
    assert float(box_iou(faces["boxes"] * scale, measured)) > 0.9


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 10**6), pictures=st.integers(1, 3), rows=st.integers(1, 200))
def test_it_chooses_as_an_ssd_of_torchvision(ssd: Any, seed: int, pictures: int, rows: int) -> None:
    boxes, logits = drawn(seed, pictures, rows, 4)
    sizes = [SIZE_HW] * pictures
    anchors, _ = drawn(seed + 1, pictures, rows, 4)
    offsets = torch.stack([ssd.box_coder.encode_single(*pair) for pair in zip(boxes, anchors, strict=True)])
    wanted = ssd.postprocess_detections(
        {"bbox_regression": offsets, "cls_logits": logits}, list(anchors), sizes
    )
    head = BoxesScores(
        unit=False, background=True, activation="softmax", iou_threshold=0.55, multi_label=True, classes=4
    )
    found = head({"boxes": boxes, "scores": logits}, SIZE_HW)
    for ours, theirs in zip(found, wanted, strict=True):
        assert_same(above(ours), above(theirs))


@pytest.fixture(scope="module")
def ssd() -> Any:
    """Its network is not run; its last step keeps more than are compared."""
    return ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=4, score_thresh=0.1, detections_per_img=10**4
    )


@settings(deadline=None, max_examples=15)
@given(
    seed=st.integers(0, 10**6),
    pictures=st.integers(1, 3),
    rows=st.integers(1, 200),
    order=st.sampled_from(["xyxy", "yxyx", "cxcywh"]),
    unit=st.booleans(),
    middle=st.booleans(),
)
def test_orders_and_units_of_boxes(
    seed: int, pictures: int, rows: int, order: Order, unit: bool, middle: bool
) -> None:
    """The best class of each box, then torchvision's suppression within each class."""
    boxes, logits = drawn(seed, pictures, rows, 3)
    turned = box_convert(boxes, "xyxy", "cxcywh") if order == "cxcywh" else boxes
    turned = turned[..., [1, 0, 3, 2]] if order == "yxyx" else turned
    by = torch.tensor([96.0, 160, 96, 160] if order == "yxyx" else [160.0, 96, 160, 96])
    turned = turned / by if unit else turned
    head = BoxesScores(
        unit=unit, order=order, activation="sigmoid", boxes="b", scores="s", classes=3, iou_threshold=0.5
    )
    outputs = {"b": turned[:, :, None] if middle else turned, "s": logits}
    for ours, box, score in zip(head(outputs, SIZE_HW), boxes, logits.sigmoid(), strict=True):
        best, label = score.max(1)
        kept = batched_nms(box, best, label, 0.5)
        assert_same(above(ours), above({"boxes": box[kept], "scores": best[kept], "labels": label[kept]}))


def test_retinanet_counts_a_background_that_is_no_column_to_drop() -> None:
    """torchvision's RetinaNet has a column 0 without a meaning: labels are the columns' numbers."""
    boxes, logits = drawn(1, 1, 30, 5)
    logits[..., 0] = -20
    head = BoxesScores(unit=False, activation="sigmoid", classes=5)
    (found,) = head({"boxes": boxes, "scores": logits}, SIZE_HW)
    assert set(found["labels"].tolist()) == {1, 2, 3, 4}


@pytest.mark.parametrize(("names", "label"), [(0, 1), (3, 1), (4, 2)])
def test_labels_count_the_background_where_the_names_do(names: int, label: int) -> None:
    outputs = {
        "boxes": torch.tensor([[[0.0, 0, 9, 9], [20, 20, 30, 30]]]),
        "scores": torch.tensor([[[0.1, 0.1, 0.7, 0.1], [0.9, 0.0, 0.1, 0.0]]]),
    }
    (found,) = BoxesScores(unit=False, background=True).with_classes(names)(outputs, SIZE_HW)
    assert above(found)["labels"].tolist() == [label]


def test_outputs_without_a_name_are_told_by_their_form() -> None:
    boxes, logits = drawn(4, 2, 40, 4)
    named = BoxesScores(unit=False, activation="softmax")({"boxes": boxes, "scores": logits}, SIZE_HW)
    head = BoxesScores(unit=False, activation="softmax", boxes="", scores="")
    for ours, wanted in zip(head({"0": boxes, "1": logits}, SIZE_HW), named, strict=True):
        assert_same(ours, wanted)
    lone = head({"0": boxes[0], "1": logits[0]}, SIZE_HW)
    assert_same(lone[0], named[0])


def test_at_most_so_many_boxes_are_given() -> None:
    boxes, logits = drawn(5, 1, 2000, 2)
    (found,) = BoxesScores(unit=False, activation="sigmoid", iou_threshold=None)(
        {"boxes": boxes, "scores": logits}, SIZE_HW
    )
    assert len(found["scores"]) == MOST_BOXES
    torch.testing.assert_close(
        found["scores"], logits.sigmoid().amax(2)[0].sort(descending=True)[0][:MOST_BOXES]
    )


@pytest.mark.parametrize(
    ("head", "boxes", "scores", "says"),
    [
        (
            BoxesScores(unit=True),
            (1, 9, 5),
            (1, 9, 2),
            r"boxes \(N, A, 4\) or .* boxes \(1, 9, 5\)",
        ),
        (BoxesScores(unit=True), (1, 9, 2, 4), (1, 9, 2), r"gives boxes \(1, 9, 2, 4\)"),
        (BoxesScores(unit=True), (1, 9, 4), (1, 8, 2), r"needs scores \(1, 9, K\).* scores \(1, 8, 2\)"),
        (BoxesScores(unit=True, background=True), (1, 9, 4), (1, 9, 1), r"K from 2"),
        (BoxesScores(unit=True, classes=3), (1, 9, 4), (1, 9, 4), r"4 classes .* 3 labels"),
        (
            BoxesScores(unit=True, classes=2, background=True),
            (1, 9, 4),
            (1, 9, 4),
            r"3 or 4 classes .* 2 labels",
        ),
        (BoxesScores(unit=True, scores="s"), (1, 9, 4), (1, 9, 4), "in output s; the model gives boxes"),
        (BoxesScores(unit=True), (4,), (9,), r"boxes \(4,\)"),
    ],
)
def test_other_outputs_are_refused_by_name(
    head: BoxesScores, boxes: tuple[int, ...], scores: tuple[int, ...], says: str
) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        head({"boxes": torch.zeros(boxes), "scores": torch.zeros(scores)}, SIZE_HW)


def test_pixels_are_stretched_in_0_to_1() -> None:
    facts = BoxesScores(unit=True).pixels((240, 320))
    assert (facts.fixed_hw, facts.fit, facts.channels) == ((240, 320), "stretch", "RGB")
    assert (facts.mean, facts.std) == ((0, 0, 0), (1, 1, 1))


@pytest.mark.gpu
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_gpu_gives_the_same(multi_label: bool) -> None:
    boxes, logits = drawn(6, 3, 200, 4)
    head = BoxesScores(unit=False, activation="softmax", background=True, multi_label=multi_label)
    found = head({"boxes": boxes.cuda(), "scores": logits.cuda()}, SIZE_HW)
    for ours, wanted in zip(found, head({"boxes": boxes, "scores": logits}, SIZE_HW), strict=True):
        assert ours["boxes"].is_cuda
        assert_same({name: one.cpu() for name, one in ours.items()}, wanted)
