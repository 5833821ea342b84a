"""Streams that are pulled: a request takes some answers, and the next one, with a token, continues there.

PyTriton does not slow a stream down, and does not report that its client has left. So only answers that were
asked for are computed. Owns tokens, credits, the numbers of answers, and expiry. Knows rows, but no media,
models or transport.

A paused stream takes no thread. It holds its encoded medium, its decoder, the frames of two chunks (of the
last answer and of the next), and the answers of its last pull: at most PULL_BYTES and one answer.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field

import numpy as np

from pipelines.protocol.columns import Row, nbytes, text_column
from pipelines.protocol.errors import Cancelled, InvalidOptions, Overloaded
from pipelines.protocol.options import Options
from pipelines.telemetry.counters import Telemetry

SESSION_S = 30.0
# A pull pauses after the answer that exceeds this, whatever credits are left: Triton may hold all of it.
PULL_BYTES = 32 << 20
# What all ended streams together keep, for clients whose connection broke before the last answers came.
ENDED_BYTES = 64 << 20


@dataclass(slots=True, kw_only=True, eq=False)
class _Stream:
    """One stream from its first answer to its last, and for a while after that.

    Attributes:
        owner: the endpoint that it belongs to.
        puller: the request that takes its answers now; if a newer one takes over, the older gets no more.
        step: held by whoever runs `rows`, since a generator cannot be run, or closed, by two threads at once.
        said: the answers of the last pull, the last of them number `seq` - 1.
        given: number of the next answer to give.
        told: whether a client has the token.
        kept_bytes: size of `said` once the stream has ended.
    """

    owner: str
    rows: Generator[Row, None, None]
    puller: object | None
    token: str = field(default_factory=lambda: secrets.token_urlsafe(18))
    step: threading.Lock = field(default_factory=threading.Lock)
    said: list[Row] = field(default_factory=list)
    seq: int = 0
    given: int = 0
    told: bool = False
    ended: bool = False
    paused_s: float = 0.0
    kept_bytes: int = 0

    def rewind(self, last_seq: int) -> None:
        """Forget what the client has; next is the answer after `last_seq`, or (-1) the first one not given.

        Raises:
            InvalidOptions: that answer is not there any more, or not yet.
            Cancelled: there is none, for the last was given.
        """
        with self.step:
            first = self.seq - len(self.said)
            if last_seq >= 0:
                if not first <= last_seq + 1 <= self.seq:
                    raise InvalidOptions(
                        f"last_seq={last_seq}: the session has answers {first} to {self.seq - 1}",
                        hint="only the answers of the last pull are kept",
                    )
                self.given = last_seq + 1
            del self.said[: self.given - first]
            if self.ended and self.given == self.seq:
                raise Cancelled(f"the stream has ended: answer {self.seq - 1} was the last")


class Sessions:
    """All streams of a server. Safe to use from any thread.

    Args:
        most: streams open at once, running or paused; a further one is Overloaded.
        expire_s: a stream that is paused for longer is closed by `expire`.
        pull_bytes: a pull pauses after the answer with which its answers reach this size.
        clock: seconds, from any start.
    """

    def __init__(
        self,
        telemetry: Telemetry,
        *,
        most: int = 64,
        expire_s: float = SESSION_S,
        pull_bytes: int = PULL_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._telemetry = telemetry
        self._most, self._expire_s, self._pull_bytes, self._clock = most, expire_s, pull_bytes, clock
        # Guards the table, and who pulls. Taken with a stream's `step` held, but never the other way round.
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        telemetry.gauge("streams", "open", lambda: self._count(paused=False))
        telemetry.gauge("streams", "paused", lambda: self._count(paused=True))

    def pull(
        self, owner: str, rows: Generator[Row, None, None], options: Options
    ) -> Generator[Row, None, None]:
        """The next answers of the stream that `options.session` names, else of a new one, which is `rows`.

        A row comes out with its number as `seq`, and as `session` the token if the stream pauses after it.
        The stream ends with a row that is `final`.

        Raises:
            Overloaded: too many streams are open.
            Cancelled: there is no such session (any more).
            InvalidOptions: another request pulls it, or `last_seq` is none of its answers.
        """
        mine = object()
        stream = self._taken(owner, options, mine) if options.session else self._started(owner, rows, mine)
        try:
            if options.cancel:
                self._end(stream)
                return
            stream.rewind(options.last_seq)
            yield from self._given(stream, mine, options.credits or math.inf)
        finally:
            self._pause(stream, mine)

    def expire(self) -> None:
        """Close the streams that nobody has pulled for too long."""
        with self._lock:
            since = self._clock() - self._expire_s
            old = [one for one in self._streams.values() if one.puller is None and one.paused_s < since]
            for stream in old:
                del self._streams[stream.token]
        for stream in old:
            self._close(stream, "expired")

    def close(self) -> None:
        """Close all streams; those that run now, after the answer that they are at."""
        with self._lock:
            streams = list(self._streams.values())
            self._streams.clear()
            for stream in streams:
                stream.puller = None
        for stream in streams:
            self._close(stream, "cancelled_total")

    def _started(self, owner: str, rows: Generator[Row, None, None], mine: object) -> _Stream:
        with self._lock:
            if sum(not stream.ended for stream in self._streams.values()) >= self._most:
                raise Overloaded(
                    f"{self._most} streams are open, the most this server allows",
                    hint="try again in a moment",
                )
            stream = _Stream(owner=owner, rows=rows, puller=mine)
            self._streams[stream.token] = stream
        self._telemetry.count("streams", "started")
        return stream

    def _taken(self, owner: str, options: Options, mine: object) -> _Stream:
        with self._lock:
            stream = self._streams.get(options.session)
            if stream is None or stream.owner != owner:
                raise Cancelled(
                    f"no such session of {owner}: it has ended, was cancelled, or was not pulled for "
                    f"{self._expire_s:g} s",
                    hint="send the medium again, with start_s to continue",
                )
            # A client that sends `last_seq` has lost its connection; the server is not told of that.
            if stream.puller is not None and options.last_seq < 0 and not options.cancel:
                raise InvalidOptions(
                    "another request is pulling this session",
                    hint="wait for its answers, or send last_seq to take over",
                )
            stream.puller = mine
            return stream

    def _given(self, stream: _Stream, mine: object, left: float) -> Generator[Row, None, None]:
        """Answers until credits or bytes run out, the stream ends, or another request takes over."""
        room = self._pull_bytes
        while (row := self._next(stream, mine)) is not None:
            left, room = left - 1, room - _nbytes(row)
            final = _is_final(row)
            stops = final or left <= 0 or room <= 0
            token = stream.token if stops and not final else ""
            if stops:
                stream.told = stream.told or not final
                # Before the answer leaves, since the next pull may come as soon as it has arrived.
                self._pause(stream, mine)
            yield {**row, "session": text_column(token)}
            if stops:
                return

    def _next(self, stream: _Stream, mine: object) -> Row | None:
        """The next answer, said before or new; None if there is none for this puller."""
        with stream.step:
            if stream.puller is not mine:
                return None
            if stream.given == stream.seq:
                row = next(stream.rows, None)
                if row is not None:
                    stream.said.append({**row, "seq": np.array([stream.seq], np.int64)})
                    stream.seq += 1
                if row is None or _is_final(row):
                    self._finish(stream)
                if row is None:
                    return None
            stream.given += 1
            return stream.said[stream.given - 1 - stream.seq]

    def _finish(self, stream: _Stream) -> None:
        """Free the decoder; keep the last answers if a client may ask again, and drop the oldest ones."""
        stream.rows.close()
        stream.kept_bytes = sum(map(_nbytes, stream.said))
        self._telemetry.count("streams", "finished")
        with self._lock:
            stream.ended = True
            if not stream.told:
                self._streams.pop(stream.token, None)
            ended = [one for one in self._streams.values() if one.ended]
            size = sum(one.kept_bytes for one in ended)
            for one in ended:
                if size > ENDED_BYTES:
                    size -= one.kept_bytes
                    del self._streams[one.token]

    def _pause(self, stream: _Stream, mine: object) -> None:
        """Let the next request pull; a stream whose client has left before it got a token ends."""
        with self._lock:
            if stream.puller is not mine:
                return
            stream.puller, stream.paused_s = None, self._clock()
        if not stream.told:
            self._end(stream)

    def _end(self, stream: _Stream) -> None:
        with self._lock:
            stream.puller = None
            there = self._streams.pop(stream.token, None)
        if there is not None:
            self._close(stream, "cancelled_total")

    def _close(self, stream: _Stream, outcome: str) -> None:
        """Free the decoder of a stream that is out of the table, as soon as its current step is over."""
        with stream.step:
            if not stream.ended:
                stream.ended = True
                self._telemetry.count("streams", outcome)
            stream.rows.close()

    def _count(self, *, paused: bool) -> int:
        with self._lock:
            streams = [stream for stream in self._streams.values() if not stream.ended]
            return sum(stream.puller is None for stream in streams) if paused else len(streams)


def _is_final(row: Row) -> bool:
    return bool(row["final"][0])


def _nbytes(row: Row) -> int:
    return sum(map(nbytes, row.values()))
