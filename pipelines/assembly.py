"""Settings → engine room: loads the models, joins batcher, stages and task. Knows no transport."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass, field

import numpy as np
import torch

from pipelines.batching.batcher import Batcher
from pipelines.frames.dali import release_unused
from pipelines.frames.preprocess import Preprocessor
from pipelines.loading.load import load_model
from pipelines.machine.admission import Admission, default_budget_bytes
from pipelines.machine.memory import trim_malloc
from pipelines.machine.threads import Threads, cores
from pipelines.media.medium import Limits
from pipelines.models.spec import ModelSpec, TaskName
from pipelines.pipeline import Pipeline, StagePool, Stages
from pipelines.protocol.errors import ModelUnavailable
from pipelines.protocol.options import Options
from pipelines.rendering.encode import Mp4Writer, png
from pipelines.rendering.postprocess import Postprocessor
from pipelines.settings.server import Settings
from pipelines.tasks.painter import UNNAMED_COLOURS
from pipelines.telemetry.counters import Telemetry
from pipelines.zoo import resolve
from pipelines.zoo.demo.specs import demo_specs

VERSION = "0.1.0"
log = logging.getLogger("trivid")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoom:
    """What all doors of a server share, so that their frames meet in the same batches and share one budget.

    Attributes:
        pipelines: the served models by task, the default one first; the only table of them.
    """

    device: str
    limits: Limits
    telemetry: Telemetry
    admission: Admission
    pipelines: dict[TaskName, Pipeline] = field(default_factory=dict)

    def fault(self) -> str:
        """Why the server cannot go on; empty if it can."""
        for pipeline in self.pipelines.values():
            if not pipeline.batcher.alive:
                return f"the batcher of {pipeline.spec.name} died"
        return ""

    def status(self) -> dict[str, object]:
        """What the server says about itself: version, device, limits, models and counters; for JSON."""
        return {
            "version": VERSION,
            "device": self.device,
            "max_media_bytes": self.limits.max_media_bytes,
            "max_frames": self.limits.max_frames,
            "models": {task: _describe(pipeline) for task, pipeline in self.pipelines.items()},
            **self.telemetry.snapshot(),
        }


def _describe(pipeline: Pipeline) -> dict[str, object]:
    spec, sizes = pipeline.spec, pipeline.batcher.batch_sizes
    return {
        "name": spec.name,
        "source": spec.source,
        "licence": spec.licence,
        "labels": list(spec.labels),
        "precision": spec.precision,
        "engine": spec.engine,
        "clip": None if spec.clip is None else dataclasses.asdict(spec.clip),
        "batch_sizes": {str(size): count for size, count in sorted(sizes.items())},
    }


def make_engine_room(settings: Settings) -> EngineRoom:
    """Load the models, and make a pipeline of each. Raises ModelUnavailable if one cannot be loaded."""
    telemetry = Telemetry()
    room = EngineRoom(
        device=_usable_device(settings.device),
        limits=Limits(
            max_media_bytes=settings.max_media_bytes,
            max_frames=settings.max_frames,
            chunk_frames=settings.chunk_frames,
        ),
        telemetry=telemetry,
        admission=Admission(settings.max_memory_mb << 20, telemetry),
    )
    for spec in _specs(settings).values():
        room.pipelines[spec.task] = make_pipeline(
            spec,
            room.device,
            limits=room.limits,
            workers=settings.workers,
            telemetry=telemetry,
            admission=room.admission,
        )
    return room


def _usable_device(wanted: str) -> str:
    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise ModelUnavailable("no CUDA device is usable", hint="check nvidia-smi, or use --device cpu")
    return ("cuda" if usable else "cpu") if wanted == "auto" else wanted


def _specs(settings: Settings) -> dict[TaskName, ModelSpec]:
    specs = demo_specs() if settings.demo else {}
    for choice in settings.models:
        spec = resolve(choice, allow_code=settings.allow_code)
        if spec.task in specs:
            both = f"{specs[spec.task].name} and {spec.name} are both for {spec.task}"
            raise ModelUnavailable(f"{choice.place or '--model'}: {both}", hint="one model per task")
        specs[spec.task] = spec
    return specs


def make_pipeline(
    spec: ModelSpec,
    device: str,
    *,
    limits: Limits,
    workers: int = 1,
    telemetry: Telemetry | None = None,
    admission: Admission | None = None,
) -> Pipeline:
    """A model on its device with its batcher and the stages of `workers` threads, warmed up."""
    if "random weights" in spec.source.lower():
        log.warning("RANDOM WEIGHTS: %s answers noise; for tests and benchmarks only", spec.name)
    log.info("loading %s for %s (%s) on %s", spec.name, spec.task, spec.source, device)
    log.info("%s takes %s", spec.name, spec.preprocessing)
    telemetry = telemetry or Telemetry()
    threads = Threads.of(cores()).model
    model = load_model(spec, device, threads)
    labels = len(model.spec.labels)

    def make_stages() -> Stages:
        frames = limits.chunk_frames
        return Stages(
            preprocess=Preprocessor(spec.preprocessing, device=device, max_frames=frames),
            postprocess=Postprocessor(
                device=device,
                max_frames=frames,
                classes=labels if labels > 1 else UNNAMED_COLOURS,
                telemetry=telemetry,
            ),
        )

    admission = admission or Admission(default_budget_bytes(), telemetry)
    batcher = Batcher(model, threads=threads)
    telemetry.count("copies", "pictures_from_gpu", 0)  # shown from the start
    telemetry.gauge("waiting_for_model", spec.task, lambda: batcher.waiting)
    pipeline = Pipeline(batcher, StagePool(make_stages, workers), limits, telemetry, admission)
    pipeline.warm_up()
    return pipeline


def give_back(device: str) -> None:
    """Give freed memory back to the system, and the GPU's to other processes. Takes up to a second."""
    trim_malloc()
    if device == "cpu":
        return
    try:
        torch.cuda.empty_cache()
        release_unused()
    except RuntimeError as error:
        # If the GPU fails, the requests that need it report it.
        log.warning("the GPU's memory was not given back: %s", error)


def example_clip() -> bytes:
    """A small video of one frame, as MP4."""
    height_px, width_px = 64, 96
    writer = Mp4Writer(width_px=width_px, height_px=height_px)
    levels = np.arange(height_px * width_px * 3, dtype=np.uint8)
    return writer.write(levels.reshape(1, height_px, width_px, 3), [0.0]) + writer.close()


def check_example(pipeline: Pipeline) -> None:
    """Run a small picture and a small video through every stage, as a proof before anything listens."""
    picture = png(np.arange(64 * 96, dtype=np.uint8).reshape(64, 96))
    for medium in (picture, example_clip()):
        for _ in pipeline.run(medium, Options(overlay="jpeg")):
            continue
