"""Models that come as Python code: factories of one's own, and entries of torch.hub.

Nothing here is a barrier: what is named runs with all rights of the server, so `resolve` asks for leave.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import urllib.error
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.models.onnx_runtime import one_line
from pipelines.models.spec import ModelSpec
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.draft import Draft, draft_of


def factory_draft(source: str) -> Draft:
    """`package.module:function`, importable from the current directory too; called without arguments.

    A function that gives a `ModelSpec` says all of its model. One that gives an `nn.Module` is called once
    more when the model is loaded, so that nothing heavy stays in between.

    Raises:
        ModelUnavailable: there is no such function, it fails, or it gives something else.
    """
    module_name, _, function_name = source.partition(":")
    make = _function(source, module_name, function_name)
    made = _called(source, make)
    if isinstance(made, ModelSpec):
        return draft_of(made)
    return _module_draft(source, lambda: _called(source, make))


def hub_draft(text: str) -> Draft:
    """`REPO[:REF]:ENTRY` of torch.hub: `owner/name`, or a folder here with a `hubconf.py`.

    Raises:
        ModelUnavailable: the form is wrong, the repository cannot be had, or its entry fails.
    """
    source = f"torch.hub:{text}"
    repo, _, rest = text.partition(":")
    ref, _, entry = rest.rpartition(":")
    if not repo or not entry:
        raise ModelUnavailable(
            f"{source} is not an entry of torch.hub", hint="torch.hub:OWNER/NAME[:REF]:ENTRY"
        )
    folder = Path(repo).expanduser()
    local = (folder / "hubconf.py").is_file()
    if not local and repo.count("/") != 1:
        raise ModelUnavailable(
            f"{source}: no hubconf.py in {folder}", hint="torch.hub:OWNER/NAME[:REF]:ENTRY"
        )
    if local and ref:
        raise ModelUnavailable(f"{source}: a folder has no REF {ref!r}", hint="leave it out")

    where = str(folder) if local else f"{repo}:{ref}" if ref else repo
    kind = "local" if local else "github"

    def load() -> Any:
        return torch.hub.load(where, entry, source=kind, trust_repo=True)  # type: ignore[no-untyped-call]

    return _module_draft(source, lambda: _called(source, load))


def _module_draft(source: str, build: Callable[[], Any]) -> Draft:
    def network() -> nn.Module:
        made = build()
        if not isinstance(made, nn.Module):
            raise ModelUnavailable(
                f"{source} gives a {type(made).__name__}", hint="an nn.Module or, from a factory, a ModelSpec"
            )
        return made

    return Draft(name=source.rpartition(":")[2], build=network, source=f"code of {source}")


def _function(source: str, module_name: str, function_name: str) -> Callable[[], Any]:
    with _importing_from_here():
        try:
            module = importlib.import_module(module_name)
        except Exception as error:
            raise ModelUnavailable(
                f"cannot import {module_name} of {source}: {one_line(error)}",
                hint="run the server from the package's folder, or install it",
            ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelUnavailable(
            f"{module_name} has no function {function_name}", hint="package.module:function"
        )
    found: Callable[[], Any] = function
    return found


@contextlib.contextmanager
def _importing_from_here() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _called(source: str, make: Callable[[], Any]) -> Any:
    try:
        return make()
    except ModelUnavailable:
        raise
    except (urllib.error.URLError, OSError) as error:
        raise ModelUnavailable(
            f"cannot get {source}: {one_line(error)}",
            hint="is the network reachable? a local folder works without it",
        ) from error
    except Exception as error:
        raise ModelUnavailable(
            f"{source} failed: {type(error).__name__}: {one_line(error)}",
            hint="fix it, or try it in plain Python",
        ) from error
