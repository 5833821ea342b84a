"""YOLOv8 and its like: boxes against ONNX Runtime's suppression, masks against their exact reading."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.protocol.errors import ModelUnavailable
from pipelines.tasks.boxes import Found, read_frame
from pipelines.tasks.masks import object_masks
from tests.support.detections import assert_equal, drawn_boxes, drawn_scores, suppressed

SIZE_HW = (64, 96)


def drawn(pictures: int, rows: int, classes: int, seed: int, more: int = 0) -> Tensor:
    """Columns of box, classes and more, `(N, C, A)`."""
    generator = torch.Generator().manual_seed(seed)
    parts = [
        drawn_boxes(pictures, rows, generator, SIZE_HW),
        drawn_scores(pictures, rows, classes, generator),
        torch.randn(pictures, rows, more, generator=generator),
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()


@given(st.integers(1, 4), st.integers(1, 80), st.integers(1, 6), st.integers(0, 9999))
@settings(deadline=None, max_examples=40)
def test_it_finds_what_another_runtime_leaves(pictures: int, rows: int, classes: int, seed: int) -> None:
    raw_nca = drawn(pictures, rows, classes, seed)
    row_nac = raw_nca.transpose(1, 2).contiguous()
    found = YoloV8(classes=classes)({"output0": raw_nca}, SIZE_HW)
    kept = suppressed(row_nac[..., :4], row_nac[..., 4:], 0.7)
    for number, one in enumerate(found):
        assert one.keys() == {"boxes", "scores", "labels"}
        assert one["labels"].tolist() == [label for _, label in kept[number]]
        places = [row for row, _ in kept[number]]
        centre, size = (
            (one["boxes"][:, :2] + one["boxes"][:, 2:]) / 2,
            one["boxes"][:, 2:] - one["boxes"][:, :2],
        )
        torch.testing.assert_close(torch.cat([centre, size], dim=1), row_nac[number, places, :4])
        torch.testing.assert_close(one["scores"], row_nac[number, places, 4:].amax(dim=1))
    assert_equal(YoloV8(rows_first=True)({"output0": row_nac}, SIZE_HW), found)


@given(st.permutations(range(4)), st.integers(0, 9999))
@settings(deadline=None, max_examples=15)
def test_pictures_in_another_order_have_the_same_answers(order: list[int], seed: int) -> None:
    raw_nca = drawn(4, 40, 3, seed, more=4)
    prototypes = torch.randn(4, 4, 16, 24, generator=torch.Generator().manual_seed(seed))
    head = YoloV8(classes=3, prototypes="output1")
    found = head({"output0": raw_nca, "output1": prototypes}, SIZE_HW)
    moved = head({"output0": raw_nca[order], "output1": prototypes[order]}, SIZE_HW)
    assert_equal(moved, [found[number] for number in order], atol=1e-5)


# Shapes of radius 1 around the middle of their box: positive inside.
SHAPES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ellipse": lambda x, y: 1 - torch.hypot(x, y),
    "star": lambda x, y: 0.7 + 0.3 * torch.cos(5 * torch.atan2(y, x)) - torch.hypot(x, y),
    "ring": lambda x, y: 0.25 - (torch.hypot(x, y) - 0.7).abs(),
    "half": lambda x, y: 0.1 * x - y,
    "whole": lambda x, y: torch.ones_like(x * y),
}


def drawn_prototypes(box_d4: Tensor, kinds: list[str], size_hw: tuple[int, int]) -> Tensor:
    """One prototype for each box, with a cell every 4 pixels, which shows one of the shapes in it."""
    y = (torch.arange(size_hw[0] // 4) + 0.5)[:, None] * 4
    x = (torch.arange(size_hw[1] // 4) + 0.5) * 4
    prototypes = []
    for box, kind in zip(box_d4, kinds, strict=True):
        half = (box[2:] - box[:2]) / 2
        shape = SHAPES[kind]((x - box[0] - half[0]) / half[0], (y - box[1] - half[1]) / half[1])
        prototypes.append((shape * half.amin()).clamp(-8, 8))
    return torch.stack(prototypes)


def exact(
    logit_hw: Tensor, box: Tensor, size_hw: tuple[int, int]
) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Sigmoid, enlarged to model pixels, cut to the box, above a half."""
    whole = functional.interpolate(logit_hw.sigmoid()[None, None], size=size_hw, mode="bilinear")[0, 0]
    y, x = torch.arange(size_hw[0])[:, None] + 0.5, torch.arange(size_hw[1]) + 0.5
    inside = (x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3])
    return ((whole > 0.5) & inside).numpy()


def pasted(found: Found, size_hw: tuple[int, int]) -> list[np.ndarray[tuple[int, ...], np.dtype[np.bool_]]]:
    canvases = []
    for mask in object_masks(found, size_hw):
        canvas = np.zeros(size_hw, bool)
        canvas[mask.rows, mask.columns] = mask.inside_hw
        canvases.append(canvas)
    return canvases


@pytest.mark.parametrize(("side", "least"), [(90, 0.92), (160, 0.95), (300, 0.97)])
def test_masks_are_pasted_as_they_are_read_exactly(side: int, least: float) -> None:
    size_hw, kinds = (320, 416), [*SHAPES]
    generator = torch.Generator().manual_seed(side)
    size = side * (0.7 + 0.3 * torch.rand(len(kinds), 2, generator=generator))
    low = torch.rand(len(kinds), 2, generator=generator) * (torch.tensor([416.0, 320]) - size)
    box_d4 = torch.cat([low, low + size], dim=1)
    prototypes = drawn_prototypes(box_d4, kinds, size_hw)
    # Each box is of one class and one prototype; the best comes first.
    scores = torch.diag(torch.linspace(0.9, 0.5, len(kinds)))
    rows = torch.cat([low + size / 2, size, scores, torch.eye(len(kinds))], dim=1)
    raw_nca = rows.T[None].repeat(2, 1, 1)
    raw_nca[0, 4 : 4 + len(kinds)] = 0  # the first picture is empty
    head = YoloV8(prototypes="output1")
    outputs = {"output0": raw_nca, "output1": prototypes[None].repeat(2, 1, 1, 1)}
    empty, full = head(outputs, size_hw)
    assert empty["masks"].shape == (0, *full["masks"].shape[1:])
    found = read_frame(full, 0.25, ())
    assert found.class_id_d.tolist() == list(range(len(kinds)))
    for logit_hw, box, mask in zip(prototypes, box_d4, pasted(found, size_hw), strict=True):
        expected = exact(logit_hw, box, size_hw)
        assert (mask & expected).sum() / (mask | expected).sum() >= least
    assert len(Found.concatenate([found, read_frame(empty, 0.25, ()), found])) == 2 * len(kinds)


def test_a_mask_is_a_sum_of_prototypes_of_its_own_picture() -> None:
    generator = torch.Generator().manual_seed(0)
    prototypes = torch.randn(2, 3, 16, 24, generator=generator)
    share = torch.tensor([2.0, -1, 0.5])
    rows = torch.cat([torch.tensor([48.0, 32, 96, 64, 0.9]), share])
    found = YoloV8(classes=1, prototypes="p")(
        {"o": rows[None, :, None].repeat(2, 1, 1), "p": prototypes}, SIZE_HW
    )
    for number, one in enumerate(found):
        (mask,) = one["masks"][0]
        logits = (share[:, None, None] * prototypes[number]).sum(dim=0)
        whole = functional.interpolate(logits.sigmoid()[None, None], size=mask.shape, mode="bilinear")[0, 0]
        torch.testing.assert_close(mask, whole, rtol=0, atol=1e-4)


def test_many_masks_are_as_few() -> None:
    raw_nca = drawn(1, 300, 2, 0, more=4)
    raw_nca[:, 2:4] = 3  # small: few overlap
    prototypes = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    head = YoloV8(prototypes="p")
    (found,) = head({"o": raw_nca, "p": prototypes}, SIZE_HW)
    assert len(found["masks"]) == len(found["boxes"]) > 64
    for number in (0, 31, 32, 63, 64):
        alone = (raw_nca[:, 4:6].amax(dim=1) == found["scores"][number])[0]
        (one,) = head({"o": raw_nca[..., alone], "p": prototypes}, SIZE_HW)
        same = (one["boxes"] == found["boxes"][number]).all(dim=1)
        torch.testing.assert_close(one["masks"][same][0], found["masks"][number], rtol=0, atol=1e-5)


@pytest.mark.parametrize("values", [2, 3])
def test_keypoints_come_point_after_point(values: int) -> None:
    points = torch.tensor([[10.0, 12, 0.9], [30, 40, 0.2], [50, 20, 0.6]])[:, :values]
    row = torch.cat([torch.tensor([40.0, 30, 40, 30, 0.8]), points.flatten()])
    raw_nca = torch.stack([torch.zeros_like(row), row], dim=1)[None]
    (found,) = YoloV8(keypoints=(3, values))({"output0": raw_nca}, SIZE_HW)
    read = read_frame(found, 0.25, ())
    np.testing.assert_allclose(read.keypoint_dp3[0, :, :2], points[:, :2])
    assert read.keypoint_dp3[0, :, 2].tolist() == ([1, 0, 1] if values == 3 else [1, 1, 1])
    sure = [0.9, 0.2, 0.6] if values == 3 else [1, 1, 1]
    np.testing.assert_allclose(read.keypoint_score_dp[0], sure, atol=1e-6)


def test_pictures_without_people_have_no_keypoints() -> None:
    (found,) = YoloV8(keypoints=(17, 3))({"output0": torch.zeros(1, 56, 20)}, SIZE_HW)
    assert read_frame(found, 0.25, ()).keypoint_dp3.shape == (0, 17, 3)


@pytest.mark.parametrize(
    ("head", "shape", "says"),
    [
        (YoloV8(classes=80), (1, 85, 8400), "(N, 84, A): box, 80 classes; the model gives o (1, 85, 8400)"),
        (YoloV8(classes=80), (1, 8400, 84), "(N, 84, A)"),
        (YoloV8(classes=80, rows_first=True), (1, 84, 8400), "(N, A, 84)"),
        (YoloV8(), (1, 4, 8400), "(N, 4 + K, A)"),
        (YoloV8(keypoints=(17, 3)), (1, 55, 8400), "(N, 55 + K, A): box, K classes and 51 more"),
        (YoloV8(classes=80, prototypes="p"), (1, 116 - 32, 50), "(N, 92, A): box, 80 classes and 8 more"),
        (
            YoloV8(prototypes="q"),
            (1, 116, 50),
            "prototypes (N, M, h, w) in output q; the model gives o (1, 116, 50)",
        ),
    ],
)
def test_other_shapes_are_refused(head: YoloV8, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ModelUnavailable) as raised:
        head({"o": torch.zeros(shape), "p": torch.zeros(1, 8, 16, 16)}, SIZE_HW)
    assert says in raised.value.message


def test_what_cannot_be_read_is_refused_at_birth() -> None:
    for wrong in ((17, 4), (0, 3)):
        with pytest.raises(ModelUnavailable, match="keypoints"):
            YoloV8(keypoints=wrong)
    with pytest.raises(ModelUnavailable, match="masks and keypoints"):
        YoloV8(keypoints=(17, 3), prototypes="p")
    with pytest.raises(ModelUnavailable, match="not of 2 pictures"):
        YoloV8(prototypes="p")({"o": torch.zeros(2, 9, 5), "p": torch.zeros(1, 4, 8, 8)}, SIZE_HW)


def test_it_is_fed_letterboxed_rgb() -> None:
    fed = YoloV8().pixels((64, 96))
    assert (fed.resize_px, fed.fit, fed.pad_value, fed.channels) == ((64, 96), "letterbox", 114, "RGB")
    assert (fed.mean, fed.std, fed.antialias) == ((0, 0, 0), (1, 1, 1), False)
    assert YoloV8(keypoints=(5, 2)).with_classes(7) == YoloV8(classes=7, keypoints=(5, 2))


@pytest.mark.gpu
def test_a_gpu_finds_the_same() -> None:
    raw_nca = drawn(3, 2_000, 4, 0, more=6)
    prototypes = torch.randn(3, 6, 16, 24, generator=torch.Generator().manual_seed(0))
    outputs = {"o": raw_nca, "p": prototypes}
    on_gpu = {name: tensor.cuda() for name, tensor in outputs.items()}
    for head in (YoloV8(prototypes="p"), YoloV8(keypoints=(2, 3))):
        assert_equal(head(on_gpu, SIZE_HW), head(outputs, SIZE_HW), atol=1e-3)
