"""Judges the demo models on freshly drawn clips, by way of H.264. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipelines.zoo.demo.networks import DEMO_FACTS, DemoTask, build_demo
from scripts.demo.actions import ActionScene, clip_action
from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, Pixels
from scripts.demo.data import box_scale, clip_windows, drawn_frames, normalize, prepare
from scripts.demo.metrics import (
    FoundBoxes,
    TrueBoxes,
    accuracy,
    average_precision,
    class_iou,
    mean_average_precision,
)
from scripts.demo.shapes import Scene, Truth

Ids = npt.NDArray[np.int64]
# Seeds 0 and up train; these are far beyond them.
EVALUATION_SEEDS = range(900_001, 900_009)
MANY_SEEDS = range(910_001, 910_081)
FRESH_FRAMES = range(0, 5 * FRAMES_PER_S, 5)
BATCH = 8


def load(task: DemoTask, weights: str) -> nn.Module:
    """The network of a task with the weights of a file, ready to judge."""
    network = build_demo(task)
    network.load_state_dict(load_file(weights))
    return network.eval()


def evaluate(task: DemoTask, weights: str) -> None:
    """Print how good a file of weights is on fresh clips."""
    judges: dict[DemoTask, Callable[[nn.Module], None]] = {
        "segmentation": evaluate_segmentation,
        "classification": evaluate_classification,
        "detection": evaluate_detection,
        "action": evaluate_action,
    }
    print(task)
    judges[task](load(task, weights))


def evaluate_segmentation(network: nn.Module) -> None:
    """IoU over a five-second clip per seed, every fifth frame, at the clip's own size."""
    labels = DEMO_FACTS["segmentation"].labels
    rows = []
    for seed in EVALUATION_SEEDS:
        frames, truths = drawn_frames(Scene(seed), FRESH_FRAMES)
        ids = np.stack([truth.class_ids for truth in truths])
        rows.append(class_iou(segment(network, frames), ids, len(labels)))
        print(f"seed {seed}: mean {np.mean(rows[-1]):.4f},", ", ".join(f"{one:.3f}" for one in rows[-1]))
    scores = np.array(rows)
    for label, value in zip(labels, scores.mean(0), strict=True):
        print(f"{label}: {value:.4f}")
    print(f"mean IoU {scores.mean():.4f}, worst clip {scores.mean(1).min():.4f}")


def evaluate_classification(network: nn.Module) -> None:
    """Accuracy over the frames that have a dominant class: two frames of each of many scenes.

    Which class leads seldom changes within a scene, so that many frames of few scenes would tell little.
    """
    found, truth = [], []
    for seed in MANY_SEEDS:
        frames, truths = drawn_frames(Scene(seed), (10, 80))
        found.append(classify(network, frames))
        truth.append(np.array([one.dominant for one in truths]))
    print_accuracy("classification", np.concatenate(found), np.concatenate(truth))


def print_accuracy(task: DemoTask, found: Ids, truth: Ids) -> None:
    """For each label, then for all; both `(N,)`, -1 where the truth is undecided."""
    for index, label in enumerate(DEMO_FACTS[task].labels):
        print(f"{label}: {(found[truth == index] == index).mean():.4f}")
    print(f"accuracy {accuracy(found, truth):.4f}, {np.sum(truth >= 0)} of {len(truth)} decided")


def evaluate_detection(network: nn.Module) -> None:
    """mAP at an IoU of 0.5 over all clips together, and over each."""
    found: list[FoundBoxes] = []
    true: list[TrueBoxes] = []
    for seed in EVALUATION_SEEDS:
        frames, truths = drawn_frames(Scene(seed), FRESH_FRAMES)
        found += detect(network, frames)
        true += true_boxes(truths)
        ours = slice(-len(frames), None)
        print(f"seed {seed}: mAP@0.5 {mean_average_precision(found[ours], true[ours]):.4f}")
    for index, label in enumerate(DEMO_FACTS["detection"].labels[1:], start=1):
        print(f"{label}: {average_precision(found, true, index):.4f}")
    stricter = mean_average_precision(found, true, 0.75)
    print(f"mAP@0.5 {mean_average_precision(found, true):.4f}, mAP@0.75 {stricter:.4f}")


def evaluate_action(network: nn.Module) -> None:
    """Accuracy over the clips of one action, cut one after another from twelve seconds per seed."""
    found, truth = [], []
    for seed in EVALUATION_SEEDS:
        frames, actions = drawn_frames(ActionScene(seed), range(12 * FRAMES_PER_S))
        found.append(act(network, frames))
        truth.append(true_actions(np.array(actions)))
        print(f"seed {seed}: accuracy {accuracy(found[-1], truth[-1]):.4f}, {(truth[-1] >= 0).sum()} clips")
    print_accuracy("action", np.concatenate(found), np.concatenate(truth))


def run(network: nn.Module, task: DemoTask, frames: list[Pixels]) -> list[Any]:
    """What the network answers to each batch of frames `(H, W, 3)`."""
    facts = DEMO_FACTS[task]
    with torch.inference_mode():
        return [
            network(normalize(prepare(frames[start : start + BATCH], facts), facts))
            for start in range(0, len(frames), BATCH)
        ]


def segment(network: nn.Module, frames: list[Pixels]) -> npt.NDArray[np.uint8]:
    """Class ids uint8 `(N, H, W)` of frames `(H, W, 3)`, at their own size."""
    ids = torch.cat([part.argmax(1, keepdim=True) for part in run(network, "segmentation", frames)])
    full = interpolate(ids.to(torch.uint8), size=(HEIGHT_PX, WIDTH_PX), mode="nearest-exact")
    return full[:, 0].numpy().astype(np.uint8, copy=False)


def classify(network: nn.Module, frames: list[Pixels]) -> Ids:
    """Class `(N,)` of frames `(H, W, 3)`."""
    return torch.cat(run(network, "classification", frames)).argmax(1).numpy().astype(np.int64, copy=False)


def detect(network: nn.Module, frames: list[Pixels]) -> list[FoundBoxes]:
    """Boxes in source pixels, labels and scores in each frame `(H, W, 3)`."""
    short = DEMO_FACTS["detection"].resize_px
    scale = box_scale(torch.Size((short, short * WIDTH_PX // HEIGHT_PX)))
    return [
        FoundBoxes(
            boxes=answer["boxes"].numpy() / scale,
            labels=answer["labels"].numpy(),
            scores=answer["scores"].numpy(),
        )
        for answers in run(network, "detection", frames)
        for answer in answers
    ]


def act(network: nn.Module, frames: list[Pixels]) -> Ids:
    """The action `(C,)` of each whole clip in frames `(H, W, 3)` at the drawn rate."""
    facts = DEMO_FACTS["action"]
    found: list[Tensor] = []
    for window in clip_windows(len(frames), facts):
        pixels = normalize(prepare([frames[index] for index in window], facts), facts)
        with torch.inference_mode():
            found.append(network(pixels.permute(1, 0, 2, 3)[None]).argmax(1))
    return torch.cat(found).numpy().astype(np.int64, copy=False)


def true_boxes(truths: Sequence[Truth]) -> list[TrueBoxes]:
    """Boxes in source pixels of each frame."""
    return [TrueBoxes(boxes=one.boxes, labels=one.box_class, ignored=one.box_ignored) for one in truths]


def true_actions(actions: Ids) -> Ids:
    """The action `(C,)` of each whole clip, -1 where it changes, from those of the frames `(N,)`."""
    windows = clip_windows(len(actions), DEMO_FACTS["action"])
    return np.array([clip_action(actions[window]) for window in windows])
