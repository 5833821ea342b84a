"""`.onnx` files: what they show, and as networks that ONNX Runtime runs. Knows no task, no options."""

from __future__ import annotations

import functools
from pathlib import Path

import onnx
import torch

from pipelines.models.graph import Graph, Port
from pipelines.models.onnx_runtime import OnnxGraph, one_line
from pipelines.models.spec import Engine
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.graph_network import GraphNetwork, Open
from pipelines.zoo.files.input_form import HINT, InputForm, input_form
from pipelines.zoo.files.openvino_files import OpenvinoFile
from pipelines.zoo.files.operators import onnx_operators

ON_CPU = torch.device("cpu")
# ONNX Runtime's names of types, where torch has another.
TORCH_NAMES = {"float": "float32", "double": "float64"}
# Domains whose operators ONNX Runtime has.
ITS_DOMAINS = (
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "com.microsoft",
    "ai.onnx.preview.training",
    "com.microsoft.nchwc",
)


def read_onnx(path: Path) -> Graph:
    """What a file shows of its network.

    Raises:
        ModelUnavailable: the file is missing, or not readable as ONNX, or has outputs that are no tensors.
    """
    if not path.is_file():
        raise ModelUnavailable(f"{path}: no such file", hint="check the path of the model")
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception as error:
        raise ModelUnavailable(f"{path}: not readable as ONNX: {one_line(error)}", hint=HINT) from error
    foreign = sorted(
        {f"{node.domain}.{node.op_type}" for node in graph.node if node.domain not in ITS_DOMAINS}
    )
    session = _open(path, ON_CPU, optimise=False, foreign=", ".join(foreign)).session
    operators = onnx_operators(graph)
    try:
        metadata = dict(session.get_modelmeta().custom_metadata_map)
    except UnicodeDecodeError as error:
        raise ModelUnavailable(f"{path}: its metadata is not UTF-8 text", hint=HINT) from error
    for output in session.get_outputs():
        if not output.type.startswith("tensor("):
            raise ModelUnavailable(f"{path}: output {output.name} is {output.type}, not a tensor", hint=HINT)
    return Graph(
        inputs=tuple(map(_port, session.get_inputs())),
        outputs=tuple(_port(one, operators.get(one.name, "")) for one in session.get_outputs()),
        metadata=metadata,
    )


def onnx_network(path: Path, form: InputForm | None = None) -> GraphNetwork:
    """A file as a network: model pixels of any batch → its outputs by name, on the device of the pixels.

    Raises:
        ModelUnavailable: as of `read_onnx`, or its inputs are none that can be given.
    """
    form = form or input_form(read_onnx(path), path.name)
    openers: dict[Engine, Open] = {
        "onnxruntime": functools.partial(_open, path),
        "openvino": functools.partial(OpenvinoFile, path),
    }
    return GraphNetwork(openers, form)


def _port(one: object, operator: str = "") -> Port:
    kind = one.type.removeprefix("tensor(").removesuffix(")")  # type: ignore[attr-defined]
    # Free dimensions have a name or None; exporters of old wrote -1 or 0.
    shape = one.shape  # type: ignore[attr-defined]
    dims = tuple(size if isinstance(size, int) and size > 0 else None for size in shape)
    return Port(
        name=one.name,  # type: ignore[attr-defined]
        dtype=TORCH_NAMES.get(kind, kind),
        dims=dims,
        operator=operator,
    )


def _open(path: Path, device: torch.device, *, optimise: bool = True, foreign: str = "") -> OnnxGraph:
    if not path.is_file():
        raise ModelUnavailable(f"{path}: no such file", hint="check the path of the model")
    try:
        return OnnxGraph(path, device, optimise=optimise)
    except RuntimeError as error:
        if foreign:
            wrong = f"{path} has operators that ONNX Runtime does not know: {foreign}"
            raise ModelUnavailable(
                wrong, hint="export it without them (of a detector: without NMS)"
            ) from error
        raise ModelUnavailable(f"{path}: not readable as ONNX: {error}", hint=HINT) from error
