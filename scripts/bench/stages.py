"""Each stage alone, with the whole machine to itself: how many frames a second, and what a frame costs.

Stages are what the server's own pipeline is made of, as its settings make them, in a process of their own
(`runs.measure_stages`). Rates are of the medium's frames, so that stages compare where a model looks at some
frames only, or at clips.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

# As the server does, before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

from pipelines.assembly import make_engine_room
from pipelines.frames.batch import FrameBatch
from pipelines.machine import memory
from pipelines.media.decode import open_media
from pipelines.models.outputs import Output
from pipelines.pipeline import Pipeline
from pipelines.protocol.options import parse_options
from pipelines.settings.flags import parse_args
from scripts.bench.figures import Stage, median
from scripts.bench.jobs import Job
from scripts.servers import in_turns

# What the stages after decoding are given: a chunk's frames, model pixels, and the model's outputs.
Chunk = tuple[FrameBatch, Tensor, Sequence[Output]]
# Yields after each piece of the medium how many of its frames that was.
Pass = Callable[[], Iterator[float]]

# Frames that are decoded ahead for the other stages, where clips are looked at more of them.
HELD_FRAMES, HELD_FRAMES_CLIPS, DECODED_FRAMES = 64, 240, 240
# The model called from as many threads as there are cores, each computing alone, with batches and one by one:
# the fastest way counts as the model's rate.
MODEL_APART = ("model, side by side", "model, one by one")
ROUNDS = 3
# Calls that the time of a first piece is the median of, or as many as there is time for.
CALLS, CALLS_S = 15, 3.0


class Bench:
    """A pipeline, whose stages can be run by themselves."""

    def __init__(self, pipeline: Pipeline, job: Job) -> None:
        self.pipeline, self.media = pipeline, job.media
        self.options = parse_options(dict(job.options), allowed=pipeline.task.options, preset={})
        self.limits = dataclasses.replace(pipeline.limits, max_frames=sys.maxsize)
        self.chunks: list[Chunk] = []
        work, most = pipeline.task.job(pipeline.spec, self.options), pipeline.spec.max_batch
        inputs: list[Tensor] = []
        for frames in self._decoded(HELD_FRAMES_CLIPS if pipeline.spec.clip else HELD_FRAMES):
            pixels = pipeline.prepare(frames)
            given = work.inputs(pixels, frames)
            pieces = [] if given is None else list(torch.split(given, most))
            self.chunks.append((frames, pixels, [pipeline.batcher.model(piece) for piece in pieces]))
            inputs += pieces
        if (rest := work.rest()) is not None:
            inputs.append(rest)
        self.batches = torch.split(torch.cat(inputs), most)
        # A head that reads the network's tensors is a stage of its own, but on a GPU, which both share.
        apart = pipeline.spec.head and pipeline.device == "cpu"
        self.given = [pipeline.batcher.model.compute(batch) for batch in self.batches] if apart else []
        self.frames = _count(self.chunks[-1][0])

    def stages(self) -> dict[str, Sequence[Pass]]:
        """Of each stage the passes that may be tried at once, by as many callers.

        The CPU prepares a video's frames as it decodes them, which is one stage then: "decode".
        """
        cores = os.cpu_count() or 1
        apart = cores if self.pipeline.device == "cpu" else 1
        prepared = self.chunks[0][0].model_nchw is not None
        return {
            "decode": [self.decode] * cores,
            **({} if prepared else {"preprocess": [self.preprocess] * cores}),
            "model": [partial(self.model, threads=torch.get_num_threads())],
            MODEL_APART[0]: [self.model] * apart,
            MODEL_APART[1]: [partial(self.model, most=1)] * apart,
            **({"head": [self.head] * cores} if self.given else {}),
            "postprocess": [self.postprocess] * cores,
            "together": [self.together] * max(4, cores),
        }

    def decode(self) -> Iterator[float]:
        yield from self._counted(self._decoded(DECODED_FRAMES))

    def preprocess(self) -> Iterator[float]:
        for frames, _, _ in self.chunks:
            self.pipeline.prepare(frames)
            self._settle()
            yield self.frames / len(self.chunks)

    def model(self, *, most: int = sys.maxsize, threads: int = 1) -> Iterator[float]:
        """Batches of `most` at most, by so many threads of torch."""
        torch.set_num_threads(threads)
        model = self.pipeline.batcher.model
        call = model.compute if self.given else model
        inputs = sum(map(len, self.batches))
        for batch in itertools.chain.from_iterable(torch.split(one, most) for one in self.batches):
            call(batch)
            if self.pipeline.device == "cpu":
                yield len(batch) * self.frames / inputs
        if self.pipeline.device != "cpu":  # which takes batches as they come and is waited for at the end
            self._settle()
            yield self.frames

    def head(self) -> Iterator[float]:
        """Boxes of what the network gave."""
        inputs = sum(map(len, self.batches))
        for given, batch in zip(self.given, self.batches, strict=True):
            self.pipeline.batcher.model.read(given, batch)
            yield len(batch) * self.frames / inputs

    def postprocess(self) -> Iterator[float]:
        job = self.pipeline.task.job(self.pipeline.spec, self.options)
        for frames, pixels, outputs in self.chunks:
            job.inputs(pixels, frames)
            parts = [job.read(output) for output in outputs]
            views = self.pipeline.views(frames.height_px, frames.width_px)
            with self.pipeline.stages.lend() as stages:
                job.answer(frames, parts, views, stages.postprocess, final=False)
            yield self.frames / len(self.chunks)

    def together(self) -> Iterator[float]:
        """All of it, as the server does it, without the network."""
        answers = self.pipeline.run_with_frames(self.media, self.options, self.limits)
        yield from self._counted(frames for frames, _ in answers if frames is not None)

    def _counted(self, chunks: Iterator[FrameBatch]) -> Iterator[float]:
        done = 0
        for frames in chunks:
            self._settle()
            yield _count(frames) - done
            done = _count(frames)

    def _settle(self) -> None:
        """Wait until a GPU has done what it was told."""
        if self.pipeline.device != "cpu":
            torch.cuda.synchronize()

    def _decoded(self, limit: int) -> Iterator[FrameBatch]:
        """The medium's first chunks, as many as have so many frames, as the pipeline has them decoded."""
        task, spec = self.pipeline.task, self.pipeline.spec
        with open_media(
            self.media,
            options=task.select(spec, self.options) if task.select else self.options,
            limits=self.limits,
            device=self.pipeline.device,
            wanted=self.pipeline.wanted(self.options),
        ) as medium:
            for frames in medium.chunks():
                yield frames
                if _count(frames) >= limit:
                    return


def _count(frames: FrameBatch) -> int:
    """Frames of a medium up to the end of a chunk."""
    return int(frames.frame_index[-1]) + 1


def busy(passes: Sequence[Pass], seconds: float) -> tuple[float, float]:
    """Run passes again and again, each in a thread of its own, all until the same moment.

    Returns:
        Frames a second, and milliseconds of all cores for a frame.
    """
    gate = threading.Barrier(len(passes) + 1)

    def work(one: Pass) -> tuple[float, float]:
        """Frames, and seconds that they took."""
        torch.set_num_threads(1)  # as of the server's workers
        gate.wait()
        start_s, done, took_s = time.monotonic(), 0.0, 0.0
        pieces = itertools.chain.from_iterable(one() for _ in itertools.count())
        while took_s < seconds:
            done += next(pieces)
            took_s = time.monotonic() - start_s
        return done, took_s

    with ThreadPoolExecutor(len(passes)) as pool:
        ends = [pool.submit(work, one) for one in passes]
        cpu_s = time.process_time()
        gate.wait()
    found = [end.result() for end in ends]
    cpu_ms = 1000 * (time.process_time() - cpu_s)
    return sum(done / took_s for done, took_s in found), cpu_ms / sum(done for done, _ in found)


def first_piece_ms(one: Pass) -> float:
    """Median time of the first piece of a pass."""
    times: list[float] = []
    while len(times) < CALLS and sum(times) < 1000 * CALLS_S:
        start_s = time.perf_counter()
        next(one())
        times.append(1000 * (time.perf_counter() - start_s))
    return median(times)


def measure(bench: Bench, seconds: float) -> dict[str, Stage]:
    """All stages, in turns, so that a machine that is busy for a while does not fall on one of them only."""
    stages = bench.stages()
    for passes in stages.values():
        busy(passes, seconds / 4)
    found = in_turns({name: partial(busy, passes, seconds) for name, passes in stages.items()}, ROUNDS)
    measured = {
        name: Stage(
            frames_per_s=median([rate for rate, _ in found[name]]),
            cpu_ms=median([cpu_ms for _, cpu_ms in found[name]]),
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


def measure_job(job: Job, seconds: float) -> dict[str, Stage]:
    """All stages of a server for this job."""
    logging.disable(logging.WARNING)  # noise of weights is what is measured here
    memory.tune_malloc()
    pipeline = make_engine_room(parse_args(job.server_flags(), "")).pipelines[job.task]
    return measure(Bench(pipeline, job), seconds)
