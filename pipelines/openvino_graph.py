"""OpenVINO: a graph that takes a torch tensor and gives torch tensors, on the CPU. Knows no networks, tasks or settings."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.sources.choice import Engine, Precision

if TYPE_CHECKING:
    from openvino import CompiledModel, InferRequest

# What OpenVINO calls them, as a hint and as a capability of the processor.
PRECISIONS: dict[Precision, tuple[str, str]] = {
    "fp32": ("f32", "FP32"),
    "fp16": ("f16", "FP16"),
    "bf16": ("bf16", "BF16"),
}


class OpenvinoGraph:
    """An ONNX graph of one float32 input; calling it gives its outputs by name, in the graph's order.

    An output that several layers name has any of their names.

    A call by a thread for which torch has one alone is computed by one core, beside others; any other by as many
    threads as torch has now.

    Args:
        graph: what would be in a file of ONNX.
        precision: what it computes in; input and outputs are float32 all the same.

    Attributes:
        lanes: by how many threads at once it is called with gain.

    Raises:
        ValueError: this processor does not compute in that precision.
        RuntimeError: the graph cannot be read; in a call: it does not take these pixels.
    """

    engine: Engine = "openvino"

    def __init__(self, graph: bytes, precision: Precision) -> None:
        hint, capability = PRECISIONS[precision]
        if capability not in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise ValueError(f"this processor does not compute in {precision} by OpenVINO")
        self.lanes = torch.get_num_threads()
        model = _core().read_model(graph)
        # One stream takes all threads, several take one each.
        self._compiled: dict[int, CompiledModel] = {
            streams: _core().compile_model(
                model,
                "CPU",
                {
                    "INFERENCE_PRECISION_HINT": hint,
                    "INFERENCE_NUM_THREADS": self.lanes,
                    "NUM_STREAMS": streams,
                    # The cores are the decoders' too.
                    "ENABLE_CPU_PINNING": False,
                },
            )
            for streams in {1, self.lanes}
        }
        self._names = [output.get_any_name() for output in self._compiled[1].outputs]
        self._requests = threading.local()

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        request = self._request(self.lanes if torch.get_num_threads() == 1 else 1)
        # Outputs are copied: the request's own memory holds the next ones.
        given = request.infer({0: pixels.contiguous().numpy()}, share_inputs=True)
        return dict(zip(self._names, map(torch.from_numpy, given.values()), strict=True))

    def _request(self, streams: int) -> InferRequest:
        """This thread's own."""
        requests: dict[str, InferRequest] = self._requests.__dict__
        if str(streams) not in requests:
            requests[str(streams)] = self._compiled[streams].create_infer_request()
        return requests[str(streams)]


@functools.cache
def _core() -> Any:
    import openvino

    return openvino.Core()
