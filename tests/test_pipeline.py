"""Pipeline.run in process, with the demo model: chunks, order, faults after good frames, lent stages."""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import Answer, SegmentationAnswer
from pipelines.protocol.errors import InvalidMedia, InvalidOptions, TooLarge
from pipelines.protocol.options import OPTION_FIELDS, Options, Scalar, parse_options
from pipelines.tasks.segmentation import winners
from pipelines.zoo.demo.specs import demo_specs
from tests.conftest import ROOT
from tests.support import media

CHUNK = 4
SPEC = demo_specs()["segmentation"]
DEMO_LABELS = SPEC.labels
ALL = tuple(OPTION_FIELDS)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    made = make_pipeline(SPEC, "cpu", limits=Limits(chunk_frames=CHUNK), workers=2)
    yield made
    made.batcher.close()


def whole(answers: Iterable[Answer]) -> SegmentationAnswer:
    parts = [answer for answer in answers if isinstance(answer, SegmentationAnswer)]
    return SegmentationAnswer.concatenate(parts)


def test_answers_come_in_chunks_in_order_and_the_last_is_final(pipeline: Pipeline) -> None:
    answers = list(pipeline.run(media.clip(frames=10, rate=5), Options()))
    assert [len(answer) for answer in answers] == [4, 4, 2]
    assert [answer.final for answer in answers] == [False, False, True]
    joined = whole(answers)
    assert joined.frame_index.tolist() == list(range(10))
    np.testing.assert_allclose(joined.pts_s, np.arange(10) / 5, atol=1e-4)
    assert (joined.class_pixels.sum(axis=1) == 64 * 48).all()
    assert joined.decoder == "pyav"
    assert joined.decoder_reason


def test_the_first_answer_comes_before_the_tenth_chunk_is_decoded(pipeline: Pipeline) -> None:
    before = pipeline.telemetry.snapshot().get("chunks", {}).get("decoded", 0)
    answers = pipeline.run(media.clip(frames=20 * CHUNK), Options(mask="none"))
    assert len(next(answers)) == CHUNK
    assert pipeline.telemetry.snapshot()["chunks"]["decoded"] - before < 10
    assert sum(1 for _ in answers) == 19


@pytest.mark.parametrize(
    ("medium", "options", "urgent"),
    [
        (media.image(), Options(), True),
        (media.clip(frames=2 * CHUNK), Options(), False),
        (media.clip(frames=2 * CHUNK), Options(max_frames=1), True),
    ],
)
def test_what_is_about_one_frame_is_urgent(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, medium: bytes, options: Options, urgent: bool
) -> None:
    seen, submit = [], pipeline.batcher.submit

    def note(*args: Any, **terms: Any) -> Any:
        seen.append(terms["urgent"])
        return submit(*args, **terms)

    monkeypatch.setattr(pipeline.batcher, "submit", note)
    assert whole(pipeline.run(medium, options)).final
    assert set(seen) == {urgent}


@pytest.mark.parametrize(("start_s", "expected"), [(0.0, 1), (0.05, 0)])
def test_a_selection_of_nothing_is_an_answer_of_no_frames(
    pipeline: Pipeline, start_s: float, expected: int
) -> None:
    answers = list(pipeline.run(media.clip(frames=10), Options(start_s=start_s, keyframes_only=True)))
    assert sum(map(len, answers)) == expected
    assert answers[-1].final
    assert whole(answers[-1:]).class_names == DEMO_LABELS


def test_a_film_goes_on_where_times_leap(pipeline: Pipeline) -> None:
    times_s = [0, 0.1, 0.2, 0.3, 3600, 3600.1, 3600.2]
    answer = whole(pipeline.run(media.clip(frames=7, pts=times_s), Options(overlay="mp4")))
    np.testing.assert_allclose(answer.pts_s, times_s)
    assert answer.stretch.tolist() == [0] * 4 + [1] * 3
    with av.open(io.BytesIO(answer.video), "r") as film:
        shown_s = [float(frame.time or 0) for frame in film.decode(video=0)]
    np.testing.assert_allclose(shown_s, np.arange(7) / 10, atol=1e-4)


def test_good_frames_are_answered_before_the_fault_is_raised(pipeline: Pipeline) -> None:
    """Matroska breaks off in its middle; an MP4 without its index would not open at all."""
    broken = media.truncated(media.clip(frames=60, width=320, height=240, container="matroska"))
    answers: list[Answer] = []
    with pytest.raises(InvalidMedia, match="frame"):
        answers.extend(pipeline.run(broken, Options(mask="none")))
    answered = sum(map(len, answers))
    assert 8 <= answered < 60
    assert not answers[-1].final
    wanted = list(pipeline.run(broken, Options(mask="none", max_frames=8)))
    assert sum(map(len, wanted)) == 8
    assert wanted[-1].final


def test_limits_hold_for_a_run_and_may_be_lifted(pipeline: Pipeline) -> None:
    clip = media.clip(frames=12)
    limits = Limits(chunk_frames=CHUNK, max_frames=8)
    with pytest.raises(TooLarge, match="8"):
        list(pipeline.run(clip, Options(), limits))
    assert sum(map(len, pipeline.run(clip, Options(max_frames=8), limits))) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(class_name="cat"), "unknown class_name 'cat'.*background, circle, square"),
        (Options(class_id=5), "class_id=5 is out of range 0 to 4"),
    ],
)
def test_unknown_classes_list_what_there_is(pipeline: Pipeline, options: Options, message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        next(pipeline.run(media.image("png"), options))


def test_several_classes_count_where_one_of_them_wins(pipeline: Pipeline) -> None:
    clip = (ROOT / "assets" / "demo.mp4").read_bytes()
    options: dict[str, Scalar] = {"stride": 50, "mask": "none"}
    everything = whole(pipeline.run(clip, parse_options(options, allowed=ALL)))
    options["class_name"] = "star, circle"
    chosen = whole(pipeline.run(clip, parse_options(options, allowed=ALL)))
    kept = [DEMO_LABELS.index(name) for name in ("circle", "star")]
    np.testing.assert_array_equal(chosen.class_pixels[:, kept], everything.class_pixels[:, kept])
    assert not chosen.class_pixels[:, [2, 3]].any()
    assert (chosen.class_pixels.sum(axis=1) == 640 * 360).all()


@pytest.mark.parametrize("count", [1, 2, 21, 256])
def test_the_winner_is_the_first_class_of_the_highest_score(count: int) -> None:
    scores = torch.randn((2, count, 9, 11), generator=torch.Generator().manual_seed(count))
    for logits in (scores, scores.round(), scores.round().contiguous(memory_format=torch.channels_last)):
        class_map, best = winners(logits)
        assert class_map.dtype == torch.uint8
        assert np.array_equal(class_map.numpy(), logits.numpy().argmax(axis=1))
        assert torch.equal(best, logits.max(dim=1).values)


def test_abandoning_a_stream_frees_its_stages(pipeline: Pipeline) -> None:
    for _ in range(5):
        answers = pipeline.run(media.clip(frames=20), Options())
        next(answers)
        answers.close()  # type: ignore[attr-defined]
    assert len(list(pipeline.run(media.image("png"), Options()))) == 1


def test_streams_side_by_side_answer_as_alone(pipeline: Pipeline) -> None:
    clips = [media.clip(frames=6 + k, width=64 + 16 * k, height=48) for k in range(4)]
    alone = [whole(pipeline.run(clip, Options())) for clip in clips]
    together: dict[int, SegmentationAnswer] = {}

    def run(number: int) -> None:
        together[number] = whole(pipeline.run(clips[number], Options()))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for number, answer in enumerate(alone):
        assert together[number].mask == answer.mask
        np.testing.assert_array_equal(together[number].class_pixels, answer.class_pixels)


def test_a_fresh_drawing_is_segmented(pipeline: Pipeline, tmp_path: Path) -> None:
    """Chunks of the bundled clip: each class of the drawing is found somewhere."""
    clip = (ROOT / "assets" / "demo.mp4").read_bytes()
    parts = itertools.islice(pipeline.run(clip, Options(stride=10)), 4)
    found = whole(parts).class_pixels.sum(axis=0)
    assert (found > 0).all()
