"""A network's layers computed with torch: eagerly, compiled, or as CUDA graphs. Knows no weights, no task.

A detector ends in code whose work depends on the layers' outputs: on how many boxes there are. `halves`
splits off the layers before it. Only these are compiled, recorded, or given to another engine. A segmentation
network ends by enlarging its logits, which is left to those who read them.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipelines.models.outputs import finite_rows, named_tensors
from pipelines.models.spec import Engine, Head, ModelSpec, Precision
from pipelines.protocol.errors import ModelUnavailable

AUTOCAST: dict[Precision, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16}
# Passes before a CUDA graph is recorded, in which libraries choose kernels and allocate memory.
WARM_UP_PASSES = 3

Finish = Callable[[Any, tuple[int, int]], Any]


@runtime_checkable
class Coarse(Protocol):
    """A network whose last step can be left out: for segmentation, enlarging what `maps` gives.

    `maps` gives only tensors, in a mapping or a tuple, of shapes that follow from the shape of `pixels`.
    """

    def maps(self, pixels_nchw: Tensor) -> Any: ...


@runtime_checkable
class InTwoSteps(Coarse, Protocol):
    """A detector whose forward is `boxes(maps(pixels), (h, w))`; the work of `boxes` depends on the maps."""

    def boxes(self, maps: Any, size_px: tuple[int, int]) -> list[dict[str, Tensor]]: ...


class Runner(Protocol):
    """Computes the layers of one network for a batch on its device.

    Attributes:
        engine: its name for users.
        buckets: the batch sizes that it takes, ascending; empty: any.
        lanes: how many threads gain by calling it at once.
    """

    engine: Engine
    buckets: tuple[int, ...]

    @property
    def lanes(self) -> int: ...

    def __call__(self, batch: Tensor) -> Any: ...


class Foreign(nn.Module):
    """A network that an engine other than torch computes.

    Attributes:
        engine, lanes: as in `Runner`.
        engines: all that can compute it, the one that does first.
    """

    engine: Engine
    engines: tuple[Engine, ...]

    def by(self, engine: Engine) -> Foreign:
        """The same network, computed by another of its engines. Raises ModelUnavailable if that cannot."""
        raise NotImplementedError

    @property
    def lanes(self) -> int:
        raise NotImplementedError


class Pieces(list[Mapping[str, Tensor]]):
    """The outputs of a batch that was run in pieces and cannot be joined, by name for each piece.

    Attributes:
        size: how many pictures each piece has; the last one may be filled up.
        pictures: how many the batch has.
    """

    def __init__(self, runs: Iterable[Mapping[str, Tensor]], size: int, pictures: int) -> None:
        super().__init__(runs)
        self.size, self.pictures = size, pictures


class Maps(nn.Module):
    """The layers of a network without its last step; outputs are float32, whatever the layers compute in."""

    def __init__(self, network: Coarse) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> Any:
        maps = self.network.maps(pixels)
        if isinstance(maps, Mapping):
            return {name: tensor.float() for name, tensor in maps.items()}
        return tuple(tensor.float() for tensor in maps)


def halves(network: nn.Module, spec: ModelSpec) -> tuple[nn.Module, Finish]:
    """A network's layers, and its last step, which takes their tensors and the pixels' (height, width)."""
    if spec.head is not None:
        return network, functools.partial(headed, spec.head)
    if spec.task == "detection" and isinstance(network, InTwoSteps):
        return Maps(network).eval(), network.boxes
    if spec.task == "segmentation" and isinstance(network, Coarse):
        return Maps(network).eval(), as_given
    return network, as_given


def headed(head: Head, given: Any, size_px: tuple[int, int]) -> list[dict[str, Tensor]]:
    """The last step of a network whose outputs a head reads: of a batch, `Pieces`, or a list by pictures.

    Raises:
        ModelUnavailable: a piece has other pictures than it was given.
    """
    apart = isinstance(given, Pieces) or (isinstance(given, list) and given and isinstance(given[0], Mapping))
    size = given.size if isinstance(given, Pieces) else 1
    found = []
    for run in given if apart else [given]:
        frames = head({name: _rankable(one) for name, one in named_tensors(run)}, size_px)
        if apart:
            frames = filled(head, frames, size)
            if len(frames) != size:
                wrong = f"head {head.family} reads {len(frames)} pictures in the outputs for {size}"
                raise ModelUnavailable(wrong, hint="export the model with a batch of 1")
        found += frames
    return found[: given.pictures] if isinstance(given, Pieces) else found


def _rankable(tensor: Tensor) -> Tensor:
    """Numbers as heads take them: float32, and NaN, which never counts, for all that are not finite."""
    if not tensor.is_floating_point():
        return tensor
    numbers = tensor.float()
    return numbers if bool(numbers.sum().isfinite()) else numbers.where(numbers.isfinite(), torch.nan)


def pictures_not_finite(given: Any, count: int, head: Head | None) -> list[bool]:
    """Of each of `count` pictures whether a detector's layers gave numbers for it that are not finite.

    Of those the boxes would show nothing, since heads leave them out.
    """
    if isinstance(given, Pieces):
        marks = [mark for run in given for mark in pictures_not_finite(dict(run), given.size, head)]
        return marks[: given.pictures]
    if isinstance(given, list | tuple) and given and isinstance(given[0], Mapping):
        return [any(pictures_not_finite(one, 1, None)) for one in given]
    finite = torch.ones(count, dtype=torch.bool)
    for _, tensor in named_tensors(given):
        if getattr(head, "numbers_pictures", False) and tensor.ndim > 1:
            finite &= _named_rows_finite(tensor, count)
        elif tensor.ndim and len(tensor) == count:
            finite &= finite_rows(tensor).cpu()
        elif count == 1:
            finite &= finite_rows(tensor[None]).cpu()
    return (~finite).tolist()


def _named_rows_finite(tensor: Tensor, count: int) -> Tensor:
    """The same for rows that begin with the number of their picture; a negative one ends them."""
    row_pmc = tensor[None] if tensor.ndim == 2 else tensor.flatten(1, -2)
    bad_pm = (row_pmc[..., 0] >= 0).cumprod(1).bool() & ~row_pmc.isfinite().all(dim=2)
    if len(row_pmc) == count:
        return ~bad_pm.any(dim=1).cpu()
    number = row_pmc[bad_pm][:, 0]
    finite = torch.ones(count, dtype=torch.bool)
    finite[number[number < count].long().cpu()] = False
    return finite


def filled(head: Head, frames: list[dict[str, Tensor]], count: int) -> list[dict[str, Tensor]]:
    """The detections of `count` pictures: the last ones have none, if only rows say how many there are."""
    if not frames or not getattr(head, "numbers_pictures", False):
        return frames
    nothing = {name: column[:0] for name, column in frames[0].items()}
    return [*frames, *[nothing] * (count - len(frames))]


def as_given(given: Any, _size_px: tuple[int, int]) -> Any:
    """The last step of a network that has none: the outputs as they are."""
    return given


class TorchRunner:
    """Runs layers with torch, operator by operator, or with `torch.compile` for some batch sizes.

    Args:
        precision: what torch's autocast makes of the float32 weights and pixels.
        compiled_for: batch sizes; each is compiled when it is first run.
        lanes: as in `Runner`; foreign layers have their own.
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
        # A file's graph takes its pixels in the file's own layout.
        if batch.ndim == 4 and not isinstance(self.layers, Foreign):
            batch = batch.contiguous(memory_format=torch.channels_last)
        with self._autocast():
            return self._call(batch)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._dtype is None:
            return contextlib.nullcontext()
        # Cached casts would be freed while a recorded graph still uses them.
        keep = not (self._device_type == "cuda" and torch.cuda.is_current_stream_capturing())
        return torch.autocast(self._device_type, self._dtype, cache_enabled=keep)


@dataclass(frozen=True, slots=True, eq=False)
class _Recorded:
    """One CUDA graph: the memory of its pixels, and of its outputs, which last until it runs again."""

    graph: torch.cuda.CUDAGraph
    pixels: Tensor
    outputs: Any


class GraphRunner:
    """Runs CUDA graphs, one recorded for each of some batch sizes, so that no kernel waits for its launch.

    Recorded as in "CUDA Graphs" of PyTorch's notes on CUDA semantics: warm-up on a separate stream, then
    capture. All graphs share one memory pool, so the largest is recorded first. A graph's outputs last only
    until the next graph runs, so they are copied. Batches of other shapes go to `runner`.

    Args:
        shapes: the batches' shapes, one for each size.

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
        # Other models' threads may use the device during the capture.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            outputs = self._runner(pixels)
        return _Recorded(graph, pixels, outputs)


def _copied(given: Any) -> Any:
    """The tensors of an answer, copied to memory of their own."""
    if isinstance(given, Tensor):
        return given.clone()
    if isinstance(given, Mapping):
        return {name: _copied(value) for name, value in given.items()}
    if isinstance(given, Pieces):
        return Pieces(map(_copied, given), given.size, given.pictures)
    if isinstance(given, list | tuple):
        return [_copied(value) for value in given]
    return given


def bucket_sizes(max_batch: int) -> tuple[int, ...]:
    """The fixed batch sizes: powers of two, and the largest."""
    return tuple(sorted({*(1 << power for power in range(max_batch.bit_length())), max_batch}))


def bucket_of(count: int, buckets: Sequence[int]) -> int:
    """The smallest fixed size that holds `count`; `count` itself if none is as large."""
    return next((size for size in buckets if size >= count), count)


def padded(batch: Tensor, size: int) -> Tensor:
    """The batch, padded to a size with its last element."""
    if size == len(batch):
        return batch
    return torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])
