"""One run: a server, clients that send as a job says, and what came of it in numbers. Prints nothing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from client import Client
from pipelines.protocol.answers import ANSWERS
from pipelines.protocol.errors import InvalidOptions
from scripts.bench.figures import Figures, Stage, Window, figures, median
from scripts.bench.jobs import Job, Protocol
from scripts.bench.load import Load, Report
from scripts.bench.meter import Meter, Usage, cpu_s
from scripts.bench.programs import Program
from scripts.servers import Server

# The first part of a run counts for nothing: queues fill, and clients have started together.
WARM_UP = 0.2
BOUNDARY_CALLS = 100
BATCHES = "batches of "


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A server under so many clients.

    Attributes:
        server_cpu_ms, client_cpu_ms: for each frame answered.
        batch_sizes: of the model's batches, how many had each size.
        counters: by how much the server's other counters have grown, by group and name.
    """

    clients: int
    figures: Figures
    usage: Usage
    server_cpu_ms: float
    client_cpu_ms: float
    batch_sizes: Mapping[str, float]
    counters: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """What a request costs that asks for nothing: median time, and processor time on both sides."""

    latency_ms: float
    server_cpu_ms: float
    client_cpu_ms: float


def sending(load: Load) -> Program[Report]:
    """Clients at work."""
    return Program("load", load, Report)


def send(load: Load) -> Report:
    """Run clients to their end."""
    with sending(load) as clients:
        return clients.answer()


def measure_stages(job: Job, seconds: float) -> dict[str, Stage]:
    """Each stage alone (`scripts.bench.stages`)."""
    with Program("stages", job, dict[str, Stage], str(seconds)) as measuring:
        return measuring.answer()


def url_of(server: Server, protocol: Protocol) -> str:
    return server.grpc_url if protocol == "grpc" else server.http_url


def load_of(job: Job, server: Server, clients: int, seconds: float) -> Load:
    """A job's closed loop of clients."""
    return Load(
        kind="trivid",
        url=url_of(server, job.protocol),
        medium=job.medium,
        task=job.task,
        stream=job.stream,
        options=job.options,
        clients=clients,
        seconds=seconds,
    )


def window_of(report: Report, seconds: float) -> Window:
    """All but the warm-up, until clients began to leave; with long media they do after the run's time."""
    end_s = max(report.start_s + seconds, report.end_s)
    return Window(start_s=report.start_s + WARM_UP * (end_s - report.start_s), end_s=end_s)


def figures_of(report: Report, seconds: float, frames: int) -> Figures:
    return figures(report.replies, window_of(report, seconds), frames)


def measure_point(
    server: Server, load: Load, frames: int, count: Callable[[], Mapping[str, float]] = dict
) -> Point:
    """A server under load. `count` gives what it has counted so far (`counters`)."""
    before = count()
    with Meter(server) as meter:
        report = send(load)
    grown = {name: value - before.get(name, 0) for name, value in count().items()}
    done = frames * sum(1 for reply in report.replies if not reply.error) or 1
    sizes = {name: value for name, value in grown.items() if name.startswith(BATCHES)}
    return Point(
        clients=load.clients,
        figures=figures_of(report, load.seconds, frames),
        usage=meter.usage,
        server_cpu_ms=1000 * meter.usage.cpu_s / done,
        client_cpu_ms=1000 * report.cpu_s / done,
        batch_sizes={name.removeprefix(BATCHES): value for name, value in sizes.items() if value},
        counters={name: value for name, value in grown.items() if name not in sizes},
    )


def counters(server: Server, task: str) -> dict[str, float]:
    """All that the server counts, by group and name, and its model's batches of each size."""
    with Client(server.http_url) as client:
        info: Mapping[str, Any] = client.info()
    found = {f"{BATCHES}{size}": count for size, count in info["models"][task]["batch_sizes"].items()}
    groups = {name: group for name, group in info.items() if name != "models" and isinstance(group, dict)}
    for group, values in groups.items():
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        found |= {f"{group} {name}": value for name, value in numbers.items()}
    return found


def measure_boundary(server: Server, job: Job) -> dict[str, Crossing]:
    """The cost of Triton and PyTriton: of a bare call, and of one that brings the medium and is refused."""
    media = job.media
    with Client(url_of(server, job.protocol)) as client:

        def refused() -> None:
            with contextlib.suppress(InvalidOptions):
                client.ask(ANSWERS[job.task], media, {"stride": 0})

        return {"bare": _crossing(server, client.info), "with the medium": _crossing(server, refused)}


def _crossing(server: Server, call: Callable[[], object]) -> Crossing:
    times = []
    own_s, server_s = time.process_time(), cpu_s(server)
    for _ in range(BOUNDARY_CALLS):
        start_s = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start_s))
    return Crossing(
        latency_ms=median(times),
        server_cpu_ms=1000 * (cpu_s(server) - server_s) / BOUNDARY_CALLS,
        client_cpu_ms=1000 * (time.process_time() - own_s) / BOUNDARY_CALLS,
    )
