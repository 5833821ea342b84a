"""Named attributes of frames: the value of each, and how probable that is. Knows no pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.models.attributes import is_flag
from pipelines.models.outputs import LogitOutput, Output
from pipelines.models.spec import Attribute, ModelSpec
from pipelines.protocol.answers import Floats, Texts
from pipelines.tasks.ranking import activated, of_finite, probabilities


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """The A attributes of each of N rows, `(N, A)` each: their values, and how probable these are.

    Of rows that are not finite values are empty, and probabilities 0.
    """

    names: tuple[str, ...]
    value: Texts
    probability: Floats

    def captions(self, row: int) -> list[str]:
        """A row in words, a line for each attribute."""
        told = zip(self.names, self.value[row], self.probability[row], strict=True)
        return [f"{name}: {value} {100 * sure:.2f} %" for name, value, sure in told if value or sure]


def read(output: Output, spec: ModelSpec) -> Floats:
    """Probabilities float32 `(n, K + C)` on the host: of the K classes, and of the C columns of attributes.

    If a model has nothing but attributes, its classes are those of the first one that is a choice; if all
    are flags, the flags. Rows are NaN where the network gave a number that is not finite.
    """
    if not spec.attributes:
        return probabilities(output, spec)
    assert isinstance(output, LogitOutput)
    columns = [_columns(output, one).cpu() for one in spec.attributes]
    parts = np.asarray(torch.cat(columns, dim=1).numpy(), np.float32)
    choice = next((one for one in spec.attributes if not is_flag(one)), None)
    if choice is None and spec.labels == tuple(one.name for one in spec.attributes):
        return _all_or_none(parts, parts)
    if choice is not None and (choice.labels, choice.output) == (spec.labels, spec.output):
        classes = np.asarray(columns[spec.attributes.index(choice)].numpy(), np.float32)
    else:
        classes = probabilities(output, spec)
    return _all_or_none(classes, parts)


def _columns(output: LogitOutput, one: Attribute) -> Tensor:
    numbers = output.tensors[one.output]
    return of_finite(activated(numbers[:, one.start : one.stop], one.activation), numbers)


def _all_or_none(classes: Floats, parts: Floats) -> Floats:
    """Both side by side; a row that is NaN in one place is NaN in all."""
    rows = np.concatenate([classes, parts], axis=1)
    rows[np.isnan(rows).any(axis=1)] = np.nan
    return rows


def values(parts: Sequence[Floats], spec: ModelSpec) -> Values:
    """The attributes of N rows, from what `read` left of their batches."""
    names = tuple(one.name for one in spec.attributes)
    columns = [one[:, len(spec.labels) :] for one in parts]
    rows = np.concatenate([np.empty((0, columns[0].shape[1] if columns else 0), np.float32), *columns])
    value = np.empty((len(rows), len(names)), object)
    probability = np.empty((len(rows), len(names)), np.float32)
    start = 0
    for place, one in enumerate(spec.attributes if len(rows) else ()):
        stop = start + (1 if is_flag(one) else len(one.labels))
        value[:, place], probability[:, place] = _decided(rows[:, start:stop], one)
        start = stop
    unknown = np.isnan(rows).any(axis=1)
    value[unknown], probability[unknown] = "", 0
    return Values(names=names, value=value, probability=probability)


def _decided(rows: Floats, one: Attribute) -> tuple[Texts, Floats]:
    """The value of one attribute in each row, and how probable it is."""
    labels = np.array(one.labels, object)
    if not is_flag(one):
        return labels[rows.argmax(axis=1)], rows.max(axis=1)
    yes = rows[:, 0] > one.threshold
    return labels[np.where(yes, 0, 1)], np.where(yes, rows[:, 0], 1 - rows[:, 0])
