"""Sessions with toy generators and a clock of the test's own: credits, resuming, expiry, leaving."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from pipelines.protocol.columns import Row
from pipelines.protocol.errors import Cancelled, InvalidOptions, Overloaded
from pipelines.protocol.options import Options, Scalar
from pipelines.serving.sessions import SESSION_S, Sessions
from pipelines.telemetry.counters import Telemetry

WAIT_S = 20.0


@dataclass
class Toy:
    """Sessions with a clock that stands still, and streams that note when they are closed."""

    most: int = 3
    pull_bytes: int = 1 << 20
    now_s: float = 0.0
    closed: list[str] = field(default_factory=list)
    made: int = 0
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __post_init__(self) -> None:
        self.sessions = Sessions(
            self.telemetry, most=self.most, pull_bytes=self.pull_bytes, clock=lambda: self.now_s
        )

    def rows(self, length: int, name: str = "one") -> Generator[Row, None, None]:
        try:
            for number in range(length):
                self.made += 1
                yield {"n": np.array([number], np.int64), "final": np.array([number == length - 1], np.uint8)}
        finally:
            self.closed.append(name)

    def pull(self, length: int = 0, owner: str = "toy", **options: Scalar) -> list[tuple[int, int, str]]:
        """Number, seq and token of each answer of a pull."""
        return [read(row) for row in self.start(length, owner, **options)]

    def start(self, length: int = 0, owner: str = "toy", **options: Scalar) -> Generator[Row, None, None]:
        return self.sessions.pull(owner, self.rows(length), Options(**options))  # type: ignore[arg-type]

    def streams(self) -> dict[str, float]:
        return {name: value for name, value in self.telemetry.snapshot()["streams"].items() if value}


def read(row: Row) -> tuple[int, int, str]:
    return int(row["n"][0]), int(row["seq"][0]), bytes(row["session"][0]).decode()


def numbers(answers: list[tuple[int, int, str]]) -> list[int]:
    assert all(number == seq for number, seq, _ in answers)
    assert not any(token for *_, token in answers[:-1])
    return [number for number, *_ in answers]


@pytest.mark.parametrize(
    ("length", "credits", "pulls"),
    [
        (5, 0, [[0, 1, 2, 3, 4]]),
        (5, 9, [[0, 1, 2, 3, 4]]),
        (5, 2, [[0, 1], [2, 3], [4]]),
        (4, 2, [[0, 1], [2, 3]]),  # the last answer needs no pull behind it
        (1, 1, [[0]]),
    ],
)
def test_credits_stop_a_stream_and_its_session_goes_on(
    length: int, credits: int, pulls: list[list[int]]
) -> None:
    toy = Toy()
    got, token = [], ""
    for _ in pulls:
        answers = toy.pull(length, credits=credits, session=token)
        token = answers[-1][2]
        got.append(numbers(answers))
        assert toy.made == got[-1][-1] + 1  # nothing beyond what was asked for
    assert got == pulls
    assert token == ""
    assert toy.closed == ["one"]
    assert toy.streams() == {"started": 1, "finished": 1}


def test_answers_of_many_bytes_pause_by_themselves() -> None:
    toy = Toy(pull_bytes=3 * 17)
    first = toy.pull(5)
    assert numbers(first) == [0, 1, 2]
    assert numbers(toy.pull(session=first[-1][2])) == [3, 4]


def test_sessions_are_numbered_tokens_that_cannot_be_guessed() -> None:
    toy = Toy()
    one, other = (toy.pull(3, credits=1)[-1][2] for _ in range(2))
    assert one != other
    assert min(len(one), len(other)) >= 22
    assert toy.streams() == {"started": 2, "open": 2, "paused": 2}
    with pytest.raises(Cancelled, match="no such session of other"):
        toy.pull(session=one, owner="other")
    assert numbers(toy.pull(session=one)) == [1, 2]


@pytest.mark.parametrize(
    ("last_seq", "credits", "expected"),
    [
        (-1, 0, [4, 5]),
        (1, 0, [2, 3, 4, 5]),  # all of the last pull was lost
        (2, 1, [3]),
        (1, 2, [2, 3]),
        (1, 3, [2, 3, 4]),
        (3, 0, [4, 5]),
        (0, 0, None),  # given up with the pull behind it
        (4, 0, None),
    ],
)
def test_lost_answers_are_said_again(last_seq: int, credits: int, expected: list[int] | None) -> None:
    toy = Toy()
    token = toy.pull(6, credits=2)[-1][2]
    assert numbers(toy.pull(session=token, credits=2)) == [2, 3]
    if expected is None:
        with pytest.raises(InvalidOptions, match=f"last_seq={last_seq}: the session has answers 2 to 3"):
            toy.pull(session=token, last_seq=last_seq)
        assert numbers(toy.pull(session=token)) == [4, 5]
        return
    assert numbers(toy.pull(session=token, last_seq=last_seq, credits=credits)) == expected
    if expected[-1] < 5:
        assert numbers(toy.pull(session=token)) == list(range(expected[-1] + 1, 6))


def test_the_last_answers_can_be_had_again_until_the_session_expires() -> None:
    toy = Toy()
    token = toy.pull(4, credits=2)[-1][2]
    for _ in range(2):
        assert numbers(toy.pull(session=token, last_seq=1)) == [2, 3]
    for last_seq in (-1, 3):
        with pytest.raises(Cancelled, match="the stream has ended: answer 3 was the last"):
            toy.pull(session=token, last_seq=last_seq)
    toy.now_s += SESSION_S + 1
    toy.sessions.expire()
    with pytest.raises(Cancelled, match="no such session"):
        toy.pull(session=token, last_seq=1)
    assert toy.streams() == {"started": 1, "finished": 1}


def test_ended_streams_keep_no_more_than_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.serving.sessions.ENDED_BYTES", 5 * 17)
    toy = Toy()
    tokens = []
    for _ in range(3):
        tokens.append(toy.pull(3, credits=1)[-1][2])
        toy.pull(session=tokens[-1])
    with pytest.raises(Cancelled):
        toy.pull(session=tokens[0], last_seq=0)
    for token in tokens[1:]:
        assert numbers(toy.pull(session=token, last_seq=0)) == [1, 2]


def test_a_session_that_nobody_pulls_expires() -> None:
    toy = Toy()
    stale, fresh = (toy.pull(5, credits=2)[-1][2] for _ in range(2))
    toy.now_s += SESSION_S - 1
    toy.sessions.expire()
    assert toy.streams()["paused"] == 2
    toy.pull(session=fresh, credits=1)
    toy.now_s += 2
    toy.sessions.expire()
    assert toy.closed == ["one"]
    assert toy.streams() == {"started": 2, "expired": 1, "open": 1, "paused": 1}
    with pytest.raises(Cancelled, match=r"not pulled for 30 s.*start_s"):
        toy.pull(session=stale)
    assert numbers(toy.pull(session=fresh)) == [3, 4]


def test_a_stream_that_is_pulled_does_not_expire() -> None:
    toy = Toy()
    answers = toy.start(3)
    next(answers)
    toy.now_s += 10 * SESSION_S
    toy.sessions.expire()
    assert numbers([read(row) for row in answers]) == [1, 2]
    assert toy.streams() == {"started": 1, "finished": 1}


def test_one_request_at_a_time_pulls_a_session() -> None:
    toy = Toy()
    token = toy.pull(9, credits=2)[-1][2]
    slow = toy.start(session=token, credits=5)
    assert read(next(slow))[0] == 2
    with pytest.raises(InvalidOptions, match=r"another request is pulling.*last_seq"):
        toy.pull(session=token)
    # Who says what came last has lost the connection behind the other request.
    assert numbers(toy.pull(session=token, last_seq=1, credits=3)) == [2, 3, 4]
    assert list(slow) == []
    assert numbers(toy.pull(session=token)) == [5, 6, 7, 8]


def test_the_next_pull_may_come_before_the_last_has_ended() -> None:
    toy = Toy()
    first = toy.start(4, credits=1)
    token = read(next(first))[2]
    assert numbers(toy.pull(session=token)) == [1, 2, 3]
    assert list(first) == []


def test_cancelling_frees_the_stream_at_once() -> None:
    toy = Toy()
    token = toy.pull(9, credits=2)[-1][2]
    running = toy.start(session=token)
    next(running)
    assert toy.pull(session=token, cancel=True) == []
    assert toy.closed == ["one"]
    assert list(running) == []
    assert toy.streams() == {"started": 1, "cancelled_total": 1}
    for name, cancel in ((token, False), (token, True), ("guessed", False)):
        with pytest.raises(Cancelled, match="no such session"):
            toy.pull(session=name, cancel=cancel)


def test_who_leaves_before_the_token_ends_the_stream_and_later_only_pauses_it() -> None:
    toy = Toy()
    answers = toy.start(9)
    next(answers)
    answers.close()
    assert toy.streams() == {"started": 1, "cancelled_total": 1}
    token = toy.pull(9, credits=1)[-1][2]
    answers = toy.start(session=token)
    next(answers)
    answers.close()
    assert toy.streams() == {"started": 2, "cancelled_total": 1, "open": 1, "paused": 1}
    assert numbers(toy.pull(session=token, last_seq=0)) == list(range(1, 9))


def test_there_is_room_for_so_many_streams() -> None:
    toy = Toy(most=2)
    tokens = [toy.pull(3, credits=1)[-1][2] for _ in range(2)]
    with pytest.raises(Overloaded, match="2 streams are open"):
        toy.pull(3)
    toy.pull(session=tokens[0])  # at its end, and kept for who may have lost it: it takes no room
    assert numbers(toy.pull(3)) == [0, 1, 2]


def test_all_are_closed_with_the_server() -> None:
    toy = Toy()
    toy.pull(3, credits=1)
    running = toy.start(3)
    next(running)
    toy.sessions.close()
    assert toy.closed == ["one", "one"]
    assert list(running) == []
    assert toy.streams() == {"started": 2, "cancelled_total": 2}


def test_many_threads_pull_cancel_and_expire() -> None:
    """Whatever happens at the same moment, each stream is closed once and answers are in order."""
    toy = Toy(most=100)

    def run(number: int) -> None:
        answers = toy.pull(20, credits=1)
        last, token = answers[-1][0], answers[-1][2]
        try:
            while token:
                last_seq = last - 1 if number % 3 == 1 and last > 0 else -1
                answers = toy.pull(session=token, credits=3, last_seq=last_seq)
                assert numbers(answers)[0] in (last, last + 1)
                last, token = answers[-1][0], answers[-1][2]
                if number % 3 == 2 and last > 10:
                    toy.pull(session=token, cancel=True)
        except (Cancelled, InvalidOptions):
            return

    def expire() -> None:
        for _ in range(200):
            toy.now_s += SESSION_S / 50
            toy.sessions.expire()

    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(run, number) for number in range(60)] + [pool.submit(expire)]
        for job in jobs:
            job.result(WAIT_S)
    toy.sessions.close()
    assert len(toy.closed) == 60
    counts = toy.streams()
    assert counts.pop("started") == sum(counts.values()) == 60


def test_expiry_and_a_pull_at_the_same_moment() -> None:
    """A step that another thread is at is waited for: closing a generator that runs would fail."""
    entered, go_on = threading.Event(), threading.Event()
    toy = Toy()

    def rows() -> Iterator[Row]:
        for row in toy.rows(9):
            if toy.made == 3:
                entered.set()
                assert go_on.wait(WAIT_S)
            yield row

    answers = toy.sessions.pull("toy", (row for row in rows()), Options(credits=2))
    token = [read(row) for row in answers][-1][2]
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(toy.pull, session=token)
        assert entered.wait(WAIT_S)
        cancelling = pool.submit(toy.pull, session=token, cancel=True)
        toy.now_s += 2 * SESSION_S
        toy.sessions.expire()
        go_on.set()
        assert cancelling.result(WAIT_S) == []
        assert numbers(slow.result(WAIT_S)) in ([], [2])
    assert toy.closed == ["one"]
    assert toy.streams() == {"started": 1, "cancelled_total": 1}
