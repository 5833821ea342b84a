"""Pipelines of toy networks that know each other, as a server's do; batches are as large as may be."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from model_inference import Model
from pipelines.batching.batcher import Batcher
from pipelines.frames.preprocess import Preprocessor
from pipelines.machine.admission import Admission
from pipelines.media.medium import Limits
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.pipeline import Pipeline, StagePool, Stages
from pipelines.protocol.answers import ClassificationAnswer
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.telemetry.counters import Telemetry

LABELS = ("nothing", "cat", "dog", "bird")
# In model pixels of 32 x 24: left, top, right, bottom; class.
BOXES = ((2, 3, 8, 20, 1), (10, 5, 30, 12, 2), (20, 10, 31.7, 23.8, 1), (0, 0, 3.3, 3.1, 3))


class Boxes(nn.Module):
    """The same boxes in every picture that is not black."""

    def forward(self, pixels_nchw: Tensor) -> list[dict[str, Tensor]]:
        table = torch.tensor(BOXES)
        found = {"boxes": table[:, :4], "labels": table[:, 4].long(), "scores": torch.linspace(0.9, 0.6, 4)}
        return [{key: one[: len(one) * int(x.max() > 0)] for key, one in found.items()} for x in pixels_nchw]


def detector() -> ModelSpec:
    """Of frames at any size; what it finds is the same part of each."""
    plain = Preprocessing(resize_px=(24, 32), mean=(0, 0, 0), std=(1, 1, 1))
    return ModelSpec(
        name="boxes",
        task="detection",
        build=Boxes,
        source="test",
        preprocessing=plain,
        max_batch=64,
        labels=LABELS,
    )


def pipeline_of(spec: ModelSpec, name: str, table: dict[str, Pipeline], chunk: int = 16) -> Pipeline:
    """A pipeline with one lane, entered into a table of all."""
    telemetry = Telemetry()

    def make() -> Stages:
        return Stages(
            preprocess=Preprocessor(spec.preprocessing, device="cpu", max_frames=chunk),
            postprocess=Postprocessor(device="cpu", max_frames=chunk, classes=4),
        )

    table[name] = Pipeline(
        Batcher(Model(spec, "cpu"), threads=1, batch_s=600),
        StagePool(make, 1),
        Limits(chunk_frames=chunk),
        telemetry,
        Admission(1 << 30, telemetry),
        name=name,
        served=lambda: table,
    )
    return table[name]


def classified(pipeline: Pipeline, pixels_hwc: npt.NDArray[np.uint8]) -> ClassificationAnswer:
    """The answer to a picture alone."""
    file = io.BytesIO()
    Image.fromarray(pixels_hwc).save(file, "png")
    (answer,) = pipeline.run(file.getvalue(), Options(top_k=1))
    assert isinstance(answer, ClassificationAnswer)
    return answer
