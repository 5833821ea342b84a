"""Clients of a server. Knows how each kind of server wants to be asked, and nothing of what it answers.

They run in a process of their own: `python -m scripts.bench.load LOAD` takes a `Load` as JSON, asks as it
says, and prints a `Report`. It uses the machine that it measures, as clients would; the report says how much.
"""

from __future__ import annotations

import http.client
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter

from client import Client
from pipelines.protocol.answers import ANSWERS, answer_columns
from pipelines.protocol.errors import TrividError, from_json
from pipelines.protocol.options import Scalar
from pipelines.sdk.http_transport import binary_request, raise_for_status, read_answer
from pipelines.sdk.transport import Call, parse_address
from scripts.bench.figures import Reply, Report
from scripts.bench.peers import asking

# Sends a medium, and gives each answer's count of rows, when it came.
Ask = Callable[[bytes], Iterator[int]]
PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send, and how.

    Attributes:
        kind: of server: the project's own, asked by its client, or ("light") over a connection that stays
            open with as little work as can be; or a peer.
        url: `grpc://host:port` or `http://host:port`.
        clients: that each wait for an answer before they send again.
        seconds: for which they send; or, when above 0, `requests`: that each sends.
        period_s: when above 0, requests are sent at these intervals, whether or not others are answered (an
            open loop); `clients` then bounds how many may wait.
        pause_s: after each answer of a stream, as a slow reader has them.
    """

    kind: Literal["trivid", "light", "peer"]
    url: str
    medium: str
    task: str = ""
    stream: bool = False
    options: Mapping[str, Scalar] = field(default_factory=dict)
    clients: int = 1
    seconds: float = 0.0
    requests: int = 0
    period_s: float = 0.0
    pause_s: float = 0.0


@contextmanager
def _ask_trivid(load: Load) -> Iterator[Ask]:
    kind = ANSWERS[load.task]

    def ask(media: bytes) -> Iterator[int]:
        if not load.stream:
            yield len(client.ask(kind, media, load.options))
            return
        with closing(client.ask_stream(kind, media, load.options)) as answers:
            yield from map(len, answers)

    with Client(load.url, timeout_s=PATIENCE_S) as client:
        yield ask


@contextmanager
def _ask_lightly(load: Load) -> Iterator[Ask]:
    """One HTTP connection that stays open."""
    kind, address = ANSWERS[load.task], parse_address(load.url)

    def ask(media: bytes) -> Iterator[int]:
        call = Call(
            model=kind.task,
            input_name="media",
            data=media,
            columns=answer_columns(kind),
            timeout_s=PATIENCE_S,
            parameters=load.options,
        )
        request = binary_request(call)
        connection.request(request.method, request.path, request.body, dict(request.headers))
        columns = read_answer(address, call, raise_for_status(address, connection.getresponse()))
        if error := bytes(columns["error"][0]):
            raise from_json(error)
        yield int(columns["count"][0])

    with closing(http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE_S)) as connection:
        yield ask


@contextmanager
def _ask_peer(load: Load) -> Iterator[Ask]:
    with asking.asker(load.url, PATIENCE_S) as ask:
        yield lambda media: iter([len(ask(media))])


# A connection of one client's own.
ASKERS = {"trivid": _ask_trivid, "light": _ask_lightly, "peer": _ask_peer}


class Crowd:
    """All clients, a thread each."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.media = Path(load.medium).read_bytes()
        self.replies: list[Reply] = []
        self._gate = threading.Barrier(load.clients + 1, self._begin)
        self._due = itertools.count()
        self._start_s = self._start_cpu_s = self._waited_s = 0.0

    def run(self) -> Report:
        with ThreadPoolExecutor(self.load.clients) as pool:
            ends = [pool.submit(self._work) for _ in range(self.load.clients)]
            self._gate.wait()
        return Report(
            replies=tuple(self.replies),
            start_s=self._start_s,
            end_s=min(end.result() for end in ends),
            cpu_s=time.process_time() - self._start_cpu_s,
            waited_s=self._waited_s,
        )

    def _begin(self) -> None:
        """All clients are connected: time begins."""
        self._start_s, self._start_cpu_s = time.monotonic(), time.process_time()

    def _work(self) -> float:
        """One client; when it sent no more."""
        with ASKERS[self.load.kind](self.load) as ask:
            self._gate.wait()
            own = 0
            while self._turn(own):
                self.replies.append(self._one(ask))
                own += 1
            return time.monotonic()

    def _turn(self, own: int) -> bool:
        """Wait until this client may send its next request; false when it may not."""
        load = self.load
        if load.period_s:
            due_s = self._start_s + next(self._due) * load.period_s
            if due_s > self._start_s + load.seconds:
                return False
            self._waited_s = max(self._waited_s, time.monotonic() - due_s)
            time.sleep(max(0.0, due_s - time.monotonic()))
            return True
        return own < load.requests if load.requests else time.monotonic() < self._start_s + load.seconds

    def _one(self, ask: Ask) -> Reply:
        start_s = time.monotonic()
        at_s: list[float] = []
        rows: list[int] = []
        error = ""
        try:
            for count in ask(self.media):
                at_s.append(time.monotonic())
                rows.append(count)
                time.sleep(self.load.pause_s)
        except TrividError as failure:
            error = failure.code
        except (http.client.HTTPException, OSError) as failure:
            error = str(failure) or type(failure).__name__
        end_s = at_s[-1] if at_s and not error else time.monotonic()
        return Reply(start_s=start_s, end_s=end_s, at_s=at_s, rows=rows, error=error)


if __name__ == "__main__":
    asked = TypeAdapter(Load).validate_json(sys.argv[1])
    sys.stdout.buffer.write(TypeAdapter(Report).dump_json(Crowd(asked).run()))
