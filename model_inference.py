"""ModelSpec → Model: model pixels in, outputs out. Knows no video, no Triton, and no source of weights.

A `ModelSpec` is data: which network, whose weights, which labels, and how its pixels are prepared; the
modules of `pipelines/zoo` make them. A `Model` is a loaded spec on one device. It has answered a random
batch, which showed what it gives.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipelines.models.first_look import learn
from pipelines.models.forms import Form, mismatch
from pipelines.models.outputs import (
    BoxOutput,
    Output,
    OutputFacts,
    check_rows,
    check_widths,
    named_tensors,
    output_facts,
    read_output,
)
from pipelines.models.probing import Shown, Tensors, check_detections, check_steady, probes
from pipelines.models.spec import Clip, ModelSpec, Preprocessing, Tiling
from pipelines.models.torch_runtime import (
    Runner,
    TorchRunner,
    as_given,
    bucket_of,
    filled,
    halves,
    padded,
    pictures_not_finite,
)
from pipelines.protocol.errors import ModelUnavailable

__all__ = ["Clip", "Model", "ModelSpec", "Preprocessing", "Tiling"]
T = TypeVar("T")
log = logging.getLogger("trivid")


class Model:
    """A loaded `ModelSpec` on one device (`"cpu"`, `"cuda"`); calling it runs one batch.

    Attributes:
        spec: with what its first passes have shown, such as labels and activation, and the engine that runs.
        runner: what computes the layers.
        outputs: what the model gives, found by a pass of a random batch.

    Raises:
        ModelUnavailable: weights are missing, unreadable or of another network; the network does not take the
            pixels that the spec describes, or does not give what its task needs; names and outputs disagree;
            its answer to a picture changes from pass to pass, or with the other pictures of a batch.
    """

    def __init__(self, spec: ModelSpec, device: str, threads: int = 0) -> None:
        if threads:
            torch.set_num_threads(threads)
        self.device = torch.device(device)
        network = spec.build().eval().requires_grad_(requires_grad=False).to(self.device)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # convolutions over pixels are faster with the channels last
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        layers, self._finish = halves(network, spec)
        self.spec = spec
        lanes = torch.get_num_threads() if spec.thread_safe and self.device.type == "cpu" else 1
        self.run_by(TorchRunner(layers, self.device, lanes=lanes))
        self._form = Form()
        self.outputs: tuple[OutputFacts, ...] = ()
        first = _mild_noise(spec.example_shape(min(2, spec.max_batch)))
        given = self._guarded(self.compute, first)
        if spec.task != "detection":
            self._learn(given, first.shape)
        output = self._guarded(lambda pixels: self.read(given, pixels), first)
        self.outputs = output_facts(output)
        check_detections(output, self.spec)
        self._guarded(lambda pixels: check_steady(self.spec, self.compute, pixels, given), first)

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
        count, size = len(pixels), bucket_of(len(pixels), self.runner.buckets)
        with torch.inference_mode():
            height_px, width_px = pixels.shape[-2:]
            found = self._finish(given, (height_px, width_px))
            if self.spec.head is not None:
                found = filled(self.spec.head, found, size)
            outputs = read_output(found, self.spec.task, self.spec.name, (height_px, width_px), self._form)
            if isinstance(outputs, BoxOutput):
                outputs = replace(outputs, not_finite=pictures_not_finite(given, size, self.spec.head))
        check_rows(outputs, size, self.spec.name)
        check_widths(outputs, self.outputs, self._form.read, self.spec.name)
        return outputs.part(0, count) if size > count else outputs

    def run_by(self, runner: Runner) -> None:
        """Let `runner` compute the layers from now on."""
        self.runner = runner
        self.spec = replace(self.spec, engine=runner.engine)

    @property
    def lanes(self) -> int:
        """How many threads gain by calling it at once; each of several computes with one thread."""
        # A last step of its own is the network's code, whatever engine computes the layers.
        own = self._finish is not as_given and self.spec.head is None
        return 1 if own and not self.spec.thread_safe else self.runner.lanes

    def warm_up(self) -> None:
        """Run every fixed batch size, and always the largest, so that no request pays for the first run."""
        for count in self.runner.buckets or (self.spec.max_batch,):
            self._try(count)
        if self.lanes > 1:
            threads = torch.get_num_threads()
            torch.set_num_threads(1)
            self._try(1)
            torch.set_num_threads(threads)

    def _learn(self, given: Any, shape: tuple[int, ...]) -> None:
        """Fill in the spec, and find out how outputs are read, from what a first pass gave and from more."""
        facts = self.spec.preprocessing

        @functools.cache
        def more() -> list[Tensors]:
            passes = [self._guarded(self.compute, pixels) for pixels in probes(shape, facts)]
            return [dict(named_tensors(one)) for one in passes]

        first = dict(named_tensors(given))
        if not first:
            raise mismatch(self.spec.name, f"a {type(given).__name__}", self.spec.task)
        height_px, width_px = shape[-2:]
        known = len(self.spec.assumed)
        self.spec, self._form = learn(self.spec, Shown(first, more, (height_px, width_px)))
        for text in self.spec.assumed[known:]:
            log.warning("%s: assumed: %s", self.spec.name, text)

    def _try(self, count: int) -> Output:
        """The outputs for random pictures."""
        return self._guarded(self, _mild_noise(self.spec.example_shape(count)))

    def _guarded(self, call: Callable[[Tensor], T], pixels: Tensor) -> T:
        """A pass; any failure makes the model unavailable."""
        try:
            return call(pixels)
        except ModelUnavailable:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[-1] or type(error).__name__
            raise ModelUnavailable(
                f"{self.spec.name} does not take pixels {tuple(pixels.shape)} as task {self.spec.task} "
                f"gives them: {reason}",
                hint="check the task and the input size: one number as resize_px sets the shorter side, "
                "[height, width] the size; max_batch=1 for a model exported with a fixed batch size",
            ) from error


def _mild_noise(shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))
