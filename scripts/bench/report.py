"""What a run says: lines for people, a record as JSON, and a plot."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from pydantic_core import to_json

from scripts import ROOT
from scripts.bench.figures import Stage, ceiling
from scripts.bench.jobs import Job
from scripts.bench.runs import OURS, Point

# All but the last add up to what a frame costs.
TOGETHER = "together"
PACKAGES = ("torch", "torchvision", "onnxruntime", "nvidia-dali-cuda120", "nvidia-pytriton", "av", "numpy")
TIMES, MEMORY = ("p50", "p95", "p99"), ("RSS", "main", "GPU", "shm", "shm after")
POINT_HEADS = ("frames/s", "share", *TIMES, "first p50", "server", "client", *MEMORY)
POINT_UNITS = "share of the ceiling; ms of a request; cpu-ms a frame of server and client; MiB at the highest"


@dataclass(slots=True, kw_only=True)
class Record:
    """All that one call of the bench has found; filled in as it goes.

    Attributes:
        boundary: what a call costs that asks for nothing.
        turns: the points of servers that were measured in turns, by the number of clients and the server.
        comparisons: ours to each other one, in frames a second, round by round.
        scenarios: of each scenario its numbers by name.
    """

    machine: Mapping[str, Any]
    job: Job
    medium: str
    stages: dict[str, Stage] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    boundary: dict[str, float] = field(default_factory=dict)
    turns: dict[int, dict[str, list[Point]]] = field(default_factory=dict)
    comparisons: dict[str, dict[str, float]] = field(default_factory=dict)
    scenarios: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """Frames a second that the machine could do at most, going by its stages."""
        rates = {name: stage.frames_per_s for name, stage in self.stages.items() if name != TOGETHER}
        return ceiling(rates, shared=self.job.device == "cpu")

    @property
    def ratios(self) -> dict[str, float]:
        """Shares of the ceiling, and what many clients get of what the first number of them gets.

        Of a picture also the latency that may be (1.15 x its stages alone + 3 ms) over the one that is.
        """
        found = {}
        for point in self.points:
            rate, first = point.frames_per_s, self.points[0]
            found[f"share of the ceiling, {point.clients} clients"] = rate / self.ceiling
            if point is not first:
                found[f"{point.clients} clients to {first.clients}"] = rate / first.frames_per_s
            if self.job.frames == 1 and point.clients == 1:
                before_answer = ("decode", "preprocess", "model", "head")
                alone_ms = sum(stage.alone_ms for name, stage in self.stages.items() if name in before_answer)
                allowed_ms = 1.15 * alone_ms + 3
                found["latency allowed / p50, 1 client"] = allowed_ms / point.latency_ms["p50"]
        return found

    def as_json(self) -> bytes:
        """What is not known, as a ceiling that was not measured, is null."""
        found = {**dataclasses.asdict(self), "ceiling": self.ceiling, "ratios": self.ratios}
        return to_json(found, indent=1, inf_nan_mode="null") + b"\n"


def machine_facts() -> dict[str, Any]:
    """Where and of what the figures are."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(": ")[2] for line in text.splitlines() if line.startswith("model name")]
    installed = {one.name: one.version for one in importlib.metadata.distributions()}
    changed = "+" if _output("git", "status", "--short") else ""
    return {
        "cores": len(psutil.Process().cpu_affinity()),
        "cpu": names[0] if names else platform.machine(),
        "gpu": _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "versions": {name: installed[name] for name in PACKAGES if name in installed},
        "commit": _output("git", "rev-parse", "--short", "HEAD") + changed,
        "load_before": os.getloadavg()[0],
        "command": "python " + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def say(name: str, *cells: float | str, width: int = 22) -> None:
    """A line of a table: its name, then numbers, or the columns' heads; NaN stays blank."""
    texts = [_text(cell) for cell in cells]
    print(f"{name:{width}}" + "".join(f"{text:>10}" for text in texts), flush=True)


def _text(cell: float | str) -> str:
    if isinstance(cell, str):
        return cell
    return "" if math.isnan(cell) else f"{cell:.{3 if 0 < abs(cell) < 10 else 1}f}"


def say_head(record: Record) -> None:
    machine, job = record.machine, record.job
    print(f"machine    {machine['cores']} cores, {machine['cpu']}{machine['gpu'] and ', ' + machine['gpu']}")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"           {versions}, {machine['commit']}")
    if machine["load_before"] > 0.5:
        print(f"           busy before: load {machine['load_before']:.1f}; figures will be low")
    print(f"job        {job.task}, {' '.join([f'{job.model} on {job.device}', *job.flags])}")
    print(f"medium     {record.medium}; {'streamed' if job.stream else 'one answer'}, {job.protocol}")


def say_stages(record: Record, when: str) -> None:
    print(f"\nstage alone, {when}")
    say("", "frames/s", "cpu-ms", "first ms")
    for name, stage in record.stages.items():
        if name == TOGETHER:
            say("ceiling", record.ceiling)
        label = "all, no network" if name == TOGETHER else name
        say(label, stage.frames_per_s, stage.cpu_ms, stage.alone_ms)
    print("ceiling:", "1 / sum of 1 / rate" if record.job.device == "cpu" else "the slowest stage")
    if "preprocess" not in record.stages:
        print("decode: frames are prepared for the model as they are decoded")


def say_points_head() -> None:
    print()
    say("clients", *POINT_HEADS, width=13)
    print(f"{'':15}{POINT_UNITS}")


def say_point(point: Point, top: float, name: str = "") -> None:
    rate, latency, memory = point.frames_per_s, point.latency_ms, point.memory_mib
    times = [*(latency[name] for name in TIMES), point.first_answer_ms["p50"]]
    used = [*point.cpu_ms.values(), *(memory[name] for name in MEMORY)]
    say(name or str(point.clients), rate, rate / top, *times, *used, width=13)
    counted = {name: value for name, value in point.counters.items() if value and "stage_seconds" not in name}
    for title, values in (("counted", counted), ("errors", point.errors)):
        if values:
            print(f"{'':15}{title}  {'  '.join(f'{name}: {value:g}' for name, value in values.items())}")


def say_numbers(title: str, numbers: Mapping[str, float]) -> None:
    print(f"\n{title}")
    for name, value in numbers.items():
        say(f"  {name}", value, width=60)


def plot(record: Record, path: Path) -> None:
    """Throughput and p95 of a request by clients, with the ceiling, and the others that were measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    series = {OURS: ("o-", sorted(record.points, key=lambda point: point.clients))} if record.points else {}
    for name, points in itertools.chain.from_iterable(rivals.items() for rivals in record.turns.values()):
        series.setdefault(f"{name}, in turns", ("x", []))[1].extend(points)
    for name, (style, points) in series.items():
        clients = [point.clients for point in points]
        left.plot(clients, [point.frames_per_s for point in points], style, label=name)
        right.plot(clients, [point.latency_ms["p95"] / 1000 for point in points], style, label=name)
    if math.isfinite(record.ceiling):
        left.axhline(record.ceiling, linestyle="--", color="grey", label="ceiling")
    left.set(xlabel="clients", ylabel="frames/s", xscale="log", ylim=(0, None))
    right.set(xlabel="clients", ylabel="p95 of a request, s", xscale="log", yscale="log")
    left.legend()
    title = f"{record.job.task}, {record.job.model}, {record.medium}, {record.machine['cores']} cores"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)
