"""Clips over a medium's frames: which frames are in them, used as they are, and what becomes of the rest."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from typing import Any

import av
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipelines.assembly import make_pipeline
from pipelines.frames.batch import FrameBatch
from pipelines.media.medium import Limits
from pipelines.models.spec import Clip, ModelSpec, Preprocessing
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import ActionAnswer
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options, Tail
from pipelines.tasks.action import Action, Span, Window
from tests.support import media

LENGTH = 4


def chunk(first: int, count: int) -> tuple[Tensor, FrameBatch]:
    """Frames whose pixels are their number."""
    numbers = np.arange(first, first + count)
    pixels = torch.from_numpy(numbers).float().view(-1, 1, 1, 1).expand(count, 3, 2, 2)
    frames = FrameBatch.of(np.zeros((count, 2, 2, 3), np.uint8), pts_s=numbers / 10, frame_index=numbers)
    return pixels, frames


def numbers_of(clips: Tensor | None) -> list[list[int]]:
    """The numbers of the frames in each clip."""
    return [] if clips is None else clips[:, 0, :, 0, 0].int().tolist()


def slide(total: int, chunk_frames: int, stride: int, tail: Tail) -> tuple[list[list[int]], list[Span]]:
    window = Window(LENGTH, stride, tail)
    found: list[list[int]] = []
    spans: list[Span] = []
    for first in range(0, total, chunk_frames):
        clips, more = window.add(*chunk(first, min(chunk_frames, total - first)))
        found += numbers_of(clips)
        spans += more
    clips, more = window.rest()
    return found + numbers_of(clips), spans + more


def expected(total: int, stride: int, tail: Tail) -> list[list[int]]:
    """The same, by the words of the manual."""
    clips = [list(range(s, s + LENGTH)) for s in range(0, total, stride) if s + LENGTH <= total]
    covered = clips[-1][-1] + 1 if clips else 0
    rest = list(range(len(clips) * stride, total))
    if tail != "drop" and rest and covered < total:
        clips.append(
            [rest[min(k, len(rest) - 1)] if tail == "pad" else rest[k % len(rest)] for k in range(LENGTH)]
        )
    return clips


@pytest.mark.parametrize("tail", ["drop", "pad", "repeat"])
@pytest.mark.parametrize("stride", [1, 2, 3, 4, 5, 7, 11])
@pytest.mark.parametrize("chunk_frames", [1, 3, 4, 16])
def test_clips_slide_over_chunks_of_any_length(chunk_frames: int, stride: int, tail: Tail) -> None:
    for total in (1, 3, 4, 5, 8, 9, 13, 30):
        found, spans = slide(total, chunk_frames, stride, tail)
        assert found == expected(total, stride, tail), total
        assert [(span.first_index, span.last_index) for span in spans] == [(c[0], max(c)) for c in found]
        assert [span.last_pts_s for span in spans] == [max(c) / 10 for c in found]


def test_a_clips_last_frame_lies_in_the_chunk_that_completes_it() -> None:
    window = Window(LENGTH, 2, "drop")
    assert window.add(*chunk(0, 3))[1] == []
    assert [span.last_place for span in window.add(*chunk(3, 4))[1]] == [0, 2]


def test_a_clip_has_the_stretch_of_its_first_frame_and_the_damage_of_any() -> None:
    """Clips go on over a break, so that no frame is lost there."""
    pixels, frames = chunk(0, 11)
    stretch = np.array([0] * 6 + [1] * 5)
    damaged = np.isin(np.arange(11), [4, 10])
    marked = dataclasses.replace(frames, stretch=stretch, damaged=damaged)
    for stride, expected in (
        (4, [(0, 0, False), (4, 0, True), (8, 1, True)]),
        (3, [(0, 0, False), (3, 0, True), (6, 1, False), (9, 1, True)]),
        (7, [(0, 0, False), (7, 1, True)]),
    ):
        window = Window(LENGTH, stride, "pad")
        spans = [*window.add(pixels, marked)[1], *window.rest()[1]]
        assert [(span.first_index, span.stretch, span.damaged) for span in spans] == expected


def test_overlapping_clips_share_the_memory_of_their_frames() -> None:
    clips, _ = Window(LENGTH, 1, "drop").add(*chunk(0, 16))
    assert clips is not None
    assert len(clips) == 13
    assert clips.untyped_storage().nbytes() < 17 * 3 * 2 * 2 * 4


class Brightness(nn.Module):
    """Dark or bright, by the mean of a clip; remembers how many frames it was given."""

    def forward(self, clips: Tensor) -> Tensor:
        level = clips.mean(dim=(1, 2, 3, 4))
        return torch.stack([-level, level], dim=1)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    facts = Preprocessing(resize_px=(16, 16), mean=(0.5, 0.5, 0.5), std=(0.1, 0.1, 0.1), antialias=False)
    spec = ModelSpec(
        name="brightness",
        task="action",
        build=Brightness,
        source="test",
        labels=("dark", "bright"),
        preprocessing=facts,
        clip=Clip(length=LENGTH, fps=10),
    )

    made = make_pipeline(spec, "cpu", limits=Limits(chunk_frames=4))
    yield made
    made.batcher.close()


def clip(levels: list[int], rate: int = 10, **settings: Any) -> bytes:
    pictures = [np.full((32, 48, 3), level, np.uint8) for level in levels]
    return media.clip(pictures=pictures, width=48, height=32, rate=rate, **settings)


def ask(pipeline: Pipeline, medium: bytes, **options: Any) -> ActionAnswer:
    parts = [part for part in pipeline.run(medium, Options(**options)) if isinstance(part, ActionAnswer)]
    assert [part.final for part in parts] == [False] * (len(parts) - 1) + [True]
    return ActionAnswer.concatenate(parts)


def test_each_clip_is_classified_with_its_span(pipeline: Pipeline) -> None:
    answer = ask(pipeline, clip([20] * 4 + [230] * 6))
    assert answer.class_name[:, 0].tolist() == ["dark", "bright", "bright"]
    assert answer.frame_index.tolist() == [0, 4, 8]
    assert answer.last_frame_index.tolist() == [3, 7, 9]
    np.testing.assert_allclose(answer.last_pts_s, [0.3, 0.7, 0.9], atol=1e-4)
    assert answer.mean_class_name == ("bright", "dark")
    np.testing.assert_allclose(answer.probability.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize(("rate", "indices"), [(20, [0, 8]), (10, [0, 4]), (5, [0, 2])])
def test_frames_are_taken_at_the_models_rate(pipeline: Pipeline, rate: int, indices: list[int]) -> None:
    """Twice as many frames a second: every other one; half as many: each one twice."""
    answer = ask(pipeline, clip([128] * max(indices) * 2, rate=rate))
    assert answer.frame_index[:2].tolist() == indices


def test_the_request_may_choose_rate_length_and_stride(pipeline: Pipeline) -> None:
    medium = clip([20] * 20)
    assert ask(pipeline, medium, fps=5).frame_index.tolist() == [0, 8, 16]
    assert ask(pipeline, medium, clip_length=10).frame_index.tolist() == [0, 10]
    assert ask(pipeline, medium, clip_stride=8, tail="drop").frame_index.tolist() == [0, 8, 16]


@pytest.mark.parametrize(("tail", "count"), [("drop", 0), ("pad", 1), ("repeat", 1)])
def test_a_medium_shorter_than_a_clip(pipeline: Pipeline, tail: Tail, count: int) -> None:
    answer = ask(pipeline, clip([230] * 3), tail=tail)
    assert len(answer) == count
    assert answer.class_name.shape == (count, 2)


def test_an_image_is_a_clip_of_one_frame(pipeline: Pipeline) -> None:
    answer = ask(pipeline, media.image("png"))
    assert answer.frame_index.tolist() == answer.last_frame_index.tolist() == [0]


def test_pictures_are_of_clips_and_films_of_all_frames(pipeline: Pipeline) -> None:
    medium = clip([128] * 10)
    assert [picture[:2] for picture in ask(pipeline, medium, overlay="jpeg").overlay] == [b"\xff\xd8"] * 3
    raw = ask(pipeline, medium, overlay="raw", alpha=0).overlay
    assert np.abs(np.frombuffer(raw[0], np.uint8).astype(int) - 128).max() < 8
    with av.open(io.BytesIO(ask(pipeline, medium, overlay="mp4").video), "r") as film:
        assert len(list(film.decode(video=0))) == 10


def test_clips_of_joined_recordings_lose_no_frame(pipeline: Pipeline) -> None:
    """Its second half begins at 0 again; an hour's leap shows no still for an hour."""
    part = clip([20] * 6, container="mpegts")
    for later in (part, clip([20] * 6, container="mpegts", start_s=3600)):
        answer = ask(pipeline, part + later, overlay="mp4", clip_stride=2, tail="drop")
        assert answer.frame_index.tolist() == [0, 2, 4, 6, 8]
        assert answer.stretch.tolist() == [0, 0, 0, 1, 1]
        with av.open(io.BytesIO(answer.video), "r") as film:
            times_s = [float(frame.time or 0) for frame in film.decode(video=0)]
        np.testing.assert_allclose(np.diff(times_s), [0.1] * 11, atol=1e-4)


def test_a_length_that_the_model_does_not_take_is_the_requests_fault(pipeline: Pipeline) -> None:
    spec = dataclasses.replace(pipeline.spec, clip=Clip(length=LENGTH, fps=10, fixed=True))
    with pytest.raises(InvalidOptions, match=r"clip_length=3.*takes clips of 4 frames"):
        Action(spec, Options(clip_length=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_length": 33}, "clip_length=33 is over 8 times the model's 4"),
        ({"fps": 81}, "fps=81 is over 8 times the model's 10"),
    ],
)
def test_clips_that_cost_too_much_are_refused(
    pipeline: Pipeline, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidOptions, match=message):
        list(pipeline.run(media.image("png"), Options(**options)))
