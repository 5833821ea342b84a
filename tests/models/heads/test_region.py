"""The head of region layers: known boxes, written as such layers give them; OpenVINO's own RegionYolo."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipelines.models.heads.region import Region
from pipelines.models.heads.suppression import MOST_BOXES
from pipelines.protocol.errors import ModelUnavailable

SIZE_HW = (96, 160)
NOWHERE = -12.0
V2_ANCHORS = (1.08, 1.19, 3.42, 4.41)
V3_ANCHORS = (10.0, 14, 23, 27, 37, 58, 81, 82, 60, 40, 30, 90)
V3_MASKS = (3, 4, 5, 0, 1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A box of one grid, by its anchor's place there, its cell, and what it is in pixels."""

    picture: int
    grid: int
    anchor: int
    row: int
    column: int
    xyxy: tuple[float, float, float, float]
    label: int
    objectness: float
    probability: float


def logit(value: float) -> float:
    return math.log(value / (1 - value))


def anchors_px(head: Region, grid: int, grids: int, cells: tuple[int, int]) -> list[tuple[float, float]]:
    """The anchors of a grid, in pixels."""
    pairs = list(zip(head.anchors[::2], head.anchors[1::2], strict=True))
    if head.masks:
        count = len(head.masks) // grids
        first = head.masks[grid * count]
        pairs = pairs[first : first + count]
    if head.version != "yolo_v2":
        return pairs
    return [(w * SIZE_HW[1] / cells[1], h * SIZE_HW[0] / cells[0]) for w, h in pairs]


def draw(head: Region, grids: int, pictures: int, seed: int) -> list[Known]:
    """Boxes about as large as their anchors, one in a cell, with scores that differ."""
    random = np.random.default_rng(seed)
    known, taken = [], set()
    for number in range(12):
        grid = int(random.integers(grids))
        rows, columns = (side // 32 * 2**grid for side in SIZE_HW)
        sizes = anchors_px(head, grid, grids, (rows, columns))
        cell = tuple(int(random.integers(top)) for top in (pictures, len(sizes), rows, columns))
        if (grid, *cell) in taken:
            continue
        taken.add((grid, *cell))
        picture, anchor, row, column = cell
        x = (column + random.uniform(0.1, 0.9)) * SIZE_HW[1] / columns
        y = (row + random.uniform(0.1, 0.9)) * SIZE_HW[0] / rows
        w, h = (side * random.uniform(0.6, 1.6) for side in sizes[anchor])
        known.append(
            Known(
                picture=picture,
                grid=grid,
                anchor=anchor,
                row=row,
                column=column,
                xyxy=(x - w / 2, y - h / 2, x + w / 2, y + h / 2),
                label=int(random.integers(head.classes)),
                objectness=0.5 + 0.03 * number,
                probability=random.uniform(0.85, 0.95),
            )
        )
    return known


def written(head: Region, grids: int, pictures: int, known: list[Known]) -> list[Tensor]:
    """Grids `(N, B, 5 + K, H, W)` that mean these boxes: the formulas the other way round, box by box."""
    maps = []
    for grid in range(grids):
        rows, columns = (side // 32 * 2**grid for side in SIZE_HW)
        sizes = anchors_px(head, grid, grids, (rows, columns))
        tensor = torch.zeros(pictures, len(sizes), 5 + head.classes, rows, columns)
        tensor[:, :, 4] = NOWHERE if head.sigmoid else 0
        for box in (one for one in known if one.grid == grid):
            left, top, right, bottom = box.xyxy
            x = (left + right) / 2 / SIZE_HW[1] * columns - box.column
            y = (top + bottom) / 2 / SIZE_HW[0] * rows - box.row
            times = ((right - left) / sizes[box.anchor][0], (bottom - top) / sizes[box.anchor][1])
            if head.version == "yolo_v5":
                x, y = (x + 0.5) / 2, (y + 0.5) / 2
                sides = [logit(math.sqrt(one) / 2) for one in times]
            else:
                sides = [math.log(one) for one in times]
            left_over = (1 - box.probability) / max(1, head.classes - 1)
            classes = [box.probability if k == box.label else left_over for k in range(head.classes)]
            if head.softmax:
                classes = [math.log(one) + 3 for one in classes]
            elif head.sigmoid:
                classes = [logit(one) for one in classes]
            ready = [x, y, box.objectness]
            raw = [logit(one) for one in ready] if head.sigmoid else ready
            cell = [raw[0], raw[1], *sides, raw[2], *classes]
            tensor[box.picture, box.anchor, :, box.row, box.column] = torch.tensor(cell)
        maps.append(tensor)
    return maps


def laid_out(maps: list[Tensor], layout: str) -> dict[str, Tensor]:
    """The grids by name as a network gives them, the finest first."""
    outputs = {}
    for number, grid in reversed(list(enumerate(maps))):
        pictures, boxes, per_box, rows, columns = grid.shape
        first = grid.reshape(pictures, boxes * per_box, rows, columns)
        outputs[f"grid_{number}"] = {
            "first": first,
            "last": first.permute(0, 2, 3, 1).contiguous(),
            "flat": first.flatten(1),
            "flat_last": first.permute(0, 2, 3, 1).flatten(1),
            "five": grid.permute(0, 1, 3, 4, 2),
        }[layout]
    return outputs


def assert_finds(found: list[dict[str, Tensor]], known: list[Known], head: Region) -> None:
    for picture, one in enumerate(found):
        wanted = [box for box in known if box.picture == picture]
        scores = {
            box: box.objectness * (1 if head.softmax and head.classes == 1 else box.probability)
            for box in wanted
        }
        wanted.sort(key=lambda box: -scores[box])
        assert one["labels"].dtype == torch.int64
        assert one["labels"].tolist() == [box.label for box in wanted]
        np.testing.assert_allclose(one["scores"], [scores[box] for box in wanted], atol=1e-5)
        boxes = np.array([box.xyxy for box in wanted]).reshape(-1, 4)
        np.testing.assert_allclose(one["boxes"], boxes, atol=2e-3, rtol=1e-4)


LAYOUTS = ["first", "last", "flat", "five"]
HEADS = {
    "v2": Region(version="yolo_v2", classes=4, anchors=V2_ANCHORS),
    "v2 raw": Region(version="yolo_v2", classes=4, anchors=V2_ANCHORS, sigmoid=True, softmax=True),
    "v3": Region(version="yolo_v3", classes=4, anchors=V3_ANCHORS, masks=V3_MASKS),
    "v3 raw": Region(version="yolo_v3", classes=4, anchors=V3_ANCHORS, masks=V3_MASKS, sigmoid=True),
    "v4": Region(
        version="yolo_v4", classes=4, anchors=V3_ANCHORS, masks=V3_MASKS, sigmoid=True, softmax=True
    ),
    "v5": Region(version="yolo_v5", classes=4, anchors=V3_ANCHORS, masks=V3_MASKS, sigmoid=True),
    "v5 ready": Region(version="yolo_v5", classes=4, anchors=V3_ANCHORS, masks=V3_MASKS),
}


@pytest.mark.parametrize("kind", HEADS)
@settings(deadline=None, max_examples=8)
@given(seed=st.integers(0, 10**6), pictures=st.integers(1, 3), layout=st.sampled_from(LAYOUTS))
def test_known_boxes_are_found(kind: str, seed: int, pictures: int, layout: str) -> None:
    head = replace(HEADS[kind], iou_threshold=None)
    grids = 2 if head.masks else 1
    known = draw(head, grids, pictures, seed)
    if layout == "flat" and head.version == "yolo_v4":
        layout = "flat_last"
    outputs = laid_out(written(head, grids, pictures, known), layout)
    found = head(outputs, SIZE_HW)
    assert len(found) == pictures
    assert_finds(found, known, head)
    assert_finds(replace(head, outputs=tuple(outputs))({**outputs, "x": known_other()}, SIZE_HW), known, head)
    # Without a number of classes the shapes tell it.
    assert_finds(replace(head, classes=0)(outputs, SIZE_HW), known, head)


def known_other() -> Tensor:
    """An output that is no grid."""
    return torch.zeros(1, 9)


REGION_FILES = (
    "intel__yolo-v2-tiny-ava-0001",
    "intel__yolo-v2-tiny-vehicle-detection-0001",
    "intel__yolo-v2-ava-0001",
    "intel__person-vehicle-bike-detection-crossroad-yolov3-1020",
    "onnx__tinyyolov2-8",
    "public__mobilefacedet-v1-mxnet",
    "public__yolo-v2-tf",
    "public__yolo-v3-tf",
    "public__yolo-v3-tiny-tf",
    "public__yolo-v4-tiny-tf",
    "public__yolo-v5",
)


@pytest.mark.parametrize("name", REGION_FILES)
def test_anchors_and_masks_of_real_model_procs(name: str, shared_media: Path) -> None:
    facts: dict[str, Any] = json.loads((shared_media / "model_proc" / f"{name}.json").read_text())
    (layer,) = facts["output_postproc"]
    head = Region(
        version=layer["converter"],
        classes=layer.get("classes") or len(layer["labels"]),
        anchors=tuple(layer["anchors"]),
        masks=tuple(layer.get("masks", ())),
        sigmoid=layer.get("output_sigmoid_activation", False),
        softmax=layer.get("do_cls_softmax", False),
        iou_threshold=None,
    )
    grids = len(head.masks) // 3 or 1
    known = draw(head, grids, 2, 5)
    outputs = laid_out(written(head, grids, 2, known), "last" if head.version == "yolo_v4" else "first")
    assert_finds(head(outputs, SIZE_HW), known, head)


def region_yolo(raw: Tensor, classes: int, boxes: int, *, softmax: bool) -> Tensor:
    """What OpenVINO's operator makes of raw maps: flat with a softmax, as maps without."""
    openvino = pytest.importorskip("openvino")
    from openvino import opset8 as ops

    maps = ops.parameter(list(raw.shape), np.float32)
    masks = [] if softmax else list(range(boxes))
    layer = ops.region_yolo(maps, 4, classes, boxes, softmax, masks, 1, 3, [1.0] * (2 * boxes))
    compiled = openvino.compile_model(openvino.Model([layer], [maps], "region"), "CPU")
    return torch.from_numpy(compiled([raw.numpy()])[0].copy())


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.usefixtures("seeded")
def test_raw_maps_are_read_as_after_openvinos_region_layer(softmax: bool) -> None:
    raw = 2 * torch.randn(2, 2 * 9, 3, 5)
    layer = region_yolo(raw, 4, 2, softmax=softmax)
    head = Region(version="yolo_v2", classes=4, anchors=V2_ANCHORS)
    found = head({"region": layer}, SIZE_HW)
    raw_found = replace(head, sigmoid=True, softmax=softmax)({"maps": raw}, SIZE_HW)
    for ours, wanted in zip(raw_found, found, strict=True):
        assert len(wanted["scores"]) > 5
        for name, column in wanted.items():
            torch.testing.assert_close(ours[name], column, atol=1e-3, rtol=1e-5)


def test_cells_of_a_flat_layer_may_be_given() -> None:
    """Of 13 cells for 416 pixels, or another number."""
    head = Region(version="yolo_v2", classes=1, anchors=(1.0, 1.0))
    flat = torch.zeros(1, 6, 2, 5)
    flat[0, :, 1, 3] = torch.tensor([0.5, 0.5, 0, 0, 0.9, 1])
    (found,) = replace(head, cells_hw=(2, 5))({"a": flat.flatten(1)}, SIZE_HW)
    torch.testing.assert_close(found["boxes"], torch.tensor([[96.0, 48, 128, 96]]))
    with pytest.raises(ModelUnavailable, match=r"\(N, 1 \* \(5 \+ 1\), rows.* a \(1, 60\)"):
        head({"a": flat.flatten(1)}, SIZE_HW)


def test_without_masks_the_largest_anchors_are_the_coarsest_grids() -> None:
    head = replace(HEADS["v3"], iou_threshold=None)
    known = draw(head, 2, 2, 9)
    outputs = laid_out(written(head, 2, 2, known), "first")
    assert_finds(replace(head, masks=())(outputs, SIZE_HW), known, head)


def test_overlapping_boxes_are_left_out() -> None:
    grid = torch.zeros(1, 7, 1, 3)
    grid[0, :, 0, 0] = torch.tensor([0.95, 0.5, 0, 0, 0.9, 1, 0])
    grid[0, :, 0, 1] = torch.tensor([0.05, 0.5, 0, 0, 0.8, 1, 0])
    grid[0, :, 0, 2] = torch.tensor([-0.95, 0.5, 0, 0, 0.7, 0, 1])
    head = Region(version="yolo_v3", anchors=(30.0, 30))
    counts = [
        len(replace(head, iou_threshold=iou, class_agnostic=agnostic)({"a": grid}, (32, 96))[0]["scores"])
        for iou, agnostic in ((None, False), (0.5, False), (0.5, True))
    ]
    assert counts == [3, 2, 1]


@pytest.mark.usefixtures("seeded")
def test_the_best_of_many_boxes_are_given_and_all_are_finite() -> None:
    """Also of an untrained network, whose sizes are beyond all measure."""
    raw = 100 * torch.randn(2, 2 * 9, 30, 50)
    head = replace(HEADS["v2 raw"], iou_threshold=None)
    for one in head({"a": raw}, SIZE_HW):
        assert len(one["scores"]) == MOST_BOXES
        assert bool(one["boxes"].isfinite().all())
        assert bool((one["scores"] <= 1).all())


def test_what_needs_a_sigmoid_is_not_taken_for_a_probability() -> None:
    grid = torch.zeros(1, 9, 3, 5)
    grid[0, 4] = -3
    head = Region(version="yolo_v2", classes=4, anchors=(1.0, 1.0))
    with pytest.raises(ModelUnavailable, match="objectness from -3 to -3 are no probabilities"):
        head({"a": grid}, SIZE_HW)
    grid[0, 4], grid[0, 7] = 0.5, 4
    with pytest.raises(ModelUnavailable, match="classes from 0 to 4 are no probabilities"):
        head({"a": grid}, SIZE_HW)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"anchors": ()}, r"anchors \[\] are not pairs"),
        ({"anchors": (1.0, 2, 3)}, r"anchors \[1.0, 2, 3\] are not pairs"),
        ({"anchors": (1.0, -2)}, r"not pairs of a width and a height"),
        ({"anchors": (1.0, 2), "masks": (0, 1)}, r"masks \[0, 1\] are not numbers of anchors, 0 to 0"),
    ],
)
def test_anchors_and_masks_that_are_none_are_refused(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        Region(version="yolo_v3", classes=1, **fields)


@pytest.mark.parametrize(
    ("head", "shapes", "says"),
    [
        (HEADS["v3"], {"a": (1, 27, 3, 5)}, "mask 3 leaves 3 anchors for 6 boxes of a cell"),
        (
            HEADS["v3"],
            {"a": (1, 27, 3, 5), "b": (1, 26, 6, 10)},
            r"\(N, 3 \* \(5 \+ 4\), rows.* b \(1, 26, 6, 10\)",
        ),
        (
            HEADS["v3"],
            {"a": (1, 9), "b": (1, 9), "c": (1, 9), "d": (1, 9)},
            "6 masks and 6 anchors are not for 4",
        ),
        (HEADS["v2"], {"a": (1, 9, 5)}, r"gives a \(1, 9, 5\)"),
        (HEADS["v2"], {"a": (1, 2, 3, 5, 8)}, r"gives a \(1, 2, 3, 5, 8\)"),
        (
            replace(HEADS["v2"], outputs=("r",)),
            {"a": (1, 18, 3, 5)},
            r"needs outputs r; the model gives a \(1, 18, 3, 5\)",
        ),
        (HEADS["v2"], {}, "the model gives nothing"),
    ],
)
def test_other_outputs_are_refused_by_name(
    head: Region, shapes: dict[str, tuple[int, ...]], says: str
) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        head({name: torch.zeros(shape) for name, shape in shapes.items()}, SIZE_HW)


def test_pixels_are_stretched_in_0_to_1() -> None:
    facts = HEADS["v2"].pixels((416, 416))
    assert (facts.fixed_hw, facts.fit, facts.channels, facts.antialias) == (
        (416, 416),
        "stretch",
        "RGB",
        False,
    )
    assert (facts.mean, facts.std) == ((0, 0, 0), (1, 1, 1))
    assert HEADS["v2"].with_classes(7).classes == 7


@pytest.mark.gpu
@pytest.mark.parametrize("kind", HEADS)
def test_a_gpu_gives_the_same(kind: str) -> None:
    head = replace(HEADS[kind], iou_threshold=None)
    grids = 2 if head.masks else 1
    known = draw(head, grids, 3, 4)
    outputs = laid_out(written(head, grids, 3, known), "first")
    found = head({name: one.cuda() for name, one in outputs.items()}, SIZE_HW)
    assert all(one["boxes"].is_cuda for one in found)
    assert_finds([{name: one.cpu() for name, one in picture.items()} for picture in found], known, head)
