"""What servers use while they are measured: processor time, memory, blocks in /dev/shm. Linux only."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from scripts.servers import Server, for_each

MIB = 1 << 20
SAMPLE_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a server used of the machine in a stretch of time; memory at its highest."""

    cpu_s: float
    peak_rss_bytes: int
    peak_main_rss_bytes: int
    peak_gpu_bytes: int
    shm_before_bytes: int
    shm_after_bytes: int


@contextlib.contextmanager
def measured(server: Server, health: str = "") -> Iterator[Server]:
    """A server, ready; afterwards nothing of it is left, however badly it ends."""
    try:
        server.wait_ready(health)
        yield server
        server.check_alive()
    finally:
        family = server.family()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.stop()
        for_each(family, psutil.Process.kill)


def cpu_s(server: Server) -> float:
    """Seconds of all cores that it has used; children that have ended count with their parent."""
    return sum(sum(times[:4]) for times in for_each(server.family(), psutil.Process.cpu_times))


def rss_bytes(server: Server) -> tuple[int, int]:
    """Of all its processes (pages that they share count for each), and of the first only."""
    sizes = for_each(server.family(), lambda process: int(process.memory_info().rss))
    return sum(sizes), sizes[0] if sizes else 0


def pss_bytes(server: Server) -> int:
    """Of all its processes, pages that they share once; takes some milliseconds a GB."""
    return sum(for_each(server.family(), lambda process: int(process.memory_full_info().pss)))


def shm_bytes(server: Server) -> int:
    """What lies in /dev/shm of its making."""
    maps = for_each(server.family(), lambda process: {block.path for block in process.memory_maps()})
    blocks = {path for paths in maps for path in paths if path.startswith("/dev/shm/")}
    return sum(os.stat(block).st_blocks * 512 for block in blocks if os.path.exists(block))


def gpu_bytes() -> int:
    """GPU memory in use, of all processes and devices; 0 without a GPU."""
    if not shutil.which("nvidia-smi"):
        return 0
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, check=False)
    return sum(int(line) << 20 for line in done.stdout.split() if line.isdigit())


class Meter:
    """Watches a server for a while; `usage` is there after the `with` block.

    Attributes:
        samples: bytes in use every SAMPLE_S: of all its processes, of the first only, and of GPUs.

    Args:
        shared_once: whether memory that processes share counts once in their sum, which takes longer.
    """

    usage: Usage

    def __init__(self, server: Server, *, shared_once: bool = False) -> None:
        self._server, self._shared_once = server, shared_once
        self._stop = threading.Event()
        self.samples: list[tuple[int, int, int]] = []
        self._thread = threading.Thread(target=self._watch)
        self._before = (cpu_s(server), shm_bytes(server))

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        rss, main, gpu = map(max, zip(*self.samples, strict=True))
        self.usage = Usage(
            cpu_s=cpu_s(self._server) - self._before[0],
            peak_rss_bytes=rss,
            peak_main_rss_bytes=main,
            peak_gpu_bytes=gpu,
            shm_before_bytes=self._before[1],
            shm_after_bytes=shm_bytes(self._server),
        )

    def _watch(self) -> None:
        while True:
            total, main = rss_bytes(self._server)
            total = pss_bytes(self._server) if self._shared_once else total
            self.samples.append((total, main, gpu_bytes()))
            if self._stop.wait(SAMPLE_S):
                return
