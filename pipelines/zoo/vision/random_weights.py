"""Random weights that behave like trained ones: batch-norm statistics and logits of a sensible size.

As it is initialised, a network mostly answers the same for every picture. Knows no names, no files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.models.spec import TaskName

PICTURES = 8
SIDE_PX, SIDE_OF_SEGMENTATION_PX, SIDE_OF_INCEPTION_PX = 128, 96, 224
CLIP_SIDE_PX, CLIP_FRAMES = 64, 8
# Channels that hardly vary in so few pictures would be blown up in others: the least share of a layer's mean.
VARIANCE_FLOOR = 0.1
# Standard deviation of the logits over pictures.
LOGIT_SPREAD = 3.0
# 10^9 multiplications for a picture; beyond, a network that takes only its own size is left as it is.
MAX_WORK = 40.0
# Networks that take only pictures of their own size, by the names of their classes; frames of a clip.
FIXED_SIZE = {"VisionTransformer": 16, "MaxVit": 16, "MViT": 16, "S3D": 16}


def calibrate(network: nn.Module, task: TaskName, transforms: Callable[[], Any], work: float) -> None:
    """Set batch-norm statistics of `network`, left in eval mode, from random pictures; scale its last layer.

    Draws from torch's random numbers. Of a detector only the backbone runs; frozen norms have no statistics.

    Args:
        transforms: makes torchvision's preset, which says the size of networks that take no other.
        work: of one pass over a picture of that size, in 10^9 multiplications.
    """
    network.eval()
    _wake_heads(network)
    kind = type(network).__name__
    fixed = kind in FIXED_SIZE
    if fixed and work > MAX_WORK:
        return
    frames = (FIXED_SIZE.get(kind, CLIP_FRAMES),) if task == "action" else ()
    side_px = int(transforms().crop_size[0]) if fixed else _side_px(task, kind)
    count = {"classification": PICTURES, "segmentation": PICTURES // 2}.get(task, 2)
    pictures = _pictures(2 if fixed else count, frames, side_px)
    body = getattr(network, "backbone", network) if task == "detection" else network
    if task == "detection" and not _norms(body):
        return
    with torch.inference_mode():
        with norm_statistics(body):
            output = body(pictures)
        if task != "detection":
            again = bool(_norms(body)) and not (fixed and frames)
            spread_logits(network, network(pictures) if again else output, LOGIT_SPREAD)


def _side_px(task: TaskName, kind: str) -> int:
    """Small, but so that the last features are not a single cell."""
    if kind == "Inception3":
        return SIDE_OF_INCEPTION_PX
    return {"action": CLIP_SIDE_PX, "segmentation": SIDE_OF_SEGMENTATION_PX}.get(task, SIDE_PX)


def _pictures(count: int, frames: tuple[int, ...], side_px: int) -> Tensor:
    """Normalized pictures `(N, 3, …frames, h, w)` of patches of all sizes, the larger the stronger.

    They differ in brightness, tint and contrast; a clip is one picture that moves.
    """
    size = (side_px + 2 * sum(frames), side_px)
    tints = torch.randn(count, 1, 1, 1) * 0.7 + torch.randn(count, 3, 1, 1) * 0.4
    patches = torch.zeros(count, 3, *size)
    for cells in (2, 4, 8, 16, 32):
        coarse = torch.randn(count, 1, cells, cells) + 0.5 * torch.randn(count, 3, cells, cells)
        patches += nn.functional.interpolate(coarse, size=size, mode="nearest") * cells**-0.5
    pictures = (tints + patches * torch.rand(count, 1, 1, 1).add(0.3)).clamp(-2.1, 2.6)
    if not frames:
        return pictures
    return torch.stack([pictures[:, :, 2 * place :][:, :, :side_px] for place in range(frames[0])], 2)


def _norms(network: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def norm_statistics(network: nn.Module) -> Iterator[None]:
    """Within, batch norms keep plain averages of what passes; all else stays in eval mode."""
    norms = _norms(network)
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.eval()
            if norm.running_var is not None:
                norm.running_var.clamp_(min=float(VARIANCE_FLOOR * norm.running_var.mean()))


def _wake_heads(network: nn.Module) -> None:
    """Last layers that start from zero, as those of vision transformers, would answer nothing."""
    for module in network.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=LOGIT_SPREAD / module.in_features**0.5)


def spread_logits(network: nn.Module, output: Any, spread: float) -> None:
    """Scale the layers that give an output's logits `(N, K, …)` until these spread so, and centre them."""
    logits: Tensor = next(iter(output.values())) if isinstance(output, dict) else output
    classes = logits.shape[1]
    centres = logits.mean([axis for axis in range(logits.ndim) if axis != 1])
    apart = (logits - centres.view(1, -1, *[1] * (logits.ndim - 2))).std()
    scale = float(spread / apart.clamp(min=1e-6))
    heads = [
        module
        for module in network.modules()
        if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d) and module.weight.shape[0] == classes
    ]
    for head in heads:
        head.weight.mul_(scale)
        if head.bias is not None:
            head.bias.mul_(scale)
    # Where a ReLU follows, as in SqueezeNet, logits have a floor; centring would push most classes below it.
    if logits.min() < 0 and heads and heads[-1].bias is not None:
        heads[-1].bias.sub_(centres * scale)
