"""A loaded network, exported, and run by an engine for such graphs. Knows no files, no tasks.

It is torch's older exporter, by tracing: it takes a second, the current one half a minute for a detector.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from pipelines.models.outputs import named_tensors
from pipelines.models.spec import Engine

INPUT = "pixels"
# What the exporters raise at networks that they cannot write down.
FAILURES = (
    torch.onnx.OnnxExporterError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
# A graph of protocol buffers holds less than 2 GiB.
ONE_FILE_BYTES = 1_900_000_000


class Graph(Protocol):
    """ONNX, opened by an engine: pixels in, outputs by name in the order in which they were written."""

    engine: Engine

    @property
    def lanes(self) -> int: ...

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]: ...


class ExportedRunner:
    """Layers as a graph; their answers have the form that they have with torch.

    Args:
        graph: of `exported`.
        given: what the layers give for any batch.
    """

    buckets: tuple[int, ...] = ()

    def __init__(self, graph: Graph, given: Any) -> None:
        self.graph = graph
        self.engine, self.lanes = graph.engine, graph.lanes
        self._form, self._names = type(given), [name for name, _ in named_tensors(given)]

    def __call__(self, batch: Tensor) -> Any:
        outputs = tuple(self.graph(batch).values())
        if issubclass(self._form, Mapping):
            return dict(zip(self._names, outputs, strict=True))
        return outputs if issubclass(self._form, list | tuple) else outputs[0]


def exported(layers: nn.Module, example: Tensor, given: Any, *, free: Mapping[int, str]) -> bytes:
    """Layers as ONNX.

    Args:
        example: a batch of two or more pictures or clips, on the device.
        given: what the layers give for it.
        free: the dimensions in which other batches may differ, by their place; the batch's own always may.

    Raises:
        FAILURES: the exporter cannot.
    """
    outputs = dict(named_tensors(given))
    if not outputs or (isinstance(given, Mapping) and len(outputs) < len(given)):
        raise TypeError(f"{type(given).__name__} is not an answer of tensors only")
    weights = sum(tensor.nbytes for tensor in layers.state_dict().values())
    if weights > ONE_FILE_BYTES:
        raise ValueError(f"weights of {weights >> 20} MiB are more than a graph can hold")
    axes = {
        name: {place: f"{name}_{place}" for place in range(tensor.ndim)} for name, tensor in outputs.items()
    }
    graph = io.BytesIO()
    write_traced(_Flat(layers), example, graph, axes={INPUT: {0: "batch", **free}, **axes})
    return graph.getvalue()


class _Flat(nn.Module):
    """Layers whose answer is a tuple of tensors."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        # The older exporter leaves a network in the mode in which it found the outermost module.
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor for _, tensor in named_tensors(self.layers(pixels)))


def write_traced(
    network: nn.Module,
    example: Tensor,
    target: Path | io.BytesIO,
    *,
    axes: Mapping[str, Mapping[int, str]],
    opset: int | None = None,
) -> None:
    """Write a network of one tensor that gives tensors, with torch's older exporter, in silence.

    Args:
        axes: of the input, which comes first, and of every output, the names of the dimensions that are free.
        opset: of ONNX's operators; None: the exporter's own.

    Raises:
        FAILURES: it cannot.
    """
    with quiet(), torch.no_grad(), _attention_step_by_step():
        torch.onnx.export(
            network,
            (example,),
            # Its signature names only paths.
            cast(Any, str(target) if isinstance(target, Path) else target),
            dynamo=False,
            input_names=[INPUT],
            output_names=[name for name in axes if name != INPUT],
            opset_version=opset,
            dynamic_axes={name: dict(dims) for name, dims in axes.items()},
        )


@contextlib.contextmanager
def _attention_step_by_step() -> Iterator[None]:
    """Torch computes attention in one operator where it can, which ONNX has not."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what exporters print and warn of; their failures are raised all the same."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
