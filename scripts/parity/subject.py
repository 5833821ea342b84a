"""A model twice: as it is served, and as torchvision builds it, with the same weights. Knows no media.

Weights are `random`, seeded. Untrained networks amplify rounding far more than trained ones (Yang et al., A
Mean Field Theory of Batch Normalization, 2019), and their dense heads answer the same everywhere: see `tame`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle
from torchvision import models

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.models.spec import ModelSpec, TaskName
from pipelines.pipeline import Pipeline
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from pipelines.zoo.vision.random_weights import norm_statistics, spread_logits
from tests.support.pixels import natural, to_nchw

CHUNK_FRAMES = 4
# Weight of the last norm of each residual branch; torchvision's is 1, its `zero_init_residual` 0, and
# training that starts from 0 ends near it (Goyal et al., 2017, 5.1).
RESIDUAL_WEIGHT = 0.15
# The same of EfficientNets, which have more of them: with 0.15, torchvision's own answer to a test pattern
# moves by 0.02 if one pixel in a thousand changes by one level.
MBCONV_WEIGHT = 0.05
BLOCKS = dict.fromkeys(("BasicBlock", "Bottleneck", "InvertedResidual"), RESIDUAL_WEIGHT)
BLOCKS["MBConv"] = MBCONV_WEIGHT
# Heads of detectors by the end of their names: how far their outputs shall spread, and around what.
HEADS: dict[str, tuple[float, float]] = {
    "rpn.head.cls_logits": (2.0, 0.0),
    "rpn.head.bbox_pred": (0.3, 0.0),
    "box_predictor.cls_score": (3.0, 0.0),
    "box_predictor.bbox_pred": (1.0, 0.0),
    "mask_predictor.mask_fcn_logits": (3.0, 0.0),
    "keypoint_predictor.kps_score_lowres": (3.0, 0.0),
    "classification_head.cls_logits": (1.5, -3.0),
    "classification_head.module_list": (2.0, 0.0),
    "regression_head.bbox_reg": (0.4, 0.5),
    "regression_head.bbox_ctrness": (1.0, 0.0),
    "regression_head.module_list": (0.5, 0.0),
}
EXAMPLES, EXAMPLE_PX, EXAMPLE_FRAMES = 4, 256, 16
LOGIT_SPREAD: dict[TaskName, float] = {"classification": 1.0, "segmentation": 2.0, "action": 2.0}
# Classes of pixels differ in how often they win, so that winners stand in regions, as those of trained heads.
CLASS_BIAS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """`pipeline` is what is served; `network` and `transform` are torchvision's, untouched."""

    pipeline: Pipeline
    network: nn.Module
    transform: Any

    @property
    def spec(self) -> ModelSpec:
        return self.pipeline.spec


@contextmanager
def subject(name: str) -> Iterator[Subject]:
    """Both sides of a model of torchvision's, on the CPU; the served one as the server puts it together."""
    spec = resolve(ModelSettings(source=name, weights="random"), allow_code=False)
    served = spec.build().eval()
    tame(served, spec)
    # Of their backbones torchvision would download weights.
    backed = spec.task in ("detection", "segmentation")
    network = models.get_model(name, weights=None, **({"weights_backbone": None} if backed else {}))
    network.load_state_dict(_inner(served).state_dict())
    network.eval().requires_grad_(requires_grad=False)
    transform = models.get_model_weights(name).DEFAULT.transforms()
    limits = Limits(chunk_frames=CHUNK_FRAMES)
    pipeline = make_pipeline(replace(spec, build=lambda: served), "cpu", limits=limits)
    with closing(pipeline.batcher):
        yield Subject(pipeline=pipeline, network=network, transform=transform)


def tame(network: nn.Module, spec: ModelSpec) -> None:
    """Bring random weights of a torchvision network nearer to trained ones, in place.

    Residual branches become small, batch norms take the statistics of examples, and outputs spread.
    """
    own, pixels = _inner(network), _examples(spec)
    _shrink_branches(own)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with norm_statistics(network):
            network(pixels)
        if spec.task == "detection":
            _spread_heads(network, pixels)
            return
        spread_logits(own, network(pixels), LOGIT_SPREAD[spec.task])
        if spec.task == "segmentation":
            classes = len(spec.labels)
            convolutions = (one for one in own.modules() if isinstance(one, nn.Conv2d))
            *_, bias = (one.bias for one in convolutions if one.out_channels == classes)
            assert bias is not None
            bias.add_(CLASS_BIAS * torch.randn(classes))


def _examples(spec: ModelSpec) -> Tensor:
    """Drawn pictures `(4, 3, h, w)` of falling contrast, or clips of them that move, normalized."""
    facts = spec.preprocessing
    height, width = facts.fixed_hw or (EXAMPLE_PX, EXAMPLE_PX)
    contrast = torch.linspace(1.0, 0.4, EXAMPLES)[:, None, None, None]
    shown = 0.45 + contrast * (to_nchw(natural(height, width, EXAMPLES)) / 255 - 0.5)
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    pixels = (shown - mean) / std
    if spec.clip is None:
        return pixels
    frames = spec.clip.length if spec.clip.fixed else EXAMPLE_FRAMES
    return torch.stack([pixels[:2].roll(step, dims=-1) for step in range(frames)], dim=2)


def _inner(network: nn.Module) -> nn.Module:
    """torchvision's own network: detectors and segmenters stand in an adapter."""
    inner: nn.Module = getattr(network, "network", network)
    return inner


def _shrink_branches(network: nn.Module) -> None:
    """Weigh the last norm of each residual branch by BLOCKS, which has torchvision's names of blocks."""
    for block in network.modules():
        kind = type(block).__name__
        if kind in BLOCKS and getattr(block, "use_res_connect", True):
            named = block.named_modules()
            norms = [one for name, one in named if isinstance(one, _BatchNorm) and "downsample" not in name]
            # Those of detectors are frozen.
            if norms:
                nn.init.constant_(norms[-1].weight, BLOCKS[kind])


def _spread_heads(network: nn.Module, pixels: Tensor) -> None:
    """Let the heads of a detector give scores and boxes that differ, as HEADS has them."""
    hooks = [
        _spread_once(module, *wanted)
        for name, module in network.named_modules()
        for end, wanted in HEADS.items()
        if f".{end}" in f".{name}" and isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
    ]
    network(pixels)
    for hook in hooks:
        hook.remove()


def _spread_once(layer: nn.Module, spread: float, centre: float) -> RemovableHandle:
    """A hook that rescales a layer so that the first outputs `(N, K, …)` that it gives spread as wanted."""

    def rescale(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not output.numel():
            return output
        hook.remove()
        means = output.mean([axis for axis in range(output.ndim) if axis != 1], keepdim=True)
        scale = spread / (output - means).std().clamp_min(1e-9)
        layer.weight.mul_(scale)
        if layer.bias is not None:
            layer.bias.mul_(scale).add_(centre - scale * means.flatten())
        again: Tensor = layer.forward(*inputs)
        return again

    hook = layer.register_forward_hook(rescale)
    return hook
