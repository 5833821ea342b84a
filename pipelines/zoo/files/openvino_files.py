"""Files that OpenVINO runs: its own, an `.xml` with a `.bin` beside it, and `.onnx`. Knows no task."""

from __future__ import annotations

import functools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.models.graph import Graph, Port
from pipelines.models.onnx_runtime import one_line
from pipelines.models.openvino_runtime import OpenvinoGraph, read_graph
from pipelines.models.spec import Engine
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.graph_network import GraphNetwork
from pipelines.zoo.files.input_form import InputForm
from pipelines.zoo.files.operators import ir_operators

# OpenVINO's names of types, where torch has another.
TORCH_NAMES = {
    "f32": "float32",
    "f16": "float16",
    "f64": "float64",
    "u8": "uint8",
    "i32": "int32",
    "i64": "int64",
}
MODEL_INFO = "model_info"


def weights_of(path: Path) -> Path:
    """The file of weights that belongs to an `.xml`. Raises ModelUnavailable if there is none."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ModelUnavailable(
            f"{path} needs its weights beside it: no file {weights.name}", hint="copy both files"
        )
    return weights


def read_ir(path: Path) -> Graph:
    """What a file shows of its network; its `model_info` as metadata `model_info KEY`.

    Raises:
        ModelUnavailable: a file is missing, or OpenVINO does not read it.
    """
    weights_of(path)
    try:
        model = read_graph(path)
    except RuntimeError as error:
        old = "older than version 10" if _version(path) < 10 else "check that it is OpenVINO's"
        raise ModelUnavailable(f"{path}: OpenVINO cannot read it: {one_line(error)}", hint=old) from error
    operators = ir_operators(model.outputs)
    return Graph(
        inputs=tuple(map(_port, model.inputs, names_of(model.inputs))),
        outputs=tuple(map(_port, model.outputs, names_of(model.outputs), operators)),
        metadata=dict(_info(model)),
    )


def ir_network(path: Path, form: InputForm) -> GraphNetwork:
    """An `.xml` file as a network. Raises ModelUnavailable."""
    return GraphNetwork({"openvino": functools.partial(OpenvinoFile, path)}, form)


class OpenvinoFile:
    """A file opened for the CPU, whatever the pixels' device: its outputs by name, on that device.

    Raises:
        ModelUnavailable: OpenVINO cannot run it.
    """

    engine: Engine = "openvino"

    def __init__(self, path: Path, device: torch.device) -> None:
        del device
        try:
            self._graph = OpenvinoGraph(path, "fp32")
        except (RuntimeError, ValueError) as error:
            raise ModelUnavailable(
                f"{path}: OpenVINO cannot run it: {one_line(error)}", hint="leave out --engine"
            ) from error
        self._names = names_of(read_graph(path).outputs)

    @property
    def lanes(self) -> int:
        return self._graph.lanes

    def __call__(self, pixels: Tensor, extra: Mapping[str, Tensor]) -> dict[str, Tensor]:
        host = {name: one.cpu() for name, one in extra.items()}
        found = self._graph(pixels.cpu(), host)
        return {name: one.to(pixels.device) for name, one in zip(self._names, found.values(), strict=True)}


def names_of(ports: Sequence[Any]) -> list[str]:
    """The names of ports, or the numbers of their places."""
    return [min(port.names) if port.names else str(place) for place, port in enumerate(ports)]


def _port(port: Any, name: str, operator: str = "") -> Port:
    kind = port.element_type.get_type_name()
    dims = tuple(size.get_length() if size.is_static else None for size in port.partial_shape)
    return Port(name=name, dtype=TORCH_NAMES.get(kind, kind), dims=dims, operator=operator)


def _info(model: Any) -> Iterator[tuple[str, str]]:
    """The texts of `rt_info`'s table `model_info`; values are wrapped, and tables within it are left out."""
    if not model.has_rt_info([MODEL_INFO]):
        return
    for key in model.get_rt_info([MODEL_INFO]).value:
        value = model.get_rt_info([MODEL_INFO, key]).value
        if isinstance(value, str | int | float | bool):
            yield f"{MODEL_INFO} {key}", str(value)


def _version(path: Path) -> int:
    """The version of the file's form, of which OpenVINO reads only the newer ones; 99: not readable."""
    try:
        for _, element in ElementTree.iterparse(path, events=("start",)):
            return int(element.get("version", "99"))
    except (ElementTree.ParseError, OSError, ValueError):
        pass
    return 99
