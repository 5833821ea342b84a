"""Other servers for the same job: started, warmed up, and measured in turns with ours. Their code:
scripts/bench/peers.

While one is measured the others are held still (SIGSTOP), so that they use no time; in turns, so that a
machine that is busy for a while slows them all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.figures import median
from scripts.bench.jobs import DEMO, Job
from scripts.bench.load import Kind, Load
from scripts.bench.meter import measured
from scripts.bench.runs import Point, measure_point, send
from scripts.servers import Server, free_ports, start

OURS = "trivid"
# Which tasks each does: the seed's design here for models that give logits of whole frames.
TASKS: dict[str, tuple[str, ...]] = {
    "seed_pytriton": ("classification",),
    "fastapi_app": ("classification", "detection", "segmentation"),
    "litserve_app": ("classification", "detection", "segmentation"),
}
NEEDS = {"seed_pytriton": "pytriton", "fastapi_app": "fastapi", "litserve_app": "litserve"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server that runs, and how it is asked."""

    server: Server
    load: Load


def missing(task: str, model: str) -> str:
    """Why there are no peers for a job; empty if there are."""
    if model == DEMO:
        return "peers serve torchvision's models, not the demo's"
    if not any(task in tasks for tasks in TASKS.values()):
        return f"no peer does {task}"
    lacking = [module for module in NEEDS.values() if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(lacking)} (uv sync --group bench)" if lacking else ""


@contextlib.contextmanager
def peers(job: Job, folder: Path) -> Iterator[dict[str, Contender]]:
    """All peers that do the job's task, ready: each has answered once."""
    names = [name for name, tasks in TASKS.items() if job.task in tasks]
    with contextlib.ExitStack() as stack:
        started = {name: stack.enter_context(_started(name, job, folder)) for name in names}
        for contender in started.values():
            send(dataclasses.replace(contender.load, clients=1, requests=1, seconds=0))
        yield started


@contextlib.contextmanager
def _started(name: str, job: Job, folder: Path) -> Iterator[Contender]:
    flags = ["--task", job.task, "--model", job.model, "--weights", job.weights, "--device", job.device]
    port = _triple_port()
    command = [sys.executable, "-m", f"scripts.bench.peers.{name}", *flags, "--port", str(port)]
    server = start(command, folder / f"{name}.log", (port, port + 1, port + 2))
    kind: Kind = "pytriton" if name == "seed_pytriton" else "http"
    url = server.grpc_url if kind == "pytriton" else server.http_url
    with measured(server, "" if kind == "pytriton" else "/health"):
        yield Contender(server=server, load=Load(kind=kind, url=url, medium=job.medium, task=job.task))


def _triple_port() -> int:
    """A port with two free ones behind it, as PyTriton takes three."""
    while True:
        (port,) = free_ports(1)
        with contextlib.suppress(OSError, OverflowError), contextlib.ExitStack() as stack:
            for number in range(port, port + 3):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return port


def in_turns(
    contenders: Mapping[str, Contender],
    job: Job,
    *,
    clients: int,
    seconds: float,
    rounds: int,
    say: Callable[[str, Point], None],
) -> dict[str, list[Point]]:
    """Each under the same load, one after the other, round after round, while all others are held still."""
    for contender in contenders.values():
        contender.server.hold()
    points: dict[str, list[Point]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            contender.server.go_on()
            load = dataclasses.replace(contender.load, clients=clients, seconds=seconds)
            point = measure_point(contender.server, load, job.frames)
            contender.server.hold()
            points[name].append(point)
            say(name, point)
    return points


def ratios(points: Mapping[str, list[Point]]) -> dict[str, float]:
    """Ours over each peer, of the medians of all rounds."""
    rates = {name: median([one.figures.frames_per_s for one in found]) for name, found in points.items()}
    return {
        f"ours to {name}": rates[OURS] / rate for name, rate in rates.items() if name != OURS and rate > 0
    }
