"""Classification: logits (N, K) → the k likeliest classes of each frame, and of the mean over the medium.

If several labels may be true at once (`ModelSpec.multi_label`), all above `score_threshold` are answered.
Named attributes (`ModelSpec.attributes`) are answered beside the classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.models.outputs import Output
from pipelines.models.spec import ModelSpec
from pipelines.protocol.answers import ClassificationAnswer, Floats
from pipelines.protocol.columns import Column
from pipelines.protocol.options import Options
from pipelines.rendering.annotate import draw_caption
from pipelines.rendering.encode import PictureWriter
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks import attributes
from pipelines.tasks.attributes import Values
from pipelines.tasks.job import FRAME_PIXELS, SELECTION, FrameJob, Task, about
from pipelines.tasks.ranking import Ranking, Ranks


class Classification(FrameJob):
    """One medium's job."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self._spec = spec
        self._ranking = Ranking.of(options, spec)
        self._writer = PictureWriter(options.overlay)
        self._plain = options.alpha == 0

    def read(self, output: Output) -> Floats:
        return attributes.read(output, self._spec)

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[Floats],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> ClassificationAnswer:
        ranks = self._ranking.add([part[:, : len(self._spec.labels)] for part in parts])
        told = attributes.values(parts, self._spec)
        overlay, video = self._pictures(frames, ranks, told, postprocessor, final=final)
        mean = self._ranking.mean
        return ClassificationAnswer(
            **about(frames),
            not_finite=ranks.not_finite.astype(np.uint8),
            class_id=ranks.class_id,
            class_name=ranks.class_name,
            probability=ranks.probability,
            mean_class_id=mean.class_id[0],
            mean_class_name=tuple(mean.class_name[0]),
            mean_probability=mean.probability[0],
            attribute_names=told.names,
            attribute_value=told.value,
            attribute_probability=told.probability,
            overlay=overlay,
            video=video,
            final=final,
        )

    def _pictures(
        self,
        frames: FrameBatch | None,
        ranks: Ranks,
        told: Values,
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> tuple[list[bytes], bytes]:
        if frames is None or not self._writer.wanted:
            return [], b""
        drawn = np.array(postprocessor.on_host(frames.pixels_nhwc))
        if not self._plain:
            lines = told.captions if told.names else ranks.captions
            drawn = np.stack([draw_caption(one, lines(row)) for row, one in enumerate(drawn)])
        film = self._writer.film(drawn, frames.played_s)
        return self._writer.pictures(drawn), film + (self._writer.close() if final else b"")


TASK = Task(
    answer=ClassificationAnswer,
    options=(*SELECTION, "top_k", "score_threshold", "overlay", "alpha"),
    job=Classification,
    model_inputs=(FRAME_PIXELS,),
    model_outputs=(Column(name="logits", dtype=np.float32, dims=("K",), help="scores of the K classes"),),
)
