"""A network's layers computed with torch: as they are, compiled, as CUDA graphs. Knows no weights, no task.

Detectors end in code whose work depends on what the layers say: how many boxes there are. `halves` splits off
what can be written down once and for all; only that is compiled, recorded, or given to another engine.
Networks of segmentation end by enlarging their logits, which is left to those who read them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipelines.models.spec import Engine, Precision, TaskName

AUTOCAST: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Passes before a CUDA graph is recorded, in which libraries choose their kernels and take their memory.
WARM_UP_PASSES = 3

Finish = Callable[[Any, tuple[int, int]], Any]


@runtime_checkable
class Coarse(Protocol):
    """A network whose last step can be left out: for segmentation, to enlarge what `maps` gives.

    `maps` gives only tensors, in a mapping or a tuple, of shapes that follow from the shape of `pixels`.
    """

    def maps(self, pixels_nchw: Tensor) -> Any: ...


@runtime_checkable
class InTwoSteps(Coarse, Protocol):
    """A detector whose forward is `boxes(maps(pixels), (h, w))`; the maps' values decide on `boxes`' work."""

    def boxes(self, maps: Any, size_px: tuple[int, int]) -> list[dict[str, Tensor]]: ...


class Runner(Protocol):
    """Computes the layers of one network for a batch on its device.

    Attributes:
        engine: what a user calls it.
        buckets: the batch sizes that it takes, growing; empty: any.
        lanes: by how many threads at once it is called with gain.
    """

    engine: Engine
    buckets: tuple[int, ...]

    @property
    def lanes(self) -> int: ...

    def __call__(self, batch: Tensor) -> Any: ...


class Foreign(nn.Module):
    """A network that another engine than torch computes.

    Attributes:
        engine, lanes: as of `Runner`.
    """

    engine: Engine

    @property
    def lanes(self) -> int:
        raise NotImplementedError


class Maps(nn.Module):
    """The layers of a network without its last step; their answers in float32, whatever they compute in."""

    def __init__(self, network: Coarse) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Any:
        maps = self.network.maps(pixels)
        if isinstance(maps, Mapping):
            return {name: tensor.float() for name, tensor in maps.items()}
        return tuple(tensor.float() for tensor in maps)


def halves(network: nn.Module, task: TaskName) -> tuple[nn.Module, Finish]:
    """A network's layers, and what makes answers of their tensors and the pixels' height and width."""
    if task == "detection" and isinstance(network, InTwoSteps):
        return Maps(network).eval(), network.boxes
    if task == "segmentation" and isinstance(network, Coarse):
        return Maps(network).eval(), as_given
    return network, as_given


def as_given(given: Any, _size_px: tuple[int, int]) -> Any:
    """The last step of a network that has none of its own."""
    return given


class TorchRunner:
    """By torch, operator by operator, or through `torch.compile` for each of some batch sizes.

    Args:
        precision: what torch's autocast makes of the float32 weights and pixels.
        compiled_for: batch sizes; compiling itself happens when one is first run.
        lanes: as of `Runner`; foreign layers say it themselves.
    """

    def __init__(
        self,
        layers: nn.Module,
        device: torch.device,
        *,
        precision: Precision = "fp32",
        compiled_for: tuple[int, ...] = (),
        lanes: int = 1,
    ) -> None:
        self.engine: Engine = "compile" if compiled_for else "torch"
        if isinstance(layers, Foreign):
            self.engine = layers.engine
        self.buckets = compiled_for
        self._lanes = lanes
        self.layers = layers
        self._call: Callable[[Tensor], Any] = torch.compile(layers, dynamic=False) if compiled_for else layers
        self._device_type, self._dtype = device.type, AUTOCAST.get(precision)

    @property
    def lanes(self) -> int:
        return self.layers.lanes if isinstance(self.layers, Foreign) else self._lanes

    def __call__(self, batch: Tensor) -> Any:
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self._call(batch)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is None:
            return contextlib.nullcontext()
        # Casts that are kept for later passes would be freed under a recorded graph.
        keep = not (self._device_type == "cuda" and torch.cuda.is_current_stream_capturing())
        return torch.autocast(self._device_type, self._dtype, cache_enabled=keep)


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """One CUDA graph: where it reads its pixels, and where it leaves its answers until it runs again."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor
    outputs: Any


class GraphRunner:
    """By CUDA graphs: a recording for each of some batch sizes, so that no kernel waits for its launch.

    Recorded as in "CUDA Graphs" of PyTorch's notes on CUDA semantics: warm-up on a stream of its own, then
    capture. All recordings share one pool of memory, for which the largest comes first; what one leaves there
    is good until the next one runs, so answers are copied out. Other shapes go to the runner itself.

    Args:
        shapes: of the batches, one for each size.

    Raises:
        RuntimeError: something in the layers cannot be recorded.
    """

    engine: Engine = "torch"
    lanes = 1

    def __init__(self, runner: TorchRunner, shapes: Sequence[tuple[int, ...]], device: torch.device) -> None:
        self._runner, self._device = runner, device
        self._recorded: dict[tuple[int, ...], _Recorded] = {}
        pool = torch.cuda.graph_pool_handle()
        with torch.inference_mode(), torch.cuda.device(device):
            for shape in sorted(shapes, reverse=True):
                self._recorded[shape] = self._record(shape, pool)
        self.buckets = tuple(sorted(shape[0] for shape in shapes))

    def __call__(self, batch: Tensor) -> Any:
        recorded = self._recorded.get(tuple(batch.shape))
        if recorded is None:
            return self._runner(batch)
        recorded.pixels.copy_(batch)
        recorded.graph.replay()
        return _copied(recorded.outputs)

    def _record(self, shape: tuple[int, ...], pool: Any) -> _Recorded:
        layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        pixels = torch.zeros(shape, device=self._device).contiguous(memory_format=layout)
        stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_PASSES):
                self._runner(pixels)
        torch.cuda.current_stream(self._device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Threads of other models may go on using the device meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = self._runner(pixels)
        return _Recorded(graph, pixels, outputs)


def _copied(given: Any) -> Any:
    """The tensors of an answer in memory of their own."""
    if isinstance(given, Tensor):
        return given.clone()
    if isinstance(given, Mapping):
        return {name: _copied(value) for name, value in given.items()}
    if isinstance(given, list | tuple):
        return [_copied(value) for value in given]
    return given


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """Batch sizes that are kept static: powers of two, and the largest."""
    return tuple(sorted({*(1 << power for power in range(max_batch.bit_length())), max_batch}))


def bucket_of(count: int, buckets: Sequence[int]) -> int:
    """The next size that is kept static; `count` itself where none is as large."""
    return next((size for size in buckets if size >= count), count)


def padded(batch: Tensor, size: int) -> Tensor:
    """The batch, its last element repeated up to a size."""
    if size == len(batch):
        return batch
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])
