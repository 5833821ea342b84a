"""Whole models in a file: `.pt2` of torch.export, TorchScript, `.onnx`. Knows no options.

A `.pt2` or TorchScript file is a program. With PyTorch 2.10 `torch.export.load` falls back to the plain
unpickler, evaluates guards as Python and starts native code; TorchScript has operators that write files. So
`resolve` asks for leave before either is read here. ONNX is data.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.models.onnx_runtime import one_line
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import LARGEST_TEXT
from pipelines.zoo.draft import Draft, draft_of
from pipelines.zoo.files.facts import MODEL_FACTS_KEY, spec_from_facts
from pipelines.zoo.files.onnx_files import RANKS, OnnxNetwork, fixed_input, read_onnx_facts
from pipelines.zoo.texts import check_file

# No side, batch or clip is larger than this, and no graph or facts have more bytes.
LARGEST_DIM = 8192
LARGEST_GRAPH = 64 << 20

Dims = tuple[int | None, ...]
FREE: Dims = (None,) * 4


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

    def build() -> nn.Module:
        check_file(path, sha256)
        with _reading(path):
            if exported:
                return _Saved(torch.export.load(path).module())
            return _Saved(torch.jit.load(str(path), map_location="cpu").eval())  # type: ignore[no-untyped-call]

    dims = _exported_dims(path) if exported else FREE
    source = f"{path.name}, {'an exported program' if exported else 'TorchScript'}"
    draft = _draft(path, build, source, _member(path, f"/extra/{MODEL_FACTS_KEY}", LARGEST_TEXT), dims)
    return replace(draft, max_batch=dims[0] or draft.max_batch)


def onnx_draft(path: Path, *, sha256: str = "") -> Draft:
    """An `.onnx` file, run by ONNX Runtime. Raises ModelUnavailable where it cannot be read."""

    def build() -> nn.Module:
        check_file(path, sha256)
        return OnnxNetwork(path)

    facts = read_onnx_facts(path)
    dims = fixed_input(path) if facts is None else FREE
    return _draft(path, build, f"{path.name}, by ONNX Runtime", facts, dims)


def _draft(path: Path, build: Callable[[], nn.Module], source: str, facts: str | None, dims: Dims) -> Draft:
    """What the facts in a file say; without any, the size of its input where that is fixed."""
    if facts is not None:
        return draft_of(spec_from_facts(facts, build=build, source=source, file=path))
    height_px, width_px = dims[-2:]
    fixed = (height_px, width_px) if height_px and width_px else None
    return Draft(name=path.stem, build=build, source=source, input_px=fixed)


class _Saved(nn.Module):
    """A loaded program as a network: it has the mode that it was saved in, whatever is asked of it."""

    def __init__(self, program: Any) -> None:
        super().__init__()
        self.program = program

    def train(self, mode: bool = True) -> _Saved:
        """Exported programs raise where they are asked for another mode."""
        del mode
        return self

    def forward(self, pixels: torch.Tensor) -> Any:
        return self.program(pixels)


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


def _exported_dims(path: Path) -> Dims:
    """The dimensions `(N, …, h, w)` that an exported program takes; None: free, or it cannot be told."""
    text = _member(path, "/models/model.json", LARGEST_GRAPH) or "{}"
    with _reading(path):
        graph = json.loads(text)
    try:
        module = graph["graph_module"]
        specs = module["signature"]["input_specs"]
        first = next(spec["user_input"]["arg"] for spec in specs if "user_input" in spec)
        sizes = module["graph"]["tensor_values"][first["as_tensor"]["name"]]["sizes"]
        dims = tuple(size.get("as_int") for size in sizes)
    except (LookupError, TypeError, AttributeError, StopIteration):
        return FREE
    whole = all(size is None or (type(size) is int and 0 < size <= LARGEST_DIM) for size in dims)
    return dims if whole and len(dims) in RANKS else FREE
