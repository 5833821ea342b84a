"""One run: a server, clients that send as a job says, what it used meanwhile, and what came of it in numbers.

What it used is processor time, memory and blocks in /dev/shm, as Linux tells them. Prints nothing.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import psutil
from pydantic import TypeAdapter

from client import Client
from pipelines.protocol.answers import ANSWERS
from pipelines.protocol.errors import InvalidOptions
from scripts import ROOT
from scripts.bench.figures import Report, Stage, median, percentiles
from scripts.bench.jobs import Job
from scripts.bench.load import Load
from scripts.servers import Server, for_each

BOUNDARY_CALLS = 100
MIB = 1 << 20
SAMPLE_S = 0.25
OURS = "trivid"
# A server that runs, and how it is asked.
Rival = tuple[Server, Load]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A server under so many clients.

    Attributes:
        cpu_ms: of server and client, for each frame answered.
        memory_mib: of the server at its highest: all its processes (RSS), the main one, GPUs, /dev/shm.
        counters: by how much the server's own have grown, by group and name.
    """

    clients: int
    frames_per_s: float
    requests: int
    errors: Mapping[str, int]
    latency_ms: Mapping[str, float]
    first_answer_ms: Mapping[str, float]
    cpu_ms: Mapping[str, float]
    memory_mib: Mapping[str, float]
    counters: Mapping[str, float]


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


@contextlib.contextmanager
def sending(load: Load) -> Iterator[Callable[[], Report]]:
    """Clients at work, as a function that waits for what they saw; after the `with` block they have ended."""
    text = TypeAdapter(Load).dump_json(load).decode()
    command = [sys.executable, "-m", "scripts.bench.load", text]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:

        def answer() -> Report:
            found, _ = process.communicate()
            if process.returncode:
                raise SystemExit("error: scripts.bench.load broke off, its message stands above")
            return TypeAdapter(Report).validate_json(found)

        try:
            yield answer
        finally:
            process.kill()


def send(load: Load) -> Report:
    """Run clients to their end."""
    with sending(load) as answer:
        return answer()


def measure_stages(job: Job, seconds: float) -> dict[str, Stage]:
    """Each stage alone (`scripts.bench.stages`), by a process of its own.

    Raises:
        SystemExit: the child ended without an answer.
    """
    # Not forked: threads of a forked process were seen to spin without an end.
    fresh = multiprocessing.get_context("spawn")
    ours, theirs = fresh.Pipe(duplex=False)
    process = fresh.Process(target=_send_stages, args=(theirs, job, seconds))
    process.start()
    theirs.close()
    try:
        found: dict[str, Stage] = ours.recv()
    except EOFError:
        raise SystemExit("error: measuring the stages broke off, its message stands above") from None
    finally:
        process.join()
    return found


def _send_stages(pipe: Connection, job: Job, seconds: float) -> None:
    status = 1
    try:
        from scripts.bench.stages import measure_job

        pipe.send(measure_job(job, seconds))
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)  # DALI, ONNX Runtime and threads that still run would hold its end up


def measure_point(
    server: Server, load: Load, frames: int, count: Callable[[], Mapping[str, float]] = dict
) -> Point:
    """A server under load. `count` gives what it has counted so far (`counters`)."""
    before = count()
    with Meter(server) as meter:
        report = send(load)
    grown = {name: value - before.get(name, 0) for name, value in count().items()}
    done = frames * sum(1 for reply in report.replies if not reply.error) or 1
    good = report.good(load.seconds)
    return Point(
        clients=load.clients,
        frames_per_s=report.frames_per_s(load.seconds, frames),
        requests=len(good),
        errors=dict(report.errors()),
        latency_ms=percentiles([one.latency_ms for one in good]),
        first_answer_ms=percentiles([one.first_answer_ms for one in good]),
        cpu_ms={"server": 1000 * meter.cpu_s / done, "client": 1000 * report.cpu_s / done},
        memory_mib=meter.memory_mib,
        counters=grown,
    )


def counters(server: Server, task: str) -> dict[str, float]:
    """All that the server counts, by group and name, and its model's batches of each size."""
    with Client(server.http_url) as client:
        info: dict[str, Any] = {**client.info()}
    info["batches of"] = info.pop("models")[task]["batch_sizes"]
    groups = [(group, values) for group, values in info.items() if isinstance(values, dict)]
    found = {f"{group} {name}": value for group, values in groups for name, value in values.items()}
    return {name: value for name, value in found.items() if isinstance(value, int | float)}


def measure_boundary(server: Server, job: Job) -> dict[str, float]:
    """What PyTriton and Triton cost: of a bare call, and of one that brings the medium and is refused.

    Of each the median time, and the processor time on both sides.
    """
    media, found = job.media, {}
    with Client(job.load(server).url) as client:

        def refused() -> None:
            with contextlib.suppress(InvalidOptions):
                client.ask(ANSWERS[job.task], media, {"stride": 0})

        for name, call in (("bare", client.info), ("with the medium", refused)):
            times: list[float] = []
            own_s, server_s = time.process_time(), cpu_s(server)
            for _ in range(BOUNDARY_CALLS):
                start_s = time.perf_counter()
                call()
                times.append(1000 * (time.perf_counter() - start_s))
            found[f"{name}, ms a call"] = median(times)
            found[f"{name}, server's cpu-ms"] = 1000 * (cpu_s(server) - server_s) / BOUNDARY_CALLS
            found[f"{name}, client's cpu-ms"] = 1000 * (time.process_time() - own_s) / BOUNDARY_CALLS
    return found
