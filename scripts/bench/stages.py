"""Each stage alone, with the whole machine to itself: how many frames a second, and what a frame costs.

By the server's own settings, in a process of its own: `python -m scripts.bench.stages SECONDS` reads a `Job`
as JSON on stdin and prints what it measured. Rates are of the medium's frames, so that those of all stages
compare where a model looks at some frames only, or at clips of them.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

# As the server does, before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from pipelines.assembly import make_engine_room
from pipelines.machine import memory
from scripts.bench.figures import Stage, median
from scripts.bench.jobs import Job
from scripts.bench.parts import MODEL_APART, Bench, Pass

ROUNDS = 3
# Calls that the time of a first piece is the median of, or as many as there is time for.
CALLS, CALLS_S = 15, 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """Of one round."""

    frames_per_s: float
    cpu_ms: float


def busy(passes: Sequence[Pass], seconds: float) -> Rate:
    """Run passes again and again, each in a thread of its own, all until the same moment."""
    done = [0.0] * len(passes)
    rates = [0.0] * len(passes)
    gate = threading.Barrier(len(passes) + 1)

    def work(place: int) -> None:
        # As of the server's workers.
        torch.set_num_threads(1)
        gate.wait()
        start_s = now_s = time.monotonic()
        while now_s - start_s < seconds:
            for frames in passes[place]():
                done[place] += frames
                now_s = time.monotonic()
                if now_s - start_s >= seconds:
                    break
        rates[place] = done[place] / (now_s - start_s)

    threads = [threading.Thread(target=work, args=(place,)) for place in range(len(passes))]
    for thread in threads:
        thread.start()
    cpu_s = time.process_time()
    gate.wait()
    for thread in threads:
        thread.join()
    cpu_s = time.process_time() - cpu_s
    return Rate(frames_per_s=sum(rates), cpu_ms=1000 * cpu_s / sum(done))


def first_piece_ms(one: Pass) -> float:
    """Median time of the first piece of a pass."""
    times: list[float] = []
    while len(times) < CALLS and sum(times) < 1000 * CALLS_S:
        start_s = time.perf_counter()
        next(one())
        times.append(1000 * (time.perf_counter() - start_s))
    return median(times)


def measure(bench: Bench, seconds: float) -> dict[str, Stage]:
    """All stages, in turns, so that a machine that is busy for a while does not fall on one of them alone."""
    stages = {**bench.stages(), "together": [bench.together] * max(4, os.cpu_count() or 1)}
    for passes in stages.values():
        busy(passes, seconds / 4)
    rounds: dict[str, list[Rate]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, passes in stages.items():
            rounds[name].append(busy(passes, seconds))
    measured = {
        name: Stage(
            frames_per_s=median([rate.frames_per_s for rate in rounds[name]]),
            cpu_ms=median([rate.cpu_ms for rate in rounds[name]]),
            alone_ms=first_piece_ms(passes[0]),
            callers=len(passes),
        )
        for name, passes in stages.items()
    }
    for name in MODEL_APART:
        apart = measured.pop(name)
        if apart.frames_per_s > measured["model"].frames_per_s:
            measured["model"] = dataclasses.replace(apart, alone_ms=measured["model"].alone_ms)
    return measured


def main() -> int:
    logging.disable(logging.WARNING)  # noise of weights is what is measured here
    job = Job.from_json(sys.stdin.read())
    memory.tune_malloc()
    pipeline = make_engine_room(job.settings()).pipelines[job.task]
    measured = measure(Bench(pipeline, job), float(sys.argv[1]))
    print(json.dumps({name: dataclasses.asdict(stage) for name, stage in measured.items()}))
    sys.stdout.flush()
    os._exit(0)  # DALI and ONNX Runtime take their time to end


if __name__ == "__main__":
    sys.exit(main())
