"""What a file's network is: its task, and of a detector the head that it needs. Knows no file formats.

Evidence goes from names over metadata, shapes and operators to values on test pictures, which are looked at
last. What is taken without proof is said; where two readings fit, the error names both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipelines.models.graph import Graph
from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.detr import Detr
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.identify import kinds
from pipelines.models.heads.identify.candidate import BY_SHAPE
from pipelines.models.heads.identify.choice import (
    FORMS,
    Chosen,
    choose,
    choose_demanded,
    reading,
    readings,
    refuted,
)
from pipelines.models.heads.identify.evidence import Evidence
from pipelines.models.heads.identify.facts import Facts, read_facts
from pipelines.models.heads.identify.names import matched
from pipelines.models.heads.identify.plausibility import DENSE, contradiction, found_nothing
from pipelines.models.heads.identify.refused import refuse_known, refuse_oriented
from pipelines.models.heads.region import Region
from pipelines.models.heads.ssd import Ssd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.heads.yolox import Yolox
from pipelines.models.spec import Activation, Attribute, Head, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable

HEADS: Mapping[str, type[Any]] = {
    "boxes": Boxes,
    "boxes_scores": BoxesScores,
    "detr": Detr,
    "end_to_end": EndToEnd,
    "ssd": Ssd,
    "yolo_v2": Region,
    "yolo_v3": Region,
    "yolo_v4": Region,
    "yolo_v5": YoloV5,
    "yolo_v8": YoloV8,
    "yolox": Yolox,
}


# Most names of outputs in a text.
MOST_LISTED = 4
# Most readings whose refutation an error tells.
MOST_REASONS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Identified:
    """What was found out about a network.

    Attributes:
        task: None where it cannot be told.
        head: of a detector.
        assumed: what was assumed, in words for people, and the flag that overrules it.
        labels: names in the order of the network's numbers: those given, else those of its metadata.
        size_hw: the height and width to feed it with, as its metadata say.
        keypoints: how many points a pose has, and how many numbers each.
        activation: what makes scores of the output; None: not known before a first pass.
        output: the name of the output that is read, of a task with one; empty: see `attributes`.
        channels_last: that output is `(N, h, w, K)`.
        attributes: several outputs that are each a classification, if none is the main one.
        score_threshold, iou_threshold: as its metadata say.
    """

    task: TaskName | None = None
    head: Head | None = None
    assumed: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    size_hw: tuple[int, int] | None = None
    licence: str = ""
    keypoints: tuple[int, int] | None = None
    activation: Activation | None = None
    multi_label: bool = False
    output: str = ""
    channels_last: bool = False
    attributes: tuple[Attribute, ...] = ()
    score_threshold: float | None = None
    iou_threshold: float | None = None


def identify(
    graph: Graph,
    *,
    size_hw: tuple[int, int] | None,
    classes: int = 0,
    names: tuple[str, ...] = (),
    wanted: str = "",
    iou_threshold: float | None = None,
    task: TaskName | None = None,
    output: str = "",
    pixels: Preprocessing | None = None,
) -> Identified:
    """What a network is.

    Args:
        size_hw: height and width of its pixels, as its file or the user says; None: neither does.
        classes: how many there are, 0: not known; names: their labels, as the user says them.
        wanted: the family of heads that the user demands; task, output, pixels: what the user says of them.

    Raises:
        ModelUnavailable: it is known not to be served, or it cannot be decided what it is. The hint names the
            flags that decide it.
    """
    facts = read_facts(graph.metadata)
    labels = names or facts.labels
    evidence = Evidence(
        graph=graph,
        size_hw=size_hw or facts.size_hw,
        facts=facts,
        labels=labels,
        count=len(names) or classes or len(labels),
        pixels=pixels,
    )
    known = _said(facts, labels)
    task = "detection" if wanted else task
    if not any(port.dims for port in evidence.outputs):
        return _unseen(known, task, output)
    if task in (None, "detection") and (found := _detector(evidence, wanted, output, sure=task is not None)):
        return _with_head(known, found, evidence, iou_threshold)
    return _of_one_output(known, evidence, task, output)


def _said(facts: Facts, labels: tuple[str, ...]) -> Identified:
    """What metadata say beside the task."""
    return Identified(
        labels=labels,
        size_hw=facts.size_hw,
        licence=facts.licence,
        keypoints=facts.keypoints,
        score_threshold=facts.score_threshold,
        iou_threshold=facts.iou_threshold,
    )


def _unseen(known: Identified, task: TaskName | None, output: str) -> Identified:
    """A network of which nothing is known before it is given pixels, and no size to try it with."""
    if task in (None, "detection"):
        wrong = "its file states neither the shapes of its outputs nor the size of its input"
        raise ModelUnavailable(wrong, hint="give --resize-px HEIGHTxWIDTH")
    return replace(known, task=task, output=output)


def _detector(evidence: Evidence, wanted: str, output: str, *, sure: bool) -> Chosen | None:
    """How a detector is read; None: it is none.

    Args:
        wanted: the family that the user demands; output: an output that must be read; empty: any.
        sure: the user says that it is a detector.
    """
    said = evidence.facts.task
    if said not in (None, "detection"):
        if sure:
            wrong = f"its metadata say {said}, not detection"
            raise ModelUnavailable(wrong, hint="leave out --head and the task detection")
        return None
    refuse_oriented(evidence)
    _check_named(evidence, output)
    if wanted:
        if HEADS.get(wanted) is Region:
            wrong = f"--head {wanted} needs anchors, which are not in the file"
            raise ModelUnavailable(wrong, hint="give a --model-proc file with its anchors")
        return choose_demanded(wanted, evidence, output)
    refuse_known(evidence)
    candidates = reading(readings(evidence), output)
    if found := choose(candidates, evidence):
        return found
    others = [port for port in evidence.outputs if kinds.is_row(port) or kinds.is_map(port, evidence.size_hw)]
    likely = any(one.level >= BY_SHAPE for one in candidates)
    if not sure and not said and not likely and (others or not candidates):
        return None
    listed = "; ".join(map(str, evidence.outputs)) or "none"
    best = sorted(candidates, key=lambda one: -one.level)[:MOST_REASONS]
    reasons = dict.fromkeys(f"as {one.head.family}: {refuted(one, evidence)}" for one in best)
    wrong = f"no head reads {output or 'its outputs'}: {listed}" + "".join(
        f"; {reason}" for reason in reasons
    )
    other = "" if sure else "; or its task with --model TASK=FILE, if it is no detector"
    raise ModelUnavailable(wrong, hint=_ways(evidence) + other)


def _check_named(evidence: Evidence, output: str) -> None:
    """Raise ModelUnavailable if there is no such output."""
    names = [port.name for port in evidence.outputs]
    if output and output not in names:
        listed = "; ".join(map(str, evidence.outputs)) or "none"
        raise ModelUnavailable(
            f"no output {output!r} is among its outputs: {listed}", hint="name one with --output NAME"
        )


def _ways(evidence: Evidence) -> str:
    if evidence.size_hw is None:
        return "give --resize-px HEIGHTxWIDTH, so that it can be tried; or --head"
    return "name the form of its outputs with --head: " + "; ".join(f"{k}: {v}" for k, v in FORMS.items())


def _with_head(
    known: Identified, found: Chosen, evidence: Evidence, iou_threshold: float | None
) -> Identified:
    head: Any = found.candidate.head
    iou_threshold = evidence.facts.iou_threshold if iou_threshold is None else iou_threshold
    if iou_threshold is not None and hasattr(head, "iou_threshold"):
        head = replace(head, iou_threshold=iou_threshold)
    runs = evidence.on_pictures(head.pixels(evidence.size_hw)) if evidence.size_hw else ()
    labels, said = matched(head, evidence, runs)
    assumed = (*found.assumed, *said, *_left_out(evidence, found.candidate.read))
    points = getattr(head, "keypoints", None)
    return replace(known, task="detection", head=head, labels=labels, keypoints=points, assumed=assumed)


def _left_out(evidence: Evidence, read: tuple[str, ...]) -> tuple[str, ...]:
    left = [port.name for port in evidence.outputs if port.name not in read]
    more = f" and {len(left) - MOST_LISTED} more" if len(left) > MOST_LISTED else ""
    return (f"outputs that are not read: {', '.join(left[:MOST_LISTED])}{more}",) if left else ()


def _of_one_output(known: Identified, evidence: Evidence, task: TaskName | None, output: str) -> Identified:
    """A classifier, a segmenter, or what makes vectors."""
    why = ""
    if task is None:
        task, why = kinds.task_of(evidence)
    if task is None:
        return known
    said = (f"task {task}, since {why} (else: --model TASK=FILE)",) if why else ()
    port = kinds.main_output(evidence, task, output)
    if port is None:
        return _parts(replace(known, task=task), evidence)
    left = _left_out(evidence, (port.name,))
    if task == "embedding":
        return replace(known, task=task, output=port.name, activation="none", assumed=(*said, *left))
    activation, several = kinds.activation(port, evidence)
    return replace(
        known,
        task=task,
        output=port.name,
        activation=activation,
        multi_label=several and task == "classification",
        channels_last=kinds.is_map(port, evidence.size_hw) and kinds.is_channels_last(port, evidence.size_hw),
        assumed=(*said, *left),
    )


def _parts(known: Identified, evidence: Evidence) -> Identified:
    parts = kinds.attributes(evidence)
    read = tuple(dict.fromkeys(part.output for part in parts))
    text = f"each of the outputs {', '.join(read)} is a classification of its own (else: --output NAME)"
    return replace(known, labels=(), attributes=parts, assumed=(text, *_left_out(evidence, read)))


def check(
    head: Head,
    graph: Graph,
    size_hw: tuple[int, int],
    names: tuple[str, ...] = (),
    *,
    pixels: Preprocessing | None = None,
    demanded: bool = False,
) -> tuple[str, ...]:
    """What is odd in the values that a head reads on two test pictures, in words for people.

    Args:
        names: labels in the order of the network's numbers.
        pixels: how it is fed; None: as is usual for the head.
        demanded: the user named the head, so that what contradicts it is only said.

    Raises:
        ModelUnavailable: the outputs are not the head's, their values contradict it, or classes have no name.
    """
    evidence = Evidence(graph=graph, size_hw=size_hw, labels=names, count=len(names), pixels=pixels)
    runs = evidence.on_pictures(head.pixels(size_hw))
    nothing = bool(runs) and found_nothing(head, runs[:1], size_hw)
    said = []
    if wrong := next(filter(None, (contradiction(head, one, size_hw) for one in runs)), ""):
        said.append(f"its outputs do not look like those of {head.family}: {wrong}")
        if not demanded:
            raise ModelUnavailable(said[0], hint="name another with --head")
    matched(head, evidence, runs)
    if nothing and isinstance(head, DENSE):
        text = "nothing is found on a test picture: are the pixels in the right range? (--pixels, --channels)"
        said.append(text)
    return tuple(said)
