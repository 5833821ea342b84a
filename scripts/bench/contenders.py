"""Servers that are compared on one job: ours, another version of it, and those of scripts/bench/peers."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from scripts.bench.jobs import DEMO, Job
from scripts.bench.load import Kind, Load
from scripts.bench.meter import measured
from scripts.bench.runs import load_of, send
from scripts.servers import PORTS, Server, free_ports, start, start_server

OURS, OTHER = "trivid", "the other"
# Which tasks each does (the seed's design: those of which it gives logits of whole frames), and its package.
FRAME_TASKS = ("classification", "detection", "segmentation")
PEERS = {
    "seed_pytriton": (FRAME_TASKS[:1], "pytriton"),
    "fastapi_app": (FRAME_TASKS, "fastapi"),
    "litserve_app": (FRAME_TASKS, "litserve"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A server that runs, and how it is asked."""

    server: Server
    load: Load

    @classmethod
    def of(cls, server: Server, job: Job) -> Contender:
        """A server of ours."""
        return cls(server=server, load=load_of(job, server, 1, 0.0))


def missing(task: str, model: str) -> str:
    """Why there are no peers for a job; empty if there are."""
    if model == DEMO:
        return "peers serve torchvision's models, not the demo's"
    if not any(task in tasks for tasks, _ in PEERS.values()):
        return f"no peer does {task}"
    lacking = [module for _, module in PEERS.values() if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(lacking)} (uv sync --group bench)" if lacking else ""


def _warm_up(contenders: Mapping[str, Contender]) -> None:
    """Let each answer once."""
    for contender in contenders.values():
        send(dataclasses.replace(contender.load, requests=1))


@contextlib.contextmanager
def peers(job: Job, folder: Path) -> Iterator[dict[str, Contender]]:
    """All peers that do the job's task, ready: each has answered once."""
    with contextlib.ExitStack() as stack:
        names = [name for name, (tasks, _) in PEERS.items() if job.task in tasks]
        started = {name: stack.enter_context(_peer(name, job, folder)) for name in names}
        _warm_up(started)
        yield started


@contextlib.contextmanager
def _peer(name: str, job: Job, folder: Path) -> Iterator[Contender]:
    flags = ["--task", job.task, "--model", job.model, "--weights", job.weights, "--device", job.device]
    ports = free_ports(len(PORTS))
    command = [sys.executable, "-m", f"scripts.bench.peers.{name}", *flags, "--ports", *map(str, ports)]
    server = start(command, folder / f"{name}.log", ports)
    triton = name == "seed_pytriton"
    kind: Kind = "pytriton" if triton else "http"
    url = server.grpc_url if triton else server.http_url
    with measured(server, "" if triton else "/health"):
        yield Contender(server=server, load=Load(kind=kind, url=url, medium=job.medium, task=job.task))


@contextlib.contextmanager
def versions(job: Job, folder: Path, checkout: Path, *flags: str) -> Iterator[dict[str, Contender]]:
    """This checkout's server.py, and that of another one or with more flags, each ready and asked once."""
    other = dataclasses.replace(job, flags=(*job.flags, *flags)).server_flags()
    with (
        measured(start_server(folder, *job.server_flags(), name=OURS)) as ours,
        measured(start_server(folder, *other, name="other", checkout=checkout)) as theirs,
    ):
        started = {OURS: Contender.of(ours, job), OTHER: Contender.of(theirs, job)}
        _warm_up(started)
        yield started
