"""ONNX Runtime: a graph from a torch tensor to torch tensors. Knows no networks, tasks or settings."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
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
    """A graph, opened for a device; a call gives its outputs by name, on the pixels' device.

    A call takes the pixels, and any other inputs by name.

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
        self._inputs = {one.name: DTYPES.get(one.type) for one in self.session.get_inputs()}
        self._outputs = {output.name: output.type for output in self.session.get_outputs()}
        self._on_gpu = CUDA in self.session.get_providers()
        self._shapes: dict[Shape, list[Shape]] = {}
        self._loose = _loose(self.session)

    def __call__(self, pixels: Tensor, extra: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        extra = extra or {}
        of_pixels = next(name for name in self._inputs if name not in extra)
        given = {
            name: one.to(self._inputs[name]).contiguous()
            for name, one in {of_pixels: pixels, **extra}.items()
        }
        try:
            if self._on_gpu and pixels.is_cuda:
                return self._bound({name: one.to(pixels.device) for name, one in given.items()})
            found = self._plain(given)
        except failures() as error:
            raise RuntimeError(one_line(error)) from error
        return {name: tensor.to(pixels.device) for name, tensor in found.items()}

    def _plain(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        session = self._session_of_one() if self.lanes > 1 and torch.get_num_threads() == 1 else self.session
        arrays = session.run(None, {name: one.cpu().numpy() for name, one in given.items()})
        return dict(zip(self._outputs, map(torch.from_numpy, arrays), strict=True))

    def _session_of_one(self) -> InferenceSession:
        """The session that has no threads of its own."""
        with self._opening:
            if self._by_one is None:
                assert self._graph is not None
                self._by_one, self._graph = _open(self._graph, torch.device("cpu"), None, optimise=True), None
            return self._by_one

    def _bound(self, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Inputs and outputs are torch's own memory, as in "I/O binding" of ONNX Runtime's documentation.

        For new shapes of the inputs, a first run tells the shapes of the outputs. Outputs whose shapes may
        still differ, such as the boxes that are found, come through the host's memory.
        """
        shape = tuple(size for one in given.values() for size in one.shape)
        device = next(iter(given.values())).device
        if device.type == "cuda":
            # ONNX Runtime computes on a stream of its own, and waits for that stream before it returns.
            torch.cuda.current_stream(device).synchronize()
        if shape not in self._shapes:
            binding = self._binding(given)
            for name in self._outputs:
                binding.bind_output(name, device.type, device.index or 0)
            self.session.run_with_iobinding(binding)
            self._shapes[shape] = [tuple(value.shape()) for value in binding.get_outputs()]
        tensors = {
            name: torch.empty(size, dtype=DTYPES[kind], device=device)
            for (name, kind), size in zip(self._outputs.items(), self._shapes[shape], strict=True)
            if name not in self._loose
        }
        try:
            return self._into(tensors, given, device)
        except failures():
            if self._loose >= self._outputs.keys():
                raise
            # What a file calls its batch may be the number of boxes.
            self._loose = frozenset(self._outputs)
            return self._into({}, given, device)

    def _into(
        self, tensors: dict[str, Tensor], given: Mapping[str, Tensor], device: torch.device
    ) -> dict[str, Tensor]:
        """The outputs, those of `tensors` in their memory."""
        binding = self._binding(given)
        for name in self._outputs:
            if (tensor := tensors.get(name)) is None:
                binding.bind_output(name)
            else:
                place, kind = (device.type, device.index or 0), _numpy(tensor)
                binding.bind_output(name, *place, kind, tuple(tensor.shape), tensor.data_ptr())
        self.session.run_with_iobinding(binding)
        values = zip(self._outputs, binding.get_outputs(), strict=True)
        return {
            name: tensors[name] if name in tensors else torch.from_numpy(value.numpy()).to(device)
            for name, value in values
        }

    def _binding(self, given: Mapping[str, Tensor]) -> Any:
        binding = self.session.io_binding()
        for name, one in given.items():
            place = one.device.type, one.device.index or 0
            binding.bind_input(name, *place, _numpy(one), tuple(one.shape), one.data_ptr())
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
    # What goes wrong comes as an exception too, without the colours of a terminal.
    options.log_severity_level = 4
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


def _loose(session: InferenceSession) -> frozenset[str]:
    """The outputs that may have several shapes for one shape of the inputs: a dimension is no input's."""
    known = {dim for one in session.get_inputs() for dim in one.shape if isinstance(dim, str)}
    return frozenset(
        one.name
        for one in session.get_outputs()
        if not all(isinstance(dim, int) or dim in known for dim in one.shape)
    )


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
