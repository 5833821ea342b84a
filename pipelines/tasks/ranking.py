"""Probabilities of classes → the likeliest ones by name, and their mean over a medium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.models.outputs import LogitOutput, Output
from pipelines.models.spec import ModelSpec
from pipelines.protocol.answers import Floats, Ints, Texts

CAPTION_LINES = 5


def probabilities(output: Output, spec: ModelSpec) -> Floats:
    """Probabilities float32 `(n, K)` on the host."""
    assert isinstance(output, LogitOutput)
    logits = output.logits
    values = logits if spec.probabilities else torch.softmax(logits, dim=1)
    return np.asarray(values.cpu().numpy(), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """The k likeliest classes of each of N rows, `(N, k)` each."""

    class_id: Ints
    class_name: Texts
    probability: Floats

    def captions(self, row: int) -> list[str]:
        """A row in words, a line for each class."""
        named = zip(self.class_name[row], self.probability[row], strict=True)
        return [f"{name} {100 * value:.2f} %" for name, value in named][:CAPTION_LINES]


class Ranking:
    """Ranks rows of probabilities, and the mean over all rows that it has been given."""

    def __init__(self, labels: Sequence[str], top_k: int) -> None:
        self._labels = np.array(labels, dtype=object)
        self._top_k = min(top_k, len(labels))
        self._sum: npt.NDArray[np.float64] = np.zeros(len(labels))
        self._rows = 0

    def add(self, parts: Sequence[Floats]) -> Ranks:
        """The ranks of N more rows of probabilities, `(n, K)` each; of equal ones the first class leads."""
        probability_nk = np.concatenate([np.empty((0, len(self._labels)), np.float32), *parts])
        self._sum += probability_nk.sum(axis=0, dtype=np.float64)
        self._rows += len(probability_nk)
        return self._rank(probability_nk)

    @property
    def mean(self) -> Ranks:
        """The ranks `(1, k)` of the mean of all rows so far."""
        return self._rank(np.asarray(self._sum[None] / max(1, self._rows), np.float32))

    def _rank(self, probability_nk: Floats) -> Ranks:
        order = np.argsort(-probability_nk, axis=1, kind="stable")[:, : self._top_k]
        values = np.take_along_axis(probability_nk, order, axis=1)
        return Ranks(class_id=order, class_name=self._labels[order], probability=values)
