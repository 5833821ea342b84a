"""Whether what a head reads looks like boxes and scores: one check for each family. Knows no files.

Untrained networks pass: they are odd in what they find, not in the form of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.detr import Detr
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.identify import values
from pipelines.models.heads.identify.evidence import Outputs
from pipelines.models.heads.region import Region
from pipelines.models.heads.ssd import Ssd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.heads.yolox import Yolox
from pipelines.models.spec import Head

Size = tuple[int, int]
CORNERS = ("xyxy", "yxyx")
# A share of rows that rounding may spoil.
FEW = 0.001
DENSE = (Yolox, YoloV5, YoloV8, BoxesScores, Detr, Region)


def contradiction(head: Head, outputs: Outputs, size_hw: Size) -> str:
    """What in the outputs for one picture does not look like what the head reads; empty: nothing.

    Heads that are not known here are not judged, nor those whose outputs are not there.
    """
    known = _addressed(head, outputs)
    match known:
        case Yolox():
            return _yolox(outputs[known.output][0], size_hw, decoded=known.decoded)
        case YoloV5():
            rows = outputs[known.output][0]
            return _pixels(rows[:, :4], size_hw) or _scores(rows[:, 4:], "from the fifth")
        case YoloV8():
            return _yolo_v8(known, outputs[known.output][0], size_hw)
        case EndToEnd():
            return _end_to_end(known, outputs[known.output])
        case Detr():
            return _detr(known, outputs)
        case Ssd():
            return _ssd(known, outputs)
        case BoxesScores():
            return _boxes_scores(known, outputs, size_hw)
        case Boxes():
            return _boxes(known, outputs)
    return ""


def _addressed(head: Head, outputs: Outputs) -> Head | None:
    """The head with the name of its output, if it has none and only one output can be meant."""
    names = [getattr(head, part, "") for part in ("output", "joined", "boxes", "logits", "scores", "labels")]
    if isinstance(head, Detr) and head.joined:
        names = [head.joined]
    if any(name and name not in outputs for name in names):
        return None
    if not isinstance(head, Yolox | YoloV5 | YoloV8 | EndToEnd) or head.output:
        return head if any(names) else None
    rank = 2 if isinstance(head, EndToEnd) and head.form == "picture" else 3
    fits = [name for name, one in outputs.items() if one.ndim == rank]
    return replace(head, output=fits[0]) if len(fits) == 1 else None


def _scores(numbers: Tensor, where: str) -> str:
    if values.are_scores(numbers):
        return ""
    low, high = float(numbers.min()), float(numbers.max())
    return f"its columns {where} are not scores of 0..1: they are {low:.3g} to {high:.3g}"


def _pixels(boxes: Tensor, size_hw: Size) -> str:
    """Centres and sides in pixels."""
    if not values.in_pixels(boxes, size_hw):
        return f"boxes are not in pixels: 99 % of their numbers are below {values.q99(boxes):.3g}"
    if values.negative_share(boxes[:, 2:]) > FEW:
        return "widths or heights of boxes are negative"
    return ""


def _yolox(rows: Tensor, size_hw: Size, *, decoded: bool) -> str:
    boxes = rows[:, :4]
    if wrong := _scores(rows[:, 4:], "from the fifth"):
        return wrong
    if decoded:
        return _pixels(boxes, size_hw)
    if values.q99(boxes) >= values.MOST_OF_OFFSETS:
        return f"boxes are not offsets to cells: 99 % of their numbers reach {values.q99(boxes):.3g}"
    if values.negative_share(boxes[:, 2:]) <= FEW:
        return "no width or height is negative, so they are not logarithms"
    return ""


def _yolo_v8(head: YoloV8, tensor: Tensor, size_hw: Size) -> str:
    rows = tensor if head.rows_first else tensor.T
    more = head.keypoints[0] * head.keypoints[1] if head.keypoints else 0
    stop = 4 + head.classes if head.classes else rows.shape[1] - more
    return _pixels(rows[:, :4], size_hw) or _scores(rows[:, 4:stop], f"5 to {stop}")


def _end_to_end(head: EndToEnd, tensor: Tensor) -> str:
    if head.form == "picture":
        rows = tensor[tensor[:, 6] > 0]
        boxes, labels, scores = rows[:, 1:5], rows[:, 5], rows[:, 6]
        if not values.are_whole(rows[:, 0]):
            return "the first number of a row is not that of a picture"
    else:
        rows = tensor[0][tensor[0, :, 4] > 0]
        boxes, scores, labels = rows[:, :4], rows[:, 4], rows[:, 5]
    if not values.are_whole(labels):
        return "the numbers of classes are not whole"
    if wrong := _scores(scores, "of scores"):
        return wrong
    if head.form == "centres":
        return "" if values.in_unit(boxes) else "boxes are not in 0..1"
    return _corners(boxes, unit=False)


def _corners(boxes: Tensor, *, unit: bool, order: str = "xyxy") -> str:
    """Boxes `(D, 4)` that were chosen: a few of them tell little."""
    if order in CORNERS and values.corner_share(boxes) < values.MOST_CORNERS:
        return "the last two numbers of boxes are below the first two, so boxes are not corners"
    if len(boxes) and unit != values.in_unit(boxes):
        return f"boxes are {'not in 0..1' if unit else 'in 0..1, not in pixels'}"
    return ""


def _detr(head: Detr, outputs: Outputs) -> str:
    if head.joined:
        boxes, scores = outputs[head.joined][0, :, :4], outputs[head.joined][0, :, 4:]
    else:
        boxes, scores = outputs[head.boxes][0], outputs[head.logits][0]
    if not values.in_unit(boxes) or values.negative_share(boxes[:, 2:]) > FEW:
        return f"boxes are not in 0..1: 99 % of their numbers are below {values.q99(boxes):.3g}"
    if head.joined and scores.shape[1] == 2 and values.are_whole(scores[:, 1]):
        return "the last number of all rows is whole, as that of a class is"
    if head.joined and scores.shape[1] > 1 and values.sum_to_one(outputs[head.joined]):
        return "all numbers of a row add up to 1, as those of a softmax do"
    done = head.joined or head.probabilities
    return _scores(scores, "from the fifth" if head.joined else "of scores") if done else ""


def _ssd(head: Ssd, outputs: Outputs) -> str:
    if head.boxes:
        rows = outputs[head.boxes].reshape(-1, 5)
        rows = rows[rows[:, 4] > 0]
        return _scores(rows[:, 4], "of scores") or _corners(rows[:, :4], unit=False)
    rows = outputs[head.output].reshape(-1, 7)
    ends = (rows[:, 0] < 0).nonzero()
    rows = rows[: int(ends[0])] if len(ends) else rows
    rows = rows[rows[:, 2] > 0]
    if not values.are_whole(rows[:, :2]):
        return "the numbers of pictures and classes are not whole"
    return _scores(rows[:, 2], "of scores") or _corners(rows[:, 3:], unit=True)


def _boxes_scores(head: BoxesScores, outputs: Outputs, size_hw: Size) -> str:
    boxes = outputs[head.boxes].reshape(-1, 4)
    if head.unit and not values.in_unit(boxes):
        return f"boxes are not in 0..1: 99 % of their numbers reach {values.q99(boxes):.3g}"
    if not head.unit and not values.in_pixels(boxes, size_hw):
        return f"boxes are not in pixels: 99 % of their numbers are below {values.q99(boxes):.3g}"
    share = values.corner_share(boxes)
    corners = share >= values.MOST_CORNERS
    if head.order in CORNERS and not corners:
        return f"boxes are not corners: {share:.0%} have the last two numbers above the first two"
    negative = values.negative_share(boxes[:, 2:]) > FEW
    if head.order == "cxcywh" and (share > values.FEW_CORNERS or negative):
        return f"boxes are not centres: {share:.0%} have the last two numbers above the first two"
    return _scores(outputs[head.scores], "of scores") if head.activation == "none" else ""


def _boxes(head: Boxes, outputs: Outputs) -> str:
    rows = outputs[head.boxes].reshape(-1, 4)
    scores, labels = outputs[head.scores].flatten(), outputs[head.labels].flatten()
    if not len(rows) == len(scores) == len(labels):
        return "there is not one label and one score for each box"
    real = scores > 0
    rows, scores, labels = rows[real], scores[real], labels[real]
    # Rows that are filled up with -1 are no boxes for the head either.
    if not values.are_whole(labels.clamp(min=-1) + 1):
        return "the numbers of classes are not whole"
    wrong = _scores(scores, "of scores")
    return wrong or _corners(rows, unit=head.unit, order=head.order)


def needs_boxes(head: Head) -> bool:
    """Whether only boxes that were found can speak for it, against another reading of the same outputs."""
    return getattr(head, "form", "") == "centres" or (isinstance(head, Boxes) and head.unit)


def found_nothing(head: Head, runs: Sequence[Outputs], size_hw: Size) -> bool:
    """Whether a head finds no box at all on the test pictures."""
    return all(not len(found["boxes"]) for outputs in runs for found in head(outputs, size_hw))
