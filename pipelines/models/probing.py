"""What a network gave for its first pictures, and what kind of numbers that is. Knows no tasks.

Pictures of mild noise alone would mislead: the logits that a network gives for them may all lie in 0..1. So
numbers count as probabilities only if they stay there for black, white and strong noise too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from pipelines.models import forms
from pipelines.models.graph import Port
from pipelines.models.outputs import BoxOutput, Output, finite_rows, named_tensors
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.models.torch_runtime import Pieces
from pipelines.protocol.errors import ModelUnavailable

# How far sums of probabilities may be from 1; quantised networks are that far off.
SUM_TOLERANCE = 0.01
# How far rounding takes a probability out of 0..1, or one that is sure from its end.
ROUNDING = 1e-3
# One number for a picture that stays within 0..1 and changes by less over all probes tells nothing.
LEAST_CHANGE = 0.05
LEAST = 1e-9
EVAL_MODE = "export it in eval mode: call model.eval() before the export"

# How far the numbers of a picture may differ between two passes, as a share of the largest: rounding. And
# beside other pictures, if they do not from pass to pass: integers whose scales are found for a whole batch.
SAME, NEARLY_SAME = 1e-4, 0.05

Tensors = Mapping[str, Tensor]
# Numbers of any size; probabilities of which one is true; of which any may be; or one that may be either.
Kind = Literal["logits", "choice", "flags", "unclear"]


@dataclass(frozen=True, slots=True, eq=False)
class Shown:
    """What a network gave for its first pictures, by name.

    Attributes:
        first: for mild noise.
        more: makes what it gave for the other `probes`; asked only where the first does not tell.
        size_hw: height and width of the pixels.
    """

    first: Tensors
    more: Callable[[], Sequence[Tensors]]
    size_hw: tuple[int, int]

    @property
    def ports(self) -> list[Port]:
        return [forms.port_of(name, tensor) for name, tensor in self.first.items()]

    def values(self, read: Callable[[Tensors], Tensor]) -> list[Tensor]:
        """What `read` makes of the outputs, without pictures whose numbers are not finite."""
        return [one[finite_rows(one)] for one in (read(self.first), *map(read, self.more()))]

    def of_pictures(self, read: Callable[[Tensors], Tensor]) -> Tensor:
        """What `read` makes of the outputs for all that a picture may be, `(n, K, …)`."""
        probed = torch.cat([read(one) for one in self.more()])
        values = torch.cat([read(self.first), probed[:-1]])  # the last is far beyond
        return values[finite_rows(values)]

    def kind(self, read: Callable[[Tensors], Tensor]) -> Kind:
        """What the numbers are that `read` makes of the outputs, `(N, K, …)`."""
        if not _in_unit(read(self.first)):
            return "logits"
        values = self.values(read)
        if not all(map(_in_unit, values)):
            return "logits"
        if values[0].shape[1] > 1:
            sums = [(one.sum(dim=1) - 1).abs().max() for one in values if len(one)]
            return "choice" if max(map(float, sums)) < SUM_TOLERANCE else "flags"
        column = torch.cat([one.flatten() for one in values])
        sure = bool((torch.minimum(column, 1 - column) < ROUNDING).all())
        return "flags" if sure or float(column.max() - column.min()) > LEAST_CHANGE else "unclear"


def _in_unit(values: Tensor) -> bool:
    """Whether all are in 0..1; NaN is not."""
    return bool(((values >= -ROUNDING) & (values <= 1 + ROUNDING)).all())


def probes(shape: tuple[int, ...], facts: Preprocessing) -> list[Tensor]:
    """Batches of model pixels beside mild noise: black, white, noise of a picture's range, and far beyond."""
    channels = (1, 3, *[1] * (len(shape) - 2))
    mean, std = (torch.tensor(values).view(channels) for values in (facts.mean, facts.std))
    generator = torch.Generator().manual_seed(1)
    black = torch.zeros(1, *shape[1:])
    noise = torch.rand(black.shape, generator=generator)
    wild = 10 * torch.randn(black.shape, generator=generator)
    pictures = torch.cat([*((one - mean) / std for one in (black, 1 - black, noise)), wild])
    return list(torch.split(pictures, shape[0]))


def check_probabilities(spec: ModelSpec, values: Tensor) -> None:
    """Raise ModelUnavailable if numbers that the spec calls scores are none."""
    if not _in_unit(values):
        low, high = float(values.min()), float(values.max())
        raise ModelUnavailable(
            f"{spec.name} gives numbers of {low:.3g} to {high:.3g}, so they are no probabilities yet",
            hint='write "method": "softmax" for its outputs into the model-proc file'
            if spec.attributes
            else "--activation softmax (one class is true) or sigmoid (any may be)",
        )


def check_detections(output: Output, spec: ModelSpec) -> None:
    """Check what a detector gives for mild noise.

    Raises:
        ModelUnavailable: nothing but numbers that are not finite; other keypoints than there are names.
    """
    if not isinstance(output, BoxOutput):
        return
    if output.not_finite and all(output.not_finite):
        raise not_finite(spec)
    points = {len(frame["keypoints"][0]) for frame in output.frames if len(frame.get("keypoints", ()))}
    if spec.keypoint_names and points - {len(spec.keypoint_names)}:
        raise ModelUnavailable(
            f"{spec.name} has {max(points)} keypoints and {len(spec.keypoint_names)} names of keypoints",
            hint="give a name for each, or none",
        )


def not_finite(spec: ModelSpec) -> ModelUnavailable:
    return ModelUnavailable(
        f"{spec.name} gives numbers that are not finite (NaN or infinite): its weights are damaged, or "
        "overflow",
        hint="check the file; if its weights are float16, export it in float32",
    )


def check_steady(spec: ModelSpec, compute: Callable[[Tensor], Any], pixels: Tensor, given: Any) -> None:
    """Check that the last picture of a batch is answered alike again, beside another picture.

    Usually one more pass tells. Networks that were exported in training mode draw random numbers (dropout) or
    normalise by means over the batch.

    Args:
        given: what the layers gave for the pixels.

    Raises:
        ModelUnavailable: it is not.
    """
    facts, count = spec.preprocessing, len(pixels)
    black = -torch.tensor(facts.mean).view(3, *[1] * (pixels.ndim - 2)) / torch.tensor(facts.std).view(
        3, *[1] * (pixels.ndim - 2)
    )
    others = torch.cat([black.expand(1, *pixels.shape[1:]), pixels[1:]]) if count > 1 else pixels
    known, beside = _last_of(given, count), _last_of(compute(others), count)
    if _distance(known, beside) <= SAME:
        return
    if _distance(known, _last_of(compute(pixels), count)) > SAME:
        raise ModelUnavailable(
            f"{spec.name} answers the same picture differently each time: it draws random numbers, as "
            "dropout does in training mode",
            hint=EVAL_MODE,
        )
    if _distance(known, beside, ordered=spec.task != "detection") > NEARLY_SAME:
        raise ModelUnavailable(
            f"{spec.name} answers a picture differently beside other pictures: it uses means over the batch, "
            "as batch norm does in training mode",
            hint=f"{EVAL_MODE}; or let each picture be a batch with max_batch=1",
        )


def _last_of(given: Any, count: int) -> list[Tensor]:
    """What was given for the last of `count` pictures: the tensors that have a row for each picture."""
    if isinstance(given, Pieces):
        size = given.size
        return _row_of(dict(given[(count - 1) // size]), (count - 1) % size, size)
    if isinstance(given, list | tuple) and given and isinstance(given[0], Mapping):
        return [tensor for _, tensor in named_tensors(given[-1])]
    return _row_of(given, count - 1, count)


def _row_of(given: Any, place: int, count: int) -> list[Tensor]:
    return [one[place] for _, one in named_tensors(given) if one.ndim and len(one) == count]


def _distance(before: Sequence[Tensor], after: Sequence[Tensor], *, ordered: bool = True) -> float:
    """The largest difference as a share of a tensor's largest number; of integers the share that differs.

    Args:
        ordered: False if boxes of equal scores may have changed places.
    """
    shares = [0.0]
    for one, other in zip(before, after, strict=True):
        if one.shape != other.shape:
            return math.inf
        if not one.is_floating_point():
            shares.append(float((one != other).float().mean()) if one.numel() else 0.0)
            continue
        known, found = (each.float().flatten().nan_to_num(0, 0, 0) for each in (one, other))
        if not ordered:
            known, found = known.sort().values, found.sort().values
        if known.numel():
            shares.append(float((known - found).abs().max() / known.abs().max().clamp_min(LEAST)))
    return max(shares)


def assume(spec: ModelSpec, text: str) -> ModelSpec:
    return replace(spec, assumed=(*spec.assumed, text))


def row(tensors: Tensors, name: str) -> Tensor:
    return forms.flat(tensors[name]).float()
