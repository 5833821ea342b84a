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

HUB_PREFIX, TIMM_PREFIX, HF_PREFIX = "torch.hub:", "timm:", "hf:"
FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
STATE_SUFFIXES = (".safetensors", ".pth", ".bin", ".ckpt")
SAVED_SUFFIXES = (".pt2", ".pt", ".ts", ".torchscript")
GRAPH_SUFFIXES = (".onnx", ".xml")
FILE_SUFFIXES = (*STATE_SUFFIXES, *SAVED_SUFFIXES, *GRAPH_SUFFIXES)
# Data, whatever is in them; files of other endings are looked into for a program.
DATA_SUFFIXES = (".safetensors", *GRAPH_SUFFIXES)
# What may be said only of a state dict.
OF_STATES = ("transform_input", "norm_eps")


def resolve(choice: ModelSettings, *, allow_code: bool) -> ModelSpec:
    """The spec of a model: what its source says, and over it what the choice says. Loads no network.

    Args:
        allow_code: whether a source may run code of its own.

    Raises:
        ModelUnavailable: there is no such model, or what is known of it is not enough or disagrees.
    """
    from pipelines.zoo.finish import finish

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
            "a model needs a source",
            hint="a torchvision name, a file, timm:NAME, hf:FOLDER or package.module:function",
        )
    if source.startswith((TIMM_PREFIX, HF_PREFIX)):
        return _library_draft(choice)
    if source.startswith(HUB_PREFIX) or FACTORY.fullmatch(source):
        return _code_draft(choice, allow_code)
    if source.lower().endswith(FILE_SUFFIXES):
        return _file_draft(choice, Path(source).expanduser(), allow_code)
    from pipelines.zoo.files.foreign import refuse_format, refuse_unknown
    from pipelines.zoo.vision.models import torchvision_draft

    refuse_format(Path(source).expanduser())
    refuse_unknown(source)
    if choice.arch:
        raise ModelUnavailable(
            f"arch={choice.arch} goes with a file of weights, not with {source}", hint="leave out arch"
        )
    if _is_file(choice.weights):
        return _state_draft(choice, source, Path(choice.weights).expanduser())
    _refuse(choice, OF_STATES, source)
    return torchvision_draft(source, weights=choice.weights, sha256=choice.sha256)


def _is_file(weights: str) -> bool:
    suffixes = (*STATE_SUFFIXES, *SAVED_SUFFIXES)
    return weights.lower().endswith(suffixes) or "/" in weights or Path(weights).is_file()


def _refuse(choice: ModelSettings, names: tuple[str, ...], source: object) -> None:
    for name in names:
        if (value := getattr(choice, name)) not in (None, ""):
            raise ModelUnavailable(f"{name}={value} has no meaning for {source}", hint=f"leave out {name}")


def _state_draft(choice: ModelSettings, arch: str, path: Path) -> Draft:
    from pipelines.zoo.files.foreign import refuse_format
    from pipelines.zoo.vision.state_dicts import Unsaid, state_draft

    refuse_format(path)
    unsaid = Unsaid(transform_input=choice.transform_input, norm_eps=choice.norm_eps)
    return state_draft(arch, path, sha256=choice.sha256, unsaid=unsaid)


def _library_draft(choice: ModelSettings) -> Draft:
    source = choice.source
    _refuse(choice, ("arch", *OF_STATES), source)
    if source.startswith(TIMM_PREFIX):
        from pipelines.zoo.libraries.timm_models import timm_draft

        name = source.removeprefix(TIMM_PREFIX)
        return timm_draft(name, weights=choice.weights, sha256=choice.sha256, task=choice.task)
    from pipelines.zoo.libraries.hf_models import hf_draft

    _refuse(choice, ("weights",), source)
    return hf_draft(Path(source.removeprefix(HF_PREFIX)).expanduser(), sha256=choice.sha256)


def _code_draft(choice: ModelSettings, allow_code: bool) -> Draft:
    from pipelines.zoo.factories import factory_draft, hub_draft

    if not allow_code:
        raise ModelUnavailable(
            f"{choice.source} runs Python code that is not Trivid's", hint="if you trust it, add --allow-code"
        )
    _refuse(choice, ("weights", "arch", "sha256", *OF_STATES), choice.source)
    if choice.source.startswith(HUB_PREFIX):
        return hub_draft(choice.source.removeprefix(HUB_PREFIX))
    return factory_draft(choice.source)


def _file_draft(choice: ModelSettings, path: Path, allow_code: bool) -> Draft:
    from pipelines.zoo.files.openvino_files import weights_of
    from pipelines.zoo.files.saved import ir_draft, is_torchscript, onnx_draft, saved_draft
    from pipelines.zoo.texts import check_file

    if choice.weights:
        raise ModelUnavailable(
            f"weights={choice.weights} goes with a torchvision name; {path} brings its own",
            hint="leave it out",
        )
    suffix = path.suffix.lower()
    beside = weights_of(path) if suffix == ".xml" and path.is_file() else None
    check_file(path, choice.sha256, what="model", beside=beside)
    program = suffix == ".pt2" or (suffix not in DATA_SUFFIXES and is_torchscript(path))
    if choice.arch and (suffix in GRAPH_SUFFIXES or program):
        raise ModelUnavailable(
            f"arch={choice.arch} goes with a state dict; {path} brings its own network", hint="leave it out"
        )
    if suffix in GRAPH_SUFFIXES or program:
        _refuse(choice, OF_STATES, path)
    if suffix == ".onnx":
        return onnx_draft(path, sha256=choice.sha256)
    if suffix == ".xml":
        return ir_draft(path, sha256=choice.sha256)
    if program and not (allow_code or choice.sha256):
        raise ModelUnavailable(
            f"{path} is a program, which can run code when it is loaded",
            hint="if you trust it, add --allow-code, or pin it with --sha256 (`sha256sum FILE` prints it)",
        )
    if program:
        return saved_draft(path, sha256=choice.sha256)
    return _state_draft(choice, choice.arch, path)
