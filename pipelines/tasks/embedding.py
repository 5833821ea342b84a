"""Embedding: vectors (N, E) of frames, for search and for telling again; and their mean over the medium.

Vectors are divided by their length, unless the model's spec says otherwise, so that a product of two is the
cosine of the angle between them. A vector that is not finite is answered as zeros, and not in the mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.models.outputs import LogitOutput, Output
from pipelines.models.spec import ModelSpec
from pipelines.protocol.answers import EmbeddingAnswer, Floats
from pipelines.protocol.columns import Column
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.job import FRAME_PIXELS, SELECTION, FrameJob, Task, about
from pipelines.tasks.ranking import of_finite

LEAST_LENGTH = 1e-12


class Embedding(FrameJob):
    """One medium's job."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self._normalise = spec.normalise
        self._sum: npt.NDArray[np.float64] | None = None
        self._rows = 0

    def read(self, output: Output) -> Floats:
        assert isinstance(output, LogitOutput)
        return np.asarray(of_finite(output.logits, output.logits).cpu().numpy(), np.float32)

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[Floats],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> EmbeddingAnswer:
        given = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        not_finite = np.isnan(given).any(axis=1)
        vectors = self._sized(np.where(not_finite[:, None], 0, given))
        if len(vectors):
            total = vectors.sum(axis=0, dtype=np.float64)
            self._sum = total if self._sum is None else self._sum + total
            self._rows += int((~not_finite).sum())
        return EmbeddingAnswer(
            **about(frames),
            not_finite=not_finite,
            embedding=vectors,
            mean_embedding=self._mean(),
            final=final,
        )

    def _mean(self) -> Floats:
        if self._sum is None:
            return np.empty(0, np.float32)
        mean: Floats = self._sized(np.asarray(self._sum[None] / max(1, self._rows), np.float32))[0]
        return mean

    def _sized(self, vectors_ne: Floats) -> Floats:
        """Vectors of length 1, if they are to be; one of zeros stays as it is."""
        if not self._normalise:
            return vectors_ne
        # The squares of large numbers are too large for float32.
        length = np.linalg.norm(vectors_ne.astype(np.float64), axis=1, keepdims=True)
        return np.asarray(vectors_ne / np.maximum(length, LEAST_LENGTH), np.float32)


TASK = Task(
    answer=EmbeddingAnswer,
    options=SELECTION,
    job=Embedding,
    model_inputs=(FRAME_PIXELS,),
    model_outputs=(
        Column(name="logits", dtype=np.float32, dims=("E",), help="the vector, of any length"),
        Column(name="embedding", dtype=np.float32, dims=("E",), help="the vector, of any length"),
    ),
)
