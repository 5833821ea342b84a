"""Detectors of one output of rows, maybe with prototypes of masks: YOLO families, DETRs in one tensor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from pipelines.models.graph import Port
from pipelines.models.heads.detr import Detr
from pipelines.models.heads.end_to_end import EndToEnd, Form
from pipelines.models.heads.identify import values
from pipelines.models.heads.identify.candidate import (
    ANCHORS,
    BY_NAME,
    BY_SHAPE,
    PERHAPS,
    Candidate,
    cells,
    is_whole,
    of_rank,
    shown,
)
from pipelines.models.heads.identify.evidence import UNIT, Evidence
from pipelines.models.heads.identify.kinds import is_plane, is_row
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.heads.yolox import Yolox

# A network that chooses its boxes itself, or has queries, gives at most so many.
MOST_ROWS = 1000
BOX, OBJECT = 4, 1
# x, y and how visible, of the points of a pose; 17 points are COCO's of a person.
VISIBLE = 3
CHOSEN_COLUMNS = 6


def dense(evidence: Evidence) -> Iterator[Candidate]:
    """All readings of one output `(N, a, b)`, the one that says most beside it."""
    for port in of_rank(evidence.outputs, 3):
        if is_whole(port) or is_plane(port, evidence.size_hw):
            continue
        rows, columns = port.dims[1:]
        if rows is None or columns is None:
            yield from _of_any_rows(port, evidence)
            continue
        prototypes = _prototypes(evidence, port)
        first, last = _on_grids(rows, evidence), columns in cells(evidence.size_hw)
        if last or not first:
            yield from _columns_first(port, rows, columns, prototypes, evidence)
        if first or not last:
            yield from _rows_first(port, rows, columns, prototypes, evidence)
        if not last and (not first or evidence.facts.chosen):
            yield from _chosen(port, rows, columns, prototypes, evidence)
        if not first and not last and not prototypes:
            yield from _queries(port, rows, columns, evidence)


def _of_any_rows(port: Port, evidence: Evidence) -> Iterator[Candidate]:
    """`(N, ?, 6)`: only what chooses its boxes has as many rows as it likes."""
    if port.dims[2] == CHOSEN_COLUMNS and evidence.size_hw is not None:
        yield from _chosen(port, 0, CHOSEN_COLUMNS, None, evidence)


def _prototypes(evidence: Evidence, port: Port) -> Port | None:
    """The output of prototypes `(N, M, h/4, w/4)`."""
    longest = max(side or 0 for side in port.dims[1:])
    height, width = evidence.size_hw or (0, 0)
    for other in of_rank(evidence.outputs, 4):
        if 0 < (other.dims[1] or 0) < longest and other.dims[2:] == (height // 4, width // 4):
            return other
    return None


def _columns_first(
    port: Port, columns: int, rows: int, prototypes: Port | None, evidence: Evidence
) -> Iterator[Candidate]:
    """`(N, 4 + K + …, A)`: no objectness, as Ultralytics exports."""
    strides = cells(evidence.size_hw).get(rows)
    if columns <= BOX or not (strides or rows > columns):
        return
    more = prototypes.dims[1] or 0 if prototypes else 0
    points = evidence.facts.keypoints
    read = (port.name, prototypes.name) if prototypes else (port.name,)
    level = BY_SHAPE if strides else PERHAPS
    head = YoloV8(output=port.name, prototypes=prototypes.name if prototypes else "")
    left = columns - BOX - more
    if points:
        left -= points[0] * points[1]
    elif not more and (found := _points(port, left, evidence)):
        points, left = found, left - found[0] * found[1]
    if left < 1:
        return
    why = f"{port.name} is {shown(port.dims)}: {_of(columns, left, points, more)}"
    yield Candidate(head=replace(head, classes=left, keypoints=points), why=why, read=read, level=level)


def _of(columns: int, classes: int, points: tuple[int, int] | None, masks: int) -> str:
    parts = ["a box", f"{classes} classes"]
    if points:
        parts.append(f"{points[0]} points of {points[1]}")
    if masks:
        parts.append(f"{masks} numbers of a mask")
    return f"{columns} numbers for {', '.join(parts)}"


def _points(port: Port, left: int, evidence: Evidence) -> tuple[int, int] | None:
    """The points of a pose whose metadata are lost: what is beyond the known classes, or no score."""
    count = evidence.count
    if not count:
        found = [run[port.name][0, BOX : BOX + left] for run in evidence.on_pictures(UNIT)]
        count = next(
            (row for row in range(left) if any(not values.are_scores(one[row]) for one in found)), left
        )
    beyond = left - count
    if count < 1 or beyond < VISIBLE or beyond % VISIBLE:
        return None
    points = [run[port.name][0, BOX + count : BOX + left] for run in evidence.on_pictures(UNIT)]
    visible = all(values.are_scores(one[2::VISIBLE]) for one in points)
    if not points or not visible or all(map(values.are_scores, points)):
        return None
    return beyond // VISIBLE, VISIBLE


def _rows_first(
    port: Port, rows: int, columns: int, prototypes: Port | None, evidence: Evidence
) -> Iterator[Candidate]:
    """`(N, A, 5 + K)` with objectness, or `(N, A, 4 + K)` without."""
    on_grids = _on_grids(rows, evidence)
    if columns < BOX + OBJECT + 1 or (rows <= MOST_ROWS and not on_grids):
        return
    grid, anchors = rows in cells(evidence.size_hw), rows in cells(evidence.size_hw, ANCHORS)
    without = evidence.count == columns - BOX and not evidence.with_background
    about = f"{port.name} is {shown(port.dims)}"
    read, classes = (port.name,), columns - BOX - OBJECT
    if anchors and not prototypes:
        why = f"{about}: {rows} rows are {ANCHORS} of each cell"
        yield Candidate(head=YoloV5(classes=classes, output=port.name), why=why, read=read)
    elif grid and not prototypes:
        level = PERHAPS if without else BY_SHAPE
        for decoded in (False, True):
            why = f"{about}: a row of each cell, boxes {'decoded' if decoded else 'to decode'}"
            head = Yolox(classes=classes, output=port.name, decoded=decoded)
            yield Candidate(head=head, why=why, read=read, level=level)
    elif not prototypes:
        why = f"{about}: 4 numbers of a box, objectness, {classes} classes"
        known = evidence.matches(classes)
        head_v5 = YoloV5(classes=classes, output=port.name)
        yield Candidate(head=head_v5, why=why, read=read, level=BY_SHAPE if known else PERHAPS)
    more = prototypes.dims[1] or 0 if prototypes else 0
    left = columns - BOX - more
    if left > 0 and not anchors:
        sure = without or (grid and bool(more))
        head_v8 = YoloV8(
            classes=left,
            output=port.name,
            prototypes=prototypes.name if prototypes else "",
            rows_first=True,
        )
        why = f"{about}: {_of(columns, left, None, more)}"
        read_v8 = (port.name, prototypes.name) if prototypes else read
        yield Candidate(head=head_v8, why=why, read=read_v8, level=BY_SHAPE if sure else PERHAPS)


def _on_grids(rows: int, evidence: Evidence) -> bool:
    return rows in cells(evidence.size_hw) or rows in cells(evidence.size_hw, ANCHORS)


def _chosen(
    port: Port, rows: int, columns: int, prototypes: Port | None, evidence: Evidence
) -> Iterator[Candidate]:
    """`(N, M, 6)`: boxes that the network has chosen, each with its score and class; and maybe more."""
    facts = evidence.facts
    if rows > MOST_ROWS or columns > MOST_ROWS:
        return
    more = prototypes.dims[1] or 0 if prototypes else 0
    points = facts.keypoints
    beyond = columns - CHOSEN_COLUMNS - more
    if not points and not more and beyond and not beyond % VISIBLE and beyond // VISIBLE > 1:
        points = (beyond // VISIBLE, VISIBLE)
    if beyond != (points[0] * points[1] if points else 0):
        return
    read = (port.name, prototypes.name) if prototypes else (port.name,)
    plain = columns == CHOSEN_COLUMNS
    said = "rtdetr" in facts.family
    forms: tuple[Form, ...] = (
        ("centres",) if said and plain else ("corners", "centres") if plain else ("corners",)
    )
    for form in forms:
        head = EndToEnd(
            output=port.name, form=form, prototypes=prototypes.name if prototypes else "", keypoints=points
        )
        where = "corners in pixels" if form == "corners" else "centres in 0..1"
        why = f"{port.name} is {shown(port.dims)}: boxes that are chosen already, {where}"
        sure = plain or facts.chosen or more
        level = BY_NAME if said or (facts.chosen and form == "corners") else BY_SHAPE if sure else PERHAPS
        yield Candidate(head=head, why="" if said else why, read=read, level=level)


def _queries(port: Port, rows: int, columns: int, evidence: Evidence) -> Iterator[Candidate]:
    """`(N, Q, 4 + K)`: a DETR's boxes and sigmoids in one tensor."""
    classes = columns - BOX
    if rows > MOST_ROWS or classes < 1:
        return
    said = "rtdetr" in evidence.facts.family
    # Beside a row of classes or a vector it may as well be what a transformer has computed that from.
    alone = not any(map(is_row, evidence.outputs))
    known = evidence.matches(classes) or (alone and CHOSEN_COLUMNS < columns <= rows)
    why = f"{port.name} is {shown(port.dims)}: {rows} queries with a box and {classes} classes"
    head = Detr(classes=classes, joined=port.name)
    level = BY_NAME if said else BY_SHAPE if known else PERHAPS
    yield Candidate(head=head, why="" if said else why, read=(port.name,), level=level)


def demanded(evidence: Evidence, family: str) -> Iterator[Candidate]:
    """What a user calls so, wherever the shape allows it at all, whatever the number of rows."""
    for port in of_rank(evidence.outputs, 3):
        rows, columns = port.dims[1:]
        if rows is None or columns is None:
            continue
        why = f"{port.name} is {shown(port.dims)}"
        heads: list[Yolox | YoloV5 | YoloV8 | Detr | EndToEnd] = []
        if columns > BOX + OBJECT and (columns <= rows or columns <= MOST_ROWS):
            classes = columns - BOX - OBJECT
            heads += [YoloV5(classes=classes, output=port.name)]
            heads += [Yolox(classes=classes, output=port.name, decoded=True)]
        if columns == CHOSEN_COLUMNS:
            heads += [EndToEnd(output=port.name, form=form) for form in ("corners", "centres")]
        if columns > BOX:
            heads += [Detr(classes=columns - BOX, joined=port.name)]
        longest = max(rows, columns)
        heads += [
            YoloV8(classes=side - BOX, output=port.name, rows_first=first)
            for side, first in ((rows, False), (columns, True))
            if side > BOX and (side < longest or rows == columns)
        ]
        yield from (
            Candidate(head=head, why=why, read=(port.name,), level=PERHAPS)
            for head in heads
            if head.family == family
        )
