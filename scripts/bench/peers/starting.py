"""Which peers there are, what each does, and how they are started."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.bench.jobs import DEMO, Job
from scripts.bench.load import Load
from scripts.bench.runs import Rival, send
from scripts.servers import PORTS, free_ports, guarded, start

# Which tasks each does (the seed's design: those of which it gives logits of whole frames), and its package.
FRAME_TASKS = ("classification", "detection", "segmentation")
SEED = "seed_pytriton"
PEERS = {
    SEED: (FRAME_TASKS[:1], "pytriton"),
    "fastapi_app": (FRAME_TASKS, "fastapi"),
    "litserve_app": (FRAME_TASKS, "litserve"),
}


def missing(task: str, model: str) -> str:
    """Why there are no peers for a job; empty if there are."""
    if model == DEMO:
        return "peers serve torchvision's models, not the demo's"
    if not any(task in tasks for tasks, _ in PEERS.values()):
        return f"no peer does {task}"
    lacking = [module for _, module in PEERS.values() if importlib.util.find_spec(module) is None]
    return f"not installed: {', '.join(lacking)} (uv sync --group bench)" if lacking else ""


@contextmanager
def peers(job: Job, folder: Path) -> Iterator[dict[str, Rival]]:
    """All peers that do the job's task, ready: each has answered once."""
    given = ["--task", job.task, "--model", job.model, "--weights", job.weights, "--device", job.device]
    started = {}
    with ExitStack() as stack:
        for name in (name for name, (tasks, _) in PEERS.items() if job.task in tasks):
            ports = free_ports(len(PORTS))
            flags = [*given, "--ports", *map(str, ports)]
            command = [sys.executable, "-m", f"scripts.bench.peers.{name}", *flags]
            server = start(command, folder / f"{name}.log", ports)
            stack.enter_context(guarded(server, "" if name == SEED else "/health"))
            url = server.grpc_url if name == SEED else server.http_url
            started[name] = server, Load(kind="peer", url=url, medium=job.medium)
            send(dataclasses.replace(started[name][1], requests=1))
        yield started
