"""Stream endpoints as PyTriton runs them: errors, clients that leave, decoders of expired sessions."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import itertools
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest
from av.container import InputContainer

from pipelines.assembly import EngineRoom, make_pipeline
from pipelines.media.medium import Limits, Medium
from pipelines.protocol.columns import STREAM_COLUMNS, Column, Row, Tensor, text_column
from pipelines.protocol.errors import UnsupportedMedia
from pipelines.protocol.options import STREAM_OPTIONS, Options, Scalar
from pipelines.serving.endpoint_table import model_endpoints
from pipelines.serving.endpoints import Endpoint, Stream
from pipelines.serving.sessions import SESSION_S, Sessions
from pipelines.telemetry.counters import Telemetry
from pipelines.zoo.demo.specs import demo_specs
from tests.support import media

WAIT_S = 20.0

MEDIA = Column(name="media", dtype=object, dims=(1,), help="how many answers, then one of an error")
COLUMNS = (
    Column(name="n", dtype=np.int64, dims=(1,), help="counts"),
    Column(name="final", dtype=np.uint8, dims=(1,), help="1 on the last"),
    Column(name="error", dtype=object, dims=(1,), help="empty, or the error as JSON"),
    *STREAM_COLUMNS,
)


class Request(dict[str, Tensor]):
    """A request in PyTriton's form."""

    def __init__(self, media: bytes = b"", **parameters: Scalar) -> None:
        super().__init__(media=text_column(media))
        self.parameters = parameters


@dataclass
class Served:
    """A stream endpoint; each step beyond `free` waits for `go_on`."""

    free: int = 1 << 30
    closed: int = 0
    entered: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)
    telemetry: Telemetry = field(default_factory=Telemetry)

    def __post_init__(self) -> None:
        self.endpoint = Endpoint(
            name="toy",
            inputs=(MEDIA,),
            outputs=COLUMNS,
            answer=self.answer,
            telemetry=self.telemetry,
            max_answer_bytes=1000,
            allowed=("stride", *STREAM_OPTIONS),
            sessions=Sessions(self.telemetry),
        )

    def answer(self, inputs: Row, _options: Options) -> Iterator[Row]:
        try:
            for number in range(int(bytes(inputs["media"][0]))):
                if number >= self.free:
                    self.entered.set()
                    assert self.go_on.wait(WAIT_S)
                yield {
                    "n": np.array([number]),
                    "final": np.array([0], np.uint8),
                    "error": text_column(""),
                }
            raise UnsupportedMedia("no more")
        finally:
            self.closed += 1

    async def ask(self, request: Request, pool: ThreadPoolExecutor) -> list[dict[str, Tensor]]:
        return [row async for (row,) in Stream(self.endpoint, pool)([request])]


def ask(served: Served, request: Request) -> tuple[list[int], str, str]:
    """seq of each row, the token of the last and the code of its error."""
    with ThreadPoolExecutor(1) as pool:
        rows = asyncio.run(served.ask(request, pool))
    text = bytes(rows[-1]["error"][0])
    token = bytes(rows[-1]["session"][0]).decode()
    return [int(row["seq"][0]) for row in rows], token, json.loads(text)["code"] if text else ""


def test_who_waits_too_long_to_begin_is_refused_and_what_has_begun_goes_on() -> None:
    """As if the pool had been busy: the requests came long before their first step."""
    endpoint = dataclasses.replace(Served().endpoint, max_wait_s=1.0)
    now_s = time.monotonic()
    (refused,) = endpoint.rows(Request(b"3"), None, now_s - 2)
    assert json.loads(bytes(refused["error"][0]))["code"] == "overloaded"
    (first,) = endpoint.rows(Request(b"3", credits=1), None, now_s)
    token = bytes(first["session"][0]).decode()
    (second,) = endpoint.rows(Request(session=token, credits=1), None, now_s - 2)
    assert [int(row["seq"][0]) for row in (first, second)] == [0, 1]


def test_an_error_of_the_medium_is_the_streams_last_answer() -> None:
    served = Served()
    seqs, token, error = ask(served, Request(b"3", credits=2))
    assert (seqs, error) == ([0, 1], "")
    for _ in range(2):  # lost, and said again
        assert ask(served, Request(session=token, last_seq=1)) == ([2, 3], "", "unsupported_media")
    assert served.closed == 1
    assert ask(served, Request(session=token)) == ([0], "", "cancelled")


@pytest.mark.parametrize(
    "wrong",
    [
        Request(b"3", session="TOKEN"),
        Request(session="TOKEN", stride=2),
        Request(session="TOKEN", last_seq=7),
        Request(session="TOKEN", credits=1001),
        Request(b"3", last_seq=1),
        Request(b"3", cancel=True),
    ],
)
def test_a_wrong_pull_costs_the_session_nothing(wrong: Request) -> None:
    served = Served()
    _, token, _ = ask(served, Request(b"3", credits=1))
    wrong.parameters = {
        name: token if value == "TOKEN" else value for name, value in wrong.parameters.items()
    }
    assert ask(served, wrong) == ([0], "", "invalid_options")
    assert ask(served, Request(session=token))[0] == [1, 2, 3]


@pytest.mark.parametrize("known", [False, True])
def test_who_leaves_while_a_thread_is_at_a_step(known: bool) -> None:
    """The step ends, then the generator is closed, unless the client has a token to come back with."""
    served = Served(free=2)

    async def leave(request: Request, pool: ThreadPoolExecutor) -> None:
        task = asyncio.create_task(served.ask(request, pool))
        await asyncio.get_running_loop().run_in_executor(None, served.entered.wait, WAIT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert served.closed == 0
        served.go_on.set()

    token = ask(served, Request(b"5", credits=1))[1] if known else ""
    with ThreadPoolExecutor(1) as pool:
        asyncio.run(leave(Request(session=token) if known else Request(b"5"), pool))
    assert served.closed == (0 if known else 1)
    if known:
        assert ask(served, Request(session=token, last_seq=0))[0] == [1, 2, 3, 4, 5]
        assert served.closed == 1


def test_an_answer_stream_that_is_dropped_is_closed() -> None:
    served = Served()

    async def drop(pool: ThreadPoolExecutor) -> None:
        rows = Stream(served.endpoint, pool)([Request(b"5")])
        await anext(rows)
        del rows
        for _ in itertools.repeat(None, 5):
            await asyncio.sleep(0)

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(drop(pool))
    assert served.closed == 1
    assert served.telemetry.snapshot()["streams"]["cancelled_total"] == 1


# --- a real medium ---


def live(kind: type) -> int:
    gc.collect()
    return sum(issubclass(type(one), kind) for one in gc.get_objects())


def test_an_expired_session_frees_its_decoder() -> None:
    now_s = [0.0]
    pipeline = make_pipeline(demo_specs()["classification"], "cpu", limits=Limits(chunk_frames=4))
    room = EngineRoom(
        device="cpu",
        limits=pipeline.limits,
        telemetry=pipeline.telemetry,
        admission=pipeline.admission,
        pipelines={"classification": pipeline},
    )
    sessions = Sessions(room.telemetry, clock=lambda: now_s[0])
    endpoints = model_endpoints(room, 1 << 20, sessions)
    (endpoint,) = (one for one in endpoints if one.name == "classification_stream")
    before = live(InputContainer), live(Medium)
    film = media.clip(frames=100)
    (row,) = endpoint.rows(Request(film, credits=1), None, time.monotonic())
    assert row["frame_index"].tolist() == [0, 1, 2, 3]
    assert (live(InputContainer), live(Medium)) > before
    now_s[0] += SESSION_S + 1
    sessions.expire()
    assert (live(InputContainer), live(Medium)) == before
    assert pipeline.telemetry.snapshot()["chunks"]["decoded"] == 2
    assert pipeline.telemetry.snapshot()["streams"]["expired"] == 1
    pipeline.batcher.close()
