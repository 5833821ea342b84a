"""The process that opens damaged media, one after the other, and says what each took. Started by `rig`.

It writes a line of JSON when it is ready, and after each medium. It reads a length of eight bytes, then the
medium. Its reader is a function of the bytes of a medium, and yields how many bytes the pixels need.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipelines.protocol.errors import InternalError, TrividError

Reader = Callable[[bytes], Iterator[int]]
# Beyond this a process would endanger the machine; then the medium fails with a MemoryError.
MOST_MORE_BYTES = 6 << 30


def tried(reader: Reader, encoded: bytes) -> dict[str, Any]:
    """What became of a medium: its error, seconds, and bytes of memory: the most, and what pixels need."""
    gc.collect()
    before = _reset_peaks()
    start, needed, error, where = time.monotonic(), 0, "", ""
    try:
        for needs in reader(encoded):
            needed = max(needed, needs)
    except InternalError as fault:
        error, where = f"InternalError: {fault.message}", _place_of(fault)
    except TrividError:
        pass
    except Exception as fault:  # noqa: BLE001 - that is what is looked for
        error, where = f"{type(fault).__name__}: {fault}", _place_of(fault)
    seconds = time.monotonic() - start
    return {
        "error": error[:300],
        "where": where,
        "seconds": seconds,
        "peak": _peaks() - before,
        "needed": needed,
    }


def _place_of(fault: BaseException) -> str:
    last = traceback.extract_tb(fault.__traceback__)[-1]
    return f"{Path(last.filename).name}:{last.lineno}"


def _processes() -> list[int]:
    """This process and its children, who may decode for it."""
    found, new = [], [os.getpid()]
    while new:
        one = new.pop()
        found.append(one)
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            new += [int(child) for child in _text(listing).split()]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # the process has ended
        return ""


def _status(process: int, field: str) -> int:
    """A line of a process's status in bytes."""
    lines = _text(Path(f"/proc/{process}/status")).splitlines()
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)


def _peaks() -> int:
    return sum(_status(one, "VmHWM") for one in _processes())


def _reset_peaks() -> int:
    """Let the kernel count peaks anew; what is held now."""
    for one in _processes():
        try:
            Path(f"/proc/{one}/clear_refs").write_text("5")
        except OSError:
            continue
    return _peaks()


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    reader: Reader = getattr(importlib.import_module(module), name)
    size = _status(os.getpid(), "VmSize") + MOST_MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    # Libraries print; answers go where the output went.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    answers.write("{}\n")
    answers.flush()
    while header := sys.stdin.buffer.read(8):
        (length,) = struct.unpack(">Q", header)
        answer = tried(reader, sys.stdin.buffer.read(length))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
