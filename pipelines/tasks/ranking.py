"""Probabilities of classes → the likeliest ones by name, and their mean over a medium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.models.outputs import LogitOutput, Output, finite_rows
from pipelines.models.spec import Activation, ModelSpec
from pipelines.protocol.answers import Floats, Ints, Texts
from pipelines.protocol.options import Options

CAPTION_LINES = 5
# Of what is not answered, since it is not above the threshold.
NO_CLASS = -1
MULTI_LABEL_THRESHOLD = 0.5


def activated(numbers: Tensor, activation: Activation | None) -> Tensor:
    """Probabilities of a network's numbers `(n, K, …)`."""
    if activation == "none":
        # The first passes were within them; rounding may be out by a little.
        return numbers.clamp(0, 1)
    return torch.sigmoid(numbers) if activation == "sigmoid" else torch.softmax(numbers, dim=1)


def probabilities(output: Output, spec: ModelSpec) -> Floats:
    """Probabilities float32 `(n, K)` on the host; of one column with two labels also of the first.

    Rows are NaN where the network gave a number that is not finite.
    """
    assert isinstance(output, LogitOutput)
    values = activated(output.logits, spec.activation)
    if values.shape[1] == 1 and len(spec.labels) == 2:
        values = torch.cat([1 - values, values], dim=1)
    return np.asarray(of_finite(values, output.logits).cpu().numpy(), np.float32)


def of_finite(values: Tensor, numbers: Tensor) -> Tensor:
    """Values `(n, …)` made of a network's numbers: NaN in rows where a number is not finite."""
    finite = finite_rows(numbers)
    return values if bool(finite.all()) else values.masked_fill(~finite[:, None], torch.nan)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """The k likeliest classes of each of N rows, `(N, k)` each; -1, "" and 0 for those that do not count.

    `not_finite` `(N,)` are the rows that are not finite, of which none counts.
    """

    class_id: Ints
    class_name: Texts
    probability: Floats
    not_finite: npt.NDArray[np.bool_]

    def captions(self, row: int) -> list[str]:
        """A row in words, a line for each class."""
        counts = self.class_id[row] != NO_CLASS
        named = zip(self.class_name[row][counts], self.probability[row][counts], strict=True)
        return [f"{name} {100 * value:.2f} %" for name, value in named][:CAPTION_LINES]


class Ranking:
    """Ranks rows of probabilities, and the mean over all rows that it has been given.

    Args:
        threshold: only classes above it count; 0: all do.
    """

    def __init__(self, labels: Sequence[str], top_k: int, threshold: float = 0.0) -> None:
        self._labels = np.array(labels, dtype=object)
        self._top_k = min(top_k, len(labels))
        self._threshold = threshold
        self._sum: npt.NDArray[np.float64] = np.zeros(len(labels))
        self._rows = 0

    @classmethod
    def of(cls, options: Options, spec: ModelSpec) -> Ranking:
        """As a request asks for; where several labels may be true at once, of all that are."""
        usual = MULTI_LABEL_THRESHOLD if spec.multi_label else 0.0
        thresholds = (options.score_threshold, spec.score_threshold, usual)
        all_of_them = spec.multi_label and not options.is_set("top_k")
        top_k = len(spec.labels) if all_of_them else options.top_k
        return cls(spec.labels, top_k, next(one for one in thresholds if one >= 0))

    def add(self, parts: Sequence[Floats]) -> Ranks:
        """The ranks of N more rows of probabilities, `(n, K)` each; of equal ones the first class leads."""
        probability_nk = np.concatenate([np.empty((0, len(self._labels)), np.float32), *parts])
        ranks = self._rank(probability_nk)
        finite = probability_nk[~ranks.not_finite]
        self._sum += finite.sum(axis=0, dtype=np.float64)
        self._rows += len(finite)
        return ranks

    @property
    def mean(self) -> Ranks:
        """The ranks `(1, k)` of the mean of all rows so far that are finite; without any, none counts."""
        mean = self._sum / self._rows if self._rows else np.full(len(self._labels), np.nan)
        return self._rank(np.asarray(mean[None], np.float32))

    def _rank(self, probability_nk: Floats) -> Ranks:
        order = np.argsort(-probability_nk, axis=1, kind="stable")[:, : self._top_k]
        values = np.take_along_axis(probability_nk, order, axis=1)
        names = self._labels[order]
        not_finite = ~np.isfinite(probability_nk).all(axis=1)
        left_out = np.repeat(not_finite[:, None], self._top_k, axis=1)
        if self._threshold > 0:
            left_out |= ~(values > self._threshold)
        order[left_out], names[left_out], values[left_out] = NO_CLASS, "", 0
        return Ranks(class_id=order, class_name=names, probability=values, not_finite=not_finite)
