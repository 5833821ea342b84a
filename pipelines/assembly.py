"""Settings → engine room: loads the models, joins batcher, stages and task. Knows no transport."""

from __future__ import annotations

import dataclasses
import gc
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from pipelines.batching.batcher import Batcher
from pipelines.frames.dali import release_unused
from pipelines.frames.preprocess import Preprocessor
from pipelines.loading.load import load_model
from pipelines.machine.admission import Admission, default_budget_bytes
from pipelines.machine.memory import resident_bytes, trim_malloc
from pipelines.machine.threads import Threads, cores
from pipelines.media.medium import Limits
from pipelines.models.spec import ModelSpec, TaskName
from pipelines.pipeline import Pipeline, StagePool, Stages
from pipelines.protocol.errors import ModelUnavailable
from pipelines.protocol.options import Options
from pipelines.rendering.encode import Mp4Writer, png
from pipelines.rendering.postprocess import Postprocessor
from pipelines.settings.names import served_names
from pipelines.settings.server import Settings
from pipelines.tasks.painter import UNNAMED_COLOURS
from pipelines.telemetry.counters import Telemetry
from pipelines.zoo import resolve
from pipelines.zoo.demo.specs import demo_specs

VERSION = "0.1.0"
log = logging.getLogger("trivid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """The process's memory, and what torch has allocated of the GPU's."""

    host_bytes: int = 0
    gpu_bytes: int = 0

    @classmethod
    def now(cls) -> Memory:
        # What else was tried for a model is often held by circles of references.
        gc.collect()
        gpu_bytes = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        return cls(host_bytes=resident_bytes(), gpu_bytes=gpu_bytes)

    def grown_since(self, before: Memory) -> Memory:
        """What came since; 0 where it became less."""
        return Memory(
            host_bytes=max(0, self.host_bytes - before.host_bytes),
            gpu_bytes=max(0, self.gpu_bytes - before.gpu_bytes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRoom:
    """What all doors of a server share, so that their frames meet in the same batches and share one budget.

    Attributes:
        pipelines: the served models by name, the default one first; the only table of them.
        memory: what each took when it was loaded, by name.
    """

    device: str
    limits: Limits
    telemetry: Telemetry
    admission: Admission
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    memory: dict[str, Memory] = field(default_factory=dict)

    def by_endpoint(self) -> dict[str, Pipeline]:
        """The pipelines by what requests call them: their names, and the task of one that is alone."""
        tasks = Counter(pipeline.spec.task for pipeline in self.pipelines.values())
        alone = {one.spec.task: one for one in self.pipelines.values() if tasks[one.spec.task] == 1}
        return self.pipelines | {str(task): pipeline for task, pipeline in alone.items()}

    def of_task(self, task: TaskName) -> Pipeline | None:
        """The first model of a task."""
        return next((one for one in self.pipelines.values() if one.spec.task == task), None)

    def fault(self) -> str:
        """Why the server cannot go on; empty if it can."""
        for name, pipeline in self.pipelines.items():
            if not pipeline.batcher.alive:
                return f"the batcher of {name} died"
        return ""

    def status(self, endpoints_of: Callable[[str], list[str]]) -> dict[str, object]:
        """What the server says about itself: version, device, limits, models and counters; for JSON.

        Args:
            endpoints_of: tells where the model of a name is asked.
        """
        return {
            "version": VERSION,
            "device": self.device,
            "max_media_bytes": self.limits.max_media_bytes,
            "max_frames": self.limits.max_frames,
            "models": {
                name: {**self._describe(name), "endpoints": endpoints_of(name)} for name in self.pipelines
            },
            **self.telemetry.snapshot(),
        }

    def _describe(self, name: str) -> dict[str, object]:
        spec, sizes = self.pipelines[name].spec, self.pipelines[name].batcher.batch_sizes
        memory = self.memory.get(name, Memory())
        return {
            "name": spec.name,
            "task": spec.task,
            "source": spec.source,
            "assumed": list(spec.assumed),
            "head": spec.head.family if spec.head else "",
            "licence": spec.licence,
            "labels": list(spec.labels),
            "precision": spec.precision,
            "engine": spec.engine,
            "clip": None if spec.clip is None else dataclasses.asdict(spec.clip),
            "memory_bytes": memory.host_bytes,
            "gpu_memory_bytes": memory.gpu_bytes,
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
            max_decode_s=settings.max_decode_s,
        ),
        telemetry=telemetry,
        admission=Admission(settings.max_memory_mb << 20, telemetry),
    )
    specs, before = _specs(settings), Memory.now()
    for name, spec in specs.items():
        room.pipelines[name] = make_pipeline(
            spec,
            room.device,
            name=name,
            limits=room.limits,
            workers=settings.workers,
            telemetry=telemetry,
            admission=room.admission,
            served=room.by_endpoint,
        )
        room.memory[name], before = (now := Memory.now()).grown_since(before), now
    return room


def _usable_device(wanted: str) -> str:
    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise ModelUnavailable("no CUDA device is usable", hint="check nvidia-smi, or use --device cpu")
    return ("cuda" if usable else "cpu") if wanted == "auto" else wanted


def _specs(settings: Settings) -> dict[str, ModelSpec]:
    """The models by the names under which they are served."""
    if settings.demo:
        return {str(task): spec for task, spec in demo_specs().items()}
    specs = [resolve(choice, allow_code=settings.allow_code) for choice in settings.models]
    names = served_names(settings.models, [spec.task for spec in specs])
    return dict(zip(names, specs, strict=True))


def make_pipeline(
    spec: ModelSpec,
    device: str,
    *,
    limits: Limits,
    name: str = "",
    workers: int = 1,
    telemetry: Telemetry | None = None,
    admission: Admission | None = None,
    served: Callable[[], Mapping[str, Pipeline]] = dict,
) -> Pipeline:
    """A model on its device with its batcher and the stages of `workers` threads, warmed up.

    Args:
        name: under which it is served; empty: its task.
        served: gives all models, by what requests call them.
    """
    name = name or spec.task
    _announce(spec, name, device)
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
    telemetry.gauge("waiting_for_model", name, lambda: batcher.waiting)
    pool = StagePool(make_stages, workers)
    pipeline = Pipeline(batcher, pool, limits, telemetry, admission, name=name, served=served)
    pipeline.warm_up()
    return pipeline


def _announce(spec: ModelSpec, name: str, device: str) -> None:
    if "random weights" in spec.source.lower():
        log.warning("RANDOM WEIGHTS: %s answers noise; for tests and benchmarks only", spec.name)
    served = name if name == spec.task else f"{name} ({spec.task})"
    log.info("loading %s: %s (%s) on %s", served, spec.name, spec.source, device)
    log.info("%s takes %s", spec.name, spec.preprocessing)


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
