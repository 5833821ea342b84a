"""Pipeline.run: one medium in, an answer per chunk out, two chunks in flight. Knows no transport, and no
task.

While the batcher runs the model on chunk k, the stream's own thread decodes and prepares chunk k + 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.batching.batcher import NEVER_S, Batcher
from pipelines.batching.work import TOO_LATE
from pipelines.frames.batch import FLOAT_RGB_BYTES, FrameBatch, PixelArray
from pipelines.frames.geometry import Geometry, View, geometry, tiles
from pipelines.frames.preprocess import Preprocessor
from pipelines.frames.resize import prepare_on_cpu
from pipelines.machine.admission import Admission
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, MediaInfo, Medium, Wanted
from pipelines.models.spec import Preprocessing
from pipelines.protocol.answers import Answer
from pipelines.protocol.errors import DeadlineExceeded, InternalError, InvalidOptions, TrividError
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import ClassScores, Postprocessor
from pipelines.tasks import TASKS
from pipelines.tasks.job import Job
from pipelines.telemetry.counters import Telemetry

CHUNKS_IN_FLIGHT = 2
# What FFmpeg holds of H.264 at most, by its own threads a few more.
DECODER_FRAMES = 20
EXAMPLE_HW = (64, 96)
WHOLE_EXAMPLE = Geometry(source_hw=EXAMPLE_HW, resized_hw=EXAMPLE_HW, crop_yxhw=(0, 0, *EXAMPLE_HW))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """One thread's DALI stages; a DALI pipeline serves one thread at a time."""

    preprocess: Preprocessor
    postprocess: Postprocessor


class StagePool:
    """Lends `Stages` for the length of one step, so that a film never keeps them from an image."""

    def __init__(self, make: Callable[[], Stages], size: int) -> None:
        self.size = size
        self._free: queue.LifoQueue[Stages] = queue.LifoQueue()
        for _ in range(size):
            self._free.put(make())

    @contextlib.contextmanager
    def lend(self) -> Iterator[Stages]:
        """Free stages, waiting for them while all are lent."""
        stages = self._free.get()
        try:
            yield stages
        finally:
            self._free.put(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """What is in flight: frames, None behind the last of them, and what the model was given of them, if
    anything.
    """

    frames: FrameBatch | None
    outputs: Future[list[Any]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """By when a request that starts now is to be answered, by `time.monotonic`, and whether it is about one
    frame.
    """

    deadline_s: float
    urgent: bool

    @classmethod
    def of(cls, options: Options, medium: Medium) -> _Terms:
        return cls(
            deadline_s=time.monotonic() + options.deadline_ms / 1000 if options.deadline_ms else NEVER_S,
            urgent=medium.info.kind == "image" or options.max_frames == 1,
        )

    def check(self) -> None:
        if time.monotonic() > self.deadline_s:
            raise DeadlineExceeded("deadline_ms passed before the next frames were decoded", hint=TOO_LATE)


class Pipeline:
    """decoder + batcher + task, for any number of media at once."""

    def __init__(
        self,
        batcher: Batcher,
        stages: StagePool,
        limits: Limits,
        telemetry: Telemetry,
        admission: Admission,
    ) -> None:
        self.batcher = batcher
        self.stages = stages
        self.limits = limits
        self.telemetry = telemetry
        self.admission = admission
        self.spec = batcher.model.spec
        self.task = TASKS[self.spec.task]
        self.device = str(batcher.model.device)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    def run(self, media: bytes, options: Options, limits: Limits | None = None) -> Iterator[Answer]:
        """Answers of one medium, chunk by chunk; the last is marked `final`.

        Raises:
            TrividError: after the answers of all good frames, where a medium breaks off.
        """
        for _, answer in self.run_with_frames(media, options, limits):
            yield answer

    def run_with_frames(
        self, media: bytes, options: Options, limits: Limits | None = None
    ) -> Iterator[tuple[FrameBatch | None, Answer]]:
        """The same as `run`, each answer with the frames it is about; None where no frame was selected."""
        job = self.task.job(self.spec, options)
        with (
            open_media(
                media,
                options=self.task.select(self.spec, options) if self.task.select else options,
                limits=limits or self.limits,
                device=self.device,
                wanted=self._wanted(options),
            ) as medium,
            self.admission.hold(self._cost_bytes(media, medium.info, options)),
            _judging(options),
            contextlib.closing(self._answers(medium, job, _Terms.of(options, medium))) as answers,
        ):
            self.telemetry.count("decoders", medium.decoder)
            answered = False
            for frames, answer in answers:
                answered = True
                if len(answer) or answer.video or answer.final:
                    yield frames, _signed(answer, medium)
            if not answered:
                yield None, _signed(job.empty(), medium)

    def _wanted(self, options: Options) -> Wanted:
        return Wanted(
            prepare=None if self.spec.tiling else self.preprocessing,
            keep_pixels=bool(self.spec.tiling) or options.overlay != "none",
            repeat_frames=self.task.repeat_frames,
        )

    def _cost_bytes(self, media: bytes, info: MediaInfo, options: Options) -> int:
        """About what a medium takes while it is worked on: its bytes, the decoder's frames and those in
        flight.
        """
        frame_px = info.width_px * info.height_px
        decoder = DECODER_FRAMES * frame_px * 3 // 2 if info.kind == "video" else 0
        views = self.views(info.height_px, info.width_px)
        model_px = sum(math.prod(view.geometry.model_hw) for view in views)
        kept = self._wanted(options).keep_pixels or info.kind == "image"
        each = FLOAT_RGB_BYTES * model_px + (3 * frame_px if kept else 0)
        frames = self.limits.chunk_length(info.width_px, info.height_px) if info.kind == "video" else 1
        return len(media) + decoder + (CHUNKS_IN_FLIGHT + 1) * frames * each

    def warm_up(self) -> None:
        """Build every thread's DALI graphs and run the batch sizes that are kept static, before any
        request.
        """
        with contextlib.ExitStack() as lent:
            all_stages = [lent.enter_context(self.stages.lend()) for _ in range(self.stages.size)]
            for stages in all_stages:
                if self.device != "cpu":
                    stages.preprocess(np.zeros((1, *EXAMPLE_HW, 3), np.uint8))
                if "mask" in self.task.options:
                    ones = torch.ones((1, *EXAMPLE_HW), dtype=torch.uint8, device=self.device)
                    stages.postprocess(None, ClassScores(class_map_nhw=ones), WHOLE_EXAMPLE, None)
        self.batcher.model.warm_up()

    def _answers(
        self, medium: Medium, job: Job, terms: _Terms
    ) -> Generator[tuple[FrameBatch | None, Answer], None, None]:
        """Keep two chunks in flight; a fault of the medium is raised when what came before it is answered.

        What is in flight when nobody wants it any more is taken off the batcher's queue.
        """
        in_flight: deque[_Step] = deque()
        try:
            yield from self._in_flight(medium, job, terms, in_flight)
        finally:
            for step in in_flight:
                if step.outputs is not None:
                    step.outputs.cancel()

    def _in_flight(
        self, medium: Medium, job: Job, terms: _Terms, in_flight: deque[_Step]
    ) -> Iterator[tuple[FrameBatch | None, Answer]]:
        fault: TrividError | None = None
        chunks = medium.chunks()

        def submit(pixels: Tensor | None) -> Future[list[Any]] | None:
            if pixels is None:
                return None
            return self.batcher.submit(
                pixels, job.read, stream=id(job), deadline_s=terms.deadline_s, urgent=terms.urgent
            )

        while True:
            try:
                terms.check()
                with self.telemetry.span("decode"):
                    frames = next(chunks, None)
            except TrividError as error:
                frames, fault = None, error
            if frames is None:
                break
            self.telemetry.count("chunks", "decoded")
            in_flight.append(_Step(frames=frames, outputs=submit(job.inputs(self.prepare(frames), frames))))
            if len(in_flight) == CHUNKS_IN_FLIGHT:
                yield self._finish(job, in_flight.popleft(), final=False)
        if fault is None and (rest := job.rest()) is not None:
            in_flight.append(_Step(frames=None, outputs=submit(rest)))
        while in_flight:
            last = len(in_flight) == 1 and fault is None
            yield self._finish(job, in_flight.popleft(), final=last)
        if fault is not None:
            raise fault

    def views(self, height_px: int, width_px: int) -> list[View]:
        """The parts of a frame of this size that the model sees: its tiles, or all of it."""
        if self.spec.tiling is None:
            whole = geometry(self.preprocessing, height_px, width_px)
            return [View(top_px=0, left_px=0, geometry=whole)]
        tiling = self.spec.tiling
        windows = tiles((height_px, width_px), tiling.tile_px, tiling.overlap_px)
        return [
            View(top_px=top, left_px=left, geometry=geometry(self.preprocessing, height, width))
            for top, left, height, width in windows
        ]

    def prepare(self, frames: FrameBatch) -> Tensor:
        """The model's pixels of N frames, float32 `(V·N, 3, h, w)`, view by view."""
        if frames.model_nchw is not None:
            return torch.as_tensor(frames.model_nchw)
        if self.device != "cpu":
            return self.prepare_by_dali(frames)
        with self.telemetry.span("preprocess"):
            views = [prepare_on_cpu(pixels, self.preprocessing) for pixels in self._windows(frames)]
            return views[0] if len(views) == 1 else torch.cat(views)

    def prepare_by_dali(self, frames: FrameBatch) -> Tensor:
        """The same by the DALI graph, which a CPU is slower at."""
        with self.stages.lend() as stages, self.telemetry.span("preprocess"):
            return torch.cat([stages.preprocess(pixels) for pixels in self._windows(frames)])

    def _windows(self, frames: FrameBatch) -> list[PixelArray]:
        """What the model sees of N frames, `(N, h, w, 3)` for each view."""
        views = self.views(frames.height_px, frames.width_px)
        windows = (view.window for view in views)
        return [frames.pixels_nhwc[:, rows, columns] for rows, columns in windows]

    def _finish(self, job: Job, step: _Step, *, final: bool) -> tuple[FrameBatch | None, Answer]:
        with self.telemetry.span("model_wait"):
            parts = [] if step.outputs is None else step.outputs.result()
        frames = step.frames
        views = [] if frames is None else self.views(frames.height_px, frames.width_px)
        with self.stages.lend() as stages, self.telemetry.span("postprocess"):
            answer = job.answer(frames, parts, views, stages.postprocess, final=final)
        self.telemetry.count("frames", "answered", 0 if frames is None else len(frames))
        return frames, answer


@contextlib.contextmanager
def _judging(options: Options) -> Iterator[None]:
    """A model that fails on clips of a length that the request has chosen fails by the request's fault."""
    try:
        yield
    except InternalError as error:
        if not options.clip_length:
            raise
        raise InvalidOptions(
            f"clip_length={options.clip_length} does not fit the model: {error.message}", hint="leave it out"
        ) from error


def _signed(answer: Answer, medium: Medium) -> Answer:
    return dataclasses.replace(answer, decoder=medium.decoder, decoder_reason=medium.decoder_reason)
