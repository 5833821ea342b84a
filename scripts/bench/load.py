"""Clients of a server. Knows how each kind of server wants to be asked, and nothing of what it answers.

They run in a process of their own: `python -m scripts.bench.load` reads a `Load` as JSON on stdin, asks as it
says, and prints a `Report`. It uses the machine that it measures, as clients would; the report says how much.
"""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client import Client
from pipelines.protocol.answers import ANSWERS, answer_columns
from pipelines.protocol.errors import TrividError, from_json
from pipelines.protocol.options import Scalar
from pipelines.sdk.http_transport import binary_request, raise_for_status, read_answer
from pipelines.sdk.transport import Call, parse_address
from scripts.bench.figures import Reply
from scripts.bench.programs import run_program

Kind = Literal["trivid", "light", "pytriton", "http"]
# An answer's count of rows, when it came.
Answers = Iterator[int]
PATIENCE_S = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send, and how.

    Attributes:
        kind: of server: the project's own, asked by its client, or ("light") over a connection that stays
            open with as little work as can be; the seed's design (`video` UINT8 on PyTriton); or ("http") a
            peer that is posted the file and answers with a JSON list of rows.
        url: `grpc://host:port` or `http://host:port`.
        clients: that each wait for an answer before they send again.
        seconds: for which they send; 0: until `requests` are sent by each.
        period_s: when above 0, requests are sent at these intervals, whether or not others are answered (an
            open loop); `clients` then bounds how many may wait.
        pause_s: after each answer of a stream, as a slow reader has them.
    """

    kind: Kind
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What clients saw.

    Attributes:
        start_s, end_s: when they began, and when the first of them sent no more; `cpu_s`: what they used.
        waited_s: of an open loop, by how much a request was sent too late at most.
    """

    replies: tuple[Reply, ...]
    start_s: float
    end_s: float
    cpu_s: float
    waited_s: float = 0.0


def asker(load: Load) -> Callable[[bytes], Answers]:
    """A connection of one client's own, as a function from a medium to its answers."""
    kinds = {"trivid": _ask_trivid, "light": _ask_lightly, "pytriton": _ask_pytriton, "http": _ask_http}
    return kinds[load.kind](load)


def _ask_trivid(load: Load) -> Callable[[bytes], Answers]:
    client = Client(load.url, timeout_s=PATIENCE_S)
    kind = ANSWERS[load.task]

    def ask(media: bytes) -> Answers:
        if not load.stream:
            yield len(client.ask(kind, media, load.options))
            return
        with closing(client.ask_stream(kind, media, load.options)) as answers:
            for answer in answers:
                yield len(answer)

    return ask


def _ask_lightly(load: Load) -> Callable[[bytes], Answers]:
    """One HTTP connection that stays open."""
    kind = ANSWERS[load.task]
    address = parse_address(load.url)
    connection = http.client.HTTPConnection(address.host, address.port, timeout=PATIENCE_S)

    def ask(media: bytes) -> Answers:
        call = Call(
            model=kind.task,
            input_name="media",
            data=media,
            columns=answer_columns(kind),
            timeout_s=PATIENCE_S,
            parameters=load.options,
        )
        request = binary_request(call)
        path = address.prefix + request.path
        connection.request(request.method, path, request.body, dict(request.headers))
        columns = read_answer(call, raise_for_status(address, connection.getresponse()))
        if error := bytes(columns["error"][0]):
            raise from_json(error)
        yield int(columns["count"][0])

    return ask


def _ask_pytriton(load: Load) -> Callable[[bytes], Answers]:
    import numpy as np
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    client = grpc.InferenceServerClient(load.url.removeprefix("grpc://"))

    def ask(media: bytes) -> Answers:
        video = grpc.InferInput("video", [1, len(media)], "UINT8")
        video.set_data_from_numpy(np.frombuffer(media, np.uint8)[None])
        try:
            result = client.infer("peer", [video], client_timeout=PATIENCE_S)
        except InferenceServerException as error:
            raise http.client.HTTPException(str(error)) from error
        yield int(result.as_numpy("rows")[0].shape[0])

    return ask


def _ask_http(load: Load) -> Callable[[bytes], Answers]:
    host, _, port = load.url.removeprefix("http://").partition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE_S)

    def ask(media: bytes) -> Answers:
        connection.request("POST", "/predict", *multipart(media))
        response = connection.getresponse()
        text = response.read()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP {response.status}")
        yield len(json.loads(text)["rows"])

    return ask


def multipart(media: bytes) -> tuple[bytes, dict[str, str]]:
    """A form with the medium as its `file`: body and headers (RFC 7578)."""
    boundary = "trivid-bench"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="medium"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + media + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


class Crowd:
    """All clients, a thread each."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.media = Path(load.medium).read_bytes()
        self.replies: list[Reply] = []
        self._gate = threading.Barrier(load.clients + 1)
        self._due = itertools.count()
        self._start_s = self._waited_s = 0.0

    def run(self) -> Report:
        with ThreadPoolExecutor(self.load.clients) as pool:
            ends = [pool.submit(self._work) for _ in range(self.load.clients)]
            self._start_s = time.monotonic()
            cpu_s = time.process_time()
            self._gate.wait()
        return Report(
            replies=tuple(self.replies),
            start_s=self._start_s,
            end_s=min(end.result() for end in ends),
            cpu_s=time.process_time() - cpu_s,
            waited_s=self._waited_s,
        )

    def _work(self) -> float:
        """One client; when it sent no more."""
        ask = asker(self.load)
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
        if load.seconds and time.monotonic() >= self._start_s + load.seconds:
            return False
        return not load.requests or own < load.requests

    def _one(self, ask: Callable[[bytes], Answers]) -> Reply:
        start_s = time.monotonic()
        at_s: list[float] = []
        rows: list[int] = []
        error = ""
        try:
            for count in ask(self.media):
                at_s.append(time.monotonic())
                rows.append(count)
                if self.load.pause_s:
                    time.sleep(self.load.pause_s)
        except TrividError as failure:
            error = failure.code
        except (http.client.HTTPException, OSError) as failure:
            error = str(failure) or type(failure).__name__
        end_s = at_s[-1] if at_s and not error else time.monotonic()
        return Reply(start_s=start_s, end_s=end_s, at_s=at_s, rows=rows, error=error)


if __name__ == "__main__":
    run_program(Load, lambda load: Crowd(load).run())
