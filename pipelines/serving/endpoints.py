"""What Triton calls: requests in, rows of tensors out, one error row for each one that fails.

An endpoint gets requests (mappings of input tensors with `.parameters`) and answers each with a mapping of
output tensors. Every row runs on its own; its error is caught here, once, and becomes its `error` column.
Knows the form of PyTriton's requests, but imports none of it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from pipelines.protocol.columns import (
    Column,
    Row,
    Tensor,
    bytes_column,
    nbytes,
    stacked_bytes,
    text_column,
    to_tensors,
)
from pipelines.protocol.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidMedia,
    InvalidOptions,
    Overloaded,
    TooLarge,
    TrividError,
)
from pipelines.protocol.options import Options, Scalar, parse_options
from pipelines.serving.sessions import Sessions
from pipelines.telemetry.counters import Telemetry

log = logging.getLogger("trivid")

HEADER_PREFIX = "trivid-"

Rows = list[dict[str, Tensor]]


class TritonRequest(Protocol):
    """A request as PyTriton hands it over: input tensors by name, and its parameters."""

    @property
    def parameters(self) -> Mapping[str, Scalar] | None: ...

    def __getitem__(self, name: str) -> Tensor: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One model of Triton's: its tensors, its options, and what answers one row.

    Attributes:
        answer: the inputs of one row and its options → one row of columns, or the rows of a stream.
        model: the name of the one model that it asks, if it asks one.
        sessions: those of its streams, where it answers with any number of rows (decoupled) instead of one.
        allowed: names of the options that this endpoint takes; `preset` holds its own defaults.
        max_answer_bytes: the room of a call's answers in /dev/shm.
        max_wait_s: of a request before it is worked on; 0: any time.
    """

    name: str
    inputs: tuple[Column, ...]
    outputs: tuple[Column, ...]
    answer: Callable[[Row, Options], Iterator[Row]]
    telemetry: Telemetry
    max_answer_bytes: int
    allowed: tuple[str, ...] = ()
    preset: Mapping[str, Scalar] = field(default_factory=dict)
    model: str = ""
    sessions: Sessions | None = None
    max_wait_s: float = 0.0

    def rows(self, request: TritonRequest, index: int | None, arrived_s: float) -> Generator[Row, None, None]:
        """The answers of one row of a request (`index` None: the request has no rows); errors are a row too.

        Args:
            arrived_s: when the request came, by `time.monotonic`; deadlines count from there.
        """
        return self._guarded(self._answers(request, index, arrived_s))

    def _guarded(self, rows: Iterator[Row]) -> Generator[Row, None, None]:
        """The same rows; an error is the last of them."""
        try:
            yield from rows
        except Exception as error:  # noqa: BLE001 - the request border: one request's fault stays its own
            yield self.error_row(error)

    def _answers(
        self, request: TritonRequest, index: int | None, arrived_s: float
    ) -> Generator[Row, None, None]:
        options = _with_time_left(self._options(request.parameters or {}), arrived_s)
        waited_s = time.monotonic() - arrived_s
        # A stream that has begun goes on.
        if 0 < self.max_wait_s < waited_s and not options.session:
            raise Overloaded(
                f"the request waited for {waited_s:.1f} s, the server allows {self.max_wait_s:g}",
                hint="try again later",
            )
        inputs = {column.name: self._input(request, column, index) for column in self.inputs}
        if options.base64:
            inputs = {name: _from_base64(value) for name, value in inputs.items()}
        rows = self._guarded(self.answer(inputs, options))
        if self.sessions is not None:
            if options.session and any(map(nbytes, inputs.values())):
                raise InvalidOptions("media and session are both set", hint="leave media empty")
            # An error of the medium ends the stream, one of a pull does not.
            rows = self.sessions.pull(self.name, rows, options)
        with contextlib.closing(rows):
            for row in rows:
                yield self._to_base64(row) if options.base64 else row

    def _options(self, parameters: Mapping[str, Scalar]) -> Options:
        """Options from parameters; those from HTTP headers carry a prefix and dashes."""
        named = {_option_name(name): value for name, value in parameters.items()}
        return parse_options(named, allowed=self.allowed, preset=self.preset)

    def _input(self, request: TritonRequest, column: Column, index: int | None) -> Tensor:
        value = request[column.name] if index is None else request[column.name][index]
        # Triton keeps 32 bits of a batch's size: what is left of some sizes is a request without rows.
        if not isinstance(value, np.ndarray):
            raise InvalidMedia(
                f"{column.name} has the shape {request[column.name].shape}, which has no dimension for rows",
                hint=f"send {column.name} in the shape {column.shape}, with a dimension of 1 before it",
            )
        if value.size == 0:
            raise InvalidMedia(
                f"{column.name} is empty: its shape is {value.shape}",
                hint="send a tensor of at least one element",
            )
        return value

    def _to_base64(self, row: Row) -> Row:
        binary = {column.name for column in self.outputs if column.binary}
        return {name: _base64(value) if name in binary else value for name, value in row.items()}

    def error_row(self, error: Exception) -> Row:
        if not isinstance(error, TrividError):
            log.exception("%s failed", self.name)
            error = InternalError(
                f"{type(error).__name__} in {self.name}", hint="the server's log has the details"
            )
        self.telemetry.count("errors", error.code)
        return {"error": text_column(error.to_json()), "final": np.array([1], np.uint8)}


def _no_room(size_bytes: int, limit_bytes: int) -> TrividError:
    """The error for answers that have no room in /dev/shm: at all, or only beside those of other requests."""
    if size_bytes > limit_bytes:
        return TooLarge(
            f"the answer has {size_bytes >> 20} MiB or more, the server's limit is {limit_bytes >> 20}",
            hint="request less (max_frames, stride, fewer rows), use jpeg, mp4 or rle instead of raw, or "
            "stream",
        )
    return Overloaded(
        f"no room for an answer of {size_bytes >> 20} MiB next to those of other requests",
        hint="try again in a moment",
    )


def _with_time_left(options: Options, arrived_s: float) -> Options:
    """The options, of the deadline what is left. Raises DeadlineExceeded where nothing is."""
    if not options.deadline_ms:
        return options
    left_ms = options.deadline_ms - 1000 * (time.monotonic() - arrived_s)
    if left_ms <= 0:
        raise DeadlineExceeded(
            f"deadline_ms={options.deadline_ms:g} passed while the request waited",
            hint="the server is busy: try again later, or allow more time",
        )
    return dataclasses.replace(options, deadline_ms=left_ms)


def _option_name(parameter: str) -> str:
    lowered = parameter.lower()
    if lowered.startswith(HEADER_PREFIX):
        return lowered.removeprefix(HEADER_PREFIX).replace("-", "_")
    return parameter


def _base64(value: Tensor) -> Tensor:
    return bytes_column([base64.b64encode(item) for item in value.flat]).reshape(value.shape)


def _from_base64(value: Tensor) -> Tensor:
    if value.dtype != object:
        return value
    try:
        decoded = [base64.b64decode(item, validate=True) for item in value.flat]
    except binascii.Error as error:
        raise InvalidMedia(
            f"media is not base64: {error}",
            hint="send base64 text without line breaks or 'data:…', or raw bytes without the option base64",
        ) from None
    return bytes_column(decoded).reshape(value.shape)


class Calls:
    """How many calls run now, and when the last one ended. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running, self._ended_s = 0, -math.inf

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A call, during the `with` block."""
        with self._lock:
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                self._ended_s = time.monotonic()

    def quiet_s(self) -> float:
        """For how long no call has run; 0 while one runs."""
        with self._lock:
            return 0.0 if self._running else time.monotonic() - self._ended_s


class Unary:
    """The callable of a unary endpoint: all rows of a batch of requests run side by side on `pool`."""

    def __init__(self, endpoint: Endpoint, pool: ThreadPoolExecutor, calls: Calls | None = None) -> None:
        self.endpoint = endpoint
        self._pool, self._calls = pool, calls or Calls()

    def __call__(self, requests: Sequence[TritonRequest]) -> Rows:
        with self._calls.one():
            return self._answer(requests)

    def _answer(self, requests: Sequence[TritonRequest]) -> Rows:
        first, arrived_s = self.endpoint.inputs[0].name, time.monotonic()
        counts = [len(request[first]) for request in requests]
        jobs = [
            self._pool.submit(self._one, request, index, arrived_s)
            for request, count in zip(requests, counts, strict=True)
            for index in range(count)
        ]
        rows = iter([job.result() for job in jobs])
        return self._stack([[next(rows) for _ in range(count)] for count in counts])

    def _stack(self, answers: list[list[Row]]) -> Rows:
        """Rows of each request → tensors; all of them, padding included, have to fit into /dev/shm."""
        outputs, limit = self.endpoint.outputs, self.endpoint.max_answer_bytes
        stacked: Rows = []
        room = limit
        for rows in answers:
            size = stacked_bytes(outputs, rows)
            if size <= room:
                room -= size
            else:
                rows = [self.endpoint.error_row(_no_room(size, limit)) for _ in rows]
            stacked.append(to_tensors(outputs, rows))
        return stacked

    def _one(self, request: TritonRequest, index: int, arrived_s: float) -> Row:
        """The only row; of a medium that breaks off, what came before it with the error."""
        answer: Row = {}
        for row in self.endpoint.rows(request, index, arrived_s):
            answer |= row
        return answer


class Stream:
    """The callable of a stream endpoint: an async generator, so that one instance serves many streams."""

    def __init__(self, endpoint: Endpoint, pool: ThreadPoolExecutor, calls: Calls | None = None) -> None:
        self.endpoint = endpoint
        self._pool, self._calls = pool, calls or Calls()

    async def __call__(self, requests: Sequence[TritonRequest]) -> AsyncIterator[Rows]:
        with self._calls.one():
            async for rows in self._answer(requests):
                yield rows

    async def _answer(self, requests: Sequence[TritonRequest]) -> AsyncIterator[Rows]:
        rows = self.endpoint.rows(requests[0], None, time.monotonic())
        step: Future[Row | None] = self._pool.submit(next, rows, None)
        try:
            while (row := await asyncio.wrap_future(step)) is not None:
                # The next answer is made while this one is sent.
                step = self._pool.submit(next, rows, None)
                tensors = to_tensors(self.endpoint.outputs, [row])
                yield [{name: value[0] for name, value in tensors.items()}]
        finally:
            # A client may leave while a thread is at a step, and a generator that runs cannot be closed.
            step.add_done_callback(lambda _step: rows.close())
