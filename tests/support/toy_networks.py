"""Small networks, each with what tests of engines need of one, and specs of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import Clip, Engine, ModelSpec, Preprocessing, TaskName

FIXED, FREE = Preprocessing(resize_px=(32, 40)), Preprocessing(resize_px=32)
CLASSES = 5
# Engines that run a network as a graph.
GRAPHS: tuple[Engine, ...] = ("onnxruntime", "openvino")


class Headed(nn.Module):
    """A convolution, and whatever a function makes of its features and the pixels."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any], *, clips: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, CLASSES, 3, 2, 1) if clips else nn.Conv2d(3, CLASSES, 3, 2, 1)
        self.give = give

    def forward(self, pixels: Tensor) -> Any:
        return self.give(self.body(pixels), pixels)


def pooled(features: Tensor, _pixels: Tensor) -> Tensor:
    return features.flatten(2).mean(2)


def as_pixels(features: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    size = pixels.shape[-2:]
    return {"out": nn.functional.interpolate(features, size, mode="bilinear"), "aux": features}


def sleepy(features: Tensor, pixels: Tensor) -> Tensor:
    """What a trace does not hold makes torch the slower one, wherever this runs."""
    time.sleep(0.01)
    return pooled(features, pixels)


def counting(features: Tensor, pixels: Tensor) -> Tensor:
    """A batch's size as a number, which a trace takes for a constant."""
    return pooled(features, pixels) + float(len(pixels))


def measuring(features: Tensor, pixels: Tensor) -> Tensor:
    """The same with the height."""
    return pooled(features, pixels) + float(pixels.shape[-2])


def spec_of(
    give: Callable[[Tensor, Tensor], Any], task: TaskName = "classification", **fields: Any
) -> ModelSpec:
    clip = Clip(length=4, fps=10) if task == "action" else None
    network = Headed(give, clips=clip is not None)
    fields = {"preprocessing": FIXED, "max_batch": 4, **fields}
    return ModelSpec(name="toy", task=task, build=lambda: network, source="test", clip=clip, **fields)


def boxes(_features: Tensor, pixels: Tensor) -> list[dict[str, Tensor]]:
    """A box in each picture, from the same code that computes its layers."""
    one = {"boxes": torch.ones(1, 4), "labels": torch.ones(1, dtype=torch.int64), "scores": torch.ones(1)}
    return [one for _ in pixels]


def assert_same(one: Any, other: Any) -> None:
    """Outputs of the same kind, names and numbers."""
    assert type(one) is type(other)
    if isinstance(one, LogitOutput):
        torch.testing.assert_close(other.tensors, one.tensors, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(list(other.frames), list(one.frames), atol=1e-3, rtol=1e-4)
