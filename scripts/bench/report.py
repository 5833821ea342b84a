"""What a run says: lines for people, a record as JSON, a plot, and which ratios fell since another one."""

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

import psutil

from scripts import ROOT
from scripts.bench.figures import Stage, ceiling, fallen
from scripts.bench.jobs import Job
from scripts.bench.meter import MIB
from scripts.bench.runs import Crossing, Point
from scripts.bench.turns import Comparison

# All but the last add up to what a frame costs.
TOGETHER = "together"
PACKAGES = ("torch", "torchvision", "onnxruntime", "nvidia-dali-cuda120", "nvidia-pytriton", "av", "numpy")


@dataclass(slots=True, kw_only=True)
class Record:
    """All that one call of the bench has found; filled in as it goes.

    Attributes:
        peers: of each peer (and `trivid` beside them) the points that were measured in turns.
        against: the same of this server and another one, by the number of clients.
        comparisons: ours to each other one, in frames a second, round by round.
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
    against: dict[int, dict[str, list[Point]]] = field(default_factory=dict)
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    scenarios: dict[str, dict[str, float]] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)

    @property
    def ceiling(self) -> float:
        """Frames a second that the machine could do at most, going by its stages."""
        rates = {name: stage.frames_per_s for name, stage in self.stages.items() if name != TOGETHER}
        return ceiling(rates, shared=self.job.device == "cpu")

    def as_json(self) -> str:
        top = self.ceiling if math.isfinite(self.ceiling) else None
        return json.dumps({**dataclasses.asdict(self), "ceiling": top}, indent=1) + "\n"


def machine_facts() -> dict[str, Any]:
    """Where and of what the figures are."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
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


def ratios(record: Record) -> dict[str, float]:
    """Shares of the ceiling, and what many clients get of what the first number of them gets.

    Of a picture also the latency that may be (1.15 x its stages alone + 3 ms) over the one that is.
    """
    found = {}
    for point in record.points:
        rate, first = point.figures.frames_per_s, record.points[0]
        found[f"share of the ceiling, {point.clients} clients"] = rate / record.ceiling
        if point is not first:
            found[f"{point.clients} clients to {first.clients}"] = rate / first.figures.frames_per_s
        if record.job.frames == 1 and point.clients == 1:
            before_answer = ("decode", "preprocess", "model")
            alone_ms = sum(stage.alone_ms for name, stage in record.stages.items() if name in before_answer)
            found["latency allowed / p50, 1 client"] = (1.15 * alone_ms + 3) / point.figures.latency_ms["p50"]
    return found


def say_head(record: Record) -> None:
    machine, job = record.machine, record.job
    print(f"machine    {machine['cores']} cores, {machine['cpu']}{machine['gpu'] and ', ' + machine['gpu']}")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"           {versions}, {machine['commit']}")
    if machine["load_before"] > 0.5:
        print(f"           busy before: load {machine['load_before']:.1f}; figures will be low")
    print(f"job        {job.task}, {job.model} on {job.device}, {' '.join(job.flags)}")
    print(f"medium     {record.medium}; {'streamed' if job.stream else 'one answer'}, {job.protocol}")


def say_stages(record: Record, title: str = "stage alone, before") -> None:
    print(f"\n{title}\n{'':22}{'frames/s':>10}{'cpu-ms a frame':>16}{'first piece, ms':>17}")
    for name, stage in record.stages.items():
        label = name
        if name == TOGETHER:
            rule = "1 / sum of 1 / rate" if record.job.device == "cpu" else "the slowest stage"
            print(f"{'ceiling':22}{record.ceiling:10.1f}   {rule}")
            label = "all, no network"
        print(f"{label:22}{stage.frames_per_s:10.1f}{stage.cpu_ms:16.2f}{stage.alone_ms:17.2f}")
    if "preprocess" not in record.stages:
        print(f"{'':22}decode: frames are prepared for the model as they are decoded")


def say_points_head() -> None:
    print(
        f"\n{'clients':>13}{'frames/s':>10}{'ceiling':>9}{'p50 ms':>9}{'p95':>9}{'p99':>9}{'first p50':>11}"
        f"{'server':>9}{'client':>8}{'RSS':>8}{'main':>7}{'GPU':>7}{'shm':>14}"
    )
    print(f"{'':23}{'share':>9}{'':38}{'cpu-ms a frame':>17}{'MiB at the peak':>22}{'MiB':>14}")


def say_point(point: Point, top: float, name: str = "") -> None:
    figures, usage = point.figures, point.usage
    latency = figures.latency_ms
    shm = f"{usage.shm_before_bytes / MIB:.0f}>{usage.shm_after_bytes / MIB:.0f}"
    print(
        f"{name or point.clients:>13}{figures.frames_per_s:10.1f}{figures.frames_per_s / top:9.2f}"
        f"{latency['p50']:9.1f}{latency['p95']:9.1f}{latency['p99']:9.1f}{figures.first_answer_ms['p50']:11.1f}"
        f"{point.server_cpu_ms:9.2f}{point.client_cpu_ms:8.2f}{usage.peak_rss_bytes / MIB:8.0f}"
        f"{usage.peak_main_rss_bytes / MIB:7.0f}{usage.peak_gpu_bytes / MIB:7.0f}{shm:>14}"
    )
    sizes = dict(sorted(point.batch_sizes.items(), key=lambda item: int(item[0])))
    counted = {name: value for name, value in point.counters.items() if not name.startswith("stage_seconds")}
    for title, values in (("model batches", sizes), ("counted", counted), ("errors", figures.errors)):
        if values:
            print(f"{'':15}{title}  {'  '.join(f'{name}: {value:g}' for name, value in values.items())}")


def say_boundary(boundary: Mapping[str, Crossing]) -> None:
    print(f"\n{'boundary':22}{'ms a call':>10}{'server cpu-ms':>16}{'client cpu-ms':>17}")
    for name, one in boundary.items():
        print(f"{name:22}{one.latency_ms:10.2f}{one.server_cpu_ms:16.2f}{one.client_cpu_ms:17.2f}")


def say_comparison(name: str, comparison: Comparison) -> None:
    rounds = "  ".join(f"{ratio:.3f}" for ratio in comparison.ratios)
    print(f"\n{name}, frames/s\n  of each round  {rounds}")
    print(f"  median {comparison.median:.3f}, from {comparison.least:.3f} to {comparison.most:.3f}")


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
    title = f"{record.job.task}, {record.job.model}, {record.medium}, {record.machine['cores']} cores"
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=130)
