"""`.onnx` files run by ONNX Runtime, as networks like others. Knows no task: answers go by the outputs' names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from model_inference import BOX_OUTPUTS
from pipelines.errors import ModelUnavailable
from pipelines.sources.facts import MODEL_FACTS_KEY

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
RANKS = (4, 5)
CHANNELS = 3
OF_DETECTIONS = (*BOX_OUTPUTS, "masks", "keypoints")
HINT = "export it with scripts/export.py, or with one float input (N, 3, h, w) or (N, 3, T, h, w)"

Outputs = dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Input:
    """The one input of a network: its dimensions, None where they are free."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | None, ...]


def read_onnx_facts(path: Path) -> str | None:
    """The text under `MODEL_FACTS_KEY` in a file's metadata, None where there is none.

    Raises:
        ModelUnavailable: the file is missing, or not readable as ONNX.
    """
    try:
        metadata: dict[str, str] = _open(path, "cpu", optimise=False).get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ModelUnavailable(f"{path}: its metadata is no UTF-8 text", hint=HINT) from error
    return metadata.get(MODEL_FACTS_KEY)


def fixed_input(path: Path) -> tuple[int | None, ...]:
    """The dimensions `(N, 3, h, w)` or `(N, 3, T, h, w)` that a file takes, None where it takes any.

    Raises:
        ModelUnavailable: as of `OnnxNetwork`.
    """
    return _input(_open(path, "cpu", optimise=False), path).dims


class OnnxNetwork(nn.Module):
    """An `.onnx` file as a network: `(N, 3, …)` of any N → its outputs by name, on the device of the pixels.

    A file with a fixed batch is run in pieces of that size, the last one filled up. Outputs `boxes`, `labels`
    and `scores` become a list of N mappings, best box first, as of a detector of torchvision. Pixels on a GPU
    are computed there where ONNX Runtime has its CUDA provider, else on the CPU; they go through host memory.

    Raises:
        ModelUnavailable: the file is missing or damaged, has not just one float input of rank 4 or 5 with three
            channels, or has outputs that are no tensors.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._device_type = "cpu"
        self._session = _open(path, "cpu")
        self._input = _input(self._session, path)
        self._names = [output.name for output in self._session.get_outputs()]
        for output in self._session.get_outputs():
            if not output.type.startswith("tensor("):
                raise ModelUnavailable(f"{path}: output {output.name} is {output.type}, no tensor", hint=HINT)

    def forward(self, pixels: Tensor) -> Outputs | list[Outputs]:
        if pixels.device.type != self._device_type:
            self._session = _open(self._path, pixels.device.type)
            self._device_type = pixels.device.type
        boxes = all(name in self._names for name in BOX_OUTPUTS)
        runs = [self._run(part) for part in self._parts(pixels)]
        if boxes:
            frames = [frame for run in runs for frame in _frames(run)]
            return [_moved(frame, pixels.device) for frame in frames[: len(pixels)]]
        joined = {name: torch.cat([run[name] for run in runs]) for name in self._names}
        for name, tensor in joined.items():
            if len(tensor) < len(pixels):
                raise RuntimeError(f"output {name} has {len(tensor)} rows for {len(pixels)} of input")
        return _moved({name: tensor[: len(pixels)] for name, tensor in joined.items()}, pixels.device)

    def _parts(self, pixels: Tensor) -> Iterator[Tensor]:
        """The batch in pieces of the size that the file takes, the last one filled up with its last element."""
        size = self._input.dims[0] or len(pixels)
        for part in torch.split(pixels, size):
            yield torch.cat([part, part[-1:].expand(size - len(part), *part.shape[1:])])

    def _run(self, pixels: Tensor) -> Outputs:
        array = pixels.to("cpu", self._input.dtype).contiguous().numpy()
        try:
            arrays = self._session.run(None, {self._input.name: array})
        except _failures() as error:
            raise RuntimeError(_line(error)) from error
        return {name: torch.from_numpy(array) for name, array in zip(self._names, arrays, strict=True)}


def _frames(run: Outputs) -> list[Outputs]:
    """The detections of one run, a mapping for each picture; without a batch's dimension they are of one."""
    known = {name: run[name] for name in OF_DETECTIONS if name in run}
    frames = [known]
    if known["boxes"].ndim == 3:
        frames = [
            {name: tensor[place] for name, tensor in known.items()} for place in range(len(known["boxes"]))
        ]
    return [_best_first(frame) for frame in frames]


def _best_first(frame: Outputs) -> Outputs:
    order = frame["scores"].argsort(descending=True, stable=True)
    return {name: tensor[order] for name, tensor in frame.items()}


def _moved(outputs: Mapping[str, Tensor], device: torch.device) -> Outputs:
    return {name: tensor.to(device) for name, tensor in outputs.items()}


def _open(path: Path, device_type: str, *, optimise: bool = True) -> InferenceSession:
    import onnxruntime

    if not path.is_file():
        raise ModelUnavailable(f"{path}: no such file", hint="check the path of the model")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    # Threads that spin while they wait take the cores from the decoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    wanted = ["CUDAExecutionProvider"] if device_type == "cuda" else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[*providers, "CPUExecutionProvider"]
        )
    except _failures() as error:
        raise ModelUnavailable(f"{path}: not readable as ONNX: {_line(error)}", hint=HINT) from error


def _failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises; its types have no base of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    kinds = [
        value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)
    ]
    return (*kinds, RuntimeError, ValueError)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _input(session: InferenceSession, path: Path) -> _Input:
    inputs = session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise ModelUnavailable(f"{path} has {len(inputs)} inputs ({names}), needs one", hint=HINT)
    only = inputs[0]
    if only.type not in DTYPES:
        raise ModelUnavailable(f"{path}: input {only.name} is {only.type}, needs float", hint=HINT)
    # Free dimensions have a name or None; exporters of old wrote -1 or 0.
    dims = tuple(size if isinstance(size, int) and size > 0 else None for size in only.shape)
    if len(dims) not in RANKS or dims[1] not in (CHANNELS, None):
        raise ModelUnavailable(
            f"{path}: input {only.name} is {only.shape}, needs (N, 3, h, w) or (N, 3, T, h, w)", hint=HINT
        )
    return _Input(name=only.name, dtype=DTYPES[only.type], dims=dims)
