"""Names of classes against what a detector gives: as many, one more, or one fewer. Knows no files."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.detr import Detr
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.identify.evidence import Evidence, Outputs
from pipelines.models.heads.ssd import Ssd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.heads.yolox import Yolox
from pipelines.models.spec import Head
from pipelines.protocol.errors import ModelUnavailable

# Names, and what was assumed.
Names = tuple[tuple[str, ...], tuple[str, ...]]
HINT = "give --labels a file with one label per line"


def matched(head: Head, evidence: Evidence, runs: Sequence[Outputs]) -> Names:
    """The names in the order of the head's numbers, and what was assumed.

    Raises:
        ModelUnavailable: there are more or fewer names than classes, and it cannot be told which are missing.
    """
    labels = evidence.labels
    if not labels:
        return (), ()
    match head:
        case Yolox() | YoloV5() | YoloV8():
            return _without_background(head, labels, head.classes, evidence)
        case Detr():
            return _queries(head, labels, evidence)
        case BoxesScores():
            return _anchors(head, labels, evidence)
        case Ssd() | Boxes():
            return labels, _first_number(head, evidence, _not_beyond(head, labels, runs))
        case EndToEnd():
            _not_beyond(head, labels, runs)
    return labels, ()


def _anchors(head: BoxesScores, labels: tuple[str, ...], evidence: Evidence) -> Names:
    columns = next((port.dims[-1] for port in evidence.outputs if port.name == head.scores), None)
    if columns is None or (head.background and len(labels) == columns - 1):
        return labels, ()
    if head.background and len(labels) == columns and not evidence.with_background:
        wrong = f"one of {columns} columns is for the background, but no label is: {_few(labels)}"
        raise ModelUnavailable(wrong, hint=f"{HINT}, without it or with background first")
    return _without_background(head, labels, columns, evidence)


def _without_background(head: Head, labels: tuple[str, ...], classes: int, evidence: Evidence) -> Names:
    if not classes or len(labels) == classes:
        return labels, ()
    if len(labels) == classes + 1 and evidence.with_background:
        return labels[1:], (f"the label {labels[0]} is left out: the network has no class for it",)
    if isinstance(head, YoloV8) and classes == len(labels) + 1:
        wrong = (
            f"it has {classes} classes, or {len(labels)} and the angle of oriented boxes; "
            f"there are {len(labels)} labels"
        )
        raise ModelUnavailable(wrong, hint=f"oriented boxes are not served; else {HINT}")
    raise _wrong(head, labels, classes)


def _queries(head: Detr, labels: tuple[str, ...], evidence: Evidence) -> Names:
    name = head.joined or head.logits
    columns = next((one.dims[2] for one in evidence.outputs if one.name == name), None)
    if columns is None:
        return labels, ()
    classes = columns - 4 if head.joined else columns
    if len(labels) == classes - 1 and head.softmax:
        return labels, ()
    if len(labels) == classes and (not head.softmax or evidence.with_background):
        return labels, ()
    return _without_background(head, labels, classes - head.softmax, evidence)


def _not_beyond(head: Head, labels: tuple[str, ...], runs: Sequence[Outputs]) -> set[int]:
    """The numbers of classes that are seen, which must have names."""
    found = [one["labels"].tolist() for outputs in runs for one in head(outputs, (1, 1))]
    numbers = {number for several in found for number in several}
    highest = max(numbers, default=0)
    if highest >= len(labels):
        first = highest == len(labels)
        raise _wrong(head, labels, highest + 1, at_least="at least ", background=first)
    return numbers


def _first_number(head: Ssd | Boxes, evidence: Evidence, numbers: set[int]) -> tuple[str, ...]:
    """Which name the first number has, of a network whose numbers may count a background that has no name."""
    first, name = getattr(head, "first_label", 0), evidence.labels[0]
    if evidence.with_background:
        return ()
    if first:
        return (f"numbers of classes count from {first}: {first} is {name}",)
    if 0 in numbers:
        return (f"numbers of classes count from 0, since 0 is seen: 0 is {name}",)
    return (
        f"it is undecided where numbers of classes begin, since no test picture shows it: 0 is {name}; "
        "if they count from 1, put a background first in --labels",
    )


def _wrong(
    head: Head, labels: tuple[str, ...], classes: int, at_least: str = "", *, background: bool = False
) -> ModelUnavailable:
    wrong = (
        f"with head {head.family} it has {at_least}{classes} classes, "
        f"but there are {len(labels)} labels: {_few(labels)}"
    )
    first = ", background first if its numbers begin at 1" if background else ""
    return ModelUnavailable(wrong, hint=f"{HINT}{first}; another --head counts them differently")


def _few(labels: tuple[str, ...]) -> str:
    return ", ".join(labels[:3]) + (", …" if len(labels) > 3 else "")
