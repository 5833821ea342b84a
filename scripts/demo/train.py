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
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from safetensors.torch import save_file

from pipelines.zoo.demo.networks import DemoTask
from pipelines.zoo.demo.specs import demo_weights
from scripts.demo.actions import ActionScene
from scripts.demo.clips import FRAMES_PER_S, encode
from scripts.demo.evaluation import evaluate
from scripts.demo.judging import truth_arrays
from scripts.demo.shapes import Drawing, Scene
from scripts.demo.training import train

# Both show every class or action within their seconds.
DRAWING_SEED, DRAWING_S = 2027, 5.0


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
    truths = encode(clip, map(scene.draw, range(max(1, round(seconds * FRAMES_PER_S)))))
    if truth:
        np.savez_compressed(truth, **truth_arrays(truths))


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
