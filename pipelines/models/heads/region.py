"""Darknet's region layers, YOLO v2 to v5 without the last step: offsets in a grid, to decode with anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from pipelines.models.heads.suppression import LEAST_SCORE, best_boxes, strongest, xyxy
from pipelines.models.heads.tensors import OTHER_WAYS, described
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable

Version = Literal["yolo_v2", "yolo_v3", "yolo_v4", "yolo_v5"]
# x, y, w, h and objectness come before the classes.
BEFORE = 5
# Where no cells are given, one is so many pixels of the coarsest grid.
CELL_PX = 32
# Rounding may leave a score so far out of 0..1.
SLACK = 1e-3
REGION_HINT = "anchors and masks are those of the network's configuration, in a model-proc file"
ACTIVATION_HINT = "do_cls_softmax and output_sigmoid_activation in a model-proc file say what the layer lacks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Grids of cells with B boxes each, of x, y, w, h, objectness and K classes → the best of them.

    A grid is `(N, B(5+K), H, W)`, channels last `(N, H, W, B(5+K))`, `(N, B, H, W, 5+K)`, or flat `(N, L)`.
    Flat ones have their channels last with v4, else first. As OpenVINO's RegionYolo and Darknet have it.

    Attributes:
        version: what the numbers mean. v2: anchors are in cells; else in pixels. v5: another formula.
        classes: K; 0: from the shape of the grids, if they are not flat.
        anchors: width and height of each anchor.
        masks: numbers of the anchors of each grid, the coarsest grid first. The first of a grid's numbers
            counts, the others follow it. Empty: the anchors in equal parts, the finest grid first.
        outputs: names of the grids; empty: all outputs.
        sigmoid: x, y and objectness need a sigmoid, and without `softmax` classes too if they are not in
            0..1.
        softmax: classes need a softmax.
        cells_hw: rows and columns of the coarsest grid, for flat ones; None: a cell for 32 pixels.
        iou_threshold: the overlap from which the worse box is left out; None: none is.
        class_agnostic: a box removes those of other classes too.

    Raises:
        ModelUnavailable: the anchors or masks are not such.
    """

    family: ClassVar[str] = "region"

    version: Version
    anchors: tuple[float, ...]
    classes: int = 0
    masks: tuple[int, ...] = ()
    outputs: tuple[str, ...] = ()
    sigmoid: bool = False
    softmax: bool = False
    cells_hw: tuple[int, int] | None = None
    iou_threshold: float | None = 0.5
    class_agnostic: bool = False

    def __post_init__(self) -> None:
        if not self.anchors or len(self.anchors) % 2 or min(self.anchors) <= 0:
            raise ModelUnavailable(
                f"anchors {list(self.anchors)} are not pairs of a width and a height", hint=REGION_HINT
            )
        last = len(self.anchors) // 2 - 1
        if self.masks and not 0 <= min(self.masks) <= max(self.masks) <= last:
            raise ModelUnavailable(
                f"masks {list(self.masks)} are not numbers of anchors, 0 to {last}", hint=REGION_HINT
            )

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        grids = self._grids(outputs, size_hw)
        parts = [self._part(grid, anchors, size_hw) for grid, anchors in grids]
        box, score, label, picture = (torch.cat(columns) for columns in zip(*parts, strict=True))
        count = len(grids[0][0])
        kept = strongest(score, picture, count)
        return best_boxes(
            box[kept],
            score[kept],
            label[kept],
            picture[kept],
            count,
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
        )

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        """Stretched, in 0..1, as Darknet resizes."""
        return Preprocessing(resize_px=size_hw, mean=(0, 0, 0), std=(1, 1, 1), antialias=False)

    def with_classes(self, count: int) -> Self:
        return replace(self, classes=count)

    def _grids(
        self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]
    ) -> list[tuple[Tensor, tuple[float, ...]]]:
        """The grids `(N, B, H, W, 5+K)` from the coarsest to the finest, with B anchors each."""
        if not outputs or any(name not in outputs for name in self.outputs):
            raise ModelUnavailable(
                f"head region needs outputs {', '.join(self.outputs)}; the model gives {described(outputs)}",
                hint=OTHER_WAYS,
            )
        chosen = ((name, outputs[name]) for name in self.outputs or outputs)
        given = sorted(chosen, key=lambda one: one[1].numel())
        pairs = len(self.anchors) // 2
        boxes, left = divmod(len(self.masks) or pairs, len(given))
        if left or not boxes:
            raise ModelUnavailable(
                f"{len(self.masks)} masks and {pairs} anchors are not for {len(given)} outputs: "
                f"{described(dict(given))}",
                hint=REGION_HINT,
            )
        grids = []
        for place, (name, tensor) in enumerate(given):
            first = self.masks[place * boxes] if self.masks else pairs - (place + 1) * boxes
            anchors = self.anchors[2 * first : 2 * (first + boxes)]
            if len(anchors) < 2 * boxes:
                raise ModelUnavailable(
                    f"mask {first} leaves {len(anchors) // 2} anchors for {boxes} boxes of a cell",
                    hint=REGION_HINT,
                )
            grids.append((self._grid(name, self._unflat(tensor, boxes, place, size_hw), boxes), anchors))
        return grids

    def _unflat(self, tensor: Tensor, boxes: int, place: int, size_hw: tuple[int, int]) -> Tensor:
        """A flat output with its rows and columns; others, and what has none, as they are."""
        rows, columns = self.cells_hw or (size_hw[0] // CELL_PX, size_hw[1] // CELL_PX)
        if tensor.ndim != 2 or not rows * columns:
            return tensor
        finer = 2**place
        if self.classes:
            channels = boxes * (BEFORE + self.classes)
            finer = isqrt(tensor.shape[1] // (channels * rows * columns))
        rows, columns = finer * rows, finer * columns
        if not finer or tensor.shape[1] % (rows * columns):
            return tensor
        sizes = (rows, columns, -1) if self.version == "yolo_v4" else (-1, rows, columns)
        return tensor.reshape(len(tensor), *sizes)

    def _grid(self, name: str, tensor: Tensor, boxes: int) -> Tensor:
        """One output as `(N, B, H, W, 5+K)`."""
        if tensor.ndim == 4:
            axes = (3, 1) if self.version == "yolo_v4" else (1, 3)
            fitting = [axis for axis in axes if self._fits(tensor.shape[axis], boxes)]
            if fitting:
                maps = tensor.movedim(fitting[0], 1)
                return maps.reshape(len(maps), boxes, -1, *maps.shape[2:]).permute(0, 1, 3, 4, 2)
        if tensor.ndim == 5 and tensor.shape[1] == boxes and self._fits(boxes * tensor.shape[4], boxes):
            return tensor
        per_box = f"5 + {self.classes}" if self.classes else "5 + K"
        raise ModelUnavailable(
            f"head region needs (N, {boxes} * ({per_box}), rows, columns), the same flat or channels last; "
            f"the model gives {described({name: tensor})}",
            hint=OTHER_WAYS,
        )

    def _fits(self, channels: int, boxes: int) -> bool:
        """Whether so many channels are those of a cell."""
        if self.classes:
            return channels == boxes * (BEFORE + self.classes)
        return channels % boxes == 0 and channels // boxes > BEFORE

    def _part(
        self, grid: Tensor, anchors: tuple[float, ...], size_hw: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of one grid the boxes `(C, 4)` with a score, their scores, labels and pictures `(C,)`."""
        objectness = grid[..., 4].sigmoid() if self.sigmoid else grid[..., 4]
        _check_probabilities(objectness, "objectness")
        at = (objectness > LEAST_SCORE).nonzero(as_tuple=True)
        cell_c = grid[at].float()
        best, label = self._classes(cell_c[:, BEFORE:], grid[..., BEFORE:]).max(1)
        score = objectness[at].float() * best
        kept = score > LEAST_SCORE
        picture, anchor, row, column = (index[kept] for index in at)
        anchor_c2 = cell_c.new_tensor(anchors).view(-1, 2)[anchor]
        rows, columns = grid.shape[2:4]
        cell_px = cell_c.new_tensor([size_hw[1] / columns, size_hw[0] / rows])
        place_c2 = torch.stack([column, row], 1)
        return self._boxes(cell_c[kept, :4], place_c2, anchor_c2, cell_px), score[kept], label[kept], picture

    def _classes(self, raw_ck: Tensor, all_raw: Tensor) -> Tensor:
        """The probabilities of the classes `(C, K)`; whether they are that already tells the whole grid."""
        if self.softmax:
            return raw_ck.softmax(1)
        if self.sigmoid and not _are_probabilities(all_raw):
            return raw_ck.sigmoid()
        _check_probabilities(raw_ck, "classes")
        return raw_ck

    def _boxes(self, raw_c4: Tensor, place_c2: Tensor, anchor_c2: Tensor, cell_px: Tensor) -> Tensor:
        """Boxes xyxy in pixels of offsets, columns and rows, anchors, and a cell's width and height."""
        offset = raw_c4[:, :2].sigmoid() if self.sigmoid else raw_c4[:, :2]
        if self.version == "yolo_v5":
            offset = 2 * offset - 0.5
            times = (2 * raw_c4[:, 2:].sigmoid()) ** 2
        else:
            times = raw_c4[:, 2:].exp()
        size = times * (anchor_c2 * cell_px if self.version == "yolo_v2" else anchor_c2)
        return xyxy(torch.cat([(place_c2 + offset) * cell_px, size], 1), "cxcywh")


def _are_probabilities(values: Tensor) -> bool:
    """Whether all are in 0..1; NaN says nothing."""
    return not bool(((values < -SLACK) | (values > 1 + SLACK)).any())


def _check_probabilities(values: Tensor, what: str) -> None:
    if not _are_probabilities(values):
        raise ModelUnavailable(
            f"{what} from {float(values.amin()):.3g} to {float(values.amax()):.3g} are no probabilities",
            hint=ACTIVATION_HINT,
        )
