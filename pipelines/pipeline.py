"""Pipeline.run: one medium in, an answer per chunk out, two chunks in flight. Knows no transport, no task.

While the batcher runs the model on chunk k, the stream's own thread decodes and prepares chunk k + 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import queue
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.batching.batcher import Batcher
from pipelines.batching.work import Terms
from pipelines.frames.batch import FLOAT_RGB_BYTES, FrameBatch, PixelArray, to_numpy
from pipelines.frames.geometry import Geometry, View, geometry, tiles
from pipelines.frames.preprocess import Preprocessor
from pipelines.frames.resize import prepare_on_cpu
from pipelines.machine.admission import Admission
from pipelines.media.decode import open_media
from pipelines.media.medium import Header, Leave, Limits, Medium, Wanted
from pipelines.models.spec import Preprocessing
from pipelines.protocol.answers import Answer
from pipelines.protocol.errors import InternalError, InvalidOptions, TrividError
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import ClassScores, Postprocessor
from pipelines.second_stage import SECOND_STAGE_BYTES, second_stage
from pipelines.tasks import TASKS
from pipelines.tasks.job import Job
from pipelines.telemetry.counters import Telemetry

CHUNKS_IN_FLIGHT = 2
# The most frames that FFmpeg holds for H.264, and a few more for its threads.
DECODER_FRAMES = 20
EXAMPLE_HW = (64, 96)
WHOLE_EXAMPLE = Geometry.whole(EXAMPLE_HW)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """One thread's DALI stages; a DALI pipeline serves one thread at a time."""

    preprocess: Preprocessor
    postprocess: Postprocessor


class StagePool:
    """Lends `Stages` for one step at a time, so that a long video never blocks an image."""

    def __init__(self, make: Callable[[], Stages], size: int) -> None:
        self.size = size
        self._free: queue.LifoQueue[Stages] = queue.LifoQueue()
        for _ in range(size):
            self._free.put(make())

    @contextlib.contextmanager
    def lend(self) -> Iterator[Stages]:
        """Free stages; waits while all are lent."""
        stages = self._free.get()
        try:
            yield stages
        finally:
            self._free.put(stages)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One step in flight: its frames (None: the rest after the last frame), and the outputs, if any."""

    frames: FrameBatch | None
    outputs: Future[list[Any]] | None


class Pipeline:
    """decoder + batcher + task, for any number of media at once.

    Args:
        name: under which the model is served; empty: its task.
        served: gives all models, by what requests call them, as those that a second model is chosen from.
    """

    def __init__(
        self,
        batcher: Batcher,
        stages: StagePool,
        limits: Limits,
        telemetry: Telemetry,
        admission: Admission,
        *,
        name: str = "",
        served: Callable[[], Mapping[str, Pipeline]] = dict,
    ) -> None:
        self.batcher = batcher
        self.stages = stages
        self.limits = limits
        self.telemetry = telemetry
        self.admission = admission
        self.spec = batcher.model.spec
        self.name = name or self.spec.task
        self.task = TASKS[self.spec.task]
        self._served = served
        self.device = str(batcher.model.device)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    def run(self, encoded: bytes, options: Options, limits: Limits | None = None) -> Iterator[Answer]:
        """Answers of one medium, chunk by chunk; the last is marked `final`.

        Raises:
            TrividError: after the answers for all good frames, if a medium breaks off.
        """
        return (answer for _, answer in self.run_with_frames(encoded, options, limits))

    def run_with_frames(
        self, encoded: bytes, options: Options, limits: Limits | None = None
    ) -> Generator[tuple[FrameBatch | None, Answer], None, None]:
        """The same, each answer with the frames it is about; None after the last of them."""
        terms = Terms.of(options)
        job = self._job(options, terms)
        with (
            self.admit(len(encoded), options, terms) as leave,
            open_media(
                encoded,
                options=self.task.select(self.spec, options) if self.task.select else options,
                limits=limits or self.limits,
                device=self.device,
                wanted=self.wanted(options),
                leave=leave,
            ) as medium,
            _blame_clip_length(options),
            contextlib.closing(self._answers(medium, job, terms)) as answers,
        ):
            terms.urgent |= medium.info.kind == "image"
            decoder, reason = medium.decoder, medium.decoder_reason
            self.telemetry.count("decoders", decoder)
            for frames, answer in answers:
                if len(answer) or answer.video or answer.final:
                    yield frames, dataclasses.replace(answer, decoder=decoder, decoder_reason=reason)

    def _job(self, options: Options, terms: Terms) -> Job:
        if not options.classify or self.task.second_job is None:
            return self.task.job(self.spec, options)
        second = second_stage(options.classify, self.spec.labels, self._served(), terms)
        return self.task.second_job(self.spec, options, second)

    def _answers(
        self, medium: Medium, job: Job, terms: Terms
    ) -> Generator[tuple[FrameBatch | None, Answer], None, None]:
        """The main loop. A fault of the medium is raised after everything before it is answered.

        If the caller leaves, work that is still in flight is taken off the batcher's queue.
        """
        chunks, in_flight = medium.chunks(), deque[_Step]()
        try:
            while isinstance(chunk := self._decode(chunks, terms), FrameBatch):
                outputs = self._submit(job, job.inputs(self.prepare(chunk), chunk), terms)
                in_flight.append(_Step(frames=chunk, outputs=outputs))
                if len(in_flight) == CHUNKS_IN_FLIGHT:
                    yield self._finish(job, in_flight.popleft(), final=False)
            fault = chunk
            # Even if the options select no frame, there is an answer.
            if fault is None and ((rest := job.rest()) is not None or not in_flight):
                in_flight.append(_Step(frames=None, outputs=self._submit(job, rest, terms)))
            while in_flight:
                step = in_flight.popleft()
                frames, answer = self._finish(job, step, final=not in_flight)
                # Before a fault too, the last answer completes the overlay video.
                yield frames, answer if fault is None else dataclasses.replace(answer, final=False)
            if fault is not None:
                raise fault
        finally:
            for step in in_flight:
                if step.outputs is not None:
                    step.outputs.cancel()

    def _decode(self, chunks: Iterator[FrameBatch], terms: Terms) -> FrameBatch | TrividError | None:
        """The next chunk, None after the last one, or the fault at which the medium breaks off."""
        try:
            terms.check()
            with self.telemetry.span("decode"):
                frames = next(chunks, None)
        except TrividError as error:
            return error
        if frames is not None:
            self.telemetry.count("chunks", "decoded")
        return frames

    def _submit(self, job: Job, inputs: Tensor | None, terms: Terms) -> Future[list[Any]] | None:
        if inputs is None:
            return None
        return self.batcher.submit(
            inputs, job.read, stream=id(job), deadline_s=terms.deadline_s, urgent=terms.urgent
        )

    def _finish(self, job: Job, step: _Step, *, final: bool) -> tuple[FrameBatch | None, Answer]:
        with self.telemetry.span("model_wait"):
            parts: Sequence[Any] = [] if step.outputs is None else step.outputs.result()
        frames = step.frames
        views: Sequence[View] = [] if frames is None else self.views(frames.height_px, frames.width_px)
        parts, views = job.complete(frames, parts, views)
        with self.stages.lend() as stages, self.telemetry.span("postprocess"):
            answer = job.answer(frames, parts, views, stages.postprocess, final=final)
        self.telemetry.count("frames", "answered", 0 if frames is None else len(frames))
        self.telemetry.count("frames", "damaged", 0 if frames is None else int(frames.damaged.sum()))
        return frames, answer

    def wanted(self, options: Options) -> Wanted:
        return Wanted(
            prepare=None if self.spec.tiling else self.preprocessing,
            keep_pixels=bool(self.spec.tiling) or options.overlay != "none" or bool(options.classify),
            repeat_frames=self.task.repeat_frames,
        )

    @contextlib.contextmanager
    def admit(self, encoded_bytes: int, options: Options, terms: Terms) -> Iterator[Leave]:
        """Terms for decoding a medium: until when, and that its memory is held as soon as its header is read.

        Raises:
            Overloaded: other requests hold too much; here, or as the medium is opened.
        """
        with self.admission.hold(encoded_bytes) as held:
            parts = [0, 0]

            def admit(header: Header) -> None:
                parts[0] = max(parts[0], header.decode_bytes)
                if header.width_px:
                    parts[1] = max(parts[1], self._cost_bytes(header, options))
                # A picture is decoded before it is worked on.
                together = max(parts) if header.kind == "image" else sum(parts)
                held.grow_to(encoded_bytes + together)

            yield Leave(deadline_s=terms.deadline_s, admit=admit)

    def _cost_bytes(self, info: Header, options: Options) -> int:
        """An estimate of the memory for a medium's frames: the decoder's, and those in flight."""
        frame_px = info.width_px * info.height_px
        decoder = DECODER_FRAMES * frame_px * 3 // 2 if info.kind == "video" else 0
        views = self.views(info.height_px, info.width_px)
        model_px = sum(math.prod(view.geometry.model_hw) for view in views)
        kept = self.wanted(options).keep_pixels or info.kind == "image"
        each = FLOAT_RGB_BYTES * model_px + (3 * frame_px if kept else 0)
        frames = self.limits.chunk_length(info.width_px, info.height_px) if info.kind == "video" else 1
        # A square that alone is more than a piece is at most a frame.
        second = SECOND_STAGE_BYTES + 3 * frame_px if options.classify else 0
        return decoder + (CHUNKS_IN_FLIGHT + 1) * frames * each + second

    def warm_up(self) -> None:
        """Build every thread's DALI graphs and run the static batch sizes, before any request."""
        with contextlib.ExitStack() as lent:
            all_stages = [lent.enter_context(self.stages.lend()) for _ in range(self.stages.size)]
            for stages in all_stages:
                if self.device != "cpu":
                    stages.preprocess(np.zeros((1, *EXAMPLE_HW, 3), np.uint8))
                if "mask" in self.task.options:
                    ones = torch.ones((1, *EXAMPLE_HW), dtype=torch.uint8, device=self.device)
                    stages.postprocess(None, ClassScores(class_map_nhw=ones), WHOLE_EXAMPLE, None)
        self.batcher.model.warm_up()

    def views(self, height_px: int, width_px: int) -> list[View]:
        """The parts of a frame of this size that the model sees: its tiles, or all of it."""
        if self.spec.tiling is None:
            whole = geometry(self.preprocessing, height_px, width_px)
            return [View(top_px=0, left_px=0, geometry=whole)]
        tiling = self.spec.tiling
        regions = tiles((height_px, width_px), tiling.tile_px, tiling.overlap_px)
        return [
            View(top_px=top, left_px=left, geometry=geometry(self.preprocessing, height, width))
            for top, left, height, width in regions
        ]

    def prepare(self, frames: FrameBatch) -> Tensor:
        """The model's pixels of N frames, float32 `(V·N, 3, h, w)`, view by view."""
        if frames.model_nchw is not None:
            return torch.as_tensor(frames.model_nchw)
        if self.device != "cpu":
            return self.prepare_by_dali(frames)
        with self.telemetry.span("preprocess"):
            views = [prepare_on_cpu(pixels, self.preprocessing) for pixels in self._regions(frames)]
            return views[0] if len(views) == 1 else torch.cat(views)

    def prepare_pictures(self, pictures: Sequence[PixelArray]) -> Tensor:
        """The same of N pictures uint8 RGB `(H, W, 3)`, if what the model sees of them has one size."""
        if self.device == "cpu":
            with self.telemetry.span("preprocess"):
                # One copy of a picture at a time: each may be as large as a frame.
                return torch.cat([self._prepared(to_numpy(one)) for one in pictures])
        with self.stages.lend() as stages, self.telemetry.span("preprocess"):
            return stages.preprocess.pictures(pictures)

    def _prepared(self, picture: PixelArray) -> Tensor:
        return prepare_on_cpu(np.ascontiguousarray(picture)[None], self.preprocessing)

    def prepare_by_dali(self, frames: FrameBatch) -> Tensor:
        """The same with the DALI graph, which is slower on a CPU."""
        with self.stages.lend() as stages, self.telemetry.span("preprocess"):
            return torch.cat([stages.preprocess(pixels) for pixels in self._regions(frames)])

    def _regions(self, frames: FrameBatch) -> list[PixelArray]:
        """What the model sees of N frames, `(N, h, w, 3)` for each view."""
        views = self.views(frames.height_px, frames.width_px)
        regions = (view.region for view in views)
        return [frames.pixels_nhwc[:, rows, columns] for rows, columns in regions]


@contextlib.contextmanager
def _blame_clip_length(options: Options) -> Iterator[None]:
    """If a model fails on a clip length that the request chose, the fault is the request's."""
    try:
        yield
    except InternalError as error:
        if not options.clip_length:
            raise
        raise InvalidOptions(
            f"clip_length={options.clip_length} does not fit the model: {error.message}", hint="leave it out"
        ) from error
