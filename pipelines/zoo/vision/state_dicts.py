"""State dicts for torchvision's networks: which one, how many classes, and what a file cannot say.

What is assumed for want of that is in the draft.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.models.spec import MAX_SIDE_PX
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.draft import Draft
from pipelines.zoo.files.fitting import class_count, fit, frozen_norms, load_state
from pipelines.zoo.files.state import Checkpoint, read_checkpoint, read_state
from pipelines.zoo.vision.architectures import find_name, known_weights, network_of, shapes_of, task_of
from pipelines.zoo.vision.models import transform_preprocessing, weights_draft
from pipelines.zoo.vision.recognition import candidates

# Which networks can undo torchvision's mean and std, and do so with its own weights.
TRANSFORMING = ("googlenet", "inception_v3")
# The detectors whose COCO_V1 weights have norms without an epsilon.
WITHOUT_EPSILON = (
    "fasterrcnn_resnet50_fpn",
    "keypointrcnn_resnet50_fpn",
    "maskrcnn_resnet50_fpn",
    "retinanet_resnet50_fpn",
)
DIGEST = re.compile("[0-9a-f]{8,}")
KEYPOINTS = "roi_heads.keypoint_predictor.kps_score_lowres.weight"
MOST_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsaid:
    """What a state dict cannot say, as the user says it; None: not said."""

    transform_input: bool | None = None
    norm_eps: float | None = None


@dataclass(frozen=True, slots=True)
class _Network:
    """A network and the file of its weights.

    Attributes:
        sizes: what its builder is told beside the number of classes.
        frozen, eps: norms, and their epsilon if it is another than that of a new network.
    """

    name: str
    path: Path
    sha256: str
    classes: int
    sizes: Mapping[str, int]
    transform_input: bool | None
    frozen: frozenset[str]
    eps: float | None

    def build(self) -> nn.Module:
        network = network_of(self.name, self.classes, **self.sizes)
        state = fit([*network.state_dict()], read_state(self.path, self.sha256), self.path)
        load_state(network, state.tensors, self.path)
        if self.transform_input is not None:
            network.transform_input = self.transform_input  # type: ignore[assignment]
        if self.eps is not None:
            for name in self.frozen:
                network.set_submodule(name, _frozen(network.get_submodule(name), self.eps))
        return network


def _frozen(norm: nn.Module, eps: float) -> nn.Module:
    """A norm as torchvision freezes it, since torch's own takes no epsilon of 0."""
    from torchvision.ops import FrozenBatchNorm2d

    if not isinstance(norm, nn.BatchNorm2d):
        raise ModelUnavailable(
            f"norm_eps goes with norms of pictures, not with {type(norm).__name__}", hint="leave it out"
        )
    frozen: nn.Module = FrozenBatchNorm2d(norm.num_features, eps)
    frozen.load_state_dict(norm.state_dict())
    return frozen


def state_draft(arch: str, path: Path, *, sha256: str = "", unsaid: Unsaid | None = None) -> Draft:
    """A state dict for a network of torchvision's; its tensors show the number of classes.

    Args:
        arch: the network's name; empty: it is recognised by its tensors.

    Raises:
        ModelUnavailable: no such network, or no such file, damaged, carrying code, or of another network;
            or what was said of it has no meaning for it.
    """
    checkpoint = read_checkpoint(path, sha256)
    name = find_name(arch) if arch else _recognised(checkpoint, path)
    known = len(known_weights(name)[0].meta["categories"])
    state = fit([*shapes_of(name, known).state_dict()], checkpoint.tensors, path)
    sizes = _sizes(name, state.tensors)
    expected = shapes_of(name, known, **sizes).state_dict()
    classes = class_count(expected, known, state.tensors)
    left = [*state.outside, *_unused(shapes_of(name, classes, **sizes), state.tensors, path)]
    own = _entry(name, path) if classes == known else None
    frozen = frozenset(frozen_norms(expected, state.tensors))
    transform_input, of_input = _transform_input(name, own, (unsaid or Unsaid()).transform_input)
    eps, of_eps = _epsilon(name, own, frozen, (unsaid or Unsaid()).norm_eps)
    network = _Network(name, path, sha256, classes, sizes, transform_input, frozen, eps)
    draft, of_pixels = _draft(network, own)
    recognised = "" if arch else f"torchvision's {name}, by its tensors"
    notes = (recognised, *checkpoint.notes, *state.notes, _left_over(left), of_pixels, of_input, of_eps)
    return replace(draft, assumed=tuple(note for note in notes if note))


def _recognised(checkpoint: Checkpoint, path: Path) -> str:
    names = candidates(checkpoint.tensors)
    named = [name for name in names if _entry(name, path)] if len(names) > 1 else names
    if len(named) == 1:
        return named[0]
    if names:
        raise ModelUnavailable(
            f"{path} may be of {' or '.join(names)}: their tensors have the same names and shapes",
            hint=f"say which: {' or '.join(f'--arch {name}' for name in names)}",
        )
    first = ", ".join([*checkpoint.tensors][:MOST_NAMED])
    raise ModelUnavailable(
        f"{path} is a state dict ({len(checkpoint.tensors)} tensors: {first}, …) of a network that its "
        "tensors do not tell",
        hint="for a state dict name its network: --arch resnet50 (--list-models lists all); if it is none of "
        "torchvision's, save the whole model with torch.export.save, torch.jit.save or torch.onnx.export",
    )


def _entry(name: str, path: Path) -> Any:
    """Of which weights of torchvision's a file is, by the hash in its name; None: of none."""
    for weights in known_weights(name):
        digest = Path(weights.url).stem.rpartition("-")[2]
        if DIGEST.fullmatch(digest) and digest in path.name:
            return weights
    return None


def _sizes(name: str, state: Mapping[str, Tensor]) -> dict[str, int]:
    """What a builder must be told beside the number of classes, by the tensors that depend on it."""
    points, places, patch = (
        state.get(key) for key in (KEYPOINTS, "encoder.pos_embedding", "conv_proj.weight")
    )
    found: dict[str, int] = {}
    if name.startswith("keypointrcnn") and points is not None and points.ndim == 4:
        found["num_keypoints"] = points.shape[1]
    if (
        name.startswith("vit_")
        and places is not None
        and patch is not None
        and places.ndim == patch.ndim - 1 == 3
    ):
        # A place for each patch of a square picture, and one for the class.
        found["image_size"] = math.isqrt(max(places.shape[1] - 1, 0)) * patch.shape[-1]
    # Loading says what is wrong with others.
    return {key: size for key, size in found.items() if 1 <= size <= MAX_SIDE_PX}


def _unused(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> tuple[str, ...]:
    """Load into a network without numbers: raises as loading will, and gives the tensors without use."""
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    with warnings.catch_warnings():
        # Of counters that torch itself adds, which are then not without numbers.
        warnings.simplefilter("ignore")
        return load_state(network, shapes, path)


def _left_over(names: list[str]) -> str:
    if not names:
        return ""
    return f"tensors without use: {len(names)}, e.g. {', '.join(names[:MOST_NAMED])}"


def _transform_input(name: str, own: Any, said: bool | None) -> tuple[bool | None, str]:
    """Whether a network undoes torchvision's mean and std, and what is assumed."""
    if name not in TRANSFORMING:
        if said is not None:
            raise ModelUnavailable(
                f"transform_input has no meaning for {name}, only for {' and '.join(TRANSFORMING)}",
                hint="leave it out",
            )
        return None, ""
    if said is not None or own:
        return (True if said is None else said), ""
    return False, (
        "transform_input is false, as for weights trained from scratch; if they began with torchvision's: "
        "--transform-input true"
    )


def _epsilon(name: str, own: Any, frozen: Collection[str], said: float | None) -> tuple[float | None, str]:
    """The epsilon of norms that were frozen in training, None: as built; and what is assumed."""
    if said is not None:
        if not frozen:
            raise ModelUnavailable(
                f"norm_eps={said:g} is for frozen norms, and the weights for {name} have none",
                hint="leave it out",
            )
        return said, ""
    if not frozen or task_of(name) != "detection":
        return None, ""
    without = name in WITHOUT_EPSILON and (own is None or own.name == "COCO_V1")
    eps = 0.0 if without else None
    if own:
        return eps, ""
    if without:
        return eps, (
            "frozen norms have an epsilon of 0, as in torchvision's own weights for COCO; if training began "
            "with a backbone only: --norm-eps 1e-5"
        )
    return eps, "frozen norms have torchvision's epsilon, 1e-5"


def _draft(network: _Network, own: Any) -> tuple[Draft, str]:
    """The draft by the facts of torchvision's weights, and what is assumed of its pixels."""
    name, side = network.name, network.sizes.get("image_size")
    entries = known_weights(name)
    of_side = [one for one in entries if not side or one.transforms().crop_size[0] == side]
    weights = own or next(iter(of_side), entries[0])
    source = f"torchvision {own}" if own else f"custom weights for {name}"
    draft = weights_draft(name, weights, f"{network.path.name}, {source}", network.build)
    if own:
        return draft, ""
    draft = replace(draft, licence="", **_other_facts(draft, network))
    if side and not of_side and draft.preprocessing:
        sized = replace(draft.preprocessing, resize_px=side, crop_px=(side, side))
        return replace(draft, preprocessing=sized), f"pixels are prepared as for {weights}, but of {side} px"
    if (
        task_of(name) == "detection"
        or len({transform_preprocessing(one.transforms()) for one in of_side}) == 1
    ):
        return draft, ""
    facts = draft.preprocessing
    assert facts is not None
    return draft, f"pixels are prepared as for {weights}, one of several ways: resize_px {facts.resize_px}"


def _other_facts(draft: Draft, network: _Network) -> dict[str, Any]:
    """What is not known of classes and points in another number than torchvision's own."""
    facts: dict[str, Any] = {}
    if network.classes != draft.classes:
        facts |= {"labels": (), "classes": network.classes}
    if len(draft.keypoint_names) != network.sizes.get("num_keypoints", len(draft.keypoint_names)):
        facts["keypoint_names"] = ()
    return facts
