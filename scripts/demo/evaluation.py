"""Judges the demo models on freshly drawn clips, by way of H.264. Trains nothing."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from pipelines.zoo.demo.networks import DEMO_FACTS, DemoTask, build_demo
from scripts.demo.actions import clip_action
from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, Pixels, decode
from scripts.demo.data import (
    CLIP_CRF,
    box_scale,
    clip_windows,
    draw_action_clip,
    draw_clip,
    normalize,
    prepare,
)
from scripts.demo.metrics import (
    FoundBoxes,
    TrueBoxes,
    accuracy,
    average_precision,
    class_iou,
    mean_average_precision,
)
from scripts.demo.shapes import Truth

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
    network = load(task, weights)
    judge = {
        "segmentation": evaluate_segmentation,
        "classification": evaluate_classification,
        "detection": evaluate_detection,
        "action": evaluate_action,
    }
    print(task)
    judge[task](network)


def evaluate_segmentation(network: nn.Module) -> None:
    """IoU over a five-second clip per seed, every fifth frame, at the clip's own size."""
    labels = DEMO_FACTS["segmentation"].labels
    rows = []
    for seed in EVALUATION_SEEDS:
        frames, truths = fresh_frames(seed)
        ids = np.stack([truth.class_ids for truth in truths])
        rows.append(class_iou(segment(network, frames), ids, len(labels)))
        print(
            f"seed {seed}: mean {np.mean(rows[-1]):.4f}, " + ", ".join(f"{value:.3f}" for value in rows[-1])
        )
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
        frames, truths = fresh_frames(seed, (10, 80))
        found.append(classify(network, frames))
        truth.append(np.array([one.dominant for one in truths]))
    every_found, every_truth = np.concatenate(found), np.concatenate(truth)
    for index, label in enumerate(DEMO_FACTS["classification"].labels):
        print(f"{label}: {(every_found[every_truth == index] == index).mean():.4f}")
    decided = np.sum(every_truth >= 0)
    print(
        f"accuracy {accuracy(every_found, every_truth):.4f}, {decided} of {len(every_truth)} frames decided"
    )


def evaluate_detection(network: nn.Module) -> None:
    """mAP at an IoU of 0.5 over all clips together, and over each."""
    found: list[FoundBoxes] = []
    true: list[TrueBoxes] = []
    for seed in EVALUATION_SEEDS:
        frames, truths = fresh_frames(seed)
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
        clip = io.BytesIO()
        actions = draw_action_clip(seed, range(12 * FRAMES_PER_S), clip, CLIP_CRF)
        clip.seek(0)
        found.append(act(network, list(decode(clip))))
        truth.append(true_actions(actions))
        print(f"seed {seed}: accuracy {accuracy(found[-1], truth[-1]):.4f}, {(truth[-1] >= 0).sum()} clips")
    every_found, every_truth = np.concatenate(found), np.concatenate(truth)
    for index, label in enumerate(DEMO_FACTS["action"].labels):
        print(f"{label}: {(every_found[every_truth == index] == index).mean():.4f}")
    print(f"accuracy {accuracy(every_found, every_truth):.4f}")


def fresh_frames(seed: int, indices: Iterable[int] = FRESH_FRAMES) -> tuple[list[Pixels], list[Truth]]:
    """Some frames of a scene, every fifth of five seconds, encoded and decoded."""
    clip = io.BytesIO()
    truths = draw_clip(seed, indices, clip, CLIP_CRF)
    clip.seek(0)
    return list(decode(clip)), truths


def run(network: nn.Module, task: DemoTask, frames: list[Pixels]) -> list[Tensor]:
    """The logits of each batch of frames."""
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


def classify(network: nn.Module, frames: list[Pixels]) -> npt.NDArray[np.int64]:
    """Class `(N,)` of frames `(H, W, 3)`."""
    return torch.cat(run(network, "classification", frames)).argmax(1).numpy().astype(np.int64, copy=False)


def detect(network: nn.Module, frames: list[Pixels]) -> list[FoundBoxes]:
    """Boxes in source pixels, labels and scores in each frame `(H, W, 3)`."""
    facts = DEMO_FACTS["detection"]
    found = []
    for start in range(0, len(frames), BATCH):
        pixels = normalize(prepare(frames[start : start + BATCH], facts), facts)
        with torch.inference_mode():
            answers = network(pixels)
        for answer in answers:
            boxes = answer["boxes"].numpy() / box_scale(pixels.shape[-2:])
            labels, scores = answer["labels"].numpy(), answer["scores"].numpy()
            found.append(FoundBoxes(boxes=boxes, labels=labels, scores=scores))
    return found


def act(network: nn.Module, frames: list[Pixels]) -> npt.NDArray[np.int64]:
    """The action `(C,)` of each whole clip in frames `(H, W, 3)` at the drawn rate."""
    facts = DEMO_FACTS["action"]
    found = []
    for window in clip_windows(len(frames), facts):
        pixels = normalize(prepare([frames[index] for index in window], facts), facts)
        with torch.inference_mode():
            found.append(network(pixels.permute(1, 0, 2, 3)[None]).argmax(1))
    return torch.cat(found).numpy().astype(np.int64, copy=False)


def true_boxes(truths: Sequence[Truth]) -> list[TrueBoxes]:
    """Boxes in source pixels of each frame."""
    return [
        TrueBoxes(boxes=truth.boxes, labels=truth.box_class, ignored=truth.box_ignored) for truth in truths
    ]


def true_actions(actions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The action `(C,)` of each whole clip, -1 where it changes, from those of the frames `(N,)`."""
    windows = clip_windows(len(actions), DEMO_FACTS["action"])
    return np.array([clip_action(actions[window]) for window in windows])
