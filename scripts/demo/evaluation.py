"""Judges the demo models on fresh drawings, by the pipeline that serves them. Trains nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import ANSWERS
from pipelines.protocol.options import Options
from pipelines.zoo.demo.networks import DemoTask
from pipelines.zoo.demo.specs import demo_specs
from scripts.demo.actions import ActionScene
from scripts.demo.clips import FRAMES_PER_S, Drawn, encode
from scripts.demo.judging import MEASURES, Quality, TruthArrays, truth_arrays
from scripts.demo.shapes import Scene

CLIPS = 8
# Seeds from 0 train; these are far beyond them.
SEED, SEED_OF_MANY = 900_001, 910_001


def demo_pipeline(task: DemoTask) -> Pipeline:
    """The demo model of a task as a server on a CPU has it, with the weights in assets/."""
    return make_pipeline(demo_specs()[task], "cpu", limits=Limits())


def quality(pipeline: Pipeline, media: bytes, truth: TruthArrays, **options: Any) -> Quality:
    """How good a pipeline's answers to a clip are; `options` besides those that the measure needs."""
    kind = ANSWERS[pipeline.spec.task]
    measure = MEASURES[kind]
    asked: dict[str, Any] = {**measure.options, **options}
    return measure.judge(kind.concatenate(list(pipeline.run(media, Options(**asked)))), truth)


def fresh_clip(drawn: Iterable[Drawn[Any]]) -> tuple[bytes, TruthArrays]:
    """Drawn frames as a clip, and its truth."""
    clip = io.BytesIO()
    truths = encode(clip, drawn)
    return clip.getvalue(), truth_arrays(truths)


def evaluate(task: DemoTask) -> None:
    """Print how good the weights in assets/ are on fresh clips: on each, then by class over all."""
    pipeline = demo_pipeline(task)
    name = MEASURES[ANSWERS[task]].name
    qualities: list[Quality] = []
    print(task)
    for number in range(CLIPS):
        qualities.append(quality(pipeline, *fresh_clip(_drawn(task, number))))
        print(f"clip {number}: {name} {qualities[-1][name]:.4f}", flush=True)
    for key in dict.fromkeys(key for one in qualities for key in one):
        values = [one[key] for one in qualities if key in one]
        print(f"{key}: mean {np.mean(values):.4f}, worst clip {min(values):.4f}")


def _drawn(task: DemoTask, number: int) -> Iterator[Drawn[Any]]:
    """Twelve seconds of actions, or every fifth frame of five seconds.

    Which class leads seldom changes within a scene: of ten scenes two frames each tell more.
    """
    scene = ActionScene if task == "action" else Scene
    seeds: Sequence[int] = [SEED + number]
    frames: Sequence[int] = range(12 * FRAMES_PER_S) if task == "action" else range(0, 5 * FRAMES_PER_S, 5)
    if task == "classification":
        seeds, frames = range(SEED_OF_MANY + 10 * number, SEED_OF_MANY + 10 * (number + 1)), (10, 80)
    return (shown for seed in seeds for shown in map(scene(seed).draw, frames))
