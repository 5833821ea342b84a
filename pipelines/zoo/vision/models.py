"""torchvision's models by name: which there are, their weights, and the facts of these. Knows no options."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.models.spec import Clip, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.draft import Draft
from pipelines.zoo.files.state import class_count, load_state, read_state
from pipelines.zoo.vision.adapters import CoarseSegmenter, adapt_detector, detector_preprocessing
from pipelines.zoo.vision.download import download
from pipelines.zoo.vision.random_weights import calibrate

RANDOM = "random"
STATE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
TASK_OF_FOLDER: dict[str, TaskName] = {
    "detection": "detection",
    "segmentation": "segmentation",
    "video": "action",
}
# Why a model that torchvision lists is not served.
LEFT_OUT = {
    "quantization": "is quantized: its int8 operators run only on a CPU, and it takes no custom weights",
    "optical_flow": "is an optical flow model: it takes pairs of frames and has no classes",
}
MAX_BATCH: dict[TaskName, int] = {"classification": 16, "segmentation": 8, "detection": 4, "action": 4}


def torchvision_draft(source: str, *, weights: str = "", sha256: str = "") -> Draft:
    """What torchvision says of a model, by its name or its import path.

    Args:
        weights: empty or `DEFAULT` for torchvision's default weights (downloaded on first use), a name of
            their enum, a state dict, or `random` for seeded noise.
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
    if _is_file(weights):
        return state_draft(source, Path(weights).expanduser(), sha256=sha256)
    chosen = _find_weights(name, weights)
    return _draft(name, chosen, f"torchvision {chosen}", lambda: download(name, chosen, sha256))


def state_draft(arch: str, path: Path, *, sha256: str = "") -> Draft:
    """A state dict of one's own for a torchvision network; its tensors show the number of classes.

    Raises:
        ModelUnavailable: no such network, or no such file, damaged, carrying code, or of another network.
    """
    name = find_name(arch)
    default = _find_weights(name, "")
    state = read_state(path, sha256)
    known = len(default.meta["categories"])
    with meta_device(name):
        expected = _network(name, known).state_dict()
    classes = class_count(expected, known, state)

    def build() -> nn.Module:
        network = _network(name, classes)
        load_state(network, read_state(path, sha256), path)
        return network

    draft = _draft(name, default, f"{path.name}, custom weights for {name}", build)
    return draft if classes == known else replace(draft, labels=(), classes=classes)


def find_name(source: str) -> str:
    """The name in torchvision's registry of a name or import path.

    Raises:
        ModelUnavailable: there is none, with the closest; or it is of a kind that is not served.
    """
    from torchvision import models

    path, _, name = source.removeprefix("torchvision.").removeprefix("models.").rpartition(".")
    if name in models.list_models() and (not path or f"{_module(name)}.".startswith(f"{path}.")):
        if why := LEFT_OUT.get(_folder(name)):
            raise ModelUnavailable(f"{name} {why}", hint="--list-models lists all that are served")
        return name
    close = difflib.get_close_matches(name, names(), n=5, cutoff=0.4)
    listed = f"closest: {', '.join(close)}; " if close else ""
    raise ModelUnavailable(
        f"torchvision has no model {source!r}",
        hint=f"{listed}--list-models lists all; a file ends in .pt2, .pt, .onnx, .safetensors or .pth",
    )


def names() -> list[str]:
    """All names that are served."""
    from torchvision import models

    return [name for name in models.list_models() if _folder(name) not in LEFT_OUT]


def task_of(name: str) -> TaskName:
    """The task of a registered name, which is the folder of torchvision's that its builder is in."""
    return TASK_OF_FOLDER.get(_folder(name), "classification")


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
        with meta_device(name):
            return detector_preprocessing(_network(name, len(weights.meta["categories"])))
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


@contextlib.contextmanager
def meta_device(name: str) -> Iterator[None]:
    """Networks built within have shapes and no numbers, so that building is quick; RegNets need theirs."""
    if name.startswith("regnet"):
        yield
        return
    with torch.device("meta"):
        yield


def list_models() -> list[str]:
    """A table of all models that are served, a line each under a heading: nothing is downloaded or loaded."""
    rows = [("name", "task", "input", "classes", "licence of the weights"), *map(_row, names())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _row(name: str) -> tuple[str, str, str, str, str]:
    weights = _find_weights(name, "")
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


def _draft(name: str, weights: Any, source: str, build: Callable[[], nn.Module]) -> Draft:
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
    weights = _find_weights(name, "")

    def build() -> nn.Module:
        # Seeded, and the process's own random numbers go on as if nothing had been.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = _network(name, len(weights.meta["categories"]))
            calibrate(network, task_of(name), weights.transforms, work=float(weights.meta.get("_ops", 0.0)))
        return network

    return _draft(name, weights, "RANDOM WEIGHTS (noise, for tests and benchmarks only)", build)


def _network(name: str, classes: int) -> nn.Module:
    """The network without weights, as torchvision builds it for its own: no training heads, no warnings."""
    from torchvision import models

    takes = inspect.signature(inspect.unwrap(models.get_model_builder(name))).parameters
    options: dict[str, Any] = {"weights": None, "num_classes": classes}
    if "weights_backbone" in takes:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        # With its own weights torchvision lets the network undo its mean and std, for their transforms.
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = models.get_model(name, **options)
    return network


def _find_weights(name: str, weights: str) -> Any:
    from torchvision import models

    enum = models.get_model_weights(name)
    wanted = weights.rpartition(".")[2] or "DEFAULT"
    # Weights without categories are those of a backbone: there is nothing to answer with.
    known = [one.name for one in enum if one.meta.get("categories")]
    if wanted not in ("DEFAULT", *known):
        raise ModelUnavailable(
            f"{name} has no weights {weights!r}",
            hint=f"one of: DEFAULT, {', '.join(known)}, {RANDOM}, or a file",
        )
    return enum[wanted] if wanted != "DEFAULT" else enum.DEFAULT


def _is_file(weights: str) -> bool:
    return weights.lower().endswith(STATE_SUFFIXES) or "/" in weights or Path(weights).is_file()


def _folder(name: str) -> str:
    return _module(name).partition(".")[0]


def _module(name: str) -> str:
    from torchvision import models

    module: str = models.get_model_builder(name).__module__
    return module.removeprefix("torchvision.models.")
