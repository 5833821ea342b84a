"""Pipeline.run: one medium in, an answer per chunk out, two chunks in flight. Knows no transport.

While the engine runs the model on chunk k, the stream's own thread decodes and prepares chunk k + 1.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from model_inference import Preprocessing
from pipelines.contract import Options
from pipelines.decode import Limits, Medium, open_media
from pipelines.engine import Engine
from pipelines.errors import TrividError
from pipelines.frames import FrameBatch
from pipelines.postprocess import ClassScores, Postprocessor
from pipelines.preprocess import Preprocessor, geometry
from pipelines.results import SegmentationAnswer
from pipelines.tasks.segmentation import Segmentation
from pipelines.telemetry import Telemetry

CHUNKS_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """One thread's DALI stages; a DALI pipeline serves one thread at a time."""

    preprocess: Preprocessor
    postprocess: Postprocessor


class StagePool:
    """Lends `Stages` for the length of one step, so that a film never keeps them from an image."""

    def __init__(self, make: Callable[[], Stages], size: int) -> None:
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


class Pipeline:
    """decoder + engine + task, for any number of media at once."""

    def __init__(self, engine: Engine, stages: StagePool, limits: Limits, telemetry: Telemetry) -> None:
        self.engine = engine
        self.stages = stages
        self.limits = limits
        self.telemetry = telemetry
        self.spec = engine.model.spec
        self.device = str(engine.model.device)

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    def run(
        self, media: bytes, options: Options, limits: Limits | None = None
    ) -> Iterator[SegmentationAnswer]:
        """Answers of one medium, chunk by chunk; the last is marked `final`.

        Raises:
            TrividError: after the answers of all good frames, where a medium breaks off.
        """
        for _, answer in self.run_with_frames(media, options, limits):
            yield answer

    def run_with_frames(
        self, media: bytes, options: Options, limits: Limits | None = None
    ) -> Iterator[tuple[FrameBatch | None, SegmentationAnswer]]:
        """The same as `run`, each answer with the frames it is about; None where no frame was selected."""
        job = Segmentation(self.spec, options)
        with open_media(
            media,
            options=options,
            limits=limits or self.limits,
            device=self.device,
            prepare=self.preprocessing,
        ) as medium:
            self.telemetry.count("decoders", medium.decoder)
            answered = False
            for frames, answer in self._answers(medium, job):
                answered = True
                yield frames, _signed(answer, medium)
            if not answered:
                yield None, _signed(job.empty(), medium)

    def _answers(self, medium: Medium, job: Segmentation) -> Iterator[tuple[FrameBatch, SegmentationAnswer]]:
        """Keep two chunks in flight; a fault of the medium is raised when what came before it is answered."""
        in_flight: deque[tuple[FrameBatch, Future[list[ClassScores]]]] = deque()
        fault: TrividError | None = None
        chunks = medium.chunks()
        while True:
            try:
                with self.telemetry.span("decode"):
                    frames = next(chunks, None)
            except TrividError as error:
                frames, fault = None, error
            if frames is None:
                break
            self.telemetry.count("chunks", "decoded")
            in_flight.append((frames, self._submit(frames, job)))
            if len(in_flight) == CHUNKS_IN_FLIGHT:
                yield self._finish(job, *in_flight.popleft(), final=False)
        while in_flight:
            last = len(in_flight) == 1 and fault is None
            yield self._finish(job, *in_flight.popleft(), final=last)
        if fault is not None:
            raise fault

    def _submit(self, frames: FrameBatch, job: Segmentation) -> Future[list[ClassScores]]:
        if frames.model_nchw is not None:
            return self.engine.submit(frames.model_nchw, job.read)
        with self.stages.lend() as stages, self.telemetry.span("preprocess"):
            pixels_nchw = stages.preprocess(frames.pixels_nhwc)
        return self.engine.submit(pixels_nchw, job.read)

    def _finish(
        self, job: Segmentation, frames: FrameBatch, outputs: Future[list[ClassScores]], *, final: bool
    ) -> tuple[FrameBatch, SegmentationAnswer]:
        with self.telemetry.span("model_wait"):
            parts = outputs.result()
        shape = geometry(self.preprocessing, frames.height_px, frames.width_px)
        with self.stages.lend() as stages, self.telemetry.span("postprocess"):
            answer = job.answer(frames, parts, shape, stages.postprocess, final=final)
        self.telemetry.count("frames", "answered", len(answer))
        return frames, answer


def _signed(answer: SegmentationAnswer, medium: Medium) -> SegmentationAnswer:
    return dataclasses.replace(answer, decoder=medium.decoder, decoder_reason=medium.decoder_reason)
