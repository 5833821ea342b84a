"""Where models come from: `resolve` makes a `ModelSpec` of what a user chose. Each source has its module.

Nothing heavy is imported before `resolve` is called: settings are read first.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings

if TYPE_CHECKING:
    from pipelines.models.spec import ModelSpec
    from pipelines.zoo.draft import Draft

HUB_PREFIX = "torch.hub:"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
STATE_SUFFIXES = (".safetensors", ".pth")
SAVED_SUFFIXES = (".pt2", ".pt", ".ts", ".torchscript")
FILE_SUFFIXES = (*STATE_SUFFIXES, *SAVED_SUFFIXES, ".onnx")


def resolve(choice: ModelSettings, *, allow_code: bool) -> ModelSpec:
    """The spec of a model: what its source says, and over it what the choice says. Loads no network.

    Args:
        allow_code: whether a source may run code of its own.

    Raises:
        ModelUnavailable: there is no such model, or what is known of it is not enough or disagrees.
    """
    from pipelines.zoo.draft import finish

    try:
        return finish(_draft(choice, allow_code), choice)
    except ModelUnavailable as error:
        if not choice.place:
            raise
        raise ModelUnavailable(f"{choice.place}: {error.message}", hint=error.hint) from error


def _draft(choice: ModelSettings, allow_code: bool) -> Draft:
    source = choice.source
    if not source:
        raise ModelUnavailable(
            "a model needs a source", hint="a torchvision name, a file, package.module:function"
        )
    if source.startswith(HUB_PREFIX) or FACTORY.fullmatch(source):
        return _code_draft(choice, allow_code)
    if source.lower().endswith(FILE_SUFFIXES):
        return _file_draft(choice, Path(source).expanduser(), allow_code)
    from pipelines.zoo.vision.models import torchvision_draft

    if choice.arch:
        raise ModelUnavailable(
            f"arch={choice.arch} goes with a file of weights, not with {source}", hint="leave out arch"
        )
    return torchvision_draft(source, weights=choice.weights, sha256=choice.sha256)


def _code_draft(choice: ModelSettings, allow_code: bool) -> Draft:
    from pipelines.zoo.factories import factory_draft, hub_draft

    if not allow_code:
        raise ModelUnavailable(
            f"{choice.source} runs Python code that is not Trivid's", hint="if you trust it, add --allow-code"
        )
    for name in ("weights", "arch", "sha256"):
        if value := getattr(choice, name):
            raise ModelUnavailable(
                f"{name}={value} has no meaning for {choice.source}", hint=f"leave out {name}"
            )
    if choice.source.startswith(HUB_PREFIX):
        return hub_draft(choice.source.removeprefix(HUB_PREFIX))
    return factory_draft(choice.source)


def _file_draft(choice: ModelSettings, path: Path, allow_code: bool) -> Draft:
    from pipelines.zoo.files.saved import is_torchscript, onnx_draft, saved_draft
    from pipelines.zoo.texts import check_file
    from pipelines.zoo.vision.models import state_draft

    if choice.weights:
        raise ModelUnavailable(
            f"weights={choice.weights} goes with a torchvision name; {path} brings its own",
            hint="leave it out",
        )
    check_file(path, choice.sha256, what="model")
    suffix = path.suffix.lower()
    program = suffix == ".pt2" or (suffix not in (*STATE_SUFFIXES, ".onnx") and is_torchscript(path))
    if choice.arch and (suffix == ".onnx" or program):
        raise ModelUnavailable(
            f"arch={choice.arch} goes with a state dict; {path} brings its own network", hint="leave it out"
        )
    if suffix == ".onnx":
        return onnx_draft(path, sha256=choice.sha256)
    if program and not (allow_code or choice.sha256):
        raise ModelUnavailable(
            f"{path} is a program, which can run code when it is loaded",
            hint="if you trust it, add --allow-code, or pin it with --sha256 (`sha256sum FILE` prints it)",
        )
    if program:
        return saved_draft(path, sha256=choice.sha256)
    if not choice.arch:
        raise ModelUnavailable(
            f"{path} is not a saved model that can be read without running code from it",
            hint="for a state dict name its network: --arch resnet50; save a whole model with "
            "torch.export.save, torch.jit.save or torch.onnx.export",
        )
    return state_draft(choice.arch, path, sha256=choice.sha256)
