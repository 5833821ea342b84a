"""A pipeline taken apart: each stage as a pass over a medium that can be run by itself. Measures nothing.

A pass yields after each piece how many of the medium's frames that was. All is built from the server's own
parts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipelines.frames.batch import FrameBatch
from pipelines.media.decode import open_media
from pipelines.media.frame_reader import FrameReader
from pipelines.media.images import image_format
from pipelines.media.medium import Orientation, Wanted
from pipelines.media.video import Video
from pipelines.models.outputs import Output
from pipelines.pipeline import Pipeline
from pipelines.protocol.options import Options, parse_options
from scripts.bench.jobs import Job

T = TypeVar("T")
Pass = Callable[[], Iterator[float]]

# Frames that are decoded ahead for the other stages; they stay in memory.
HELD_FRAMES = 64
# Clip models need whole clips, of which few come of these.
HELD_FRAMES_CLIPS = 240
DECODED_FRAMES = 240
# The model called from as many threads as there are cores, each computing alone, with batches and one by one:
# the fastest way counts as the model's rate.
MODEL_APART = ("model, side by side", "model, one by one")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """What the stages are given: chunks, and of each the model's outputs; `frames` of the medium. Of a video
    on a CPU also the codec's frames, in groups as long, for there they are prepared one by one.
    """

    chunks: Sequence[FrameBatch]
    outputs: Sequence[Sequence[Output]]
    batches: Sequence[Tensor]
    frames: int
    groups: Sequence[list[Any]]
    orientation: Orientation


class Bench:
    """A pipeline, taken apart."""

    def __init__(self, pipeline: Pipeline, job: Job) -> None:
        self.pipeline, self.media = pipeline, job.media
        self.options = parse_options(dict(job.options), allowed=pipeline.task.options, preset={})
        self.limits = dataclasses.replace(pipeline.limits, max_frames=sys.maxsize)
        self.held = self._hold()
        self._threads = torch.get_num_threads()

    def stages(self) -> dict[str, Sequence[Pass]]:
        """Of each stage the passes that may be tried at once, by as many callers."""
        cores = os.cpu_count() or 1
        apart = dict(zip(MODEL_APART, (self.model_alone, self.model_singly), strict=True))
        return {
            "decode": [self.decode] * cores,
            "preprocess": [self.preprocess] * cores,
            "model": [self.model],
            **{name: [one] * (cores if self.pipeline.device == "cpu" else 1) for name, one in apart.items()},
            "postprocess": [self.postprocess] * cores,
        }

    def decode(self) -> Iterator[float]:
        done = 0
        for frames in self._decoded():
            seen = _number(frames) + 1
            self._settle()
            yield seen - done
            done = seen
            if done >= DECODED_FRAMES:
                return

    def preprocess(self) -> Iterator[float]:
        each = self.held.frames / len(self.held.chunks)
        if not self.held.groups:
            for chunk in self.held.chunks:
                self.pipeline.prepare(dataclasses.replace(chunk, model_nchw=None))
                self._settle()
                yield each
        else:
            read = FrameReader(self.held.orientation, self._wanted, self.held.chunks[0].size_hw)
            for group in self.held.groups:
                read.normalized([read(picked).frame for picked in group])
                yield self.held.frames / len(self.held.groups)

    def model(self) -> Iterator[float]:
        torch.set_num_threads(self._threads)
        yield from self._batches(sys.maxsize)

    def model_alone(self) -> Iterator[float]:
        yield from self._batches(sys.maxsize)

    def model_singly(self) -> Iterator[float]:
        yield from self._batches(1)

    def _batches(self, most: int) -> Iterator[float]:
        inputs = sum(map(len, self.held.batches))
        for batch in itertools.chain.from_iterable(torch.split(one, most) for one in self.held.batches):
            self.pipeline.batcher.model(batch)
            if self.pipeline.device == "cpu":
                yield len(batch) * self.held.frames / inputs
        if self.pipeline.device != "cpu":  # which takes batches as they come and is waited for at the end
            self._settle()
            yield self.held.frames

    def postprocess(self) -> Iterator[float]:
        task, spec = self.pipeline.task, self.pipeline.spec
        job = task.job(spec, self.options)
        each = self.held.frames / len(self.held.chunks)
        for chunk, outputs in zip(self.held.chunks, self.held.outputs, strict=True):
            if spec.clip is not None:  # such a job counts the clips that it was given
                job.inputs(torch.zeros(len(chunk), 3, 8, 8), chunk)
            parts = [job.read(output) for output in outputs]
            views = self.pipeline.views(chunk.height_px, chunk.width_px)
            with self.pipeline.stages.lend() as stages:
                job.answer(chunk, parts, views, stages.postprocess, final=False)
            yield each

    def together(self) -> Iterator[float]:
        """All of it, as the server does it, without the network."""
        done = 0
        for frames, _ in self.pipeline.run_with_frames(self.media, self.options, self.limits):
            if frames is not None:
                seen = int(frames.frame_index[-1]) + 1
                yield seen - done
                done = seen

    def _settle(self) -> None:
        """Wait until a GPU has done what it was told."""
        if self.pipeline.device != "cpu":
            torch.cuda.synchronize()

    @property
    def _wanted(self) -> Wanted:
        """What the server makes of a video's frames while they are in the cache."""
        return Wanted(prepare=self.pipeline.preprocessing, keep_pixels=False)

    def _decoded(self) -> Iterator[Any]:
        """What decoding alone gives: on a CPU, frames of a video as the codec has them; else chunks of
        RGB.
        """
        return self._groups() if self._reads_frames else self._chunks()

    @property
    def _reads_frames(self) -> bool:
        return (
            self.pipeline.device == "cpu"
            and self.pipeline.spec.tiling is None
            and not image_format(self.media)
        )

    def _orientation(self) -> Orientation:
        if not self._reads_frames:
            return Orientation()
        video = Video(self.media, self.limits)
        video.close()
        return video.orientation

    def _groups(self) -> Iterator[list[Any]]:
        task, video = self.pipeline.task, Video(self.media, self.limits)
        try:
            picked = video._selected(self._selection, task.repeat_frames)
            while group := list(itertools.islice(picked, self.limits.chunk_frames)):
                yield group
        finally:
            video.close()

    def _chunks(self) -> Iterator[FrameBatch]:
        with open_media(
            self.media,
            options=self._selection,
            limits=self.limits,
            device=self.pipeline.device,
            wanted=Wanted(repeat_frames=self.pipeline.task.repeat_frames),
        ) as medium:
            yield from medium.chunks()

    @property
    def _selection(self) -> Options:
        task, spec = self.pipeline.task, self.pipeline.spec
        return task.select(spec, self.options) if task.select else self.options

    def _hold(self) -> Held:
        pipeline = self.pipeline
        job, most = pipeline.task.job(pipeline.spec, self.options), pipeline.spec.max_batch
        limit = HELD_FRAMES_CLIPS if pipeline.spec.clip else HELD_FRAMES
        chunks = list(_until(limit, self._chunks()))
        given = [job.inputs(pipeline.prepare(chunk), chunk) for chunk in chunks]
        pieces = [[] if one is None else list(torch.split(one, most)) for one in given]
        inputs = [piece for group in pieces for piece in group]
        if (rest := job.rest()) is not None:
            inputs.append(rest)
        return Held(
            chunks=chunks,
            outputs=[[pipeline.batcher.model(piece) for piece in group] for group in pieces],
            batches=list(torch.split(torch.cat(inputs), most)),
            frames=_number(chunks[-1]) + 1,
            groups=list(_until(limit, self._groups())) if self._reads_frames else [],
            orientation=self._orientation(),
        )


def _number(frames: Any) -> int:
    """Number of the last frame of a group or chunk."""
    return int(frames[-1].frame_index if isinstance(frames, list) else frames.frame_index[-1])


def _until(limit: int, decoded: Iterator[T]) -> Iterator[T]:
    """The first groups or chunks, as far as they have so many frames."""
    with contextlib.closing(decoded) as pieces:  # type: ignore[type-var]
        for piece in pieces:
            yield piece
            if _number(piece) + 1 >= limit:
                return
