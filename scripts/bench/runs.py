"""One run: a server, clients that send as a job says, and what came of it in numbers. Prints nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from client import Client
from pipelines.protocol.answers import ANSWERS
from pipelines.protocol.errors import InvalidOptions
from scripts.bench.figures import Report, Stage, median, percentiles
from scripts.bench.jobs import Job
from scripts.bench.load import Load
from scripts.bench.meter import Meter, cpu_s
from scripts.bench.programs import program
from scripts.servers import Server

BOUNDARY_CALLS = 100
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


def sending(load: Load) -> AbstractContextManager[Callable[[], Report]]:
    """Clients at work."""
    return program("load", load, Report)


def send(load: Load) -> Report:
    """Run clients to their end."""
    with sending(load) as answer:
        return answer()


def measure_stages(job: Job, seconds: float) -> dict[str, Stage]:
    """Each stage alone (`scripts.bench.stages`)."""
    with program("stages", job, dict[str, Stage], str(seconds)) as answer:
        return answer()


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
