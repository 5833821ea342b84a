"""An batcher whose batches a test can hold back, of frames that say who they are."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future

import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.batching.batcher import Batcher
from pipelines.models.outputs import LogitOutput, Output
from pipelines.models.spec import ModelSpec, Preprocessing


class Gate(nn.Module):
    """Answers each frame's mean; waits at a gate, so that a test decides what queues up meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.open.set()

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        assert self.open.wait(10)
        if (pixels_nchw < 0).any():
            raise RuntimeError("negative pixels")
        return pixels_nchw.mean(dim=(1, 2, 3), keepdim=True)


def make_batcher(network: nn.Module, max_batch: int = 8, batch_s: float = 60) -> Batcher:
    """An batcher of a network that gives a number a frame."""
    spec = ModelSpec(
        name="toy",
        task="segmentation",
        build=lambda: network,
        source="test",
        labels=("a",),
        activation="sigmoid",
        preprocessing=Preprocessing(resize_px=None, mean=(0, 0, 0), std=(1, 1, 1)),
        max_batch=max_batch,
    )
    return Batcher(Model(spec, "cpu"), threads=4, batch_s=batch_s)


def wait_until_taken(batcher: Batcher) -> None:
    """Wait until all that is submitted is being computed."""
    end_s = time.monotonic() + 10
    while batcher.waiting:
        assert time.monotonic() < end_s
        time.sleep(0.001)


def read(output: Output) -> list[float]:
    assert isinstance(output, LogitOutput)
    return [float(value) for value in output.tensors[output.main].flatten()]


def values(future: Future[list[list[float]]]) -> list[float]:
    return [value for part in future.result(timeout=10) for value in part]


def frames(*numbers: float, size: int = 4) -> Tensor:
    return torch.stack([torch.full((3, size, size), float(number)) for number in numbers])
