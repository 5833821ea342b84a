"""What the heads have in common: scores of many candidates → the best boxes of each picture.

Candidates up to `LEAST_SCORE` never count, of the others only the best `MOST_CANDIDATES` of a picture are
compared with each other, and the best `MOST_BOXES` are given. A request's own threshold comes later: since
the best box is taken first, it leaves the same boxes as if it had come before. Of equal scores the first row
leads. Pictures are apart from each other: what one holds changes nothing in another.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pipelines.models.outputs import finite_rows

LEAST_SCORE = 0.01
MOST_CANDIDATES = 1000
MOST_BOXES = 300
# Boxes are compared as if they ended there: beyond it sums of coordinates are too coarse.
FAR_PX = 1e6

# The order of a box's four numbers.
Order = Literal["xyxy", "yxyx", "xywh", "cxcywh"]


def candidates(score_na: Tensor) -> tuple[Tensor, Tensor]:
    """The numbers of the pictures and of the rows of candidates, `(C,)` each, ascending by both.

    Args:
        score_na: float32 `(N, A)`, the best score of each row of each picture; NaN counts as nothing.
    """
    wanted = score_na > LEAST_SCORE
    # Few pictures have more, and finding the best takes longer than all the rest.
    if score_na.shape[1] > MOST_CANDIDATES and wanted.sum(dim=1).gt(MOST_CANDIDATES).any():
        wanted &= _best(torch.where(wanted, score_na, 0))
    picture, row = wanted.nonzero(as_tuple=True)
    return picture, row


def _best(score_na: Tensor) -> Tensor:
    """Which rows of each picture are the best MOST_CANDIDATES, bool `(N, A)`; of equal ones the first."""
    least = score_na.topk(MOST_CANDIDATES, dim=1).values[:, -1:]
    above, equal = score_na > least, score_na == least
    room = MOST_CANDIDATES - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= room))


def strongest(score_c: Tensor, picture_c: Tensor, count: int) -> Tensor:
    """The places of the best candidates of each of `count` pictures, as many as are compared."""
    order = score_c.argsort(descending=True, stable=True)
    pictures = picture_c[order]
    return torch.cat([order[pictures == number][:MOST_CANDIDATES] for number in range(count)])


def best_boxes(
    box_c4: Tensor,
    score_c: Tensor,
    label_c: Tensor,
    picture_c: Tensor,
    count: int,
    *,
    iou_threshold: float | None,
    class_agnostic: bool = False,
    most: int | None = MOST_BOXES,
    **more: Tensor,
) -> list[dict[str, Tensor]]:
    """The boxes of each of `count` pictures, best first, without those that overlap a better one.

    A box with a number that is not finite is left out, and leaves out no other.

    Args:
        box_c4: float32 `(C, 4)` xyxy in model pixels; score_c, label_c, picture_c: `(C,)`. Labels of floats
            are rounded.
        iou_threshold: the overlap above which the worse one is left out; None: none is.
        class_agnostic: a box removes those of other classes too.
        most: boxes of a picture; None: all.
        more: other columns `(C, …)` that go with the boxes, such as keypoints.

    Returns:
        for each picture `boxes` (D, 4), `scores` (D,), `labels` (D,) int64, and `more` by their names.
    """
    # Not with the module: it sets variables of the environment.
    from torchvision.ops import nms

    finite = torch.stack([finite_rows(one) for one in (box_c4, score_c, label_c, *more.values())]).all(dim=0)
    label_c = label_c.round().long() if label_c.is_floating_point() else label_c.long()
    columns = {"boxes": box_c4, "scores": score_c, "labels": label_c, **more}
    order = picture_c.argsort(stable=True)
    order = order[finite[order]]
    sizes = picture_c[order].bincount(minlength=count).tolist()
    found = []
    # Picture by picture: one call for all compares each box with those of other pictures too.
    for rows in torch.split(order, sizes):
        score = score_c[rows]
        if iou_threshold is None:
            kept = score.argsort(descending=True, stable=True)
        else:
            box = box_c4[rows] if class_agnostic else _apart(box_c4[rows], label_c[rows])
            kept = nms(box, score.to(box.dtype), iou_threshold)
        best = rows[kept[:most]]
        found.append({name: column[best] for name, column in columns.items()})
    return found


def _apart(box_d4: Tensor, label_d: Tensor) -> Tensor:
    """The boxes moved so that those of different classes do not meet; float64, which loses nothing by it."""
    if not len(box_d4):
        return box_d4
    near = box_d4.double().clamp(-FAR_PX, FAR_PX)
    step = near.amax() - near.amin() + 1
    return near + (label_d * step)[:, None]


def corners(cxcywh: Tensor) -> Tensor:
    """Boxes `(…, 4)` of centre, width and height → corners xyxy."""
    centre, half = cxcywh[..., :2], cxcywh[..., 2:4] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy(boxes: Tensor, order: Order, unit_hw: tuple[int, int] | None = None) -> Tensor:
    """Boxes `(…, 4)` in some order → corners xyxy; from 0..1 to pixels if `unit_hw` is the pixels' size."""
    if order == "cxcywh":
        boxes = corners(boxes)
    elif order == "yxyx":
        boxes = boxes[..., [1, 0, 3, 2]]
    elif order == "xywh":
        boxes = torch.cat([boxes[..., :2], boxes[..., :2] + boxes[..., 2:4]], dim=-1)
    if unit_hw is None:
        return boxes
    height_px, width_px = unit_hw
    return boxes * boxes.new_tensor([width_px, height_px, width_px, height_px])
