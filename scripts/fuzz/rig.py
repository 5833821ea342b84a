"""Workers that can be killed, and what they find. Knows no formats and no mutations."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts import ROOT

# A worker is replaced after so many media, lest what it keeps hides what the next one takes.
MEDIA_EACH = 300
# A busy machine is slow: waiting counts only after so many times the limit.
PATIENCE = 4
POLL_S = 0.1
START_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a medium may cost: seconds of computing, and bytes beyond what its pixels need."""

    seconds: float = 10.0
    more_bytes: int = 512 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A medium that costs more than an error: which, what it was made of, and what it did."""

    kind: str
    number: int
    made_of: str
    what: str
    data: bytes


class Worker:
    """A process of `scripts.fuzz.worker`, started when it is needed, and anew after it has died."""

    def __init__(self, reader: str, bounds: Bounds) -> None:
        self._reader, self._bounds = reader, bounds
        self._process: subprocess.Popen[bytes] | None = None
        self._left = 0

    def __call__(self, data: bytes) -> tuple[str, str]:
        """The kind of fault and what it is; empty if all is well."""
        process = self._running()
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(struct.pack(">Q", len(data)) + data)
            process.stdin.flush()
        answer = self._answer(process, self._bounds.seconds)
        if isinstance(answer, str):
            self.close()
            return ("hang", answer) if answer else ("crash", self._end_of(process))
        more = answer["peak"] - answer["needed"]
        if answer["error"]:
            return "untyped", f"{answer['error']} at {answer['where']}"
        if more > self._bounds.more_bytes:
            return "memory", f"{more >> 20} MiB more than its pixels, {answer['seconds']:.1f} s"
        return "", ""

    def close(self) -> None:
        """End the process, and with it what it has started."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
            self._process = None

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and not self._left:
            self.close()
        if self._process is None:
            command = [sys.executable, "-m", "scripts.fuzz.worker", self._reader]
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )
            self._left = MEDIA_EACH
            if self._answer(self._process, START_S) != {}:
                self.close()
                raise SystemExit(f"error: no worker starts: {' '.join(command)}")
        self._left -= 1
        return self._process

    @staticmethod
    def _answer(process: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any] | str:
        """What the worker says of a medium; in words that it hangs; empty if it has ended."""
        assert process.stdout is not None
        start, computed = time.monotonic(), _cpu_s(process.pid)
        while not select.select([process.stdout], [], [], POLL_S)[0]:
            waited = time.monotonic() - start
            if max(_cpu_s(process.pid) - computed, waited / PATIENCE) > limit_s:
                return f"over {limit_s:g} s"
        line = process.stdout.readline()
        answer: dict[str, Any] | str = json.loads(line) if line else ""
        return answer

    @staticmethod
    def _end_of(process: subprocess.Popen[bytes]) -> str:
        code = process.returncode
        return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"


def _cpu_s(process: int) -> float:
    """Seconds that a process has computed."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def run(
    make: Callable[[int], tuple[str, bytes]],
    numbers: Iterator[int],
    *,
    reader: str,
    workers: int,
    bounds: Bounds,
    found: Callable[[Finding], None],
) -> int:
    """Try the media of these numbers, several at a time; how many they were.

    Args:
        make: a medium by its number: what it is made of, and its bytes.
        reader: what opens media, as `module:function` (see `scripts.fuzz.worker`).
    """
    lock, count = threading.Lock(), 0
    faults: list[BaseException] = []

    def work() -> None:
        nonlocal count
        worker = Worker(reader, bounds)
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return
                made_of, data = make(number)
                kind, what = worker(data)
                with lock:
                    count += 1
                    if kind:
                        found(Finding(kind=kind, number=number, made_of=made_of, what=what, data=data))
        except BaseException as fault:  # noqa: BLE001 - it is raised again by the caller's thread
            faults.append(fault)
        finally:
            worker.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    if faults:
        raise faults[0]
    return count
