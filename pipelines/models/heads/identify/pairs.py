"""Detectors of two outputs, boxes `(N, A, 4)` and scores `(N, A, K)`: with anchors, or a DETR's queries.

What computes the scores, their names and their number tell some of it, and the rest is seen on pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from pipelines.models.graph import Port
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.detr import Detr
from pipelines.models.heads.identify import values
from pipelines.models.heads.identify.candidate import (
    BY_NAME,
    BY_SHAPE,
    PERHAPS,
    Candidate,
    is_whole,
    named,
    of_rank,
    operators,
    shown,
)
from pipelines.models.heads.identify.evidence import UNIT, Evidence
from pipelines.models.spec import Activation

BOX = 4
MOST_QUERIES = 1000
# Names of transformers' and the original's, and of RF-DETR's own export.
RF_DETR = "labels"
QUERIES = (("logits", "pred_boxes"), ("pred_logits", "pred_boxes"), (RF_DETR, "dets"))
ORDERS: tuple[Literal["xyxy", "cxcywh"], ...] = ("xyxy", "cxcywh")
SCORE_WORDS = ("score", "conf", "prob", "cls", "class", "logit")
BOX_WORDS = ("box", "loc", "dets", "reg")
# A DETR's queries that find nothing: at least this share of them.
MOST_IDLE = 0.5
# Of a detector with sigmoids the mean is near 0, since most pairs of a query and a class are no object.
MOST_SIGMOIDS = 0.2
# Operators whose numbers are sums, whatever they are of an untrained network.
SUMS = frozenset({"add", "gemm", "conv"})


def pairs(evidence: Evidence) -> Iterator[Candidate]:
    """All readings of two of the outputs."""
    ports = {port.name: port for port in of_rank(evidence.outputs, 3, 4) if not is_whole(port)}
    for scores, boxes in QUERIES:
        if {scores, boxes} <= ports.keys() and _rows_of_both(ports[boxes], ports[scores]):
            yield from _queries(ports[boxes], ports[scores], evidence, BY_NAME)
            return
    found = _fitting(list(ports.values()))
    for boxes_port, scores_port in found:
        yield from _readings(boxes_port, scores_port, evidence, BY_SHAPE if len(found) == 1 else PERHAPS)


def demanded_queries(evidence: Evidence) -> Iterator[Candidate]:
    """Two of the outputs as queries, whatever their number and values."""
    for boxes, scores in _fitting([one for one in of_rank(evidence.outputs, 3) if not is_whole(one)]):
        yield from _queries(boxes, scores, evidence, PERHAPS)


def _fitting(ports: Sequence[Port]) -> list[tuple[Port, Port]]:
    """Boxes and scores of the same rows; where it is known which is which, only so."""
    found = [pair for pair in permutations(ports, 2) if _rows_of_both(*pair)]
    return [pair for pair in found if _in_this_order(*pair)] or found


def _rows_of_both(boxes: Port, scores: Port) -> bool:
    """Whether the shapes are of boxes and of their scores."""
    four = boxes.dims[-1] == BOX and (len(boxes.dims) == 3 or boxes.dims[2] == 1)
    return four and len(scores.dims) == 3 and bool(scores.dims[2]) and boxes.dims[1] == scores.dims[1]


def _in_this_order(boxes: Port, scores: Port) -> bool:
    """Whether shapes, names or what computes them say which is which."""
    if scores.dims[2] != BOX or len(boxes.dims) == 4:
        return True
    if named(boxes, *BOX_WORDS) or named(scores, *SCORE_WORDS):
        return not named(scores, *BOX_WORDS)
    return "softmax" in operators(scores) - operators(boxes)


def _readings(boxes: Port, scores: Port, evidence: Evidence, level: int) -> Iterator[Candidate]:
    """As anchors, and as queries, if they are in 0..1 and few; the one that the values speak for is sure."""
    seen = [run[boxes.name].reshape(-1, BOX) for run in evidence.on_pictures(UNIT)]
    centres = bool(seen) and all(values.corner_share(one) <= values.FEW_CORNERS for one in seen)
    few = (boxes.dims[1] or 0) <= MOST_QUERIES and len(boxes.dims) == 3
    queries = few and centres and all(values.in_unit(one) for one in seen)
    yield from _anchors(boxes, scores, evidence, PERHAPS if queries else level)
    if few and (queries or not seen):
        yield from _queries(boxes, scores, evidence, level)


def _anchors(boxes: Port, scores: Port, evidence: Evidence, level: int) -> Iterator[Candidate]:
    activation, softmax = _activation(scores, evidence)
    background, doubt = _background(scores, evidence, softmax=softmax)
    if background is None:
        return
    columns = scores.dims[2] or 0
    known = evidence.count in ((columns, columns - 1) if background else (columns,))
    head = BoxesScores(
        unit=True,
        classes=evidence.count if known else columns,
        boxes=boxes.name,
        scores=scores.name,
        background=background,
        activation=activation,
    )
    for unit in (True, False):
        for order in ORDERS:
            one = replace(head, unit=unit, order=order)
            why = f"{boxes.name} is {shown(boxes.dims)}, {scores.name} {shown(scores.dims)}: {_words(one)}"
            yield Candidate(head=one, why=why, read=(boxes.name, scores.name), level=level, doubt=doubt)


def _background(scores: Port, evidence: Evidence, *, softmax: bool) -> tuple[bool | None, str]:
    """Whether the first column is the background's; None: the last one is, which only queries have.

    And a doubt: it must have one, since each row is a softmax's, and neither names nor values tell.
    """
    columns = scores.dims[2] or 0
    runs = evidence.on_pictures(UNIT) if softmax else ()
    rows = [values.probabilities(run[scores.name][0]) for run in runs]
    if rows and all(values.background(one, 0) for one in rows):
        return True, ""
    if evidence.count == columns:
        return evidence.with_background, ""
    if not softmax:
        return False, ""
    if rows and all(values.background(one, -1) for one in rows):
        return None, ""
    if evidence.count == columns - 1:
        return True, ""
    return (
        False,
        f"{scores.name} is {shown(scores.dims)}, by softmax, and no column is plainly the background's",
    )


def _words(head: BoxesScores) -> str:
    where = f"{'corners' if head.order == 'xyxy' else 'centres'} in {'0..1' if head.unit else 'pixels'}"
    first = "the first class is the background" if head.background else "no background"
    return f"{where}, {first}, activation {head.activation}"


def _activation(scores: Port, evidence: Evidence) -> tuple[Activation, bool]:
    """What is still to be done to scores, and whether a row is a softmax's: by operator, else by values."""
    done = operators(scores)
    columns = scores.dims[2] or 0
    rows = [run[scores.name] for run in evidence.on_pictures(UNIT)]
    if "softmax" in done or "sigmoid" in done:
        return "none", "softmax" in done
    # Some of many logits are below 0. Where none is, they are sums of probabilities, whatever their name.
    logits = bool(done & SUMS) or named(scores, "logit")
    logits = logits and any(float(one.min()) < 0 for one in rows)
    if rows and not logits and all(values.are_scores(one) for one in rows):
        return "none", columns > 1 and all(values.sum_to_one(one) for one in rows)
    by_names = evidence.count == (columns if evidence.with_background else columns - 1) > 0
    if by_names or any(values.background(torch.softmax(one[0], dim=1), 0) for one in rows):
        return "softmax", True
    return "sigmoid", False


def _queries(boxes: Port, scores: Port, evidence: Evidence, level: int) -> Iterator[Candidate]:
    columns = scores.dims[2] or 0
    activation, softmax_seen = _activation(scores, evidence)
    done = activation == "none"
    for softmax in (softmax_seen,) if done else _softmax(scores, columns, evidence):
        classes = columns - 1 if softmax else columns
        head = Detr(
            classes=classes, logits=scores.name, boxes=boxes.name, softmax=softmax, probabilities=done
        )
        kind = f"{classes} classes and no object, by softmax" if softmax else f"{classes} classes by sigmoid"
        why = f"{scores.name} is {shown(scores.dims)}: {kind}"
        yield Candidate(head=head, why=why, read=(boxes.name, scores.name), level=level)


def _softmax(scores: Port, columns: int, evidence: Evidence) -> tuple[bool, ...]:
    """Whether the last of the logits is "no object": by names, their number, or values; both: unknown."""
    if scores.name == RF_DETR or columns < 2:
        return (False,)
    if evidence.count in (columns, columns - 1):
        return (evidence.count == columns - 1,)
    runs = evidence.on_pictures(UNIT)
    if not runs:
        return (True, False)
    rows = [run[scores.name][0] for run in runs]
    if min(map(_idle_share, rows)) > MOST_IDLE:
        return (True,)
    unsure = max(float(one.sigmoid().mean()) for one in rows) > MOST_SIGMOIDS
    return (True, False) if unsure else (False,)


def _idle_share(scores: Tensor) -> float:
    """The share of queries whose best column is the last."""
    return float((scores.argmax(dim=1) == scores.shape[1] - 1).float().mean())
