"""What a network gave for its first pictures, and what kind of numbers that is. Knows no tasks.

Pictures of mild noise alone would mislead: the logits that a network gives for them may all lie in 0..1. So
numbers count as probabilities only if they stay there for black, white and strong noise too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from pipelines.models import forms
from pipelines.models.graph import Port
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.protocol.errors import ModelUnavailable

# How far sums of probabilities may be from 1; quantised networks are that far off.
SUM_TOLERANCE = 0.01
# How far rounding takes a probability out of 0..1, or one that is sure from its end.
ROUNDING = 1e-3
# One number for a picture that stays within 0..1 and changes by less over all probes tells nothing.
LEAST_CHANGE = 0.05

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
        return [read(self.first), *map(read, self.more())]

    def of_pictures(self, read: Callable[[Tensors], Tensor]) -> Tensor:
        """What `read` makes of the outputs for all that a picture may be, `(n, K, …)`."""
        probed = torch.cat([read(one) for one in self.more()])
        return torch.cat([read(self.first), probed[:-1]])  # the last is far beyond

    def kind(self, read: Callable[[Tensors], Tensor]) -> Kind:
        """What the numbers are that `read` makes of the outputs, `(N, K, …)`."""
        if not _in_unit(read(self.first)):
            return "logits"
        values = self.values(read)
        if not all(map(_in_unit, values)):
            return "logits"
        if values[0].shape[1] > 1:
            sums = [(one.sum(dim=1) - 1).abs().max() for one in values]
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
    if not _in_unit(values) and bool(values.isfinite().all()):
        low, high = float(values.min()), float(values.max())
        raise ModelUnavailable(
            f"{spec.name} gives numbers of {low:.3g} to {high:.3g}, so they are no probabilities yet",
            hint='write "method": "softmax" for its outputs into the model-proc file'
            if spec.attributes
            else "--activation softmax (one class is true) or sigmoid (any may be)",
        )


def assume(spec: ModelSpec, text: str) -> ModelSpec:
    return replace(spec, assumed=(*spec.assumed, text))


def row(tensors: Tensors, name: str) -> Tensor:
    return forms.flat(tensors[name]).float()
