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
from typing import get_args

import numpy as np
import torch
from safetensors.torch import save_file

from pipelines.zoo.demo.networks import DemoTask
from scripts import ROOT
from scripts.demo.actions import ActionScene
from scripts.demo.clips import FRAMES_PER_S
from scripts.demo.data import CLIP_CRF, draw_clip
from scripts.demo.evaluation import evaluate
from scripts.demo.shapes import Scene, Truth
from scripts.demo.training import train

TASKS: tuple[DemoTask, ...] = get_args(DemoTask)
# Both show every class or action within their seconds.
DRAWING_SEED, DRAWING_S = 2027, 5.0


def weights_path(task: DemoTask) -> Path:
    return ROOT / "assets" / f"demo_{task}.safetensors"


def make_weights(task: DemoTask) -> None:
    """Draw, train and write the weights of one model, as float16."""
    torch.manual_seed(0)
    began = time.perf_counter()
    network = train(task)
    halves = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    path = weights_path(task)
    save_file(halves, path)
    print(f"{path}: {path.stat().st_size / 1e6:.2f} MB, {time.perf_counter() - began:.0f} s", flush=True)


def truth_arrays(truths: list[Truth]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    """What is true of a clip's N frames, as it is written.

    `masks` uint8 `(N, H, W)`: 0 background, then the classes. `class_id` int8 `(N,)`: the dominant class, 0
    for the circle, -1 where none leads clearly. One row per visible shape: `boxes` float32 `(D, 4)`, x0 y0 x1
    y1 in source pixels, `box_class` uint8 `(D,)`, 1 for the circle, `box_frame` int32 `(D,)`, `box_ignored`
    bool `(D,)`.
    """
    counts = [len(truth.boxes) for truth in truths]
    return {
        "masks": np.stack([truth.class_ids for truth in truths]),
        "class_id": np.array([truth.dominant for truth in truths], np.int8),
        "boxes": np.concatenate([truth.boxes for truth in truths]),
        "box_class": np.concatenate([truth.box_class for truth in truths]),
        "box_frame": np.repeat(np.arange(len(truths), dtype=np.int32), counts),
        "box_ignored": np.concatenate([truth.box_ignored for truth in truths]),
    }


def draw(clip: Path, truth: Path | None, seed: int, seconds: float, *, action: bool) -> None:
    """Write a clip, and its truth: `truth_arrays`, or `action_id` int8 `(N,)` of an action clip."""
    indices = range(max(1, round(seconds * FRAMES_PER_S)))
    if action:
        arrays = {"action_id": np.array(draw_clip(ActionScene(seed), indices, clip, CLIP_CRF), np.int8)}
    else:
        arrays = truth_arrays(draw_clip(Scene(seed), indices, clip, CLIP_CRF))
    if truth:
        np.savez_compressed(truth, **arrays)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the demo models, or draw a clip with its truth.")
    parser.add_argument("--task", choices=TASKS, help="train, judge or draw for this one (default: all)")
    parser.add_argument("--draw", type=Path, metavar="FILE.mp4", help="draw a clip instead of training")
    parser.add_argument("--seed", type=int, default=DRAWING_SEED, help="of the clip (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=DRAWING_S, help="length of the clip (default: %(default)s)"
    )
    parser.add_argument("--truth", type=Path, metavar="FILE.npz", help="write what is true of it too")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in assets/")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.draw:
        action = arguments.task == "action"
        draw(arguments.draw, arguments.truth, arguments.seed, arguments.seconds, action=action)
        return
    for task in (arguments.task,) if arguments.task else TASKS:
        if not arguments.evaluate_only:
            make_weights(task)
        evaluate(task, str(weights_path(task)))


if __name__ == "__main__":
    main()
