"""Detectors that give boxes that are chosen already, in lists: boxes, labels, scores. Knows no anchors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipelines.models.graph import Port
from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.identify import values
from pipelines.models.heads.identify.candidate import (
    BY_NAME,
    BY_SHAPE,
    Candidate,
    is_whole,
    named,
    of_rank,
    operators,
    shown,
)
from pipelines.models.heads.identify.evidence import UNIT, Evidence
from pipelines.models.heads.ssd import Ssd

BOX, BOX_AND_SCORE, ROW = 4, 5, 7
MORE = ("masks", "keypoints")
LABEL_WORDS = ("label", "class", "cls", "categor")
BOX_WORDS = ("box", "loc", "dets", "reg")
# An output that is computed so is a classifier's.
SCORES = frozenset({"softmax", "sigmoid", "add", "gemm", "conv"})


def lists(evidence: Evidence) -> Iterator[Candidate]:
    """All readings of the outputs as lists of boxes."""
    ports = evidence.outputs
    yield from _tensorflow(ports, evidence)
    yield from _detection_output(ports)
    yield from _pictures(ports, evidence)
    yield from _boxes_labels(ports)
    yield from _boxes(ports, evidence)


def _tensorflow(ports: Sequence[Port], evidence: Evidence) -> Iterator[Candidate]:
    """TensorFlow's detection API: only its names tell that y comes first."""
    names = {port.name.partition(":")[0].rpartition("/")[2]: port.name for port in ports}
    parts = [names.get(f"detection_{part}", "") for part in ("boxes", "classes", "scores")]
    if all(parts):
        boxes, labels, scores = parts
        head = Boxes(
            boxes=boxes,
            labels=labels,
            scores=scores,
            count=names.get("num_detections", ""),
            unit=True,
            order="yxyx",
            first_label=0 if evidence.with_background else 1,
        )
        yield Candidate(head=head, read=(*parts, head.count, *_beside(ports)), level=BY_NAME)


def _detection_output(ports: Sequence[Port]) -> Iterator[Candidate]:
    """`(1, 1, M, 7)`."""
    for port in of_rank(ports, 4):
        if port.dims[1] == 1 and port.dims[3] == ROW:
            why = f"{port.name} is {shown(port.dims)}: rows of picture, label, score and a box in 0..1"
            done = "detectionoutput" in operators(port) or named(port, "detection_out")
            head = Ssd(output=port.name)
            yield Candidate(
                head=head, why="" if done else why, read=(port.name,), level=BY_NAME if done else BY_SHAPE
            )


def _pictures(ports: Sequence[Port], evidence: Evidence) -> Iterator[Candidate]:
    """`(M, 7)`: the picture's number, a box in pixels, the class and the score."""
    batch = [port.dims[0] for port in evidence.graph.inputs[:1] if port.dims]
    for port in of_rank(ports, 2):
        if port.dims[1] != ROW or operators(port) & SCORES:
            continue
        found = [run[port.name].shape[0] for run in evidence.on_pictures(UNIT) if port.name in run]
        free = any(count != 1 for count in found) if found else (port.dims[0] is None and batch != [None])
        if free:
            why = f"{port.name} is (?, {ROW}): rows of picture, box, class and score"
            yield Candidate(head=EndToEnd(output=port.name, form="picture"), why=why, read=(port.name,))


def _boxes_labels(ports: Sequence[Port]) -> Iterator[Candidate]:
    """`boxes` or `dets` `(N, M, 5)` or `(M, 5)`, and `labels` of one rank less."""
    for port in of_rank(ports, 2, 3):
        if port.dims[-1] != BOX_AND_SCORE:
            continue
        whole = [one for one in of_rank(ports, len(port.dims) - 1) if is_whole(one)]
        labels = whole if len(whole) == 1 else [one for one in whole if named(one, *LABEL_WORDS)]
        if len(labels) > 1 or not (labels or named(port, *BOX_WORDS)):
            continue
        why = f"{port.name} is {shown(port.dims)}: corners in pixels and a score"
        name = labels[0].name if labels else ""
        head = Ssd(boxes=port.name, labels=name)
        yield Candidate(head=head, why=why, read=(port.name, *([name] if name else [])))


def _boxes(ports: Sequence[Port], evidence: Evidence) -> Iterator[Candidate]:
    """Boxes `(N, D, 4)` or `(D, 4)`, labels and scores of one rank less."""
    for port in of_rank(ports, 2, 3):
        if port.dims[-1] != BOX or is_whole(port):
            continue
        columns = [one for one in of_rank(ports, len(port.dims) - 1) if _same_rows(port, one)]
        for labels, scores in _labels_and_scores(columns, evidence):
            read = (port.name, labels.name, scores.name, *_beside(ports))
            for unit in (False, True):
                head = Boxes(
                    boxes=port.name,
                    labels=labels.name,
                    scores=scores.name,
                    unit=unit,
                    first_label=_first_label(labels, scores, evidence),
                )
                where = "0..1" if unit else "pixels"
                beside = f"beside {labels.name} and {scores.name}"
                why = f"{port.name} is {shown(port.dims)}, {beside}: boxes in {where}"
                yield Candidate(head=head, why=why, read=read)


def _beside(ports: Sequence[Port]) -> tuple[str, ...]:
    """Outputs that go with chosen boxes under these names."""
    return tuple(port.name for port in ports if port.name in MORE)


def _same_rows(boxes: Port, column: Port) -> bool:
    """Whether there is one number for each box."""
    pairs = zip(boxes.dims[:-1], column.dims, strict=True)
    return all(one is None or other is None or one == other for one, other in pairs)


def _labels_and_scores(columns: Sequence[Port], evidence: Evidence) -> Sequence[tuple[Port, Port]]:
    """By type, else by name, else by values: which are whole numbers, or -1 where there is no box."""
    whole = [one for one in columns if is_whole(one)]
    if len(columns) < 2 or len(whole) > 1:
        whole = [one for one in whole if named(one, *LABEL_WORDS)]
    real = [one for one in columns if not is_whole(one)]
    if not whole:
        by_name = [one for one in real if named(one, *LABEL_WORDS) and not named(one, "score")]
        by_value = [
            one
            for one in real
            if (runs := evidence.on_pictures(UNIT))
            and all(values.are_whole(run[one.name] + 1) for run in runs)
        ]
        whole = by_name if len(by_name) == 1 else by_value
        real = [one for one in real if one not in whole]
    if len(real) > 1:
        real = [one for one in real if named(one, "score", "conf", "prob")]
    return [(whole[0], real[0])] if len(whole) == len(real) == 1 else []


def _first_label(labels: Port, scores: Port, evidence: Evidence) -> int:
    """Labels count from 1 if one of them is as high as there are names, and none is 0."""
    runs = evidence.on_pictures(UNIT)
    seen = [run[labels.name].flatten()[run[scores.name].flatten() > 0].tolist() for run in runs]
    numbers = {round(one) for several in seen for one in several}
    highest = max(numbers, default=0)
    return int(not evidence.with_background and 0 not in numbers and 0 < evidence.count == highest)
