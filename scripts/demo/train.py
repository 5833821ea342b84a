"""Makes the embedded demo models: draws clips, encodes them, and trains on what a decoder gives back.

    python -m scripts.demo.train     train all, write the weights to assets/, print how good they are
    python -m scripts.demo.train --task detection    only this one
    python -m scripts.demo.train --evaluate-only     how good the weights in assets/ are, on fresh clips
    python -m scripts.demo.train --draw clip.mp4 --seed 7 [--seconds 5] [--truth clip.npz] [--task action]

Same machine, versions and threads, same weights: everything is seeded. Those in assets/ were made with one
thread, the segmenter with two. All four take about twenty minutes on one core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import save_file

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import ANSWERS
from pipelines.protocol.options import Options
from pipelines.zoo.demo.networks import DemoTask
from pipelines.zoo.demo.specs import demo_specs, demo_weights
from scripts.demo.actions import ActionScene
from scripts.demo.clips import FRAMES_PER_S, Drawn, encode
from scripts.demo.judging import MEASURES, Quality, TruthArrays, truth_arrays
from scripts.demo.shapes import Drawing, Scene
from scripts.demo.training import train

# Both show every class or action within their seconds.
DRAWING_SEED, DRAWING_S = 2027, 5.0
CLIPS = 8
# Seeds from 0 train; these are far beyond them.
SEED, SEED_OF_MANY = 900_001, 910_001


def make_weights(task: DemoTask) -> None:
    """Draw, train and write the weights of one model, as float16."""
    torch.manual_seed(0)
    began = time.perf_counter()
    network = train(task)
    halves = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    path = demo_weights(task)
    save_file(halves, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s", flush=True)


def draw(clip: Path, truth: Path | None, seed: int, seconds: float, *, action: bool) -> None:
    """Write a clip, and its truth as `truth_arrays`."""
    scene: Drawing[Any] = ActionScene(seed) if action else Scene(seed)
    data, arrays = fresh_clip(map(scene.draw, range(max(1, round(seconds * FRAMES_PER_S)))))
    clip.write_bytes(data)
    if truth:
        np.savez_compressed(truth, **arrays)


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
    clip, truths = encode(drawn)
    return clip, truth_arrays(truths)


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo models, or draw a clip with its truth.")
    tasks = get_args(DemoTask)
    parser.add_argument("--task", choices=tasks, help="train, judge or draw for this one (default: all)")
    parser.add_argument("--draw", type=Path, metavar="FILE.mp4", help="draw a clip instead of training")
    parser.add_argument("--seed", type=int, default=DRAWING_SEED, help="of the clip (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=DRAWING_S, help="its length (default: %(default)s)")
    parser.add_argument("--truth", type=Path, metavar="FILE.npz", help="write what is true of it too")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in assets/")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.draw:
        draw(given.draw, given.truth, given.seed, given.seconds, action=given.task == "action")
        return
    for task in [given.task] if given.task else tasks:
        if not given.evaluate_only:
            make_weights(task)
        evaluate(task)


if __name__ == "__main__":
    main()
