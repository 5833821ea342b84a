"""A stream on the client's side: pull by pull, no faster than its caller; it survives a broken connection.

A pull asks for as many answers as the caller takes in about PULL_S. So little is computed in vain if the
caller leaves, and a slow caller is back before the server closes the session. Knows no protocol, media or
tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Generator, Iterator

from pipelines.protocol.columns import Row
from pipelines.protocol.errors import Cancelled, ModelUnavailable, TrividError
from pipelines.protocol.kserve import reading
from pipelines.protocol.options import Scalar
from pipelines.sdk.transport import Call, Transport, broken_off_error

# In the first pull the pace is unknown, and the session ends if the caller takes 30 s for its answers.
FIRST_CREDITS, MOST_CREDITS = 2, 32
PULL_S = 2.0
LEAVE_S = 5.0


def credits_at_pace(answers: int, took_s: float) -> int:
    """How many answers to ask for next, if the last `answers` came and were taken in `took_s`."""
    if took_s * MOST_CREDITS <= PULL_S * answers:
        return MOST_CREDITS
    return max(1, int(PULL_S * answers / took_s))


class Pulls:
    """One stream: `rows` gives its answers, error rows included, and ends after the final one."""

    def __init__(self, transport: Transport, call: Call) -> None:
        self._transport = transport
        self._call = call
        self._token = ""
        self._last_seq = -1
        self._ended = False
        self._open: Generator[Row, None, None] | None = None
        self._pid = os.getpid()

    @property
    def begun(self) -> bool:
        """Whether an answer has come."""
        return self._last_seq >= 0

    def rows(self) -> Generator[Row, None, None]:
        """The rows of all pulls; closing the generator ends the stream on the server too.

        Raises:
            ModelUnavailable: the connection broke in the first pull, or twice without an answer in between.
            Cancelled: another process goes on with it: the stream is that of the process that began it.
            TrividError: whatever else the transport raises.
        """
        credits = FIRST_CREDITS
        try:
            while not self._ended:
                start_s, before = time.monotonic(), self._last_seq
                yield from self._pull(credits)
                credits = credits_at_pace(self._last_seq - before, time.monotonic() - start_s)
        except ModelUnavailable:
            self._ended = True  # no server is there to be told
            raise
        finally:
            self._leave()

    def _pull(self, credits: int) -> Generator[Row, None, None]:
        """The rows of one pull; if the connection breaks, the missing ones are requested again."""
        parameters: dict[str, Scalar] = {"credits": credits}
        while True:
            before = self._last_seq
            try:
                yield from self._once(self._request(parameters))
                return
            except ModelUnavailable:
                if not self._token or ("last_seq" in parameters and self._last_seq == before):
                    raise
            parameters["last_seq"] = self._last_seq

    def _request(self, parameters: dict[str, Scalar]) -> Call:
        """At first the medium and its options, later the token instead."""
        if not self._token:
            return dataclasses.replace(self._call, parameters={**self._call.parameters, **parameters})
        return dataclasses.replace(self._call, parameters={"session": self._token, **parameters})

    def _once(self, call: Call) -> Generator[Row, None, None]:
        self._open = self._transport.stream(call)
        for row in self._open:
            pauses = self._note(row)
            if pauses or self._ended:
                _drain(self._open)
                yield row
                return
            yield row
            if os.getpid() != self._pid:
                raise Cancelled("the stream was begun before a fork", hint="begin another in this process")
        raise broken_off_error(self._transport.address)

    def _note(self, row: Row) -> bool:
        """Remember how far the stream has come; returns whether it pauses after this row."""
        with reading():
            token = bytes(row["session"][0]).decode()
            self._last_seq = int(row["seq"][0])
            self._ended = bool(row["final"][0])
        if token:
            self._token = token
            self._call = dataclasses.replace(self._call, data=b"")  # the server has the medium
        return bool(token)

    def _leave(self) -> None:
        """Tell the server that the rest is not wanted, and let it finish what it is doing.

        Triton keeps a request in flight for ever if its client leaves at the wrong moment. The token, if
        there is none yet, comes with the second answer.
        """
        if sys.is_finalizing():  # no thread can start now, and a call would wait for ever
            return
        if os.getpid() != self._pid:  # the stream is its parent's
            return
        rows = self._open or ()
        with contextlib.suppress(TrividError):
            if not self._token:
                for row in rows:
                    self._note(row)
            if self._token and not self._ended:
                bounded = dataclasses.replace(self._call, timeout_s=min(self._call.timeout_s, LEAVE_S))
                parameters: dict[str, Scalar] = {"session": self._token, "cancel": True}
                _drain(self._transport.stream(dataclasses.replace(bounded, parameters=parameters)))
        _drain(rows)


def _drain(rows: Iterator[Row] | tuple[()]) -> None:
    """Read the unwanted rest to its end."""
    with contextlib.suppress(TrividError):
        for _ in rows:
            continue
