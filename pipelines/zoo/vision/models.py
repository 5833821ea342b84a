"""torchvision's models by name: which there are, their weights, and the facts of these. Knows no options."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pipelines.models.spec import Clip, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.draft import Draft
from pipelines.zoo.vision.adapters import CoarseSegmenter, adapt_detector, detector_preprocessing
from pipelines.zoo.vision.architectures import (
    RANDOM,
    find_name,
    find_weights,
    names,
    network_of,
    shapes_of,
    task_of,
)
from pipelines.zoo.vision.download import download
from pipelines.zoo.vision.random_weights import calibrate

MAX_BATCH: dict[TaskName, int] = {"classification": 16, "segmentation": 8, "detection": 4, "action": 4}


def torchvision_draft(source: str, *, weights: str = "", sha256: str = "") -> Draft:
    """What torchvision says of a model, by its name or its import path.

    Args:
        weights: empty or `DEFAULT` for torchvision's default weights (downloaded on first use), a name of
            their enum, or `random` for seeded noise.
        sha256: of the file of weights.

    Raises:
        ModelUnavailable: torchvision has no such model, or it no such weights.
    """
    name = find_name(source)
    if weights == RANDOM:
        if sha256:
            raise ModelUnavailable(
                "random weights are not a file that sha256 can pin", hint="leave out sha256"
            )
        return _random_draft(name)
    chosen = find_weights(name, weights)
    return weights_draft(name, chosen, f"torchvision {chosen}", lambda: download(name, chosen, sha256))


def transform_preprocessing(transform: Any) -> Preprocessing:
    """The facts of a torchvision preset (`weights.transforms()`), source of every size, mean and std."""
    size = list(transform.resize_size)
    crop = getattr(transform, "crop_size", None)
    return Preprocessing(
        resize_px=size[0] if len(size) == 1 else (size[0], size[1]),
        crop_px=(crop[0], crop[-1]) if crop else None,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        # The preset for video has no such field: it resizes tensors, and says antialias=False itself.
        antialias=bool(getattr(transform, "antialias", False)),
    )


def weights_preprocessing(name: str, weights: Any) -> Preprocessing:
    """The facts of a model's weights; of a detector, which resizes within, those of its network."""
    if task_of(name) == "detection":
        return detector_preprocessing(shapes_of(name, len(weights.meta["categories"])))
    return transform_preprocessing(weights.transforms())


def weights_clip(name: str, weights: Any) -> Clip:
    """Length and rate of the clips that the weights were evaluated with, from their documentation."""
    text = weights.meta["_docs"]
    length = re.search(r"clip_len=(\d+)", text)
    rate = re.search(r"frame_rate=(\d+(?:\.\d+)?)", text)
    if not length or not rate:
        raise ModelUnavailable(
            f"{name}: torchvision does not state its clip length and rate",
            hint="give clip_length and clip_fps",
        )
    frames = int(length[1])
    # The position encodings of MViT are as long as the clip.
    fixed = name.startswith("mvit") and weights.meta.get("min_temporal_size") == frames
    return Clip(length=frames, fps=float(rate[1]), fixed=fixed)


def list_models() -> list[str]:
    """A table of all models that are served, a line each under a heading: nothing is downloaded or loaded."""
    rows = [("name", "task", "input", "classes", "licence of the weights"), *map(_row, names())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(name: str) -> tuple[str, str, str, str, str]:
    weights = find_weights(name, "")
    licence = weights.meta.get("license") or "-"
    return name, task_of(name), _size_text(name, weights), str(len(weights.meta["categories"])), licence


def _size_text(name: str, weights: Any) -> str:
    """`224x224`, or where it depends on the source `520 (shorter side)`; of clips with length and rate."""
    facts = weights_preprocessing(name, weights)
    text = "x".join(map(str, facts.fixed_hw)) if facts.fixed_hw else f"{facts.resize_px} (shorter side)"
    text += f", at most {facts.max_px}" if facts.max_px else ""
    if task_of(name) != "action":
        return text
    clip = weights_clip(name, weights)
    return f"{text}, {clip.length} frames at {clip.fps:g}/s"


def weights_draft(name: str, weights: Any, source: str, build: Callable[[], nn.Module]) -> Draft:
    """What an entry of torchvision's weights says of the network that `build` makes, perhaps with others."""
    task = task_of(name)
    categories = tuple(label.strip("_") for label in weights.meta["categories"])
    return Draft(
        name=name,
        task=task,
        build=lambda: _served(build(), task),
        source=source,
        labels=categories,
        classes=len(categories),
        preprocessing=weights_preprocessing(name, weights),
        max_batch=MAX_BATCH[task],
        thread_safe=True,
        clip=weights_clip(name, weights) if task == "action" else None,
        keypoint_names=tuple(weights.meta.get("keypoint_names", ())),
        licence=weights.meta.get("license") or "",
        # Its networks give logits, also before they are trained, when all may lie in 0..1.
        activation=None if task == "detection" else "softmax",
    )


def _served(network: nn.Module, task: TaskName) -> nn.Module:
    """The network as it answers: a detector takes a batch, a segmenter can stop before it enlarges logits.

    A head that only training uses is not run.
    """
    if task == "detection":
        return adapt_detector(network)
    if isinstance(getattr(network, "aux_classifier", None), nn.Module):
        network.register_module("aux_classifier", None)
    return CoarseSegmenter(network) if task == "segmentation" else network


def _random_draft(name: str) -> Draft:
    weights = find_weights(name, "")

    def build() -> nn.Module:
        # Seeded, and the process's own random numbers go on as if nothing had been.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = network_of(name, len(weights.meta["categories"]))
            calibrate(network, task_of(name), weights.transforms, work=float(weights.meta.get("_ops", 0.0)))
        return network

    return weights_draft(name, weights, "RANDOM WEIGHTS (noise, for tests and benchmarks only)", build)
