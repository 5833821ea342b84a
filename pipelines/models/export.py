"""Exports a loaded network to ONNX, and runs the graph with another engine. Knows no files, no tasks.

It uses torch's older exporter, which traces: for a detector in a second. The current one takes half a minute.
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
# What the exporters raise for networks that they cannot export.
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
# A protocol buffer, and so a graph, holds less than 2 GiB.
ONE_FILE_BYTES = 1_900_000_000


class Graph(Protocol):
    """An ONNX graph, opened by an engine: pixels in, outputs by name, in the order of the export."""

    engine: Engine

    @property
    def lanes(self) -> int: ...

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]: ...


class ExportedRunner:
    """Layers as a graph; the answers have the same form as with torch.

    Args:
        graph: what `exported` wrote.
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
        free: names of the dimensions in which other batches may differ, by their place. The batch size always
            may.

    Raises:
        FAILURES: the exporter cannot write the network.
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
        # The older exporter puts the whole network into the mode of the outermost module.
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
    """Write a network that takes one tensor and gives tensors, with torch's older exporter, silently.

    Args:
        axes: names of the free dimensions of the input, which comes first, and of every output.
        opset: version of ONNX's operators; None: the exporter's own.

    Raises:
        FAILURES: it cannot write the network.
    """
    with quiet(), torch.no_grad(), _attention_step_by_step():
        torch.onnx.export(
            network,
            (example,),
            # The signature's type lists only paths.
            cast(Any, str(target) if isinstance(target, Path) else target),
            dynamo=False,
            input_names=[INPUT],
            output_names=[name for name in axes if name != INPUT],
            opset_version=opset,
            dynamic_axes={name: dict(dims) for name, dims in axes.items()},
        )


@contextlib.contextmanager
def _attention_step_by_step() -> Iterator[None]:
    """Keep torch from computing attention in one operator, which ONNX does not have."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress what exporters print and warn of; their failures are still raised."""
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
