"""`.onnx` files run by ONNX Runtime, as networks like others. Knows no task: answers go by outputs' names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from pipelines.models.onnx_runtime import OnnxGraph
from pipelines.models.outputs import BOX_OUTPUTS
from pipelines.models.spec import Engine
from pipelines.models.torch_runtime import Foreign, padded
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.facts import MODEL_FACTS_KEY

FLOATS = ("tensor(float)", "tensor(float16)")
ON_CPU = torch.device("cpu")
RANKS = (4, 5)
CHANNELS = 3
OF_DETECTIONS = (*BOX_OUTPUTS, "masks", "keypoints")
HINT = "export it with python -m scripts.export, or with one float input (N, 3, h, w) or (N, 3, T, h, w)"

Outputs = dict[str, Tensor]


def read_onnx_facts(path: Path) -> str | None:
    """The text under `MODEL_FACTS_KEY` in a file's metadata, None where there is none.

    Raises:
        ModelUnavailable: the file is missing, or not readable as ONNX.
    """
    try:
        session = _open(path, ON_CPU, optimise=False).session
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise ModelUnavailable(f"{path}: its metadata is not UTF-8 text", hint=HINT) from error
    return metadata.get(MODEL_FACTS_KEY)


def fixed_input(path: Path) -> tuple[int | None, ...]:
    """The dimensions `(N, 3, h, w)` or `(N, 3, T, h, w)` that a file takes, None where it takes any.

    Raises:
        ModelUnavailable: as of `OnnxNetwork`.
    """
    return _dims(_open(path, ON_CPU, optimise=False), path)


class OnnxNetwork(Foreign):
    """An `.onnx` file as a network: `(N, 3, …)` of any N → its outputs by name, on the device of the pixels.

    A file with a fixed batch is run in pieces of that size, the last one filled up. Outputs `boxes`, `labels`
    and `scores` become a list of N mappings, best box first, as of a detector of torchvision.

    Raises:
        ModelUnavailable: the file is missing or damaged, has not just one float input of rank 4 or 5 with
            three channels, or has outputs that are no tensors.
    """

    engine: Engine = "onnxruntime"

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._device = ON_CPU
        self._graph = _open(path, ON_CPU)
        self._batch = _dims(self._graph, path)[0]
        outputs = self._graph.session.get_outputs()
        self._names = [output.name for output in outputs]
        for output in outputs:
            if not output.type.startswith("tensor("):
                raise ModelUnavailable(
                    f"{path}: output {output.name} is {output.type}, not a tensor", hint=HINT
                )

    @property
    def lanes(self) -> int:
        return self._graph.lanes

    def forward(self, pixels: Tensor) -> Outputs | list[Outputs]:
        if pixels.device != self._device:
            self._graph, self._device = _open(self._path, pixels.device), pixels.device
        boxes = all(name in self._names for name in BOX_OUTPUTS)
        runs = [self._graph(part) for part in self._parts(pixels)]
        if boxes:
            return [frame for run in runs for frame in _frames(run)][: len(pixels)]
        joined = runs[0]
        if len(runs) > 1:
            joined = {name: torch.cat([run[name] for run in runs]) for name in self._names}
        for name, tensor in joined.items():
            if len(tensor) < len(pixels):
                raise RuntimeError(f"output {name} has {len(tensor)} rows for {len(pixels)} of input")
        return {name: tensor[: len(pixels)] for name, tensor in joined.items()}

    def _parts(self, pixels: Tensor) -> Iterator[Tensor]:
        """The batch in pieces of the size that the file takes, the last one filled up with its last row."""
        size = self._batch or len(pixels)
        for part in torch.split(pixels, size):
            yield padded(part, size)


def _frames(run: Outputs) -> list[Outputs]:
    """The detections of one run, a mapping for each picture; without a batch's dimension they are of one."""
    known = {name: run[name] for name in OF_DETECTIONS if name in run}
    if known["boxes"].ndim != 3:
        known = {name: tensor[None] for name, tensor in known.items()}
    orders = known["scores"].argsort(descending=True, stable=True)
    return [{name: tensor[at][order] for name, tensor in known.items()} for at, order in enumerate(orders)]


def _open(path: Path, device: torch.device, *, optimise: bool = True) -> OnnxGraph:
    if not path.is_file():
        raise ModelUnavailable(f"{path}: no such file", hint="check the path of the model")
    try:
        return OnnxGraph(path, device, optimise=optimise)
    except RuntimeError as error:
        raise ModelUnavailable(f"{path}: not readable as ONNX: {error}", hint=HINT) from error


def _dims(graph: OnnxGraph, path: Path) -> tuple[int | None, ...]:
    """The dimensions of the one input of a network, None where they are free."""
    inputs = graph.session.get_inputs()
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs)
        raise ModelUnavailable(f"{path} has {len(inputs)} inputs ({names}), needs one", hint=HINT)
    only = inputs[0]
    if only.type not in FLOATS:
        raise ModelUnavailable(f"{path}: input {only.name} is {only.type}, needs float", hint=HINT)
    # Free dimensions have a name or None; exporters of old wrote -1 or 0.
    dims = tuple(size if isinstance(size, int) and size > 0 else None for size in only.shape)
    if len(dims) not in RANKS or dims[1] not in (CHANNELS, None):
        raise ModelUnavailable(
            f"{path}: input {only.name} is {only.shape}, needs (N, 3, h, w) or (N, 3, T, h, w)", hint=HINT
        )
    return dims
