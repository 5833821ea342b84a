"""A model twice: as it is served, and as torchvision builds it, with the same weights. Knows no media.

Weights are `random`, seeded. Such networks amplify rounding far more than trained ones, and the heads of
dense ones answer the same everywhere, so `tame` brings them nearer to trained ones, for both sides alike.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.models.spec import ModelSpec, TaskName
from pipelines.pipeline import Pipeline
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from tests.support.pixels import natural

CHUNK_FRAMES = 4
EXAMPLE_PX = 256
EXAMPLES = 4
# Weight of the last norm of each residual branch; 1 is torchvision's, 0 its `zero_init_residual`.
RESIDUAL_WEIGHT = 0.15
# The same of EfficientNets, which have more of them: with 0.15, torchvision's own answer to a test pattern
# moves by 0.02 if one pixel in a thousand changes by one level.
MBCONV_WEIGHT = 0.05
# Heads by the end of their names: how far their outputs shall spread, and around what.
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
# Winners of dense heads stand in regions, as those of trained ones: classes differ in how often they win.
DENSE_SPREAD, DENSE_BIAS = 2.0, 2.0
CLASS_SPREAD = 1.0
CLIP_SPREAD = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Subject:
    """`pipeline` is what is served; `network` and `transform` are torchvision's, untouched."""

    name: str
    task: TaskName
    pipeline: Pipeline
    network: nn.Module
    transform: Any

    @property
    def spec(self) -> ModelSpec:
        return self.pipeline.spec


@contextmanager
def subject(name: str, change: Callable[[ModelSpec], ModelSpec] | None = None) -> Iterator[Subject]:
    """Both sides of a model of torchvision's.

    Args:
        change: spoils the served side, for tests of the comparison.
    """
    from torchvision import models

    spec = resolve(ModelSettings(source=name, weights="random"), allow_code=False)
    served = spec.build().eval()
    tame(served, spec)
    reference = torchvision_network(name, spec.task, served)
    spec = replace(spec, build=lambda: served)
    pipeline = served_pipeline(change(spec) if change else spec)
    try:
        yield Subject(
            name=name,
            task=spec.task,
            pipeline=pipeline,
            network=reference,
            transform=models.get_model_weights(name).DEFAULT.transforms(),
        )
    finally:
        pipeline.batcher.close()


def torchvision_network(name: str, task: TaskName, served: nn.Module) -> nn.Module:
    """The network by `torchvision.models.get_model`, with a copy of the served one's state."""
    from torchvision import models

    takes = inspect.signature(inspect.unwrap(models.get_model_builder(name))).parameters
    backbone: dict[str, Any] = {"weights_backbone": None} if "weights_backbone" in takes else {}
    network: nn.Module = models.get_model(name, weights=None, **backbone)
    prefix = "network." if task in ("detection", "segmentation") else ""
    network.load_state_dict({key.removeprefix(prefix): value for key, value in served.state_dict().items()})
    return network.eval().requires_grad_(requires_grad=False)


def served_pipeline(spec: ModelSpec) -> Pipeline:
    """A pipeline as the server puts it together, on the CPU, for one stream."""
    return make_pipeline(spec, "cpu", limits=Limits(chunk_frames=CHUNK_FRAMES))


def tame(network: nn.Module, spec: ModelSpec) -> None:
    """Weaken residual branches, take batch-norm statistics of drawn pictures, spread the heads of dense
    networks.
    """
    branches = weaken_branches(network)
    if not branches and spec.task == "classification":
        return
    pixels = example_pixels(spec)
    with torch.inference_mode(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with _norm_statistics(network):
            network(pixels)
        hooks = [
            module.register_forward_hook(_spreading(spread, centre))
            for name, module in network.named_modules()
            for end, (spread, centre) in HEADS.items()
            if f".{end}" in f".{name}" and isinstance(module, nn.Conv2d | nn.Linear | nn.ConvTranspose2d)
        ]
        output = network(pixels)
        for hook in hooks:
            hook.remove()
        if spec.task == "segmentation":
            spread_logits(network, output["out"], DENSE_SPREAD, DENSE_BIAS)
        elif spec.task == "classification":
            spread_logits(network, output, CLASS_SPREAD, 0.0)
        elif spec.task == "action" and not branches:
            spread_logits(network, output, CLIP_SPREAD, 0.0)


def weaken_branches(network: nn.Module) -> int:
    """Scale the last norm of each residual branch, by torchvision's names of them; how many there are."""
    count = 0
    for module in network.modules():
        kind = type(module).__name__
        last: Any = None
        if kind == "Bottleneck" and hasattr(module, "bn3"):
            last = module.bn3
        elif kind == "BasicBlock" and hasattr(module, "bn2"):
            last = module.bn2
        elif kind in ("BasicBlock", "Bottleneck"):
            # Of video networks: branches are sequences that end in their norm.
            last = [one for one in module.modules() if isinstance(one, nn.BatchNorm3d)][-1]
        elif kind in ("InvertedResidual", "MBConv") and getattr(module, "use_res_connect", False):
            last = [one for one in module.modules() if isinstance(one, nn.BatchNorm2d)][-1]
        if isinstance(last, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.constant_(last.weight, MBCONV_WEIGHT if kind == "MBConv" else RESIDUAL_WEIGHT)
            count += 1
    return count


def example_pixels(spec: ModelSpec) -> Tensor:
    """Drawn pictures `(4, 3, h, w)` of falling contrast, or a clip of each, normalized as the model has
    them.
    """
    facts = spec.preprocessing
    height, width = facts.fixed_hw or (EXAMPLE_PX, EXAMPLE_PX)
    levels = torch.from_numpy(natural(height, width, EXAMPLES)).permute(0, 3, 1, 2) / 255
    contrast = torch.linspace(1.0, 0.4, EXAMPLES)[:, None, None, None]
    shown = 0.45 + contrast * (levels - 0.5)
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    pixels = ((shown - mean) / std).float()
    if spec.clip is None:
        return pixels
    moved = [pixels[:2].roll(step, dims=-1) for step in range(spec.clip.length if spec.clip.fixed else 16)]
    return torch.stack(moved, dim=2)


@contextmanager
def _norm_statistics(network: nn.Module) -> Iterator[None]:
    """Within, batch norms keep the plain averages of what passes."""
    norms = [one for one in network.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    yield
    network.eval()


def _spreading(spread: float, centre: float) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """A hook that, the first time, rescales a layer so that its outputs spread as wanted."""
    done: list[bool] = []

    def hook(module: Any, _inputs: Any, output: Tensor) -> Tensor:
        if done or not output.numel():
            return output
        done.append(True)
        return _rescale(module, output, spread, torch.full((output.shape[1],), centre))

    return hook


def _rescale(layer: Any, output: Tensor, spread: float, centres: Tensor) -> Tensor:
    """Change a layer so that its outputs `(N, K, …)` have this spread around these centres; what it gives
    then.
    """
    shape = (1, -1, *[1] * (output.ndim - 2))
    means = output.mean([axis for axis in range(output.ndim) if axis != 1])
    scale = spread / (output - means.view(shape)).std().clamp_min(1e-9)
    shift = centres - scale * means
    layer.weight.mul_(scale)
    if layer.bias is not None:
        layer.bias.mul_(scale).add_(shift)
        return output * scale + shift.view(shape)
    return output * scale


def spread_logits(network: nn.Module, logits: Tensor, spread: float, bias_spread: float) -> None:
    """Spread the logits `(N, K, …)` by the layers that give them, the last or a sum of them, around random
    means.
    """
    classes = logits.shape[1]
    means = logits.mean([axis for axis in range(logits.ndim) if axis != 1])
    scale = spread / (logits - means.view(1, -1, *[1] * (logits.ndim - 2))).std()
    heads: list[Any] = [
        one
        for one in network.modules()
        if isinstance(one, nn.Conv2d | nn.Conv3d | nn.Linear) and one.weight.shape[0] == classes
    ]
    for head in heads:
        head.weight.mul_(scale)
        if head.bias is not None:
            head.bias.mul_(scale)
    heads[-1].bias.add_(bias_spread * torch.randn(classes) - scale * means)
