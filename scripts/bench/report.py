"""What a run says: lines for people, a record as JSON, a plot, and whether ratios have fallen since another
record.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts import ROOT
from scripts.bench.figures import Stage, ceiling, fallen
from scripts.bench.jobs import Job
from scripts.bench.runs import Crossing, Point

STAGES = ("decode", "preprocess", "model", "postprocess")
PACKAGES = ("torch", "torchvision", "onnxruntime", "nvidia-dali-cuda120", "nvidia-pytriton", "av", "numpy")
MIB = 1 << 20


@dataclass(slots=True, kw_only=True)
class Record:
    """All that one call of the bench has found; filled in as it goes.

    Attributes:
        peers: of each peer (and `trivid` beside them) the points that were measured in turns.
        scenarios: of each scenario its numbers by name.
        ratios: what `--check` compares: shares and ratios, never absolute figures. The more the better.
    """

    machine: Mapping[str, Any]
    job: Job
    medium: str
    stages: dict[str, Stage] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    boundary: dict[str, Crossing] = field(default_factory=dict)
    peers: dict[str, list[Point]] = field(default_factory=dict)
    scenarios: dict[str, dict[str, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """Frames a second that the machine could do at most, going by its stages."""
        rates = {name: stage.frames_per_s for name, stage in self.stages.items() if name in STAGES}
        return ceiling(rates, shared=self.job.device == "cpu")

    def as_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "ceiling": _finite(self.ceiling)}, indent=1) + "\n"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def machine_facts() -> dict[str, Any]:
    """Where and of what the figures are."""
    model = next(
        (line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.machine(),
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    gpu = _output("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": versions,
        "commit": _output("git", "rev-parse", "--short", "HEAD")
        + ("+" if _output("git", "status", "--short") else ""),
        "load_before": os.getloadavg()[0],
        "command": "python " + " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def ratios(record: Record) -> dict[str, float]:
    """Shares of the ceiling, what many clients get of what the first number of them gets, and of a picture
    the latency that may be (1.15 x its stages alone + 3 ms) over the one that is.
    """
    found = {}
    for point in record.points:
        rate = point.figures.frames_per_s
        found[f"share of the ceiling, {point.clients} clients"] = rate / record.ceiling
        if point is not record.points[0]:
            first = record.points[0]
            found[f"{point.clients} clients to {first.clients}"] = rate / first.figures.frames_per_s
        if record.job.frames == 1 and point.clients == 1:
            alone_ms = sum(record.stages[name].alone_ms for name in ("decode", "preprocess", "model"))
            found["latency allowed / p50, 1 client"] = (1.15 * alone_ms + 3) / point.figures.latency_ms["p50"]
    return found


def say_head(record: Record) -> None:
    machine, job = record.machine, record.job
    print(f"machine    {machine['cores']} cores, {machine['cpu']}{machine['gpu'] and ', ' + machine['gpu']}")
    print(
        f"           {', '.join(f'{name} {version}' for name, version in machine['versions'].items())}, "
        f"{machine['commit']}"
    )
    if machine["load_before"] > 0.5:
        print(
            f"           the machine was busy before: load {machine['load_before']:.1f}; figures will be low"
        )
    print(f"job        {job.task}, {job.model} on {job.device}, {' '.join(job.flags)}")
    print(f"medium     {record.medium}; {'streamed' if job.stream else 'one answer'}, {job.protocol}")


def say_stages(record: Record, title: str = "stage alone, before") -> None:
    print(f"\n{title}\n{'':22}{'frames/s':>10}{'cpu-ms a frame':>16}{'first piece, ms':>17}")
    for name, stage in record.stages.items():
        if name in STAGES:
            print(f"{name:22}{stage.frames_per_s:10.1f}{stage.cpu_ms:16.2f}{stage.alone_ms:17.2f}")
    rule = "1 / sum of 1 / rate" if record.job.device == "cpu" else "the slowest stage"
    print(f"{'ceiling':22}{record.ceiling:10.1f}   {rule}")
    together = record.stages["together"]
    print(
        f"{'all, no network':22}{together.frames_per_s:10.1f}{together.cpu_ms:16.2f}{together.alone_ms:17.2f}"
    )


def say_points_head() -> None:
    print(
        f"\n{'clients':>13}{'frames/s':>10}{'ceiling':>9}{'p50 ms':>9}{'p95':>9}{'p99':>9}{'first p50':>11}"
        f"{'server':>9}{'client':>8}{'RSS':>8}{'main':>7}{'GPU':>7}{'shm':>14}"
    )
    print(f"{'':13}{'':10}{'share':>9}{'':38}{'cpu-ms a frame':>17}{'MiB at the peak':>22}{'MiB':>14}")


def say_point(point: Point, top: float, name: str = "") -> None:
    figures, usage = point.figures, point.usage
    latency = figures.latency_ms
    shm = f"{usage.shm_before_bytes / MIB:.0f}>{usage.shm_after_bytes / MIB:.0f}"
    print(
        f"{name or point.clients:>13}{figures.frames_per_s:10.1f}{figures.frames_per_s / top:9.2f}"
        f"{latency['p50']:9.1f}{latency['p95']:9.1f}{latency['p99']:9.1f}{figures.first_answer_ms['p50']:11.1f}"
        f"{point.server_cpu_ms:9.2f}{point.client_cpu_ms:8.2f}"
        f"{usage.peak_rss_bytes / MIB:8.0f}{usage.peak_main_rss_bytes / MIB:7.0f}"
        f"{usage.peak_gpu_bytes / MIB:7.0f}{shm:>14}"
    )
    if point.batch_sizes:
        sizes = sorted(point.batch_sizes.items(), key=lambda item: int(item[0]))
        print(f"{'':15}model batches  {'  '.join(f'{size}: {count:g}' for size, count in sizes)}")
    counted = {name: value for name, value in point.counters.items() if not name.startswith("stage_seconds")}
    if counted:
        print(f"{'':15}counted  {'  '.join(f'{name}: {value:g}' for name, value in counted.items())}")
    if figures.errors:
        print(f"{'':15}errors  {dict(figures.errors)}")


def say_boundary(boundary: Mapping[str, Crossing]) -> None:
    print(f"\n{'boundary':22}{'ms a call':>10}{'server cpu-ms':>16}{'client cpu-ms':>17}")
    for name, crossing in boundary.items():
        print(
            f"{name:22}{crossing.latency_ms:10.2f}{crossing.server_cpu_ms:16.2f}{crossing.client_cpu_ms:17.2f}"
        )


def say_numbers(title: str, numbers: Mapping[str, float]) -> None:
    print(f"\n{title}")
    for name, value in numbers.items():
        print(f"  {name:56}{value:12.3f}")


def check_ratios(record: Record, baseline: Path, tolerance: float) -> int:
    """1 if a ratio of the baseline's is lower now by more than the tolerance, else 0."""
    before: dict[str, float] = json.loads(baseline.read_text())["ratios"]
    lost = fallen(record.ratios, before, tolerance)
    for name, share in lost.items():
        print(f"error: {name} is {share:.2f} of what it was ({before[name]:.3f})", file=sys.stderr)
    if not lost:
        print(f"\nno ratio of {baseline.name} has fallen by more than {100 * tolerance:g} %")
    return 1 if lost else 0


def plot(record: Record, path: Path) -> None:
    """Throughput and latency against clients, as a picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    series: dict[str, Sequence[Point]] = {"trivid": record.points, **record.peers}
    for name, points in series.items():
        ordered = sorted(points, key=lambda point: point.clients)
        clients = [point.clients for point in ordered]
        style = "o-" if points is record.points else "x"
        left.plot(clients, [point.figures.frames_per_s for point in ordered], style, label=name)
        right.plot(clients, [point.figures.latency_ms["p95"] / 1000 for point in ordered], style, label=name)
    left.axhline(record.ceiling, linestyle="--", color="grey", label="ceiling")
    left.set(xlabel="clients", ylabel="frames/s", xscale="log", ylim=(0, None))
    right.set(xlabel="clients", ylabel="p95 of a request, s", xscale="log", yscale="log")
    left.legend()
    figure.suptitle(
        f"{record.job.task}, {record.job.model}, {record.medium}, {record.machine['cores']} cores", fontsize=9
    )
    figure.savefig(path, dpi=130)
