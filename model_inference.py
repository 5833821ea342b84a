"""ModelSpec → Model: model pixels in, outputs out. Knows no video, no Triton, and no source of weights.

A `ModelSpec` is data: which network, whose weights, which labels, and how its pixels are prepared; the
modules of `pipelines/zoo` make them. A `Model` is a loaded spec on one device. It has answered a random
batch, which showed what it gives.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from pipelines.models.outputs import (
    BoxOutput,
    Output,
    are_probabilities,
    check_rows,
    output_facts,
    read_output,
)
from pipelines.models.spec import Clip, ModelSpec, Preprocessing, Tiling
from pipelines.models.torch_runtime import Runner, TorchRunner, as_given, bucket_of, halves, padded
from pipelines.protocol.errors import ModelUnavailable

__all__ = ["Clip", "Model", "ModelSpec", "Preprocessing", "Tiling"]
# Class maps are bytes.
MAX_SEGMENTS = 256


class Model:
    """A loaded `ModelSpec` on one device (`"cpu"`, `"cuda"`); calling it runs one batch.

    Attributes:
        spec: with the labels filled in, and the engine that runs.
        runner: what computes the layers.
        outputs: what the model gives, found by a pass of a random batch.

    Raises:
        ModelUnavailable: weights are missing, unreadable or of another network; the network does not take the
            pixels that the spec describes, or does not give what its task needs; labels and outputs disagree.
    """

    def __init__(self, spec: ModelSpec, device: str, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        network = spec.build().eval().requires_grad_(requires_grad=False).to(self.device)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # convolutions over pixels are faster with the channels last
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        layers, self._finish = halves(network, spec.task)
        self.spec = spec
        lanes = torch.get_num_threads() if spec.thread_safe and self.device.type == "cpu" else 1
        self.run_by(TorchRunner(layers, self.device, lanes=lanes))
        first = self._try(min(2, spec.max_batch))
        self.outputs = output_facts(first)
        probabilities = spec.probabilities or are_probabilities(first)
        self.spec = replace(self.spec, labels=_labels(spec, first), probabilities=probabilities)

    def __call__(self, pixels: Tensor) -> Output:
        """Model pixels float32 `(N, 3, h, w)` or clips `(N, 3, T, h, w)` → outputs on the same device."""
        with torch.inference_mode():
            return self.read(self.compute(pixels), pixels)

    def compute(self, pixels: Tensor) -> Any:
        """What the layers give for a batch, which is padded to a fixed size; `read` takes it."""
        size = bucket_of(len(pixels), self.runner.buckets)
        with torch.inference_mode():
            return self.runner(padded(pixels.to(self.device), size))

    def read(self, given: Any, pixels: Tensor) -> Output:
        """The outputs for `pixels` in what `compute` gave for them."""
        with torch.inference_mode():
            height_px, width_px = pixels.shape[-2:]
            found = self._finish(given, (height_px, width_px))
            outputs = read_output(found, self.spec.task, self.spec.name, (height_px, width_px))
        count, size = len(pixels), bucket_of(len(pixels), self.runner.buckets)
        check_rows(outputs, size, self.spec.name)
        return outputs.part(0, count) if size > count else outputs

    def run_by(self, runner: Runner) -> None:
        """Let `runner` compute the layers from now on."""
        self.runner = runner
        self.spec = replace(self.spec, engine=runner.engine)

    @property
    def lanes(self) -> int:
        """How many threads gain by calling it at once; each of several computes with one thread."""
        # A last step of its own is the network's code, whatever engine computes the layers.
        return self.runner.lanes if self.spec.thread_safe or self._finish is as_given else 1

    def warm_up(self) -> None:
        """Run every fixed batch size, and always the largest, so that no request pays for the first run."""
        for count in self.runner.buckets or (self.spec.max_batch,):
            self._try(count)
        if self.lanes > 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            self._try(1)
            torch.set_num_threads(threads)

    def _try(self, count: int) -> Output:
        """The outputs for random pictures; any failure makes the model unavailable."""
        shape = self.spec.example_shape(count)
        try:
            return self(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        except ModelUnavailable:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[-1] or type(error).__name__
            raise ModelUnavailable(
                f"{self.spec.name} does not take pixels {shape} as task {self.spec.task} gives them: "
                f"{reason}",
                hint="check the task and the input size: one number as resize_px sets the shorter side, "
                "[height, width] the size; max_batch=1 for a model exported with a fixed batch size",
            ) from error


def _labels(spec: ModelSpec, output: Output) -> tuple[str, ...]:
    """The spec's labels, as many as the model has outputs; numbers if it has none."""
    if isinstance(output, BoxOutput):
        return spec.labels
    count = output.logits.shape[1]
    if not count or (spec.task == "segmentation" and count > MAX_SEGMENTS):
        raise ModelUnavailable(f"{spec.name} has {count} classes", hint=f"1 to {MAX_SEGMENTS} are served")
    if spec.labels and len(spec.labels) != count:
        raise ModelUnavailable(
            f"{spec.name} has {count} outputs and {len(spec.labels)} labels",
            hint="give a file with one label per line",
        )
    return spec.labels or tuple(map(str, range(count)))
