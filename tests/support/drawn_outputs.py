"""Outputs of detectors drawn around known boxes, in the forms that exporters give them.

Whatever is no object is noise of the kind that trained networks give: boxes near their cells, scores near 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.models.graph import Graph, Port

Outputs = Mapping[str, Tensor]
# A picture with things on it varies; a grey one does not.
LEAST_SPREAD = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Objects on a picture: boxes `(D, 4)` xyxy in pixels, labels and scores `(D,)`, best first."""

    size_hw: tuple[int, int] = (320, 256)
    classes: int = 5
    boxes: Tensor
    labels: Tensor
    scores: Tensor

    @property
    def scale(self) -> Tensor:
        height, width = self.size_hw
        return torch.tensor([width, height, width, height], dtype=torch.float32)

    @property
    def centres(self) -> Tensor:
        """Boxes as cx, cy, w, h."""
        return torch.cat(
            [(self.boxes[:, :2] + self.boxes[:, 2:]) / 2, self.boxes[:, 2:] - self.boxes[:, :2]], dim=1
        )

    def without(self) -> Scene:
        """The same with nothing on it."""
        return Scene(
            size_hw=self.size_hw,
            classes=self.classes,
            boxes=self.boxes[:0],
            labels=self.labels[:0],
            scores=self.scores[:0],
        )


def scene(seed: int = 0, count: int = 4, classes: int = 5, size_hw: tuple[int, int] = (320, 256)) -> Scene:
    """Objects in cells of their own, so that none hides another."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size_hw
    places = torch.randperm(9, generator=generator)[:count]
    corners = torch.stack([(places % 3) * width / 3, places // 3 * height / 3], dim=1)
    part = torch.rand(count, 2, generator=generator)
    sides = torch.tensor([width, height]) * (0.12 + 0.15 * torch.rand(count, 2, generator=generator))
    begin = corners + part * (torch.tensor([width, height]) / 3 - sides)
    scores = torch.linspace(0.95, 0.6, count)
    labels = torch.randint(classes, (count,), generator=generator)
    boxes = torch.cat([begin, begin + sides], dim=1)
    return Scene(size_hw=size_hw, classes=classes, boxes=boxes, labels=labels, scores=scores)


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Rows of cells: boxes cx, cy, w, h `(A, 4)`, scores `(A, K)`, the centre and stride of each cell."""

    boxes: Tensor
    scores: Tensor
    corner: Tensor
    stride: Tensor
    taken: Tensor


def grid(drawn: Scene, strides: Sequence[int] = (8, 16, 32), anchors: int = 1) -> Grid:
    """A dense detector's rows; each object takes the row of a cell near it."""
    generator = torch.Generator().manual_seed(1)
    height, width = drawn.size_hw
    corners, sizes = [], []
    for stride in strides:
        down, across = torch.meshgrid(
            torch.arange(-(-height // stride)), torch.arange(-(-width // stride)), indexing="ij"
        )
        cells = torch.stack([across.flatten(), down.flatten()], dim=1).float() * stride
        corners += [cells] * anchors
        sizes += [torch.full((anchors * len(cells), 1), float(stride))]
    corner, stride_a1 = torch.cat(corners), torch.cat(sizes)
    rows = len(corner)
    noise = torch.randn(rows, 4, generator=generator)
    centre = corner + stride_a1 * (0.5 + 0.3 * noise[:, :2])
    sides = stride_a1 * (0.6 * noise[:, 2:] + 0.3).exp()
    boxes = torch.cat([centre, sides], dim=1)
    scores = 0.004 * torch.rand(rows, drawn.classes, generator=generator)
    taken = []
    for box, label, score in zip(drawn.centres, drawn.labels, drawn.scores, strict=True):
        row = int(((corner + stride_a1 / 2 - box[:2]).abs().sum(dim=1) + 3 * stride_a1[:, 0]).argmin())
        boxes[row], scores[row, label] = box, score
        taken.append(row)
    return Grid(
        boxes=boxes,
        scores=scores,
        corner=corner,
        stride=stride_a1,
        taken=torch.tensor(taken, dtype=torch.int64),
    )


def with_objectness(boxes: Tensor, scores: Tensor) -> Tensor:
    """`(1, A, 5 + K)`: of an object all its score is the objectness."""
    best = scores.amax(dim=1, keepdim=True)
    return torch.cat([boxes, best, (scores / best).clamp(max=1)], dim=1)[None]


def yolox(drawn: Scene, *, decoded: bool = False) -> Outputs:
    cells = grid(drawn)
    boxes = cells.boxes
    if not decoded:
        boxes = torch.cat(
            [(boxes[:, :2] - cells.corner) / cells.stride, (boxes[:, 2:] / cells.stride).log()], dim=1
        )
    return {"output": with_objectness(boxes, cells.scores)}


def yolo_v5(drawn: Scene) -> Outputs:
    cells = grid(drawn, anchors=3)
    return {"output0": with_objectness(cells.boxes, cells.scores)}


def yolo_v8(drawn: Scene, *, strides: Sequence[int] = (8, 16, 32), rows_first: bool = False) -> Outputs:
    cells = grid(drawn, strides)
    rows = torch.cat([cells.boxes, cells.scores], dim=1)
    return {"output0": (rows if rows_first else rows.T)[None].contiguous()}


def yolo_v8_masks(drawn: Scene, masks: int = 8) -> Outputs:
    cells = grid(drawn)
    height, width = drawn.size_hw
    generator = torch.Generator().manual_seed(2)
    numbers = torch.randn(len(cells.boxes), masks, generator=generator)
    rows = torch.cat([cells.boxes, cells.scores, numbers], dim=1)
    prototypes = torch.randn(1, masks, height // 4, width // 4, generator=generator)
    return {"output0": rows.T[None].contiguous(), "output1": prototypes}


def yolo_v8_points(drawn: Scene, points: int = 5) -> Outputs:
    cells = grid(drawn)
    generator = torch.Generator().manual_seed(2)
    visible = torch.rand(len(cells.boxes), points, 3, generator=generator)
    visible[..., :2] = cells.boxes[:, None, :2] + 20 * (visible[..., :2] - 0.5)
    return {"output0": torch.cat([cells.boxes, cells.scores, visible.flatten(1)], dim=1).T[None].contiguous()}


def end_to_end(drawn: Scene, *, form: str = "corners", filled: bool = False, rows: int = 300) -> Outputs:
    """Sorted rows; `filled`: with boxes of low scores, as of YOLOv10, else with zeros, as after a NMS."""
    boxes = drawn.boxes if form != "centres" else drawn.centres / drawn.scale
    known = torch.cat([boxes, drawn.scores[:, None], drawn.labels[:, None].float()], dim=1)
    if form == "picture":
        zeros = torch.zeros(len(known), 1)
        return {"output": torch.cat([zeros, known[:, :4], known[:, 5:], known[:, 4:5]], dim=1)}
    more = torch.zeros(rows - len(known), 6)
    if filled:
        generator = torch.Generator().manual_seed(3)
        begin, sides = torch.rand(2, len(more), 2, generator=generator)
        more[:, :4] = torch.cat([begin * 0.8, begin * 0.8 + 0.2 * sides], dim=1)
        if form == "centres":
            more[:, 2:4] = 0.2 * sides
        else:
            more[:, :4] *= drawn.scale
        more[:, 4] = torch.linspace(0.004, 0.001, len(more))
        more[:, 5] = torch.randint(drawn.classes, (len(more),), generator=generator).float()
    return {"output0": torch.cat([known, more])[None]}


def queries(drawn: Scene, count: int = 100) -> tuple[Tensor, Tensor]:
    """A DETR's boxes `(Q, 4)` in 0..1 and scores `(Q, K)`."""
    generator = torch.Generator().manual_seed(4)
    boxes = torch.rand(count, 4, generator=generator) * torch.tensor([0.8, 0.8, 0.3, 0.3]) + 0.05
    scores = 0.004 * torch.rand(count, drawn.classes, generator=generator)
    places = torch.randperm(count, generator=generator)[: len(drawn.boxes)]
    boxes[places] = drawn.centres / drawn.scale
    scores[places, drawn.labels] = drawn.scores
    return boxes, scores


def detr(
    drawn: Scene, *, softmax: bool, names: tuple[str, str] = ("logits", "pred_boxes"), done: bool = False
) -> Outputs:
    boxes, scores = queries(drawn)
    if softmax:
        rest = (1 - scores.sum(dim=1, keepdim=True)).clamp(min=0.001)
        scores = torch.cat([scores, rest], dim=1)
        logits = scores if done else scores.log()
    else:
        logits = scores if done else torch.logit(scores.clamp(1e-5, 1 - 1e-5))
    return {names[0]: logits[None], names[1]: boxes[None]}


def detr_joined(drawn: Scene) -> Outputs:
    return {"output0": torch.cat(queries(drawn, 300), dim=1)[None]}


def detection_output(drawn: Scene, rows: int = 100) -> Outputs:
    known = torch.cat(
        [
            torch.zeros(len(drawn.boxes), 1),
            drawn.labels[:, None].float(),
            drawn.scores[:, None],
            drawn.boxes / drawn.scale,
        ],
        dim=1,
    )
    more = torch.zeros(rows - len(known), 7)
    more[:1, 0] = -1
    return {"detection_out": torch.cat([known, more])[None, None]}


def boxes_labels(
    drawn: Scene, *, batched: bool, names: tuple[str, str] = ("boxes", "labels"), rows: int = 0
) -> Outputs:
    boxes = torch.cat([drawn.boxes, drawn.scores[:, None]], dim=1)
    boxes = torch.cat([boxes, torch.zeros(rows, 5)])
    labels = torch.cat([drawn.labels, torch.zeros(rows, dtype=torch.int64)])
    return {names[0]: boxes[None] if batched else boxes, names[1]: labels[None] if batched else labels}


def boxes_scores(drawn: Scene, *, unit: bool, background: bool, order: str = "xyxy") -> Outputs:
    cells = grid(drawn)
    boxes = cells.boxes
    if order == "xyxy":
        boxes = torch.cat([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], dim=1)
    scores = cells.scores
    if background:
        scores = torch.cat([(1 - scores.sum(dim=1, keepdim=True)).clamp(min=0), scores], dim=1)
    return {"scores": scores[None], "boxes": (boxes / drawn.scale if unit else boxes)[None]}


def chosen(
    drawn: Scene, names: Sequence[str], *, unit: bool, batched: bool, first: int = 0, y_first: bool = False
) -> Outputs:
    """Boxes, labels and scores under three names in that order."""
    boxes = drawn.boxes / drawn.scale if unit else drawn.boxes
    boxes = boxes[:, [1, 0, 3, 2]] if y_first else boxes
    parts = (boxes, drawn.labels + first, drawn.scores)
    return {name: part[None] if batched else part for name, part in zip(names, parts, strict=True)}


def graph(
    draw: Callable[[Scene], Outputs],
    drawn: Scene,
    *,
    operators: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
    dynamic: bool = False,
    swapped: bool = False,
    inputs: Sequence[Port] = (),
    whole: str = "int64",
) -> Graph:
    """A network that finds the objects on any picture that is not grey.

    Args:
        dynamic: the file does not show the dimensions of its outputs.
        swapped: its outputs are in the opposite order.
        inputs: those beside the pixels.
        whole: the type of labels.
    """

    def run(pixels: Tensor) -> Outputs:
        found = draw(drawn if float(pixels.std()) > LEAST_SPREAD else drawn.without())
        names = list(found)[:: -1 if swapped else 1]
        return {name: found[name].float() if whole == "float32" else found[name] for name in names}

    shown, empty = run(torch.rand(1, 3, 8, 8)), run(torch.zeros(1, 3, 8, 8))
    ports = tuple(
        Port(
            name=name,
            dtype=str(one.dtype).removeprefix("torch."),
            dims=tuple(
                side if side == other and not dynamic else None
                for side, other in zip(one.shape, empty[name].shape, strict=True)
            ),
            operator=(operators or {}).get(name, ""),
        )
        for name, one in shown.items()
    )
    pixels = Port(name="images", dtype="float32", dims=(1, 3, *drawn.size_hw))
    return Graph(inputs=(pixels, *inputs), outputs=ports, metadata=metadata or {}, run=run)


def graph_of(
    *outputs: Port, values: Outputs | None = None, metadata: Mapping[str, str] | None = None
) -> Graph:
    """A network of which little is known; `values` are what it gives of any picture."""
    pixels = Port(name="images", dtype="float32", dims=(None, 3, 320, 256))
    run = None if values is None else lambda pixels: values
    return Graph(inputs=(pixels,), outputs=outputs, metadata=metadata or {}, run=run)


def port(name: str, *dims: int | None, operator: str = "", dtype: str = "float32") -> Port:
    return Port(name=name, dtype=dtype, dims=dims, operator=operator)
