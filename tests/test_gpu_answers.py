"""The same request on the CPU and on a GPU: the same answer, whichever decoder ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import pytest

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import (
    ANSWERS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.options import Decoder, Options
from pipelines.zoo.demo.specs import demo_specs
from tests.conftest import ROOT
from tests.support import media

Device = Literal["cpu", "cuda"]
CLIPS = {name: (ROOT / "assets" / f"{name}.mp4").read_bytes() for name in ("demo", "demo_action")}


@contextmanager
def pipeline_on(device: Device, task: str) -> Iterator[Pipeline]:
    spec = next(spec for name, spec in demo_specs().items() if name == task)
    pipeline = make_pipeline(spec, device, limits=Limits())
    yield pipeline
    pipeline.batcher.close()


def answer_on(device: Device, task: str, medium: bytes, decoder: Decoder = "auto") -> Answer:
    options = Options(max_frames=48, decoder=decoder)
    with pipeline_on(device, task) as pipeline:
        return ANSWERS[task].concatenate(list(pipeline.run(medium, options)))


def assert_same(one: Answer, other: Answer) -> None:
    """Top-1 equal and scores within 0.01; boxes within a pixel; 99.5 % of the pixels."""
    assert type(one) is type(other)
    np.testing.assert_array_equal(one.frame_index, other.frame_index)
    np.testing.assert_allclose(one.pts_s, other.pts_s, atol=1e-6)
    if isinstance(one, ClassificationAnswer | ActionAnswer):
        assert isinstance(other, ClassificationAnswer | ActionAnswer)
        np.testing.assert_array_equal(one.class_id[:, 0], other.class_id[:, 0])
        np.testing.assert_allclose(one.probability, other.probability, atol=0.01)
    elif isinstance(one, DetectionAnswer):
        assert isinstance(other, DetectionAnswer)
        np.testing.assert_array_equal(one.class_id, other.class_id)
        np.testing.assert_allclose(one.box, other.box, atol=1)
        np.testing.assert_allclose(one.score, other.score, atol=0.01)
    else:
        assert isinstance(one, SegmentationAnswer)
        assert isinstance(other, SegmentationAnswer)
        moved = np.abs(one.class_pixels - other.class_pixels).sum(axis=1) / 2
        assert (moved <= 0.005 * one.height_px * one.width_px).all()


@pytest.mark.gpu
@pytest.mark.parametrize("decoder", ["cpu", "nvdec"])
@pytest.mark.parametrize("task", list(ANSWERS))
def test_a_video_is_answered_alike(task: str, decoder: Decoder) -> None:
    clip = CLIPS["demo_action" if task == "action" else "demo"]
    on_gpu = answer_on("cuda", task, clip, decoder)
    assert on_gpu.decoder == ("nvdec" if decoder == "nvdec" else "pyav")
    assert_same(answer_on("cpu", task, clip, "cpu"), on_gpu)


@pytest.mark.gpu
@pytest.mark.parametrize("task", list(ANSWERS))
def test_a_picture_is_answered_alike(task: str) -> None:
    picture = media.image("png", width=320, height=200)
    assert_same(answer_on("cpu", task, picture), answer_on("cuda", task, picture))


def test_the_comparison_tells_answers_apart() -> None:
    clip = CLIPS["demo"]
    whole = answer_on("cpu", "classification", clip)
    assert_same(whole, whole)
    with pytest.raises(AssertionError):
        assert_same(whole, answer_on("cpu", "classification", CLIPS["demo_action"]))


def copied(pipeline: Pipeline) -> float:
    return pipeline.telemetry.snapshot()["copies"]["pictures_from_gpu"]


@pytest.mark.gpu
@pytest.mark.parametrize("task", ["classification", "detection", "segmentation", "action"])
def test_pixels_stay_on_the_gpu_unless_they_are_asked_for(task: str) -> None:
    medium = CLIPS["demo_action" if task == "action" else "demo"]
    with pipeline_on("cuda", task) as pipeline:
        list(pipeline.run(medium, Options(max_frames=48)))
        assert copied(pipeline) == 0
        list(pipeline.run(medium, Options(max_frames=48, overlay="jpeg")))
        assert copied(pipeline) > 0
