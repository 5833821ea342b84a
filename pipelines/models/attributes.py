"""Named parts of a classifier's answer: found in several outputs, and checked. Knows no pictures."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipelines.models import forms
from pipelines.models.graph import Port
from pipelines.models.probing import Kind, Shown, assume, check_probabilities, row
from pipelines.models.spec import Activation, Attribute, ModelSpec
from pipelines.protocol.errors import ModelUnavailable

# Of so many flags at most each is answered by its name too.
MOST_FLAGS = 32
YES_NO = ("yes", "no")


def flags(labels: Sequence[str], spec: ModelSpec) -> tuple[Attribute, ...]:
    """An attribute for each of a few labels that may be true at once."""
    if len(labels) > MOST_FLAGS:
        return ()
    threshold = spec.score_threshold if spec.score_threshold > 0 else 0.5
    return tuple(
        Attribute(
            name=label,
            output=spec.output,
            labels=YES_NO,
            start=place,
            stop=place + 1,
            activation=spec.activation or "sigmoid",
            threshold=threshold,
        )
        for place, label in enumerate(labels)
    )


def several(spec: ModelSpec, shown: Shown) -> ModelSpec:
    """With an attribute for each of several outputs that are a classification each, or the one that is.

    Probabilities tell; or labels, if there are as many as the outputs have columns together.
    """
    ports = forms.fitting(shown.ports, spec.task)
    kinds = {one.name: shown.kind(functools.partial(row, name=one.name)) for one in ports}
    chosen = [one for one in ports if _is_classification(kinds[one.name], forms.columns(one))]
    if spec.labels and _total(ports) == len(spec.labels):
        chosen = ports
    elif spec.labels and _total(chosen) != len(spec.labels):
        return spec
    if len(chosen) == 1:
        text = f"the output {chosen[0].name} is read, the only one with probabilities (--output)"
        return assume(replace(spec, output=chosen[0].name), text)
    return _named_attributes(spec, chosen, kinds, shown) if chosen else spec


def _is_classification(kind: Kind, count: int | None) -> bool:
    return kind == "choice" or (kind == "flags" and count == 1)


def _total(ports: Sequence[Port]) -> int:
    return sum(forms.columns(one) or 0 for one in ports)


def _named_attributes(
    spec: ModelSpec, ports: Sequence[Port], kinds: Mapping[str, Kind], shown: Shown
) -> ModelSpec:
    attributes, start = [], 0
    for port in ports:
        count = forms.columns(port) or 1
        numbers = YES_NO if count == 1 else tuple(map(str, range(count)))
        labels = spec.labels[start : start + count] if spec.labels else numbers
        labels = (labels[0], f"not {labels[0]}") if len(labels) == 1 else labels
        start += count
        activation = _of_kind(kinds[port.name], count)
        attributes.append(Attribute(name=port.name, output=port.name, labels=labels, activation=activation))
    names = ", ".join(port.name for port in ports)
    split = "; the labels are theirs in this order" if spec.labels else ""
    spec = assume(spec, f"the outputs {names} are each a classification, an attribute of that name{split}")
    others = [name for name in shown.first if name not in [port.name for port in ports]]
    if others:
        spec = assume(spec, f"the outputs {', '.join(others)} are left out (--output NAME reads one)")
    return replace(spec, labels=(), attributes=tuple(attributes))


def _of_kind(kind: Kind, count: int) -> Activation:
    if kind in ("choice", "flags"):
        return "none"
    return "sigmoid" if count == 1 else "softmax"


def is_flag(attribute: Attribute) -> bool:
    """Whether it is one column, that is true or not; `stop` is known."""
    assert attribute.stop is not None
    return attribute.stop - attribute.start == 1


def checked(spec: ModelSpec, one: Attribute, shown: Shown) -> Attribute:
    """The attribute with its last column known. Raises ModelUnavailable if the output has other columns."""
    # One output need not be named.
    named = one.output or forms.decided_output(shown.ports, spec.task, labels=0, wanted="") or ""
    one = replace(one, output=named)
    tensor = shown.first.get(one.output)
    port = None if tensor is None else forms.port_of(one.output, tensor)
    if port is None or not forms.is_row(port):
        raise ModelUnavailable(
            f"{spec.name} gives {forms.listed(shown.ports)}, attribute {one.name} needs {one.output} (N, K)",
            hint="check the names of layers in the model-proc file",
        )
    total = forms.columns(port) or 0
    stop = total if one.stop is None else one.stop
    count = stop - one.start
    needed = 2 if count == 1 else count
    if not 0 <= one.start < stop <= total or len(one.labels) != needed:
        raise ModelUnavailable(
            f"{spec.name}: attribute {one.name} has {len(one.labels)} labels for columns {one.start} to "
            f"{stop} of output {one.output}, which has {total}",
            hint="one label for each column; of one column two, for above and below the threshold",
        )
    activation: Activation = "sigmoid" if count == 1 and one.activation == "softmax" else one.activation
    if activation == "none":
        scores = shown.of_pictures(lambda tensors: row(tensors, named)[:, one.start : stop])
        check_probabilities(spec, scores)
    return replace(one, stop=stop, activation=activation)
