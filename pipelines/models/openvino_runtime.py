"""OpenVINO: a graph from torch tensor to torch tensors, on the CPU. Knows no networks, tasks or settings."""

from __future__ import annotations

import functools
import sys
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.models.spec import Engine, Precision

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest

# What OpenVINO calls them, as a hint and as a capability of the processor.
PRECISIONS: dict[Precision, tuple[str, str]] = {
    "fp32": ("f32", "FP32"),
    "fp16": ("f16", "FP16"),
    "bf16": ("bf16", "BF16"),
}
# How its messages begin: with the place in its own source.
PLACE = "Exception from "


class OpenvinoGraph:
    """An ONNX graph of one float32 input; calling it gives its outputs in their order, named by their place.

    A call by a thread for which torch has only one is computed by one core, beside others; any other by as
    many threads as torch has now. The weights are held for each of the two ways that is used.

    Args:
        graph: what would be in a file of ONNX.
        precision: what it computes in; input and outputs are float32 all the same.

    Attributes:
        lanes: by how many threads at once it is called with gain.

    Raises:
        ValueError: this processor does not compute in that precision.
        RuntimeError: it cannot be read; in a call: it does not take these pixels. The message is one line.
    """

    engine: Engine = "openvino"

    def __init__(self, graph: bytes, precision: Precision) -> None:
        self._hint, capability = PRECISIONS[precision]
        if capability not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(f"OpenVINO does not compute in {precision} on this processor")
        self.lanes = torch.get_num_threads()
        self._by_streams: dict[int, CompiledModel] = {}
        self._compiling = threading.Lock()
        self._requests = threading.local()
        try:
            self._graph = core().read_model(graph)
            self._compiled(1)
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        try:
            request = self._request(self.lanes if torch.get_num_threads() == 1 else 1)
            # Outputs are copied: the request's own memory holds the next ones.
            given = request.infer({0: pixels.contiguous().numpy()}, share_inputs=True)
        except RuntimeError as error:
            raise RuntimeError(_reason(error)) from error
        return {str(place): torch.from_numpy(given[place]) for place in range(len(given))}

    def _request(self, streams: int) -> InferRequest:
        """This thread's own."""
        requests: dict[str, InferRequest] = self._requests.__dict__
        if str(streams) not in requests:
            requests[str(streams)] = self._compiled(streams).create_infer_request()
        return requests[str(streams)]

    def _compiled(self, streams: int) -> CompiledModel:
        """One stream takes all threads, several take one each."""
        with self._compiling:
            if streams not in self._by_streams:
                settings = {
                    "INFERENCE_PRECISION_HINT": self._hint,
                    "INFERENCE_NUM_THREADS": self.lanes,
                    "NUM_STREAMS": streams,
                    # The cores are the decoders' too.
                    "ENABLE_CPU_PINNING": False,
                }
                self._by_streams[streams] = core().compile_model(self._graph, "CPU", settings)
            return self._by_streams[streams]


@functools.cache
def core() -> Any:
    """OpenVINO itself; without its telemetry package it sends nobody statistics of its use."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _reason(error: RuntimeError) -> str:
    """The first line of OpenVINO's message that says what is wrong, not where in its source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if not line.startswith(PLACE)), type(error).__name__)
