"""Which peers there are, what each does, and how they are started."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scripts.bench.jobs import Job, brings_weights
from scripts.bench.load import Load
from scripts.bench.runs import Rival, send
from scripts.servers import PORTS, free_ports, guarded, start

# Which tasks each does (the seed's design: those of which it gives logits of whole frames), and its package.
FRAME_TASKS = ("classification", "detection", "segmentation")
SEED = "seed_pytriton"
OF_TORCHVISION = {
    SEED: (FRAME_TASKS[:1], "pytriton"),
    "fastapi_app": (FRAME_TASKS, "fastapi"),
    "litserve_app": (FRAME_TASKS, "litserve"),
}
OF_ONNX = {"opencv_loop": (("detection",), "cv2")}


def peers_of(task: str, model: str) -> dict[str, str]:
    """The peers that do a job, each with its package."""
    known = OF_ONNX if model.lower().endswith(".onnx") else {} if brings_weights(model) else OF_TORCHVISION
    return {name: package for name, (tasks, package) in known.items() if task in tasks}


def missing(task: str, model: str) -> str:
    """Why there are no peers for a job; empty if there are."""
    found = peers_of(task, model)
    if not found:
        known = (
            f"{', '.join(FRAME_TASKS)} with torchvision's models, and detection with a YOLOX network's .onnx"
        )
        return f"no peer does {task} with {model}; they do {known}"
    lacking = [package for package in found.values() if importlib.util.find_spec(package) is None]
    return f"not installed: {', '.join(lacking)} (uv sync --group bench)" if lacking else ""


@contextmanager
def peers(job: Job, folder: Path) -> Iterator[dict[str, Rival]]:
    """All peers that do the job's task, ready: each has answered once."""
    given = ["--task", job.task, "--model", job.model, "--weights", job.weights, "--device", job.device]
    started = {}
    with ExitStack() as stack:
        for name in peers_of(job.task, job.model):
            ports = free_ports(len(PORTS))
            flags = [*given, "--ports", *map(str, ports)]
            command = [sys.executable, "-m", f"scripts.bench.peers.{name}", *flags]
            server = start(command, folder / f"{name}.log", ports)
            stack.enter_context(guarded(server, "" if name == SEED else "/health"))
            url = server.grpc_url if name == SEED else server.http_url
            started[name] = server, Load(kind="peer", url=url, medium=job.medium)
            send(dataclasses.replace(started[name][1], requests=1))
        yield started
