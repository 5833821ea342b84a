"""Networks that are no detectors: classes, maps of classes, vectors. Which output, and its activation."""

from __future__ import annotations

from collections.abc import Sequence

from pipelines.models import forms
from pipelines.models.graph import Port
from pipelines.models.heads.identify.candidate import is_whole, named, operators
from pipelines.models.heads.identify.evidence import UNIT, Evidence
from pipelines.models.spec import Activation, Attribute, TaskName
from pipelines.protocol.errors import ModelUnavailable

SCORE_NAMES = frozenset(name for names in forms.TELLING for name in names)
VECTOR_WORDS = ("embed", "feat", "fc1", "pooler", "descriptor", "vector")
# Operators after which numbers are scores already; those whose numbers are sums; those that vectors end in.
SCORES = frozenset({"softmax", "sigmoid"})
SUMS = frozenset(
    {
        *("add", "gemm", "conv", "sub", "resize", "convtranspose", "averagepool", "globalaveragepool"),
        *("adaptiveavgpool2d", "avgpool2d", "reducemean", "mean", "softmax_log", "biasadd"),
    }
)
VECTORS = frozenset(
    {"relu", "prelu", "lpnormalization", "batchnormalization", "layernormalization", "nativelayernorm"}
)
# Classes of ImageNet, also with a background, and of its 22k.
NEAR_ONE = 1e-3
# How much smaller than the picture a map of one class may be.
PARTS = (1, 2, 4, 8)
WELL_KNOWN = frozenset({1000, 1001, 21841, 21843})


def task_of(evidence: Evidence) -> tuple[TaskName | None, str]:
    """The task of a network that is no detector, and what speaks for it where that is no proof.

    None where it cannot be told.
    """
    if any(len(port.dims) == 5 for port in evidence.graph.inputs):
        return "action", "it takes clips"
    if evidence.facts.task in ("classification", "segmentation"):
        return evidence.facts.task, ""
    maps = [one for one in evidence.outputs if is_map(one, evidence.size_hw)]
    rows = rows_of(evidence)
    if maps and not rows:
        why = f"{maps[0].name} is a map of {channels(maps[0], evidence.size_hw) or 'numbers of'} classes"
        return ("segmentation", why) if any(_is_of_classes(one, evidence) for one in maps) else (None, "")
    if maps:
        return None, ""
    if len(rows) > 1 and _all_named(rows, evidence):
        return "classification", "there is a label for each column of its outputs"
    if why := next(filter(None, (_speaks_of_classes(one, evidence) for one in rows)), ""):
        return "classification", why
    why = next(filter(None, (_speaks_of_a_vector(one, evidence) for one in rows)), "")
    return ("embedding", why) if why else (None, "")


def is_row(port: Port) -> bool:
    """`(N, K)`, `(N, K, 1, 1)` or `(N, 1, 1, K)`, of which columns are classes: sorted ones are not."""
    flat = len(port.dims) == 2 or (len(port.dims) == 4 and port.dims[1:].count(1) >= 2)
    return flat and not is_whole(port) and "topk" not in operators(port)


def rows_of(evidence: Evidence) -> list[Port]:
    """The outputs with a row for each picture; if there are none, those with one number `(N,)`."""
    rows = [port for port in evidence.outputs if is_row(port)]
    columns = [port for port in evidence.outputs if len(port.dims) == 1 and not is_whole(port)]
    return rows or columns


def is_map(port: Port, size_hw: tuple[int, int] | None) -> bool:
    """`(N, K, h, w)`, `(N, h, w, K)`, or `(N, h, w)` of whole numbers or of the picture's sides."""
    if is_whole(port):
        return len(port.dims) == 3 or (len(port.dims) == 4 and 1 in (port.dims[1], port.dims[3]))
    return is_plane(port, size_hw) or (len(port.dims) == 4 and not is_row(port))


def is_plane(port: Port, size_hw: tuple[int, int] | None) -> bool:
    """`(N, h, w)` of the picture's sides or the same part of both, which no rows of a detector are."""
    if len(port.dims) != 3 or None in port.dims[1:] or size_hw is None:
        return False
    rows, columns = (side or 1 for side in port.dims[1:])
    parts = {divmod(whole, part) for whole, part in zip(size_hw, (rows, columns), strict=True)}
    return len(parts) == 1 and parts <= {(part, 0) for part in PARTS}


def is_channels_last(port: Port, size_hw: tuple[int, int] | None) -> bool:
    """Of a map: whether it is `(N, h, w, K)`."""
    if len(port.dims) != 4 or None in port.dims[1:]:
        return False
    _, one, two, three = (side or 0 for side in port.dims)
    if size_hw is None:
        return one == two != three
    return _is_part(one, two, size_hw) and not _is_part(two, three, size_hw)


def _is_part(rows: int, columns: int, size_hw: tuple[int, int]) -> bool:
    """Whether a map is the picture's size, or an equal part of each side."""
    height, width = size_hw
    return abs(rows / height - columns / width) < 1 / min(size_hw) and 1 < rows <= height


def channels(port: Port, size_hw: tuple[int, int] | None) -> int:
    """K; 0: not known, or numbers of classes."""
    if is_whole(port):
        return 0
    if is_plane(port, size_hw):
        return 1
    if is_map(port, size_hw):
        return port.dims[3 if is_channels_last(port, size_hw) else 1] or 0
    return max((side or 0 for side in port.dims[1:]), default=1)


def _is_of_classes(port: Port, evidence: Evidence) -> bool:
    """A map of colours or depths has few channels, and no name of a class for each."""
    count = channels(port, evidence.size_hw)
    done = operators(port) & (SCORES | {"argmax"})
    return is_whole(port) or evidence.matches(count) or count > 3 or bool(done)


def _speaks_of_classes(port: Port, evidence: Evidence) -> str:
    """Why a row is of classes; empty: nothing says so."""
    count = channels(port, evidence.size_hw)
    if evidence.matches(count):
        return f"{port.name} has as many columns as there are labels"
    if count == 1 and evidence.count == 2:
        return f"{port.name} has one column, and there are two labels"
    if done := sorted(operators(port) & SCORES):
        return f"{port.name} comes from a {done[0]}"
    if named(port, *VECTOR_WORDS):
        return ""
    if forms.plain(port.name) in SCORE_NAMES:
        return f"an output is called {port.name}"
    return f"{port.name} has ImageNet's {count} columns" if count in WELL_KNOWN else ""


def _speaks_of_a_vector(port: Port, evidence: Evidence) -> str:
    """Why a row is a vector; empty: nothing says so."""
    if evidence.count or (channels(port, evidence.size_hw) or 2) < 2:
        return ""
    if done := sorted(operators(port) & VECTORS):
        return f"{port.name} comes from a {done[0]}"
    if named(port, *VECTOR_WORDS):
        return f"an output is called {port.name}"
    runs = [run[port.name].flatten(1) for run in evidence.on_pictures(UNIT) if port.name in run]
    unit = bool(runs) and all(bool(((one.norm(dim=1) - 1).abs() < NEAR_ONE).all()) for one in runs)
    return f"{port.name} has the length 1" if unit else ""


def main_output(evidence: Evidence, task: TaskName, chosen: str = "") -> Port | None:
    """The output that a task reads; None: several, each a classification of its own.

    Raises:
        ModelUnavailable: none fits, or several do.
    """
    maps = task == "segmentation"
    ports = [port for port in evidence.outputs if is_map(port, evidence.size_hw)]
    ports = ports if maps else rows_of(evidence)
    listed = "; ".join(map(str, evidence.outputs)) or "none"
    if chosen:
        found = [port for port in ports if port.name == chosen]
        if not found:
            wrong = f"no output {chosen!r} that fits the task {task} is among its outputs: {listed}"
            raise ModelUnavailable(wrong, hint="name one with --output NAME")
        return found[0]
    if not ports:
        wrong = f"none of its outputs fits the task {task}: {listed}"
        raise ModelUnavailable(wrong, hint=f"{task} reads {_wanted(task)}; a detector's outputs need --head")
    if best := _preferred(ports, evidence, task):
        return best
    if task == "classification" and (_all_named(ports, evidence) or all(map(_is_done, ports))):
        return None
    wrong = f"several of its outputs fit the task {task}: {listed}"
    raise ModelUnavailable(wrong, hint="name one with --output NAME")


def _is_done(port: Port) -> bool:
    return bool(operators(port) & SCORES)


def _all_named(ports: Sequence[Port], evidence: Evidence) -> bool:
    """Whether there is a label for each column of all outputs."""
    return evidence.count > 0 and evidence.count == sum(channels(port, None) for port in ports)


def _wanted(task: TaskName) -> str:
    if task == "segmentation":
        return "maps (N, K, h, w), (N, h, w, K), or whole numbers (N, h, w)"
    return "rows (N, K)"


def _preferred(ports: Sequence[Port], evidence: Evidence, task: TaskName) -> Port | None:
    """The one that later passes read too; else the one whose name or number of columns tells."""
    name = forms.decided_output(ports, task, labels=evidence.count)
    found = [port for port in ports if port.name == name]
    if not found and task == "embedding":
        found = [port for port in ports if named(port, *VECTOR_WORDS)]
    if not found:
        found = [port for port in ports if evidence.matches(channels(port, evidence.size_hw))]
    return found[0] if len(found) == 1 else None


def activation(port: Port, evidence: Evidence) -> tuple[Activation | None, bool]:
    """What makes scores of an output, and whether several classes may be true at once.

    By what computes it and its number of columns. None: only its values can tell, of more than one picture.
    """
    count = channels(port, evidence.size_hw)
    facts, done = evidence.facts, operators(port)
    several = facts.multi_label or False
    if is_whole(port):
        return "none", False
    if facts.raw_scores is not None:
        return ("none" if not facts.raw_scores else "sigmoid" if several else "softmax"), several
    if done and done <= SCORES:
        return "none", several
    if done and done <= SUMS:
        return ("sigmoid" if count == 1 else "softmax"), False
    return None, False


def attributes(evidence: Evidence) -> tuple[Attribute, ...]:
    """Several outputs of classes, each under a name: a softmax's winner, or each of its sigmoids.

    Names are taken in order, if there are as many as there are columns in all; else columns go by number.
    With such names outputs may be logits too, whose activation is a softmax, or a sigmoid of one column.
    """
    ports = rows_of(evidence)
    named_all = _all_named(ports, evidence)
    ports = ports if named_all else [port for port in ports if _is_done(port)]
    known = iter(evidence.labels if _all_named(ports, evidence) else ())
    found: list[Attribute] = []
    for port in ports:
        labels = tuple(next(known, str(number)) for number in range(channels(port, None)))
        if "softmax" in operators(port) or (len(labels) > 1 and not _is_done(port)):
            done: Activation = "none" if _is_done(port) else "softmax"
            found.append(Attribute(name=port.name, output=port.name, labels=labels, activation=done))
            continue
        done = "none" if _is_done(port) else "sigmoid"
        for number, label in enumerate(labels):
            name = label if label != str(number) else f"{port.name}_{number}"
            part = {"start": number, "stop": number + 1}
            found.append(
                Attribute(name=name, output=port.name, labels=("yes", "no"), activation=done, **part)
            )
    return tuple(found)
