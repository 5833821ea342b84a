"""What servers use while they are measured: processor time, memory, blocks in /dev/shm. Linux only."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading

import psutil

from scripts.servers import Server, for_each

MIB = 1 << 20
SAMPLE_S = 0.25


def cpu_s(server: Server) -> float:
    """Seconds of all cores that it has used; children that have ended count with their parent."""
    return sum(sum(times[:4]) for times in for_each(server.family(), psutil.Process.cpu_times))


def memory_bytes(server: Server, *, shared_once: bool = False) -> tuple[int, int]:
    """Of all its processes, and of the first only.

    Pages that processes share count for each of them, or once, which takes some milliseconds a GB.
    """
    family = server.family()
    sizes = for_each(family, lambda process: int(process.memory_info().rss))
    shares = for_each(family, lambda process: int(process.memory_full_info().pss)) if shared_once else sizes
    return sum(shares), sizes[0] if sizes else 0


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
    """Watches a server for a while; what it used of the machine is known after the `with` block.

    Attributes:
        samples_mib: memory in use every SAMPLE_S: of all its processes, of the first only, and of GPUs.
        memory_mib: the same at its highest, and /dev/shm before and after.
        cpu_s: of all cores.

    Args:
        shared_once: whether memory that processes share counts once in their sum.
    """

    def __init__(self, server: Server, *, shared_once: bool = False) -> None:
        self._server, self._shared_once = server, shared_once
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.samples_mib: list[tuple[float, float, float]] = []
        self.memory_mib = {"shm": shm_bytes(server) / MIB}
        self.cpu_s = -cpu_s(server)

    def __enter__(self) -> Meter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        highest = map(max, zip(*self.samples_mib, strict=True))
        self.memory_mib |= dict(zip(("RSS", "main", "GPU"), highest, strict=True))
        self.memory_mib["shm after"] = shm_bytes(self._server) / MIB
        self.cpu_s += cpu_s(self._server)

    def _watch(self) -> None:
        done = False
        while not done:
            total, main = memory_bytes(self._server, shared_once=self._shared_once)
            self.samples_mib.append((total / MIB, main / MIB, gpu_bytes() / MIB))
            done = self._stop.wait(SAMPLE_S)
