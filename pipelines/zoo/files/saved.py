"""Whole models in a file: `.pt2` of torch.export, TorchScript, `.onnx`. Knows no options.

Archives are looked through before they are loaded (`archive`), and while one is loaded torch is told to read
no pickle without `weights_only`; `--allow-code` skips both. ONNX is data. This closes the ways that are known
by which a model could do more than compute, and is no proof: take models from where you would take programs,
and pin them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.draft import Draft, draft_of
from pipelines.zoo.files.archive import check_exported, check_script, members, read_json, read_member
from pipelines.zoo.files.facts import MODEL_FACTS_KEY, spec_from_facts
from pipelines.zoo.files.onnx_files import OnnxNetwork, fixed_input, read_onnx_facts
from pipelines.zoo.texts import LARGEST_TEXT, check_file

# Pictures are of four dimensions, clips of five; no side, batch or clip is larger than this.
RANKS = (4, 5)
LARGEST_DIM = 8192


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, which holds code; state dicts and plain pickles hold none."""
    return zipfile.is_zipfile(path) and any("/code/" in name for name in members(path))


def saved_draft(path: Path, *, sha256: str = "", allow_code: bool = False) -> Draft:
    """A `.pt2` or TorchScript file; what it says of itself, if it was written with facts.

    Raises:
        ModelUnavailable: the file is damaged, another one than pinned, or would do more than compute.
    """
    exported = path.suffix.lower() == ".pt2"
    load = _load_exported if exported else _load_script
    names = members(path)
    if not allow_code:
        (check_exported if exported else check_script)(path)

    def build() -> nn.Module:
        check_file(path, sha256)
        return load(path, allow_code)

    source = f"{path.name}, {'an exported program' if exported else 'TorchScript'}"
    plain = Draft(name=path.stem, build=build, source=source)
    batch, *_, height_px, width_px = _exported_dims(path, names) if exported else (None,) * 4
    member = next((name for name in names if name.endswith(f"/extra/{MODEL_FACTS_KEY}")), None)
    if member is None:
        drafted = replace(plain, input_px=(height_px, width_px) if height_px and width_px else None)
    else:
        text = read_member(path, member, LARGEST_TEXT).decode("utf-8", "replace")
        drafted = draft_of(spec_from_facts(text, build=build, source=source, file=path))
    return replace(drafted, max_batch=batch or drafted.max_batch)


def onnx_draft(path: Path, *, sha256: str = "") -> Draft:
    """An `.onnx` file, run by ONNX Runtime. Raises ModelUnavailable where it cannot be read."""

    def build() -> nn.Module:
        check_file(path, sha256)
        return OnnxNetwork(path)

    source = f"{path.name}, by ONNX Runtime"
    if (text := read_onnx_facts(path)) is not None:
        return draft_of(spec_from_facts(text, build=build, source=source, file=path))
    dims = fixed_input(path)
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


def _load_exported(path: Path, allow_code: bool) -> nn.Module:
    guard = contextlib.nullcontext() if allow_code else _weights_only()
    with _reading(path, "an exported program"), guard:
        return _Saved(torch.export.load(path).module())


def _load_script(path: Path, _allow_code: bool) -> nn.Module:
    with _reading(path, "TorchScript"):
        return _Saved(torch.jit.load(str(path), map_location="cpu").eval())  # type: ignore[no-untyped-call]


@contextlib.contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
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
        line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        reason = "".join(one if one.isprintable() else "?" for one in line)
        raise ModelUnavailable(f"cannot read {path} as {what}: {reason}", hint="is it complete?") from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _weights_only() -> Iterator[None]:
    """Torch reads no pickle with code within: its own switch, which is asked at every load."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _exported_dims(path: Path, names: list[str]) -> tuple[int | None, ...]:
    """The dimensions `(N, …, h, w)` that an exported program takes, None where they are free or cannot be
    told.
    """
    member = next((name for name in names if "/models/" in name), None)
    try:
        module = read_json(path, member or "models")["graph_module"]
        inputs = [
            spec["user_input"]["arg"] for spec in module["signature"]["input_specs"] if "user_input" in spec
        ]
        sizes = module["graph"]["tensor_values"][inputs[0]["as_tensor"]["name"]]["sizes"]
        dims = tuple(size.get("as_int") for size in sizes)
    except (LookupError, TypeError, AttributeError, ValueError):
        return (None,) * 4
    whole = all(size is None or (type(size) is int and 0 < size <= LARGEST_DIM) for size in dims)
    return dims if whole and len(dims) in RANKS else (None,) * 4
