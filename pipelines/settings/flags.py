"""The command line: `--help`, flags over a settings file, and which flag says something of which model."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pipelines.settings.file import EPILOG, read_settings_file
from pipelines.settings.model import ModelSettings
from pipelines.settings.names import TASKS as TASKS
from pipelines.settings.names import served_names
from pipelines.settings.reading import WrongInput, read
from pipelines.settings.server import Settings

DEFAULT_MODEL = ModelSettings(source="fcn_resnet101", task="segmentation")
# Of sources that are no files; such a word is a name only before a task.
PREFIXES = ("hf", "timm")
WORD = re.compile(r"[\w-]*")
# Flags that say something of one model; those below belong to one model alone.
MODEL_FLAGS = [name for name, field in ModelSettings.model_fields.items() if field.description]
OF_ONE_MODEL = ("labels", "model_proc", "arch", "sha256")


def parse_args(argv: Sequence[str], manual: str) -> Settings:
    """The settings of a command line; wrong ones end the process with code 2. `manual` heads the help."""
    parser = _parser(manual)
    given = vars(parser.parse_args(argv))
    try:
        return _settings(given)
    except WrongInput as error:
        parser.error(str(error))


def _settings(given: dict[str, Any]) -> Settings:
    file, server, models = given.pop("settings", None), dict[str, Any](), tuple[ModelSettings, ...]()
    if file is not None:
        server, models = read_settings_file(Path(file))
    values = server | {name: value for name, value in given.items() if name in Settings.model_fields}
    return read(Settings, {**values, "models": _models(given, server, models)}, "")


def _models(
    given: dict[str, Any], server: dict[str, Any], of_file: tuple[ModelSettings, ...]
) -> tuple[ModelSettings, ...]:
    """The models of the command line, else of the file, else the default; with what flags say of them."""
    flags = [name for name in MODEL_FLAGS if name in given]
    if given.get("demo") or server.get("demo"):
        if "model" in given:
            raise WrongInput("--demo brings its own models: leave out --model or --demo")
        if of_file:
            raise WrongInput(f"{of_file[0].place}: demo brings its own models: leave out [[model]] or demo")
        if flags:
            raise WrongInput(f"--demo brings its own weights: leave out {_flag(flags[0])} or --demo")
        return ()
    models = tuple(map(_model, given.get("model", ()))) or of_file or (DEFAULT_MODEL,)
    for name in flags:
        models = _with_flag(models, name, given[name])
    served_names(models, [model.task for model in models])
    return models


def _model(text: str) -> ModelSettings:
    said = _said_of_model(text)
    if not said["source"] or said.get("name") == "":
        raise WrongInput(
            f"--model {text!r}: expected [TASK=]SOURCE or NAME:[TASK]=SOURCE, e.g. classification=resnet50 "
            "or gate:=my.onnx"
        )
    return read(ModelSettings, said, f"--model {text!r}")


def _said_of_model(text: str) -> dict[str, Any]:
    """Name, task and source of `[NAME:][TASK]=SOURCE`; left of the first `=` may also be a part of a path."""
    head, equals, source = text.partition("=")
    name, colon, task = head.partition(":")
    if not equals or not WORD.fullmatch(task if colon else head):
        return {"source": text}
    if not colon and head in TASKS:
        return {"task": head, "source": source}
    if colon and (task in TASKS or not task) and not {*name} & {*"/\\~"}:
        return {"name": name, "source": source} | ({"task": task} if task else {})
    known = ", ".join(TASKS)
    if not colon and head.isidentifier():
        hint = f"a name has a colon after it: {head}:={source}"
        raise WrongInput(f"{text!r}: there is no task {head!r}, only {known}", hint=hint)
    if colon and name not in PREFIXES and WORD.fullmatch(name):
        raise WrongInput(f"{text!r}: there is no task {task!r}, only {known}")
    return {"source": text}


def _split(text: str, names: Collection[str]) -> tuple[str | None, str]:
    """`NAME=VALUE` or `TASK=VALUE` in two; another word before `=` is an error, unless it is of a path."""
    head, equals, rest = text.partition("=")
    if not equals:
        return None, text
    if head in names or head in TASKS:
        return head, rest
    if head.isidentifier():
        known = ", ".join([*names, *(task for task in TASKS if task not in names)])
        raise WrongInput(
            f"{text!r}: there is no task {head!r} and no model of that name, only {known}",
            hint=f"if all of it is the value, write TASK={text}",
        )
    return None, text


def _with_flag(
    models: tuple[ModelSettings, ...], name: str, texts: Sequence[str]
) -> tuple[ModelSettings, ...]:
    """The models with what `--weights` and the like say.

    What is said of a name goes before what is said of a task, and that before what is said of all. A word
    that is both is the name.
    """
    names = served_names(models, [model.task for model in models])
    given = dict(split := [_split(text, [*filter(None, names)]) for text in texts])
    if len(given) < len(split):
        raise WrongInput(f"{_flag(name)} twice for the same model: {' and '.join(texts)}")
    _check_words(models, names, name, given)
    changed = []
    for model, own in zip(models, names, strict=True):
        said: dict[str, Any] = {}
        if models == (model,) and model.task is None and not {None, own} & given.keys() and len(given) == 1:
            # Then this says its task, which is checked when its source is known.
            said["task"] = next(iter(given))
        task = said.get("task", model.task)
        words = (own, None if task in names else task, None)
        value = next((given[word] for word in words if word in given), None)
        said |= {} if value is None else {name: _value(name, value)}
        changed.append(read(ModelSettings, model.model_dump(exclude_unset=True) | said, ""))
    return tuple(changed)


def _check_words(
    models: Sequence[ModelSettings], names: Sequence[str], name: str, given: Mapping[str | None, str]
) -> None:
    """Raise WrongInput if a word means no model, or several where the flag belongs to one."""
    flag, tasks = _flag(name), [model.task for model in models]
    for word, value in given.items():
        of_task = word is not None and word not in names
        meant = [task for task in tasks if word in (None, task)] if word is None or of_task else [word]
        if of_task and not meant and (len(models) > 1 or tasks[0]):
            raise WrongInput(f"{flag} {word}={value}: no --model has task {word}")
        if name in OF_ONE_MODEL and len(meant) > 1:
            raise WrongInput(
                f"{flag} {word + '=' if word else ''}{value}: for which model? "
                f"write {flag} {'TASK' if len({*tasks}) == len(tasks) else 'NAME'}=VALUE"
            )


def _value(name: str, text: str) -> Any:
    """The text of a flag in the type of its setting; any other text as it is, which is then refused."""
    kind = ModelSettings.model_fields[name].annotation
    kinds = {one for part in get_args(kind) for one in (part, *get_args(part))}
    if bool in kinds:
        return {"true": True, "false": False}.get(text, text)
    with contextlib.suppress(ValueError):
        if name == "resize_px":
            sides = [int(side) for side in text.split("x") if side.isascii() and side.isdecimal()]
            return (sides[0] if len(sides) == 1 else sides) if len(sides) == text.count("x") + 1 else text
        if float in kinds:
            return float(text)
    return text


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _whole(text: str) -> int | str:
    """A whole number as one; any other text as it is, which is then refused as a wrong setting is."""
    return int(text) if text.isascii() and text.isdecimal() else text


def _parser(manual: str) -> argparse.ArgumentParser:
    """All flags, each with its default where `--help` shows it; what is not given does not appear."""
    parser = argparse.ArgumentParser(
        usage="server.py [--demo] [--model [[NAME:]TASK=]SOURCE ...] [flags]   (--help lists all)",
        description=manual,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--settings", metavar="FILE", help="a TOML file with any of these; flags override it")
    sources = (
        "a torchvision name, a file (.onnx, OpenVINO's .xml, .pt2, TorchScript .pt, .safetensors, .pth), "
        "timm:NAME, hf:FOLDER, package.module:function or torch.hub:REPO[:REF]:ENTRY"
    )
    shown = f"(default: {DEFAULT_MODEL.task}={DEFAULT_MODEL.source})"
    what = f"a model to serve, with a name if it is not the only one of its task: {sources} {shown}"
    add("--model", action="append", metavar="[[NAME:]TASK=]SOURCE", help=what)
    for name in MODEL_FLAGS:
        what = ModelSettings.model_fields[name].description or ""
        add(_flag(name), action="append", metavar="[NAME|TASK=]VALUE", help=what)
    for name, field in Settings.model_fields.items():
        what = f"{field.description} (default: {field.get_default(call_default_factory=True)})"
        if field.annotation is bool:
            add(_flag(name), action="store_true", help=field.description)
        elif field.annotation is int:
            metavar = "PORT" if name.endswith("_port") else "N"
            add(_flag(name), type=_whole, metavar=metavar, help=what)
        elif name != "models":
            choices = ",".join(get_args(field.annotation))
            metavar = "S" if field.annotation is float else f"{{{choices}}}" if choices else name.upper()
            add(_flag(name), metavar=metavar, help=what)
    return parser
