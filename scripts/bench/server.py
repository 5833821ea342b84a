"""Servers under measurement: processes started, asked what they use, held still, and ended. Knows no load.

Linux only: what processes use is read from /proc, of the whole tree that a server has become.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.machine import watchdog
from scripts import ROOT

START_S = 240.0
STOP_S = 60.0
SAMPLE_S = 0.25
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def gpu_bytes() -> int:
    """GPU memory in use, of all processes and devices; 0 without a GPU."""
    if not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return sum(int(line) << 20 for line in done.stdout.split() if line.isdigit())


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has ended
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a server used of the machine in a stretch of time; memory at its highest."""

    cpu_s: float
    peak_rss_bytes: int
    peak_main_rss_bytes: int
    peak_gpu_bytes: int
    shm_before_bytes: int
    shm_after_bytes: int


class Process:
    """A server as a tree of processes."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, *watchdog.children(self.process.pid)]

    def cpu_s(self) -> float:
        """Seconds of all cores that it has used; children that have ended count with their parent."""
        total = 0
        for pid in self.pids:
            if text := _read(Path(f"/proc/{pid}/stat")):
                total += sum(map(int, text[text.rindex(")") + 2 :].split()[11:15]))
        return total / TICKS_PER_S

    def rss_bytes(self) -> tuple[int, int]:
        """Of all its processes (pages that they share count for each), and of the first alone."""
        sizes = []
        for pid in self.pids:
            text = _read(Path(f"/proc/{pid}/statm"))
            sizes.append(int(text.split()[1]) * PAGE_BYTES if text else 0)
        return sum(sizes), sizes[0]

    def pss_bytes(self) -> int:
        """Of all its processes, pages that they share once (proportional set sizes); takes some milliseconds
        a GB.
        """
        texts = [_read(Path(f"/proc/{pid}/smaps_rollup")) for pid in self.pids]
        lines = [line for text in texts for line in text.splitlines() if line.startswith("Pss:")]
        return sum(int(line.split()[1]) * 1024 for line in lines)

    def shm_bytes(self) -> int:
        """What lies in /dev/shm of its making."""
        blocks = {
            line.split(maxsplit=5)[5]
            for pid in self.pids
            for line in _read(Path(f"/proc/{pid}/maps")).splitlines()
            if " /dev/shm/" in line and not line.endswith("(deleted)")
        }
        return sum(os.stat(block).st_blocks * 512 for block in blocks if os.path.exists(block))

    def check_alive(self) -> None:
        if self.process.poll() is not None:
            raise SystemExit(
                f"error: a server ended by itself:\n{self.log.read_text(errors='replace')[-3000:]}"
            )

    def wait_for(self, words: str) -> None:
        """Until its log says these words."""
        deadline = time.monotonic() + START_S
        while words not in self.log.read_text(errors="replace"):
            self.check_alive()
            if time.monotonic() > deadline:
                raise SystemExit(f"error: a server was not ready in {START_S:g} s, see {self.log}")
            time.sleep(0.1)

    def wait_http(self, url: str) -> None:
        """Until a GET of this address is answered with 200."""
        deadline = time.monotonic() + START_S
        while True:
            self.check_alive()
            with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(url, timeout=5):
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"error: a server was not ready in {START_S:g} s, see {self.log}")
            time.sleep(0.2)

    def hold(self) -> None:
        """Let it use no time until `go_on`: another server is measured."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it, and whatever it started."""
        self.go_on()
        children = self.pids[1:]  # asked for before the end, which leaves them without a parent
        if self.process.poll() is None:
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=STOP_S)
        for pid in {*children, self.process.pid}:
            if pid in children or self.process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=STOP_S)

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


class Meter:
    """Watches a server for a while; `usage` is complete after the `with` block.

    Args:
        shared_once: whether memory that processes share counts once in their sum, which costs the machine
            more.
    """

    def __init__(self, process: Process, *, shared_once: bool = False) -> None:
        self._process, self._shared_once = process, shared_once
        self._stop = threading.Event()
        self._peaks = [0, 0, 0]
        self.samples: list[tuple[float, int]] = []
        self._thread = threading.Thread(target=self._watch)
        self._before = (process.cpu_s(), process.shm_bytes())
        self.usage: Usage | None = None

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        rss, main, gpu = self._peaks
        self.usage = Usage(
            cpu_s=self._process.cpu_s() - self._before[0],
            peak_rss_bytes=rss,
            peak_main_rss_bytes=main,
            peak_gpu_bytes=gpu,
            shm_before_bytes=self._before[1],
            shm_after_bytes=self._process.shm_bytes(),
        )

    def _watch(self) -> None:
        while True:
            total, main = self._process.rss_bytes()
            if self._shared_once:
                total = self._process.pss_bytes()
            self.samples.append((time.monotonic(), main))
            now = (total, main, gpu_bytes())
            self._peaks = [max(pair) for pair in zip(self._peaks, now, strict=True)]
            if self._stop.wait(SAMPLE_S):
                return


@contextlib.contextmanager
def trivid(flags: Sequence[str], folder: Path) -> Iterator[tuple[Process, str, str]]:
    """The project's own server, ready: its process, and where it listens for gRPC and HTTP."""
    http_port, grpc_port, metrics_port = free_ports(3)
    ports = ["--http-port", http_port, "--grpc-port", grpc_port, "--metrics-port", metrics_port]
    command = [sys.executable, "server.py", *map(str, ports), "--endpoints", "media", *flags]
    process = Process(command, folder / f"trivid-{http_port}.log")
    try:
        process.wait_for("ready: ")
        yield process, f"grpc://127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}"
        process.check_alive()
    finally:
        process.stop()
