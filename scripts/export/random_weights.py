"""Makes networks of random weights round off as trained ones do, so that comparing their answers says
something.

Untrained networks with batch norms are chaotic: each layer enlarges the rounding of the one before (Yang et
al., A Mean Field Theory of Batch Normalization, 2019), after a hundred layers beyond what any two runtimes
share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn
from torchvision import models

from pipelines.models.spec import ModelSpec
from pipelines.zoo.vision.random_weights import calibrate

# Of a residual branch beside what it is added to; training starts from 0 (Goyal et al., 2017, 5.1) and ends
# near it.
BRANCH = 0.2
BLOCKS = ("BasicBlock", "Bottleneck", "InvertedResidual", "MBConv")


def tempered(spec: ModelSpec) -> ModelSpec:
    """The spec of a torchvision network of random weights, its residual branches made small; detectors as
    they are.
    """
    if spec.task == "detection":
        return spec

    def build() -> nn.Module:
        network = spec.build()
        norms = list(_last_norms(network))
        for norm in norms:
            norm.weight.data.fill_(BRANCH)
        if norms:
            weights = models.get_model_weights(spec.name).DEFAULT
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                calibrate(network, spec.task, weights.transforms, float(weights.meta.get("_ops", 0.0)))
        return network

    return replace(spec, build=build)


def _last_norms(network: nn.Module) -> Iterator[nn.modules.batchnorm._BatchNorm]:
    """The batch norm at the end of every residual branch."""
    for block in network.modules():
        if type(block).__name__ not in BLOCKS or not getattr(block, "use_res_connect", True):
            continue
        norms = [
            module
            for name, module in block.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and "downsample" not in name
        ]
        yield from norms[-1:]
