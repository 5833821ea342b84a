"""Boxes that the network has chosen itself: torchvision's exports, TensorFlow's detection API, ONNX zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from pipelines.models.heads.suppression import Order, best_boxes, xyxy
from pipelines.models.heads.tensors import OTHER_WAYS, pick
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable

# Outputs that go with boxes where they are there.
MORE = ("masks", "keypoints")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Boxes `(N, D, 4)`, labels and scores `(N, D)`, or all without N for one picture → best first.

    Outputs `masks` `(N, D, 1, m, m)` and `keypoints` `(N, D, P, 3)` go with them. Boxes with a number below
    that of the first label are left out.

    Attributes:
        boxes, labels, scores: names of the outputs; empty: the first that fits. Labels are of any type; where
            none fit, all are 0.
        count: the name of how many boxes of each picture are real, `(N,)`; empty: all are.
        unit: boxes, and keypoints, are in 0..1, else in pixels.
        order: of a box's four numbers; TensorFlow has y first.
        first_label: the number that the network gives to the first name.
        iou_threshold: the overlap from which the worse box is left out; None: none is.
        class_agnostic: a box removes those of other classes too.
    """

    family: ClassVar[str] = "boxes"

    boxes: str = "boxes"
    labels: str = "labels"
    scores: str = "scores"
    count: str = ""
    unit: bool = False
    order: Order = "xyxy"
    first_label: int = 0
    iou_threshold: float | None = None
    class_agnostic: bool = False

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        boxes = pick(outputs, self.boxes, _of_boxes, "head boxes needs boxes (N, D, 4) or (D, 4)")
        lone = boxes.ndim == 2
        box_nd4 = boxes[None] if lone else boxes
        score_nd = self._column(outputs, "scores", box_nd4).float()
        label_nd = self._column(outputs, "labels", box_nd4).double().round() - self.first_label
        more = {one: outputs[one][None] if lone else outputs[one] for one in MORE if one in outputs}
        for other, values in more.items():
            if values.shape[:2] != box_nd4.shape[:2]:
                raise ModelUnavailable(
                    f"head boxes needs {other} for each of {tuple(boxes.shape)} boxes, not "
                    f"{tuple(outputs[other].shape)}",
                    hint=OTHER_WAYS,
                )
        if self.unit and "keypoints" in more:
            more["keypoints"] = _in_pixels(more["keypoints"], size_hw)
        picture, row = self._real(outputs, label_nd).nonzero(as_tuple=True)
        return best_boxes(
            xyxy(box_nd4[picture, row].float(), self.order, size_hw if self.unit else None),
            score_nd[picture, row],
            label_nd[picture, row],
            picture,
            len(box_nd4),
            iou_threshold=self.iou_threshold,
            class_agnostic=self.class_agnostic,
            most=None,
            **{other: values[picture, row] for other, values in more.items()},
        )

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        """Stretched, in 0..1."""
        return Preprocessing(resize_px=size_hw, mean=(0, 0, 0), std=(1, 1, 1))

    def with_classes(self, count: int) -> Self:
        """The same: labels are numbers here, whatever their number."""
        return self

    def _column(self, outputs: Mapping[str, Tensor], which: str, box_nd4: Tensor) -> Tensor:
        """The scores or labels `(N, D)`."""
        rows = box_nd4.shape[:2]
        name: str = self.scores if which == "scores" else self.labels
        integers = which == "labels"
        fitting = {
            one: tensor
            for one, tensor in outputs.items()
            if one == name or (not name and tensor.is_floating_point() != integers)
        }

        def fits(one: Tensor) -> bool:
            return _counts(one) == tuple(rows)

        if integers and not name and not any(map(fits, fitting.values())):
            return torch.zeros(rows, device=box_nd4.device)
        needs = f"head boxes needs {which} ({rows[0]}, {rows[1]}), one for each box"
        return pick(fitting or outputs, name, fits, needs).reshape(rows)

    def _real(self, outputs: Mapping[str, Tensor], label_nd: Tensor) -> Tensor:
        """Which boxes count, `(N, D)`."""
        named_class = label_nd >= 0
        if not self.count:
            return named_class
        pictures, boxes = label_nd.shape
        needs = f"head boxes needs how many boxes each of {pictures} pictures has"
        count = pick(outputs, self.count, lambda one: one.numel() == pictures, needs)
        place = torch.arange(boxes, device=label_nd.device)
        return named_class & (place < count.reshape(pictures, 1))


def _of_boxes(one: Tensor) -> bool:
    return one.ndim in (2, 3) and one.shape[-1] == 4


def _counts(one: Tensor) -> tuple[int, ...]:
    """Pictures and boxes of a column `(D,)`, `(N, D)`, `(N, D, 1)`."""
    if one.ndim == 3 and one.shape[2] == 1:
        return tuple(one.shape[:2])
    return (1, *one.shape) if one.ndim == 1 else tuple(one.shape)


def _in_pixels(point: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Keypoints `(…, 3)` of x, y in 0..1 and visible → x, y in pixels."""
    height_px, width_px = size_hw
    return point * point.new_tensor([width_px, height_px, 1])
