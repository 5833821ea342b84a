"""How the client pulls streams: credits at its caller's pace, breaks bridged, the server told who leaves."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import pytest

from client import Client, SegmentationAnswer
from pipelines.protocol.answers import answer_columns
from pipelines.protocol.columns import STREAM_COLUMNS, Row, text_column, to_tensors
from pipelines.protocol.errors import Cancelled, InternalError, InvalidMedia, ModelUnavailable, TrividError
from pipelines.protocol.options import STREAM_OPTIONS, Scalar, parse_options
from pipelines.sdk.pulls import FIRST_CREDITS, MOST_CREDITS, credits_at_pace
from pipelines.serving.sessions import Sessions
from pipelines.telemetry.counters import Telemetry
from tests.support.stub_server import GrpcStub, Reply, Seen, StubServer, event
from tests.support.toy_answers import answer

COLUMNS = (*answer_columns(SegmentationAnswer), *STREAM_COLUMNS)
FILM = b"film"


def fault(error: TrividError) -> Row:
    """An error as the server's endpoints say it."""
    return {"error": text_column(error.to_json()), "final": np.array([1], np.uint8)}


class Film:
    """A stream of so many answers; `breaks` says behind how many answers the connection of a pull breaks."""

    def __init__(self, length: int, breaks: dict[int, int] | None = None) -> None:
        self.pulls: list[dict[str, Scalar]] = []
        self.media: list[bytes] = []
        self.telemetry = Telemetry()
        self.sessions = Sessions(self.telemetry, pull_bytes=1 << 20)
        self._length, self._breaks = length, breaks or {}

    def rows(self, media: bytes, options: dict[str, Scalar]) -> Iterator[Row]:
        broken_at = self._breaks.get(len(self.pulls))
        self.pulls.append(options)
        self.media.append(media)
        with contextlib.closing(self._pull(options)) as rows:
            for given, row in enumerate(rows):
                if given == broken_at:
                    raise ConnectionResetError
                yield row

    def _pull(self, options: dict[str, Scalar]) -> Generator[Row, None, None]:
        parsed = parse_options(options, allowed=STREAM_OPTIONS)
        try:
            yield from self.sessions.pull("film", self._answers(), parsed)
        except TrividError as error:
            yield fault(error)

    def _answers(self) -> Generator[Row, None, None]:
        for number in range(self._length):
            yield answer([number], final=number == self._length - 1).to_columns()

    def over_http(self, seen: Seen) -> Reply:
        told = dict(seen.head)
        assert told.pop("base64") is True
        chunks: list[bytes] = []
        try:
            for row in self.rows(base64.b64decode(told.pop("media")), told):
                seq, token = int(row.pop("seq", [0])[0]), bytes(row.pop("session", [b""])[0]).decode()
                chunks.append(event(row, seq=seq, session=token))
        except ConnectionError:
            return Reply(chunks=chunks, cut=True)
        return Reply(chunks=chunks)

    def over_grpc(self, request: Any) -> Iterator[Row]:
        told: dict[str, Scalar] = {
            name: getattr(value, str(value.WhichOneof("parameter_choice")))
            for name, value in request.parameters.items()
        }
        for row in self.rows(request.raw_input_contents[0][4:], told):
            tensors = to_tensors(COLUMNS, [row])
            yield {name: value[0] for name, value in tensors.items()}

    def counts(self) -> dict[str, float]:
        return {name: value for name, value in self.telemetry.snapshot()["streams"].items() if value}


@contextlib.contextmanager
def served(film: Film, scheme: str) -> Iterator[Client]:
    if scheme == "http":
        with StubServer() as stub, Client(stub.url, timeout_s=20) as client:
            stub.stream(film.over_http)
            yield client
        return
    with GrpcStub() as grpc_stub, Client(grpc_stub.url, timeout_s=20) as client:
        grpc_stub.stream(film.over_grpc, "segmentation")
        yield client


def frames(answers: Iterator[SegmentationAnswer]) -> list[int]:
    return [index for one in answers for index in one.frame_index.tolist()]


@pytest.mark.parametrize(
    ("answers", "took_s", "expected"),
    [
        (2, 0.0, MOST_CREDITS),
        (2, 0.01, MOST_CREDITS),
        (8, 8.0, 2),  # an answer a second
        (32, 6.0, 10),
        (2, 28.0, 1),
        (1, 1e9, 1),
        (0, 0.0, MOST_CREDITS),
        (0, 1.0, 1),
    ],
)
def test_credits_follow_the_callers_pace(answers: int, took_s: float, expected: int) -> None:
    assert credits_at_pace(answers, took_s) == expected


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("length", [1, FIRST_CREDITS, FIRST_CREDITS + 1, 100])
def test_a_stream_is_pulled_to_its_end(scheme: str, length: int) -> None:
    film = Film(length)
    with served(film, scheme) as client:
        assert frames(client.segment_stream(FILM)) == list(range(length))
    assert film.media == [FILM] + [b""] * (len(film.pulls) - 1)
    assert film.pulls[0] == {"credits": FIRST_CREDITS}
    for pull in film.pulls[1:]:
        assert pull.keys() == {"credits", "session"}
        assert 1 <= int(pull["credits"]) <= MOST_CREDITS
    assert film.counts() == {"started": 1, "finished": 1}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nothing_is_asked_for_that_is_not_taken(scheme: str) -> None:
    film = Film(100)
    with served(film, scheme) as client:
        stream = client.segment_stream(FILM)
        for taken in range(FIRST_CREDITS):
            assert frames(iter([next(stream)])) == [taken]
        assert len(film.pulls) == 1
        next(stream)
        assert len(film.pulls) == 2
        stream.close()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("breaks", [{1: 0}, {1: 1}, {1: 1, 2: 1}], ids=["at once", "later", "twice"])
def test_a_break_behind_the_first_pull_costs_nothing(scheme: str, breaks: dict[int, int]) -> None:
    film = Film(60, breaks)
    with served(film, scheme) as client:
        assert frames(client.segment_stream(FILM)) == list(range(60))
    resumed = film.pulls[2]
    assert resumed["session"] == film.pulls[1]["session"]
    assert resumed["last_seq"] == FIRST_CREDITS - 1 + breaks[1]
    assert film.counts() == {"started": 1, "finished": 1}


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("breaks", [{0: 1}, {1: 1, 2: 0}], ids=["no token yet", "again at once"])
def test_a_break_that_cannot_be_bridged(scheme: str, breaks: dict[int, int]) -> None:
    film = Film(60, breaks)
    with served(film, scheme) as client:
        stream = client.segment_stream(FILM)
        with pytest.raises(ModelUnavailable, match="broke off"):
            frames(stream)
        assert len(film.pulls) == len(breaks) + breaks.get(1, 0)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
@pytest.mark.parametrize("taken", [0, 1, FIRST_CREDITS, FIRST_CREDITS + 3])
def test_leaving_ends_the_stream_on_the_server(scheme: str, taken: int) -> None:
    film = Film(100)
    with served(film, scheme) as client:
        stream = client.segment_stream(FILM)
        for _ in range(taken):
            next(stream)
        stream.close()
    assert film.counts() == ({} if taken == 0 else {"started": 1, "cancelled_total": 1})
    if taken:
        assert film.pulls[-1].get("cancel") is True


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_stream_outlives_its_client_in_peace(scheme: str) -> None:
    film = Film(100)
    with served(film, scheme) as client:
        stream = client.segment_stream(FILM)
        next(stream)
        client.close()
        stream.close()


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_session_that_the_server_gave_up(scheme: str) -> None:
    film = Film(100)
    with served(film, scheme) as client:
        stream = client.segment_stream(FILM)
        for _ in range(FIRST_CREDITS):
            next(stream)
        film.sessions.close()
        with pytest.raises(Cancelled, match="no such session"):
            next(stream)


def test_an_answer_that_cannot_be_read_ends_the_stream_too() -> None:
    film = Film(100)

    def spoilt(seen: Seen) -> Reply:
        reply = film.over_http(seen)
        chunks = [chunk.replace(b'"seq": 1,', b'"seq": [],') for chunk in reply.chunks or ()]
        return Reply(chunks=chunks)

    with StubServer() as stub, Client(stub.url) as client:
        stub.stream(spoilt)
        with pytest.raises(InternalError, match="cannot be read"):
            frames(client.segment_stream(FILM))


def test_an_error_of_the_medium_comes_behind_its_good_answers() -> None:
    parts = [event(answer([0], final=False), session="t")]
    torn = event(fault(InvalidMedia("torn")), seq=1)
    replies = iter([Reply(chunks=parts), Reply(chunks=[torn])])
    with StubServer() as stub, Client(stub.url) as client:
        stub.stream(lambda _seen: next(replies))
        stream = client.segment_stream(FILM)
        assert frames(iter([next(stream)])) == [0]
        with pytest.raises(InvalidMedia, match="torn"):
            next(stream)
