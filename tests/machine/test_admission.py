"""Memory is given out up to a budget; what has no room is refused, and comes back when its holder ends."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest

from pipelines.assembly import make_pipeline
from pipelines.machine.admission import Admission, default_budget_bytes
from pipelines.machine.threads import Threads, cores
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.errors import DeadlineExceeded, InvalidMedia, Overloaded
from pipelines.protocol.options import Options
from pipelines.telemetry.counters import Telemetry
from pipelines.zoo.demo.specs import demo_specs
from tests.support import media

MIB = 1 << 20


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    telemetry = Telemetry()
    made = make_pipeline(
        demo_specs()["classification"],
        "cpu",
        limits=Limits(chunk_frames=4),
        workers=2,
        telemetry=telemetry,
        admission=Admission(3 * MIB, telemetry),
    )
    yield made
    made.batcher.close()


def test_a_budget_is_shared_and_comes_back() -> None:
    telemetry = Telemetry()
    admission = Admission(10 * MIB, telemetry)
    with admission.hold(6 * MIB):
        with (
            pytest.raises(Overloaded, match=r"about 5 MiB, 6 of 10 are in use \(try again"),
            admission.hold(5 * MIB),
        ):
            pass
        with admission.hold(4 * MIB):
            assert telemetry.snapshot()["memory"]["held_bytes"] == 10 * MIB
    with admission.hold(9 * MIB):
        assert telemetry.snapshot()["memory"] == {"budget_bytes": 10 * MIB, "held_bytes": 9 * MIB}


def test_who_needs_more_than_the_header_said_holds_more_or_is_refused() -> None:
    admission = Admission(10 * MIB, Telemetry())
    with admission.hold(2 * MIB) as held, admission.hold(5 * MIB):
        held.grow_to(4 * MIB)
        held.grow_to(1 * MIB)
        assert admission.held_bytes == 9 * MIB
        with pytest.raises(Overloaded, match="about 6 MiB, 5 of 10 are in use"):
            held.grow_to(6 * MIB)
        assert admission.held_bytes == 9 * MIB
    assert admission.held_bytes == 0


def test_a_picture_is_admitted_by_its_header_before_it_is_decoded(pipeline: Pipeline) -> None:
    picture = media.image("png", 2000, 2000)
    picture = picture[: picture.index(b"IDAT") + 8]
    with pipeline.admission.hold(1), pytest.raises(Overloaded, match=r"takes about \d\d MiB"):
        list(pipeline.run(picture, Options()))
    with pytest.raises(InvalidMedia, match="cannot be decoded"):
        list(pipeline.run(picture, Options()))


def test_a_video_is_admitted_by_its_header_before_it_is_decoded(pipeline: Pipeline) -> None:
    clip = media.clip(frames=2, width=1280, height=720)
    begin, end = clip.index(b"mdat") + 4, clip.index(b"moov") - 4
    blank = clip[:begin] + bytes(end - begin) + clip[end:]
    with pytest.raises(InvalidMedia, match=r"no frames|cannot be decoded"):
        list(pipeline.run(blank, Options()))
    with pipeline.admission.hold(1), pytest.raises(Overloaded, match=r"takes about \d\d MiB"):
        list(pipeline.run(blank, Options()))


def test_what_is_alone_is_let_in_whatever_it_takes() -> None:
    admission = Admission(MIB, Telemetry())
    with admission.hold(5 * MIB), pytest.raises(Overloaded), admission.hold(1):
        pass


def test_the_budget_is_part_of_the_machine() -> None:
    assert MIB < default_budget_bytes() < 1 << 50


@pytest.mark.parametrize(
    ("machine", "expected"), [(1, (1, 1, 2)), (2, (2, 2, 2)), (8, (8, 4, 8)), (64, (64, 4, 64))]
)
def test_threads_follow_the_cores(machine: int, expected: tuple[int, int, int]) -> None:
    threads = Threads.of(machine)
    assert (threads.model, threads.decode, threads.workers) == expected
    assert threads.worker == 1
    assert cores() >= 1


def test_a_medium_holds_memory_while_it_is_worked_on(pipeline: Pipeline) -> None:
    def held() -> float:
        return pipeline.telemetry.snapshot()["memory"]["held_bytes"]

    clip = media.clip(frames=40, width=160, height=120)
    answers = pipeline.run(clip, Options())
    next(answers)
    assert held() > len(clip)
    with pytest.raises(Overloaded, match="try again"):
        next(pipeline.run(media.clip(frames=8, width=640, height=480), Options(overlay="raw")))
    assert sum(1 for _ in answers) == 9
    assert held() == 0


def test_leaving_early_frees_the_decoder_the_queue_and_the_memory(pipeline: Pipeline) -> None:
    answers = pipeline.run(media.clip(frames=400), Options())
    assert len(list(itertools.islice(answers, 3))) == 3
    before = pipeline.telemetry.snapshot()["chunks"]["decoded"]
    answers.close()  # type: ignore[attr-defined]
    snapshot = pipeline.telemetry.snapshot()
    assert snapshot["memory"]["held_bytes"] == 0
    assert snapshot["chunks"]["decoded"] == before
    # What was begun is finished, a batch of its frames after the other.
    end_s = time.monotonic() + 10
    while pipeline.telemetry.snapshot()["waiting_for_model"]["classification"]:
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_what_is_past_its_deadline_is_not_decoded(pipeline: Pipeline) -> None:
    before = pipeline.telemetry.snapshot().get("chunks", {}).get("decoded", 0)
    with pytest.raises(DeadlineExceeded, match="deadline_ms passed"):
        list(pipeline.run(media.clip(frames=8), Options(deadline_ms=1e-6)))
    assert pipeline.telemetry.snapshot()["chunks"]["decoded"] == before
    assert sum(map(len, pipeline.run(media.clip(frames=8), Options(deadline_ms=60_000)))) == 8
