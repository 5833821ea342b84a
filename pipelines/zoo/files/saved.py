"""Whole models in a file: `.pt2` of torch.export, TorchScript, `.onnx`, `.xml`. Knows no options.

A `.pt2` or TorchScript file is a program. With PyTorch 2.10 `torch.export.load` falls back to the plain
unpickler, evaluates guards as Python and starts native code; TorchScript has operators that write files. So
`resolve` asks for leave before either is read here. ONNX and OpenVINO's files are data.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.models.graph import Dims, Graph, Port
from pipelines.models.heads.boxes import Boxes
from pipelines.models.onnx_runtime import one_line
from pipelines.models.outputs import BOX_OUTPUTS
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import LARGEST_TEXT
from pipelines.zoo.draft import Draft, draft_of
from pipelines.zoo.files.facts import MODEL_FACTS_KEY, spec_from_facts
from pipelines.zoo.files.graph_network import ProgramNetwork
from pipelines.zoo.files.input_form import InputForm, input_form
from pipelines.zoo.files.onnx_files import onnx_network, read_onnx
from pipelines.zoo.files.openvino_files import ir_network, read_ir, weights_of
from pipelines.zoo.files.operators import exported_operators, script_operators
from pipelines.zoo.texts import check_file

# No side, batch or clip is larger than this, and no graph or facts have more bytes.
LARGEST_DIM = 8192
LARGEST_GRAPH = 64 << 20

RANKS = (4, 5)
# The numbers of `ScalarType` in torch's schema of exported programs.
EXPORTED_DTYPES = {1: "uint8", 5: "int64", 6: "float16", 7: "float32", 8: "float64", 13: "bfloat16"}
FREE: Dims = (None, 3, None, None)
Open = Callable[[InputForm], nn.Module]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, which holds code; state dicts and plain pickles hold none."""
    if not zipfile.is_zipfile(path):
        return False
    with _reading(path), zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def saved_draft(path: Path, *, sha256: str = "") -> Draft:
    """A `.pt2` or TorchScript file, for which the user vouches; what it says of itself, if it has facts.

    Raises:
        ModelUnavailable: the file is damaged, or another one than pinned.
    """
    exported = path.suffix.lower() == ".pt2"
    facts = _member(path, f"/extra/{MODEL_FACTS_KEY}", LARGEST_TEXT)
    graph = _exported_graph(path) if exported else _script_graph(path)

    def open_program(form: InputForm) -> nn.Module:
        check_file(path, sha256)
        return ProgramNetwork(_program(path), form)

    source = f"{path.name}, {'an exported program' if exported else 'TorchScript'}"
    return _draft(path, open_program, source, facts, graph)


def onnx_draft(path: Path, *, sha256: str = "") -> Draft:
    """An `.onnx` file, run by ONNX Runtime. Raises ModelUnavailable where it cannot be read."""

    def open_graph(form: InputForm) -> nn.Module:
        check_file(path, sha256)
        return onnx_network(path, form)

    graph = read_onnx(path)
    facts = graph.metadata.get(MODEL_FACTS_KEY)
    return _draft(path, open_graph, f"{path.name}, by ONNX Runtime", facts, graph)


def ir_draft(path: Path, *, sha256: str = "") -> Draft:
    """An `.xml` file of OpenVINO with its `.bin`, run by OpenVINO. Raises ModelUnavailable.

    Args:
        sha256: of both files, one after the other, first the `.xml`.
    """

    def open_graph(form: InputForm) -> nn.Module:
        check_file(path, sha256, beside=weights_of(path))
        return ir_network(path, form)

    return _draft(path, open_graph, f"{path.name}, by OpenVINO", None, read_ir(path))


def _draft(path: Path, open_network: Open, source: str, facts: str | None, graph: Graph) -> Draft:
    """What the facts in a file say; without any, what its graph shows."""
    draft = Draft(name=path.stem, build=nn.Identity, source=source, graph=graph, open=open_network)
    if facts is None:
        return draft
    form = input_form(graph, path.name)
    said = draft_of(spec_from_facts(facts, build=nn.Identity, source=source, file=path))
    given = {port.name for port in graph.outputs}
    chosen = Boxes() if said.task == "detection" and given.issuperset(BOX_OUTPUTS) else None
    build = functools.partial(open_network, replace(form, apart=form.apart and chosen is not None))
    return replace(said, build=build, max_batch=form.batch or said.max_batch, head=chosen)


def _program(path: Path) -> Any:
    with _reading(path):
        if path.suffix.lower() == ".pt2":
            return torch.export.load(path).module()
        return torch.jit.load(str(path), map_location="cpu").eval()  # type: ignore[no-untyped-call]


def _script_graph(path: Path) -> Graph:
    """What a TorchScript file shows: no sizes, but the channels of its first weights over pixels."""
    program = _program(path)
    with _reading(path):
        first = next((one for one in program.state_dict().values() if one.ndim in RANKS), None)
        rank = 4 if first is None else first.ndim
        grey = first is not None and first.shape[1] == 1
        dims: Dims = (None, 1 if grey else 3, *[None] * (rank - 2))
        operators = script_operators(program)
    return Graph(inputs=(Port(name="pixels", dtype="float32", dims=dims),), outputs=_outputs(operators))


def _exported_graph(path: Path) -> Graph:
    """What a `.pt2` file shows."""
    inputs = _exported_inputs(path)
    with _reading(path):
        operators = exported_operators(torch.export.load(path))
    return Graph(inputs=inputs, outputs=_outputs(operators))


def _outputs(operators: Sequence[str]) -> tuple[Port, ...]:
    """Outputs of which only the operators are known; named as `named_tensors` names them."""
    names = [f"logits_{place}" if place else "logits" for place in range(len(operators))]
    return tuple(
        Port(name=name, dtype="float32", dims=(), operator=one)
        for name, one in zip(names, operators, strict=True)
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Readers raise anything at damaged files, and log a traceback before they do."""
    loggers = [logging.getLogger(name) for name in ("torch.export", "torch._export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        reason = "".join(one if one.isprintable() else "?" for one in one_line(error)[:300])
        raise ModelUnavailable(
            f"cannot read {path}: {reason}", hint="is it complete, and a saved model?"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _member(path: Path, end: str, most: int) -> str | None:
    """The text in an archive whose name ends with `end`; None: there is none."""
    with _reading(path), zipfile.ZipFile(path) as archive:
        info = next((one for one in archive.infolist() if one.filename.endswith(end)), None)
        if info is None:
            return None
        if info.file_size > most:
            raise ValueError(f"{info.filename} has {info.file_size} bytes, more than {most}")
        return archive.read(info).decode("utf-8", "replace")


def _exported_inputs(path: Path) -> tuple[Port, ...]:
    """What an exported program takes; where its text does not tell: float32, and free dimensions."""
    text = _member(path, "/models/model.json", LARGEST_GRAPH) or "{}"
    with _reading(path):
        graph = json.loads(text)
    unknown = Port(name="pixels", dtype="float32", dims=FREE)
    try:
        module = graph["graph_module"]
        specs = module["signature"]["input_specs"]
        names = [spec["user_input"]["arg"]["as_tensor"]["name"] for spec in specs if "user_input" in spec]
        tensors = [module["graph"]["tensor_values"][name] for name in names]
        found = tuple(_exported_port(*each) for each in zip(names, tensors, strict=True))
    except (LookupError, TypeError, AttributeError):
        return (unknown,)
    if len(found) == 1:
        whole = len(found[0].dims) in RANKS and all(map(_is_size, found[0].dims))
        return (replace(found[0], name=unknown.name),) if whole else (unknown,)
    return found or (unknown,)


def _exported_port(name: str, tensor: dict[str, Any]) -> Port:
    dims = tuple(size.get("as_int") for size in tensor["sizes"])
    return Port(name=name, dtype=EXPORTED_DTYPES.get(tensor.get("dtype", 0), "float32"), dims=dims)


def _is_size(size: Any) -> bool:
    return size is None or (type(size) is int and 0 < size <= LARGEST_DIM)
