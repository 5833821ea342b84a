"""Readers of media with planted faults, as `python -m scripts.fuzz` is to find them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

from pipelines.protocol.errors import InternalError, InvalidMedia

MIB = 1 << 20


def by_name(encoded: bytes) -> Iterator[int]:
    """Does what the medium says."""
    said = encoded.decode()
    if said == "sleep":
        time.sleep(600)
    while said == "spin":
        pass
    if said == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if said == "exit":
        os._exit(3)
    if said == "untyped":
        raise ZeroDivisionError("planted")
    if said == "internal":
        raise InternalError("planted")
    if said == "typed":
        raise InvalidMedia("planted")
    taken = bytearray(b"1") * (200 * MIB) if said in ("memory", "pixels") else b""
    yield len(taken) if said == "pixels" else 0
    del taken


def of_some(encoded: bytes) -> Iterator[int]:
    """Cannot read one in three."""
    yield 0
    if sum(encoded) % 3 == 0:
        raise KeyError(f"planted in {len(encoded)} bytes")
