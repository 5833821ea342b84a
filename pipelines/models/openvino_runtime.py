"""OpenVINO: a graph from a torch tensor to torch tensors, on the CPU. Knows no network, task or settings."""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.models.spec import Engine, Precision

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest

# OpenVINO's names of the precisions, as a hint and as a capability of the processor.
PRECISIONS: dict[Precision, tuple[str, str]] = {
    "fp32": ("f32", "FP32"),
    "fp16": ("f16", "FP16"),
    "bf16": ("bf16", "BF16"),
}
# OpenVINO's messages begin with a place in its own source.
PLACE = "Exception from "


class OpenvinoGraph:
    """A graph; a call gives its outputs in order, named by their place. It takes pixels, and others by name.

    If torch has only one thread for the calling thread, the call is computed by one core, beside others. Any
    other call uses as many threads as torch has now. Each of the two ways, once used, holds the weights.

    Args:
        graph: the contents of an ONNX file, or a file that OpenVINO reads.
        precision: what it computes in; the types of inputs and outputs are the graph's own.

    Attributes:
        lanes: how many threads gain by calling it at once.

    Raises:
        ValueError: this processor does not compute in that precision.
        RuntimeError: it cannot be read, or in a call does not take these pixels. The message is one line.
    """

    engine: Engine = "openvino"

    def __init__(self, graph: bytes | Path, precision: Precision) -> None:
        self._hint, capability = PRECISIONS[precision]
        if capability not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(f"OpenVINO does not compute in {precision} on this processor")
        self.lanes = torch.get_num_threads()
        self._by_streams: dict[int, CompiledModel] = {}
        self._compiling = threading.Lock()
        self._requests = threading.local()
        try:
            self._graph = read_graph(graph)
            self._compiled(1)
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error

    def __call__(self, pixels: Tensor, extra: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        extra = extra or {}
        inputs = [port.any_name if port.names else "" for port in self._graph.inputs]
        of_pixels = next(place for place, name in enumerate(inputs) if name not in extra)
        given: dict[Any, Any] = {name: one.numpy() for name, one in extra.items()}
        given[of_pixels] = pixels.contiguous().numpy()
        try:
            request = self._request(self.lanes if torch.get_num_threads() == 1 else 1)
            # Outputs are copied, since the next call overwrites the request's memory.
            found = request.infer(given, share_inputs=True)
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error
        return {str(place): torch.from_numpy(found[place]) for place in range(len(found))}

    def _request(self, streams: int) -> InferRequest:
        """The calling thread's own request."""
        requests: dict[str, InferRequest] = self._requests.__dict__
        if str(streams) not in requests:
            requests[str(streams)] = self._compiled(streams).create_infer_request()
        return requests[str(streams)]

    def _compiled(self, streams: int) -> CompiledModel:
        """The model for one stream, which takes all threads, or for several with one thread each."""
        with self._compiling:
            if streams not in self._by_streams:
                settings = {
                    "INFERENCE_PRECISION_HINT": self._hint,
                    "INFERENCE_NUM_THREADS": self.lanes,
                    "NUM_STREAMS": streams,
                    # Decoders use the same cores.
                    "ENABLE_CPU_PINNING": False,
                }
                self._by_streams[streams] = core().compile_model(self._graph, "CPU", settings)
            return self._by_streams[streams]


def read_graph(graph: bytes | Path) -> Any:
    """A graph as OpenVINO has read it. Raises RuntimeError, its message one line."""
    try:
        return core().read_model(graph)
    except RuntimeError as error:
        raise RuntimeError(_reason(error)) from error


@functools.cache
def core() -> Any:
    """OpenVINO itself. Without its telemetry package it sends no usage statistics."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _reason(error: RuntimeError) -> str:
    """The first line of OpenVINO's message that says what is wrong, not where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(PLACE)), type(error).__name__)
