"""Which of a network's outputs a task reads, as names and shapes tell. Knows no network and no values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.models.graph import Dims, Port
from pipelines.models.spec import TaskName
from pipelines.protocol.errors import ModelUnavailable

# Segmentation scores each pixel, the other tasks each frame or clip.
LAYOUTS: dict[str, str] = {"segmentation": "(N, K, h, w)"}
LAYOUT = "(N, K)"
# Names that say what an output is; the second kind may also be anything else.
TELLING = (("logits", "logit"), ("probabilities", "probability", "probs", "prob"), ("scores", "score"))
TELLING_VECTORS = (("embeddings", "embedding", "embeds", "embed", "image_embeds"), ("features", "feature"))
USUAL = ("output", "outputs", "out", "output0", "output_0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How the outputs of one network are read.

    Attributes:
        main: the output that the task reads.
        channels_last: it is `(N, h, w, K)`.
        class_map: it is a map of the numbers of classes, one for each pixel.
        read: all outputs that the task reads.
        left_out: outputs that are not passed on, since they have no row for each picture.
    """

    main: str = ""
    channels_last: bool = False
    class_map: bool = False
    read: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()


def port_of(name: str, tensor: Tensor) -> Port:
    return Port(name=name, dtype=str(tensor.dtype).removeprefix("torch."), dims=tuple(tensor.shape))


def is_whole(port: Port) -> bool:
    """Whether its elements are integers or truth values."""
    return not port.dtype.startswith(("float", "bfloat", "double"))


def is_row(port: Port) -> bool:
    """Whether it is `(N, K)`, or the same with axes of length 1, such as `(N, K, 1, 1)`, or `(N,)`."""
    return bool(port.dims) and not is_whole(port) and len([size for size in port.dims[1:] if size != 1]) <= 1


def columns(port: Port) -> int | None:
    """The K of an output that `is_row`; None if it is not known."""
    return next((size for size in port.dims[1:] if size != 1), 1)


def fitting(outputs: Sequence[Port], task: TaskName) -> list[Port]:
    """The outputs that have the form of a task."""
    if task == "segmentation":
        scores = [one for one in outputs if not is_whole(one) and len(one.dims) == 4]
        maps = [one for one in outputs if is_whole(one) and _is_plane(one.dims)]
        planes = [one for one in outputs if not is_whole(one) and len(one.dims) == 3]
        return [one for one in scores if one.dims[2:] != (1, 1)] or maps or scores or planes
    rows = [one for one in outputs if is_row(one)]
    return [one for one in rows if len(one.dims) > 1] or rows


def _is_plane(dims: Dims) -> bool:
    return len(dims) == 3 or (len(dims) == 4 and 1 in (dims[1], dims[3]))


def decided_output(
    outputs: Sequence[Port], task: TaskName, *, labels: int = 0, wanted: str = ""
) -> str | None:
    """The name of the output that the task reads; None where none fits, or several do and nothing decides.

    Among several a telling name decides (`logits`, `probs`, `scores`), then the number of labels, then a
    usual name (`output`).
    """
    fit = fitting(outputs, task)
    if wanted or len(fit) <= 1:
        return next((one.name for one in fit if wanted in ("", one.name)), None)
    names = [plain(one.name) for one in fit]
    for group in TELLING_VECTORS if task == "embedding" else TELLING:
        told = [one.name for one, name in zip(fit, names, strict=True) if name in group]
        if told:
            return told[0] if len(told) == 1 else None
    counted = [one.name for one in fit if labels and _count(one, task) == labels]
    if len(counted) == 1:
        return counted[0]
    usual = [one.name for one, name in zip(fit, names, strict=True) if name in USUAL]
    return usual[0] if len(usual) == 1 else None


def main_output(
    outputs: Sequence[Port], task: TaskName, *, model: str, labels: int = 0, wanted: str = ""
) -> str:
    """The name of the output that the task reads.

    Args:
        model: its name, for messages.
        labels: how many there are; 0: not known.
        wanted: the output that was asked for; empty: none was.

    Raises:
        ModelUnavailable: there is no output of that name or of the task's form, or several are and nothing
            decides; the message lists them.
    """
    found = decided_output(outputs, task, labels=labels, wanted=wanted)
    if found is not None:
        return found
    if wanted and wanted not in (one.name for one in outputs):
        wrong = f"{model} has no output {wanted!r}; it gives {listed(outputs)}"
        raise ModelUnavailable(wrong, hint="name one of these with --output")
    if wanted or not (fit := fitting(outputs, task)):
        given = [one for one in outputs if wanted in ("", one.name)]
        raise mismatch(model, listed(given), task)
    choices = ", or ".join(f"--output {one.name}" for one in fit)
    raise ModelUnavailable(
        f"{model} gives several outputs that task {task} could read: {listed(fit)}", hint=choices
    )


def mismatch(model: str, given: str, task: TaskName) -> ModelUnavailable:
    return ModelUnavailable(
        f"{model} gives {given}, task {task} needs {LAYOUTS.get(task, LAYOUT)}",
        hint="is it a model of another task?",
    )


def listed(outputs: Sequence[Port]) -> str:
    """Names and shapes, for messages."""
    return ", ".join(
        f"{one.name} ({', '.join('?' if size is None else str(size) for size in one.dims)}"
        f"{',' if len(one.dims) == 1 else ''})"
        for one in outputs
    )


def plain(name: str) -> str:
    """`model/head/logits:0` is `logits`."""
    return name.lower().split(":")[0].split("/")[-1].split(".")[-1]


def _count(port: Port, task: TaskName) -> int | None:
    if task != "segmentation":
        return columns(port)
    return port.dims[1] if len(port.dims) == 4 else 1


def channels_are_last(dims: Dims, size_hw: tuple[int, int], labels: int) -> bool:
    """Whether scores of pixels are `(N, h, w, K)`: the two axes that have the aspect of the pixels tell."""
    if len(dims) != 4:
        return False
    planes, last = (_is_like(axes, size_hw) for axes in (dims[2:], dims[1:3]))
    if planes != last:
        return last
    return labels > 0 and dims[1] != labels and dims[3] == labels


def _is_like(axes: Dims, size_hw: tuple[int, int]) -> bool:
    """Whether axes are those of pixels that may be coarser, up to rounding."""
    height, width = (size or 0 for size in axes)
    return abs(height * size_hw[1] - width * size_hw[0]) < max(size_hw)


def flat(tensor: Tensor) -> Tensor:
    """`(N, K)` of a tensor of one axis for each picture."""
    return tensor.reshape(len(tensor), math.prod(tensor.shape[1:]))


def laid_out(tensor: Tensor, form: Form) -> Tensor:
    """Numbers of pixels as `(N, K, h, w)`."""
    planes = tensor[:, None] if tensor.ndim == 3 else tensor
    return planes.permute(0, 3, 1, 2) if form.channels_last else planes


def arranged(tensor: Tensor, form: Form) -> Tensor:
    """Scores of pixels as float32 `(N, K, h, w)`; class maps as uint8 `(N, 1, h, w)`, 0 beyond 0..255."""
    planes = laid_out(tensor, form)
    if not form.class_map:
        return planes.float()
    return torch.where((planes >= 0) & (planes <= 255), planes, 0).byte()


def rowless(tensors: Mapping[str, Tensor], count: int, read: Sequence[str]) -> frozenset[str]:
    """Outputs that are not read and have no row for each picture, such as anchors."""
    return frozenset(
        name for name, one in tensors.items() if name not in read and (not one.ndim or len(one) != count)
    )
