"""The likeliest classes of frames and of a whole medium, and that a task is one file and one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines import tasks
from pipelines.assembly import make_pipeline
from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput, Output
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import Answer, ClassificationAnswer
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.job import SELECTION, FrameJob, Task
from pipelines.tasks.ranking import Ranking
from tests.support import media

FACTS = Preprocessing(resize_px=(8, 8), mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1))
LABELS = ("red", "green", "blue")


class MeanColour(nn.Module):
    """Logits (N, 3): the mean of each channel."""

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        return pixels_nchw.mean(dim=(2, 3))


def spec_of(task: Any = "classification", **fields: Any) -> ModelSpec:
    return ModelSpec(
        name="colour",
        task=task,
        build=MeanColour,
        source="test",
        labels=LABELS,
        preprocessing=FACTS,
        **fields,
    )


def pipeline_of(spec: ModelSpec) -> Pipeline:
    return make_pipeline(spec, "cpu", limits=Limits(chunk_frames=4))


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    made = pipeline_of(spec_of())
    yield made
    made.batcher.close()


def clip(names: Sequence[str]) -> bytes:
    """Frames of one colour each."""
    pictures = []
    for name in names:
        picture = np.full((32, 48, 3), 60, np.uint8)
        picture[..., LABELS.index(name)] = 200
        pictures.append(picture)
    return media.clip(pictures=pictures, width=48, height=32)


def ask(pipeline: Pipeline, medium: bytes, **options: Any) -> ClassificationAnswer:
    parts = [one for one in pipeline.run(medium, Options(**options)) if isinstance(one, ClassificationAnswer)]
    return ClassificationAnswer.concatenate(parts)


def test_each_frame_has_its_likeliest_classes_and_the_medium_their_mean(pipeline: Pipeline) -> None:
    names = ["red"] * 5 + ["green"] * 3 + ["blue"] * 2
    answer = ask(pipeline, clip(names), top_k=2)
    assert answer.class_name[:, 0].tolist() == names
    assert answer.class_id[:, 0].tolist() == [LABELS.index(name) for name in names]
    assert answer.probability.shape == (10, 2)
    assert (answer.probability[:, 0] > 0.99).all()
    assert answer.mean_class_name == ("red", "green")
    np.testing.assert_allclose(answer.mean_probability, [0.5, 0.3], atol=0.01)


def test_the_mean_of_a_stream_is_of_all_frames_so_far(pipeline: Pipeline) -> None:
    parts = list(pipeline.run(clip(["red"] * 5 + ["green"] * 7), Options()))
    means = [part.mean_class_name[0] for part in parts if isinstance(part, ClassificationAnswer)]
    assert means == ["red", "red", "green"]


def test_more_classes_than_there_are_cannot_be_named(pipeline: Pipeline) -> None:
    assert ask(pipeline, media.image("png"), top_k=1000).class_name.shape == (1, 3)


def test_no_frame_is_an_answer_without_rows(pipeline: Pipeline) -> None:
    answer = ask(pipeline, clip(["red", "red"]), start_s=0.05, keyframes_only=True)
    assert (len(answer), answer.class_id.shape, answer.final) == (0, (0, 3), True)


def test_probabilities_are_taken_as_they_are() -> None:
    scores = nn.Sequential(MeanColour(), nn.Sigmoid())
    made = pipeline_of(replace(spec_of(activation="none"), build=lambda: scores))
    answer = ask(made, media.image("png"))
    made.batcher.close()
    assert not np.isclose(answer.probability.sum(), 1)


def test_the_caption_is_drawn_unless_alpha_is_none(pipeline: Pipeline) -> None:
    medium = clip(["red"] * 2)
    plain, drawn = (ask(pipeline, medium, overlay="raw", alpha=alpha).overlay for alpha in (0.0, 0.5))
    assert len(plain) == len(drawn) == 2
    assert plain[0] != drawn[0]
    assert ask(pipeline, medium, overlay="mp4").video[4:8] == b"ftyp"


def test_of_equal_classes_the_first_leads() -> None:
    ranks = Ranking(LABELS, 3).add([np.full((1, 3), 1 / 3, np.float32)])
    assert ranks.class_id.tolist() == [[0, 1, 2]]


class Greyness(FrameJob):
    """A task of its own: how grey each frame is."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self._ranking = Ranking(("grey", "coloured"), options.top_k)

    def read(self, output: Output) -> Any:
        assert isinstance(output, LogitOutput)
        spread = output.logits.amax(dim=1) - output.logits.amin(dim=1)
        return torch.stack([torch.exp(-spread), 1 - torch.exp(-spread)], dim=1).numpy().copy()

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[Any],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> Answer:
        assert frames is not None
        ranks, mean = self._ranking.add(parts), self._ranking.mean
        return ClassificationAnswer(
            frame_index=frames.frame_index,
            pts_s=frames.pts_s,
            size=np.array([frames.height_px, frames.width_px]),
            class_id=ranks.class_id,
            class_name=ranks.class_name,
            probability=ranks.probability,
            mean_class_id=mean.class_id[0],
            mean_class_name=tuple(mean.class_name[0]),
            mean_probability=mean.probability[0],
            final=final,
        )


def test_a_task_is_one_job_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the table knows the tasks: with one line more, a pipeline has one more."""
    line = Task(
        answer=ClassificationAnswer,
        options=(*SELECTION, "top_k"),
        job=Greyness,
        model_inputs=(),
        model_outputs=(),
    )
    table = {**{str(name): task for name, task in tasks.TASKS.items()}, "greyness": line}
    monkeypatch.setattr("pipelines.pipeline.TASKS", table)
    made = pipeline_of(spec_of("greyness"))
    grey = media.clip(pictures=[np.full((32, 48, 3), 128, np.uint8)] * 2, width=48, height=32)
    assert ask(made, grey).class_name[:, 0].tolist() == ["grey"] * 2
    assert ask(made, clip(["red"])).class_name[:, 0].tolist() == ["coloured"]
    made.batcher.close()
