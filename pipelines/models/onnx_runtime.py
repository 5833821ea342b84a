"""ONNX Runtime: a graph from a torch tensor to torch tensors. Knows no networks, tasks or settings."""

from __future__ import annotations

import contextlib
import io
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipelines.models.spec import Engine

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

TENSORRT, CUDA, CPU = "TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}

Shape = tuple[int, ...]


class OnnxGraph:
    """A graph of one input, opened for a device; a call gives its outputs by name, on the pixels' device.

    On the CPU it has as many threads as torch has now. If torch has only one thread for the calling thread,
    that thread computes the call. On a GPU, if ONNX Runtime has its CUDA provider, tensors stay on the GPU.
    Without it, pixels are copied to host memory and computed on the CPU.

    Args:
        graph: a file, or its contents.
        optimise: False opens it faster, if it is only inspected.
        batches: shapes of the smallest and largest batch; with these TensorRT, if installed, may be used.

    Attributes:
        engine, lanes: its name for users; how many threads gain by calling it at once.

    Raises:
        RuntimeError: it cannot be read, or in a call does not take these pixels. The message is one line.
    """

    engine: Engine = "onnxruntime"

    def __init__(
        self,
        graph: Path | bytes,
        device: torch.device,
        *,
        optimise: bool = True,
        batches: tuple[Shape, Shape] | None = None,
    ) -> None:
        self.session = _open(graph, device, batches, optimise=optimise)
        self.lanes = torch.get_num_threads() if device.type == "cpu" else 1
        self._by_one: InferenceSession | None = None
        # For the second session, which is opened when it is first needed.
        self._graph: Path | bytes | None = graph if self.lanes > 1 else None
        self._opening = threading.Lock()
        self._input = self.session.get_inputs()[0]
        self._outputs = {output.name: output.type for output in self.session.get_outputs()}
        self._on_gpu = CUDA in self.session.get_providers()
        self._shapes: dict[Shape, list[Shape]] = {}

    def __call__(self, pixels: Tensor) -> dict[str, Tensor]:
        pixels = pixels.to(DTYPES[self._input.type]).contiguous()
        try:
            return self._bound(pixels) if self._on_gpu and pixels.is_cuda else self._plain(pixels)
        except failures() as error:
            raise RuntimeError(one_line(error)) from error

    def _plain(self, pixels: Tensor) -> dict[str, Tensor]:
        session = self._session_of_one() if self.lanes > 1 and torch.get_num_threads() == 1 else self.session
        arrays = session.run(None, {self._input.name: pixels.cpu().numpy()})
        tensors = map(torch.from_numpy, arrays)
        return {name: tensor.to(pixels.device) for name, tensor in zip(self._outputs, tensors, strict=True)}

    def _session_of_one(self) -> InferenceSession:
        """The session that has no threads of its own."""
        with self._opening:
            if self._by_one is None:
                assert self._graph is not None
                self._by_one, self._graph = _open(self._graph, torch.device("cpu"), None, optimise=True), None
            return self._by_one

    def _bound(self, pixels: Tensor) -> dict[str, Tensor]:
        """Input and outputs are torch's own memory, as in "I/O binding" of ONNX Runtime's documentation.

        For a new shape of the input, a first run tells the shapes of the outputs.
        """
        shape = tuple(pixels.shape)
        device = pixels.device
        # ONNX Runtime computes on a stream of its own, and waits for that stream before it returns.
        torch.cuda.current_stream(device).synchronize()
        if shape not in self._shapes:
            binding = self._binding(pixels)
            for name in self._outputs:
                binding.bind_output(name, "cuda", device.index)
            self.session.run_with_iobinding(binding)
            self._shapes[shape] = [tuple(value.shape()) for value in binding.get_outputs()]
        tensors = {
            name: torch.empty(size, dtype=DTYPES[kind], device=device)
            for (name, kind), size in zip(self._outputs.items(), self._shapes[shape], strict=True)
        }
        binding = self._binding(pixels)
        for name, tensor in tensors.items():
            binding.bind_output(
                name, "cuda", device.index, _numpy(tensor), tuple(tensor.shape), tensor.data_ptr()
            )
        self.session.run_with_iobinding(binding)
        return tensors

    def _binding(self, pixels: Tensor) -> Any:
        binding = self.session.io_binding()
        binding.bind_input(
            self._input.name,
            "cuda",
            pixels.device.index,
            _numpy(pixels),
            tuple(pixels.shape),
            pixels.data_ptr(),
        )
        return binding


def has_cuda() -> bool:
    """Whether the installed ONNX Runtime computes on NVIDIA GPUs."""
    import onnxruntime

    return CUDA in onnxruntime.get_available_providers()


def _open(
    graph: Path | bytes, device: torch.device, batches: tuple[Shape, Shape] | None, *, optimise: bool
) -> InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait would take cores from the decoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(graph) if isinstance(graph, Path) else graph
    try:
        # ONNX Runtime prints, and leaves out, a provider whose libraries are missing.
        with contextlib.redirect_stdout(io.StringIO()):
            return onnxruntime.InferenceSession(source, options, providers=_providers(device, batches))
    except failures() as error:
        raise RuntimeError(one_line(error)) from error


def _providers(device: torch.device, batches: tuple[Shape, Shape] | None) -> list[Any]:
    """Providers, best first, with options by the names of ONNX Runtime's page on each provider."""
    if device.type != "cuda":
        return [CPU]
    import onnxruntime

    available = onnxruntime.get_available_providers()
    index = torch.cuda.current_device() if device.index is None else device.index
    found: list[Any] = []
    if batches and TENSORRT in available:
        least, most = ("pixels:" + "x".join(map(str, shape)) for shape in batches)
        profile = {
            "trt_profile_min_shapes": least,
            "trt_profile_opt_shapes": most,
            "trt_profile_max_shapes": most,
        }
        found.append((TENSORRT, {"device_id": index, **profile}))
    if CUDA in available:
        found.append((CUDA, {"device_id": index}))
    return [*found, CPU]


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its exceptions have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [
        value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*kinds, RuntimeError, ValueError)


def one_line(error: Exception) -> str:
    """The first line of an error's text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _numpy(tensor: Tensor) -> Any:
    """The NumPy type of a tensor's elements, by which ONNX Runtime names them."""
    return torch.empty(0, dtype=tensor.dtype).numpy().dtype.type
