"""How fast the server is, beside what the machine could do and what others do. The source of all figures.

    python -m scripts.bench              the usual job: 4 clients, H.264 720p, top-5 of each frame
    python -m scripts.bench --peers                      the same through other servers, in turns, and ratios
    python -m scripts.bench --task detection --clients 1 4 16 64 --medium short --json out/detection.json
    python -m scripts.bench --task detection --model yolox.onnx --medium film.mp4 --peers  a model of your own
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
import importlib.util
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from scripts import ROOT
from scripts.bench import report, runs
from scripts.bench.figures import compared
from scripts.bench.jobs import DEMO, USUAL, Job, Protocol, brings_weights, save_random_weights
from scripts.bench.load import Load
from scripts.bench.media import KINDS, make_medium
from scripts.bench.peers import starting
from scripts.bench.report import Record
from scripts.bench.runs import OURS, Point, Rival
from scripts.bench.scenarios import SCENARIOS, Rig
from scripts.servers import Server, guarded, in_turns, start_server

TAMED = "tamed"
PLOTS = (".png", ".svg")
MODEL_HELP = f"of torchvision's, a file, or {DEMO} for the embedded ones (default: by task)"
WEIGHTS_HELP = (
    f"the model's state dict, or {TAMED}: random ones that rounding moves no more than trained ones, as "
    "reduced precisions need (default: random ones; the same for all servers)"
)
ROUNDS_HELP = "turns of each (default: 2 of peers, 4 of scenarios, 8 of --against)"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    split = list(argv).index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--task", choices=list(USUAL), default="classification")
    add("--model", default="", help=MODEL_HELP)
    add("--weights", default="", metavar="FILE", help=WEIGHTS_HELP)
    add("--medium", default="clip", help=f"a file, or one of {', '.join(KINDS)} (default: %(default)s)")
    add("--clients", type=int, nargs="+", default=[4], metavar="N", help="at once (default: 4)")
    add("--protocol", choices=get_args(Protocol), default="grpc")
    add("--stream", action=argparse.BooleanOptionalAction, default=True, help="an answer per chunk")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--duration", type=float, default=20.0, metavar="S", help="of each run (default: %(default)s)")
    add("--stage-seconds", type=float, default=1.5, metavar="S", help="of each stage, three times over")
    add("--peers", action="store_true", help="measure others of scripts/bench/peers as well, in turns")
    add("--peer-clients", type=int, default=4, metavar="N", help="(default: %(default)s)")
    add("--against", type=Path, metavar="FOLDER", help="compare with another checkout's server.py, in turns")
    add("--against-flags", default="", metavar="FLAGS", help="more flags of the other server's, in one word")
    add("--turn-s", type=float, default=10.0, metavar="S", help="of --against (default: %(default)s)")
    add("--rounds", type=int, metavar="N", help=ROUNDS_HELP)
    add("--scenario", choices=list(SCENARIOS), nargs="+", default=[], help="instead of a plain load")
    add("--json", type=Path, metavar="FILE", help="write the record of this run")
    add("--plot", type=Path, metavar="FILE", help="draw throughput and latency against clients (PNG, SVG)")
    arguments = parser.parse_args(argv[:split])
    arguments.flags = tuple(argv[split + 1 :])
    arguments.model = arguments.model or USUAL[arguments.task][0]
    if reason := refusal(arguments):
        parser.error(reason)
    return arguments


def refusal(arguments: argparse.Namespace) -> str:
    """What cannot be done of what a command line asks; empty if all can."""
    plot = arguments.plot
    if arguments.weights and brings_weights(arguments.model):
        return f"--weights {arguments.weights}: {arguments.model} brings its own"
    if arguments.against and not (arguments.against / "server.py").is_file():
        return f"--against {arguments.against}: no server.py there; name the folder of a checkout"
    if plot and arguments.scenario:
        return "--plot: scenarios have nothing to draw; leave out --plot or --scenario"
    if plot and plot.suffix not in PLOTS:
        return f"--plot {plot}: its name has to end in {' or '.join(PLOTS)}"
    if plot and importlib.util.find_spec("matplotlib") is None:
        return "--plot: not installed: matplotlib (uv sync --group bench)"
    if arguments.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            return "--device cuda: no CUDA device is usable here"
    if arguments.peers and (reason := starting.missing(arguments.task, arguments.model)):
        return f"--peers: {reason}"
    return ""


def make_job(arguments: argparse.Namespace, folder: Path) -> tuple[Job, str]:
    """The job of a command line, its files made, and its medium in words."""
    medium = make_medium(arguments.medium, folder)
    given = {
        one.name: getattr(arguments, one.name) for one in dataclasses.fields(Job) if one.name in arguments
    }
    given |= {"medium": str(medium.path), "frames": medium.frames}
    if Path(arguments.model).is_file():  # for servers of other folders
        given["model"] = str(Path(arguments.model).resolve())
    if not brings_weights(arguments.model) and arguments.weights in ("", TAMED):
        tamed = arguments.weights == TAMED
        given["weights"] = str(save_random_weights(arguments.task, arguments.model, folder, tamed=tamed))
    return Job(**given), medium.about


def run_job(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """Stages, the server under each number of clients, its boundary, and the stages once more.

    The machine's pace may have changed meanwhile: ratios are to the mean of both.
    """
    job = record.job
    record.stages = runs.measure_stages(job, arguments.stage_seconds)
    report.say_stages(record, "before")
    with guarded(start_server(folder, *job.server_flags())) as server:
        report.say_points_head()
        for clients in arguments.clients:
            load = job.load(server, clients, arguments.duration)
            record.points.append(
                runs.measure_point(server, load, job.frames, lambda: runs.counters(server, job.task))
            )
            report.say_point(record.points[-1], record.ceiling)
        record.boundary = runs.measure_boundary(server, job)
        report.say_numbers("boundary", record.boundary)
        server.hold()
        again = runs.measure_stages(job, arguments.stage_seconds)
        server.go_on()
        record.stages = {name: stage.mean(again[name]) for name, stage in record.stages.items()}
        report.say_stages(record, "mean of before and after")
        report.say_numbers("ratios", record.ratios)
        if arguments.peers:
            with starting.peers(job, folder) as others:
                rivals = {OURS: (server, job.load(server)), **others}
                compete(record, rivals, arguments.peer_clients, arguments.duration, arguments.rounds or 2)


def run_against(record: Record, arguments: argparse.Namespace, folder: Path) -> None:
    """This checkout's server.py and another one's, or with other flags, by each number of clients."""
    job, rivals = record.job, {}
    checkout, flags = (arguments.against or ROOT).resolve(), shlex.split(arguments.against_flags)
    print(f"the other  {checkout} {' '.join(flags)}")
    with ExitStack() as stack:
        for name, place, more in ((OURS, ROOT, []), ("the other", checkout, flags)):
            server = start_server(folder, *job.server_flags(), *more, name=name, checkout=place)
            rivals[name] = (stack.enter_context(guarded(server)), job.load(server))
            runs.send(dataclasses.replace(job.load(server), requests=1))
        for clients in arguments.clients:
            compete(record, rivals, clients, arguments.turn_s, arguments.rounds or 8)


def compete(record: Record, rivals: Mapping[str, Rival], clients: int, seconds: float, rounds: int) -> None:
    """Servers under the same load in turns, and how ours compares."""

    def measure(server: Server, load: Load) -> Callable[[], Point]:
        load = dataclasses.replace(load, clients=clients, seconds=seconds)
        return lambda: runs.measure_point(server, load, record.job.frames)

    report.say_points_head()
    points = record.turns[clients] = in_turns(
        {name: measure(*rival) for name, rival in rivals.items()},
        rounds,
        servers={name: server for name, (server, _) in rivals.items()},
        say=lambda name, point: report.say_point(point, record.ceiling, name),
    )
    rates = {name: [point.frames_per_s for point in turns] for name, turns in points.items()}
    ours = rates.pop(OURS)
    for name, theirs in rates.items():
        title = f"ours to {name}, {clients} clients"
        record.comparisons[title] = compared(ours, theirs, "frames/s")
        report.say_numbers(title, record.comparisons[title])


def main() -> None:
    arguments = parse(sys.argv[1:])
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    with tempfile.TemporaryDirectory(prefix="trivid-bench-") as temporary:
        folder = Path(temporary)
        job, medium = make_job(arguments, folder)
        record = Record(machine=report.machine_facts(), job=job, medium=medium)
        report.say_head(record)
        if arguments.scenario:
            rig = Rig(job=job, folder=folder, seconds=arguments.duration, rounds=arguments.rounds or 4)
            for name in arguments.scenario:
                record.scenarios[name] = SCENARIOS[name](rig)
                report.say_numbers(name, record.scenarios[name])
        elif arguments.against or arguments.against_flags:
            run_against(record, arguments, folder)
        else:
            run_job(record, arguments, folder)
    for file in filter(None, (arguments.json, arguments.plot)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if arguments.json:
        arguments.json.write_bytes(record.as_json())
    if arguments.plot:
        report.plot(record, arguments.plot)


if __name__ == "__main__":
    main()
