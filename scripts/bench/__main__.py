"""How fast the server is, beside what the machine could do and what others do. The source of all figures.

    python -m scripts.bench              the usual job: 4 clients, H.264 720p, top-5 of each frame
    python -m scripts.bench --peers                      the same through other servers, in turns, and ratios
    python -m scripts.bench --task detection --clients 1 4 16 64 --medium short --json out/detection.json
    python -m scripts.bench --medium image --clients 1 --no-stream
    python -m scripts.bench --against ../other           this server and another checkout's, in turns
    python -m scripts.bench --against-flags="--workers 1"        the same server with other flags, in turns
    python -m scripts.bench -- --max-frames 600          flags of server.py's own come last

Rates of stages are measured alone, with all cores busy; the ceiling follows from them (on a CPU, where stages
share the cores: 1 / sum of 1 / rate; on a GPU: the slowest). Clients run on the same machine and use its
cores as well. Where servers take turns, those that are not measured are held still, every second round goes
backwards, and what counts is the median of the rounds' ratios: machines change their pace within minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import get_args

from scripts import ROOT
from scripts.bench import contenders, report
from scripts.bench.contenders import Contender
from scripts.bench.jobs import DEMO, MODELS, Job, Protocol, save_random_weights
from scripts.bench.media import FRAMES, make_medium
from scripts.bench.meter import measured
from scripts.bench.report import Record
from scripts.bench.runs import Point, counters, load_of, measure_boundary, measure_point, measure_stages
from scripts.bench.scenarios import SCENARIOS, Rig
from scripts.bench.turns import Comparison, in_turns
from scripts.servers import start_server

TAMED = "tamed"
WEIGHTS_HELP = (
    f"the model's state dict, or {TAMED}: random ones that rounding moves no more than trained ones, as "
    "reduced precisions need (default: random ones; the same for all servers)"
)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--task", choices=list(MODELS), default="classification")
    add("--model", default="", help=f"of torchvision's, or {DEMO} for the embedded ones (default: by task)")
    add("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
    kinds = ", ".join(FRAMES)
    add("--medium", default="clip", help=f"a file, or one of {kinds} (default: %(default)s)")
    add("--clients", type=int, nargs="+", default=[4], metavar="N", help="at once (default: 4)")
    add("--protocol", choices=get_args(Protocol), default="grpc")
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help="an answer per chunk")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--duration", type=float, default=20.0, metavar="S", help="of each run (default: %(default)s)")
    add("--stage-seconds", type=float, default=1.5, metavar="S", help="of each stage, three times over")
    add("--peers", action="store_true", help="measure other servers of scripts/bench/peers as well, in turns")
    add("--peer-clients", type=int, default=4, metavar="N", help="(default: %(default)s)")
    add("--against", type=Path, metavar="FOLDER", help="compare with another checkout's server.py, in turns")
    add("--against-flags", default="", metavar="FLAGS", help="more flags of the other server's, in one word")
    add("--turn-s", type=float, default=10.0, metavar="S", help="of --against (default: %(default)s)")
    add(
        "--rounds",
        type=int,
        metavar="N",
        help="turns of each (default: 2 of peers, 4 of scenarios, 8 of --against)",
    )
    add("--scenario", choices=list(SCENARIOS), nargs="+", default=[], help="instead of a plain load")
    add("--json", type=Path, metavar="FILE", help="write the record of this run")
    add("--plot", type=Path, metavar="FILE", help="draw throughput and latency against clients (PNG, SVG)")
    add("--check", type=Path, metavar="FILE", help="exit with 1 if a ratio is lower than in this record")
    add("--tolerance", type=float, default=0.10, metavar="X", help="by more than this share (default: 0.1)")
    arguments = parser.parse_args(argv[:split])
    arguments.flags = tuple(argv[split + 1 :])
    if arguments.model == DEMO and arguments.weights:
        parser.error(f"--weights {arguments.weights}: the demo's models have their own")
    if arguments.against and not (arguments.against / "server.py").is_file():
        parser.error(f"--against {arguments.against}: no server.py there; name the folder of a checkout")
    if arguments.device == "cuda" and not _has_cuda():
        parser.error("--device cuda: no CUDA device is usable here")
    return arguments


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def make_job(arguments: argparse.Namespace, folder: Path) -> tuple[Job, str]:
    """The job of a command line, its files made, and its medium in words."""
    medium = make_medium(arguments.medium, folder)
    model = arguments.model or MODELS[arguments.task]
    weights = arguments.weights
    if model != DEMO and weights in ("", TAMED):
        weights = str(save_random_weights(arguments.task, model, folder, tamed=weights == TAMED))
    job = Job(
        task=arguments.task,
        model=model,
        weights=weights,
        medium=str(medium.path),
        frames=medium.frames,
        protocol=arguments.protocol,
        stream=arguments.stream,
        device=arguments.device,
        flags=arguments.flags,
    )
    return job, medium.about


def run_job(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """Stages, the server under each number of clients, its boundary, and the stages once more.

    The machine's pace may have changed meanwhile: ratios are to the mean of both.
    """
    job = record.job
    record.stages = measure_stages(job, arguments.stage_seconds)
    report.say_stages(record)
    with measured(start_server(folder, *job.server_flags())) as server:
        report.say_points_head()
        for clients in arguments.clients:
            load = load_of(job, server, clients, arguments.duration)
            point = measure_point(server, load, job.frames, lambda: counters(server, job.task))
            record.points.append(point)
            report.say_point(point, record.ceiling)
        record.boundary = measure_boundary(server, job)
        report.say_boundary(record.boundary)
        server.hold()
        again = measure_stages(job, arguments.stage_seconds)
        server.go_on()
        record.stages = {name: stage.mean(again[name]) for name, stage in record.stages.items()}
        report.say_stages(record, "stage alone, mean of before and after")
        record.ratios = report.ratios(record)
        report.say_numbers("ratios", record.ratios)
        if arguments.peers:
            if reason := contenders.missing(job.task, job.model):
                raise SystemExit(f"error: no peers: {reason}")
            with contenders.peers(job, folder) as others:
                rivals = {contenders.OURS: Contender.of(server, job), **others}
                clients, rounds = arguments.peer_clients, arguments.rounds or 2
                record.peers = compete(record, rivals, clients, arguments.duration, rounds)


def run_against(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """This server and the other one, in turns, with each number of clients."""
    checkout, flags = (arguments.against or ROOT).resolve(), shlex.split(arguments.against_flags)
    print(f"the other  {checkout} {' '.join(flags)}")
    with contenders.versions(record.job, folder, checkout, *flags) as rivals:
        for clients in arguments.clients:
            found = compete(record, rivals, clients, arguments.turn_s, arguments.rounds or 8)
            record.against[clients] = found


def compete(
    record: Record, rivals: Mapping[str, Contender], clients: int, seconds: float, rounds: int
) -> dict[str, list[Point]]:
    """Servers under the same load in turns, and how ours compares: of each the points of its rounds."""

    def measure(one: Contender) -> Callable[[], Point]:
        load = dataclasses.replace(one.load, clients=clients, seconds=seconds)
        return lambda: measure_point(one.server, load, record.job.frames)

    report.say_points_head()
    points = in_turns(
        {name: measure(one) for name, one in rivals.items()},
        rounds,
        servers={name: one.server for name, one in rivals.items()},
        say=lambda name, point: report.say_point(point, record.ceiling, name),
    )
    rates = {name: [point.figures.frames_per_s for point in turns] for name, turns in points.items()}
    ours = rates.pop(contenders.OURS)
    for name, theirs in rates.items():
        comparison = Comparison.of(ours, theirs)
        title = f"ours to {name}, {clients} clients"
        record.comparisons[title], record.ratios[title] = comparison, comparison.median
        report.say_comparison(title, comparison)
    return points


def run_scenarios(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    rounds = arguments.rounds or 4
    rig = Rig(job=record.job, folder=folder, seconds=arguments.duration, rounds=rounds)
    for name in arguments.scenario:
        record.scenarios[name] = SCENARIOS[name](rig)
        report.say_numbers(name, record.scenarios[name])


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parse(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with tempfile.TemporaryDirectory(prefix="trivid-bench-") as name:
        folder = Path(name)
        job, medium = make_job(arguments, folder)
        record = Record(machine=report.machine_facts(), job=job, medium=medium)
        report.say_head(record)
        if arguments.scenario:
            run_scenarios(record, arguments, folder)
        elif arguments.against or arguments.against_flags:
            run_against(record, arguments, folder)
        else:
            run_job(record, arguments, folder)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(record.as_json())
    if arguments.plot:
        report.plot(record, arguments.plot)
    if arguments.check:
        return report.check_ratios(record, arguments.check, arguments.tolerance)
    return 0


if __name__ == "__main__":
    sys.exit(main())
