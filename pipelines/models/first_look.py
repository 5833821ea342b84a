"""What a network's first passes show: which output is read, what makes scores of it, and its parts.

What a spec says is taken; the rest is found, and what had to be assumed is said in `ModelSpec.assumed`.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from pipelines.models import forms
from pipelines.models.attributes import checked, flags, is_flag, several
from pipelines.models.forms import Form
from pipelines.models.outputs import finite_rows
from pipelines.models.probing import Kind, Shown, Tensors, assume, check_probabilities, not_finite
from pipelines.models.spec import ModelSpec
from pipelines.protocol.errors import ModelUnavailable

# Class maps are bytes.
MAX_SEGMENTS = 256
BACKGROUND = "background"
# Tasks whose numbers for a frame or clip are scores of classes.
SCORED = ("classification", "action")


def learn(spec: ModelSpec, shown: Shown) -> tuple[ModelSpec, Form]:
    """The spec with what is known now, and how its outputs are read.

    Raises:
        ModelUnavailable: nothing has the form of the task, or nothing tells which of several is to be read;
            labels and outputs disagree.
    """
    spec, form = _learn(spec, shown)
    for name in form.read:
        _check_finite(spec, shown.first[name])
    return spec, form


def _learn(spec: ModelSpec, shown: Shown) -> tuple[ModelSpec, Form]:
    if spec.task == "segmentation":
        return _pixels(spec, shown)
    if spec.attributes and not spec.labels:
        return _ranked_attributes(spec, shown)
    main = forms.decided_output(shown.ports, spec.task, labels=len(spec.labels), wanted=spec.output)
    if main is None and spec.task == "classification" and not spec.output:
        spec = several(spec, shown)
        if spec.attributes:
            return _ranked_attributes(spec, shown)
    main = _main(spec, shown)
    _check_finite(spec, shown.first[main])
    found = replace(spec, output=main)
    if spec.task == "embedding":
        return replace(found, labels=()), _form(found, shown)
    make = _scored if found.task in SCORED else _named
    return make(found, shown), _form(found, shown)


def _main(spec: ModelSpec, shown: Shown) -> str:
    return forms.main_output(
        shown.ports, spec.task, model=spec.name, labels=len(spec.labels), wanted=spec.output
    )


def _check_finite(spec: ModelSpec, values: Tensor) -> None:
    """Raise ModelUnavailable if mild noise alone makes the network leave what its numbers can hold."""
    if not bool(finite_rows(values).all()):
        raise not_finite(spec)


def _form(spec: ModelSpec, shown: Shown) -> Form:
    read = (spec.output, *(one.output for one in spec.attributes))
    count = len(shown.first[spec.output]) if shown.first[spec.output].ndim else 0
    return Form(main=spec.output, left_out=forms.rowless(shown.first, count, read), read=read)


def _named(spec: ModelSpec, shown: Shown) -> ModelSpec:
    """With as many labels as the output has columns: numbers if it has none."""
    count = forms.flat(shown.first[spec.output]).shape[1]
    spec = _labelled(spec, count, shown)
    return spec if spec.labels else replace(spec, labels=tuple(map(str, range(count))))


def _scored(spec: ModelSpec, shown: Shown) -> ModelSpec:
    """Of a classifier of frames or clips, whose output is chosen."""

    def read(tensors: Tensors) -> Tensor:
        return forms.flat(tensors[spec.output]).float()

    count = read(shown.first).shape[1]
    named = bool(spec.labels)
    spec = _named(spec, shown)
    kind = shown.kind(read) if spec.activation in (None, "none") else None
    found = _activated(spec, count, kind)
    if spec.activation == "none":
        check_probabilities(spec, shown.of_pictures(read))
    if found.multi_label and not spec.multi_label:
        found = _showing_all(found)
    found = replace(found, attributes=tuple(checked(spec, one, shown) for one in spec.attributes))
    if found.multi_label and named and spec.task == "classification" and not spec.attributes:
        return replace(found, attributes=flags(spec.labels, found))
    return found


def _activated(spec: ModelSpec, count: int, kind: Kind | None) -> ModelSpec:
    """With an activation: the one that the spec says, or what the `kind` of numbers needs.

    Of a pixel's classes one wins, so those of a segmenter are never several at once.
    """
    ranked = spec.task in SCORED
    if spec.activation:
        if ranked and count > 1 and (spec.activation == "sigmoid" or kind == "flags"):
            return replace(spec, multi_label=True)
        if spec.activation == "softmax" and count == 1:
            return assume(
                replace(spec, activation="sigmoid"),
                "one column: a sigmoid, since a softmax of one is always 1",
            )
        return spec
    if count == 1:
        if kind == "unclear":
            text = "one column of numbers that hardly change: a sigmoid makes scores of them (--activation)"
            return assume(replace(spec, activation="sigmoid"), text)
        done = kind == "flags"
        text = "one column: probabilities already" if done else "one column: a sigmoid makes scores of it"
        return assume(replace(spec, activation="none" if done else "sigmoid"), f"{text} (--activation)")
    if kind == "logits":
        return replace(spec, activation="sigmoid" if spec.multi_label else "softmax")
    if kind == "choice" or spec.multi_label:
        return replace(spec, activation="none")
    if not ranked:
        text = "numbers of 0..1 whose sums are not 1: probabilities already (--activation)"
        return assume(replace(spec, activation="none"), text)
    text = "numbers of 0..1 whose sums are not 1: probabilities of several labels at once (--activation)"
    return assume(replace(spec, activation="none", multi_label=True), text)


def _showing_all(spec: ModelSpec) -> ModelSpec:
    """With no threshold where nobody has asked for one, nor for only those labels that are above one."""
    return replace(spec, score_threshold=max(0.0, spec.score_threshold))


def _labelled(spec: ModelSpec, count: int, shown: Shown) -> ModelSpec:
    """Check that there are as many labels as columns; of one column two are "no" and "yes"."""
    if not count:
        raise ModelUnavailable(f"{spec.name} has 0 classes", hint="is it a model of another task?")
    if count == 1 and len(spec.labels) == 2:
        return assume(spec, f"one column: how probable {spec.labels[1]!r} is, else {spec.labels[0]!r}")
    if spec.labels and len(spec.labels) != count:
        _refuse_labels(spec, count, shown)
    return spec


def _refuse_labels(spec: ModelSpec, count: int, shown: Shown) -> None:
    others = [one for one in forms.fitting(shown.ports, spec.task) if one.name != spec.output]
    more = f"; other outputs are {forms.listed(others)}: --output NAME" if others else ""
    raise ModelUnavailable(
        f"{spec.name} has {count} outputs and {len(spec.labels)} labels",
        hint=f"give a file with one label per line{more}",
    )


def _ranked_attributes(spec: ModelSpec, shown: Shown) -> tuple[ModelSpec, Form]:
    """Of a classifier with nothing but attributes: its classes are those of the first that is a choice."""
    attributes = tuple(checked(spec, one, shown) for one in spec.attributes)
    spec = replace(spec, attributes=attributes)
    choice = next((one for one in attributes if not is_flag(one)), None)
    if choice is None:
        labels, main = tuple(one.name for one in attributes), attributes[0].output
        spec = _showing_all(replace(spec, labels=labels, multi_label=True))
    else:
        spec, main = replace(spec, labels=choice.labels), choice.output
    found = replace(spec, output=main, activation=(choice or attributes[0]).activation)
    return found, _form(found, shown)


def _pixels(spec: ModelSpec, shown: Shown) -> tuple[ModelSpec, Form]:
    """Of a segmenter."""
    main = _main(spec, shown)
    port, tensor = forms.port_of(main, shown.first[main]), shown.first[main]
    _check_finite(spec, tensor)
    spec = replace(spec, output=main)
    last = forms.channels_are_last(port.dims, shown.size_hw, len(spec.labels))
    form = replace(_form(spec, shown), channels_last=last)
    planes = forms.arranged(tensor, form)
    if forms.is_whole(port) or (planes.shape[1] == 1 and _are_numbers(shown, main)):
        form = replace(form, class_map=True)
        return _class_map(spec, shown, form), form

    def read(tensors: Tensors) -> Tensor:
        return forms.arranged(tensors[main], form)

    count = planes.shape[1]
    spec = _segments(spec, count, shown)
    kind = None if spec.activation else shown.kind(read)
    if spec.activation == "none":
        check_probabilities(spec, planes)
    return _activated(spec, count, kind), form


def _segments(spec: ModelSpec, count: int, shown: Shown) -> ModelSpec:
    """With labels: of one column the background's before its own."""
    if not 1 <= count <= MAX_SEGMENTS:
        raise ModelUnavailable(f"{spec.name} has {count} classes", hint=f"1 to {MAX_SEGMENTS} are served")
    if count == 1 and len(spec.labels) < 2:
        return replace(spec, labels=(BACKGROUND, *(spec.labels or ("0",))))
    if count == 1 and len(spec.labels) == 2:
        return spec
    if spec.labels and len(spec.labels) != count:
        _refuse_labels(spec, count, shown)
    return spec if spec.labels else replace(spec, labels=tuple(map(str, range(count))))


def _are_numbers(shown: Shown, name: str) -> bool:
    """Whether an output of floats holds whole numbers alone, above 1 too."""
    if not bool((shown.first[name] == shown.first[name].round()).all()):
        return False
    values = shown.values(lambda tensors: tensors[name])
    return all(bool((one == one.round()).all()) for one in values) and max(map(_highest, values)) > 1


def _highest(values: Tensor) -> float:
    return float(values.max()) if values.numel() else 0.0


def _class_map(spec: ModelSpec, shown: Shown, form: Form) -> ModelSpec:
    """Of a segmenter that gives the numbers of classes, and no probabilities."""
    labels = spec.labels
    if not labels:
        labels = tuple(map(str, range(MAX_SEGMENTS)))
        spec = assume(spec, f"a class map without names: numbers up to {MAX_SEGMENTS - 1} (--labels)")
    elif len(labels) > MAX_SEGMENTS:
        raise ModelUnavailable(f"{spec.name} has {len(labels)} labels", hint=f"at most {MAX_SEGMENTS}")
    highest = int(max(_highest(one) for one in shown.values(lambda tensors: tensors[form.main])))
    if len(labels) <= highest < MAX_SEGMENTS - 1:
        raise ModelUnavailable(
            f"{spec.name} gives the class {highest}, and there are labels for 0 to {len(labels) - 1}",
            hint="give a file with one label per line, the background first",
        )
    return replace(spec, labels=labels, class_map=True, activation="none")
