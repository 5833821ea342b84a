"""The command line: `--help`, flags over a settings file, and which flag says something of which model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from pipelines.models.spec import TaskName
from pipelines.settings.file import EPILOG, read_settings_file
from pipelines.settings.model import ModelSettings
from pipelines.settings.reading import WrongInput, read
from pipelines.settings.server import Settings

DEFAULT_MODEL = ModelSettings(source="fcn_resnet101", task="segmentation")
TASKS: tuple[TaskName, ...] = get_args(TaskName)
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
    seen: dict[str, str] = {}
    for model in models:
        if model.task and seen.setdefault(model.task, model.source) != model.source:
            both = f"{seen[model.task]} and {model.source}; a server serves one model per task"
            raise WrongInput(f"{model.place or '--model'}: two models of task {model.task}: {both}")
    for name in flags:
        models = _with_flag(models, name, given[name])
    return models


def _model(text: str) -> ModelSettings:
    task, source = _split(text)
    if not source:
        raise WrongInput(f"--model {text!r}: expected [TASK=]SOURCE, e.g. classification=resnet50")
    return ModelSettings(source=source, task=task)


def _split(text: str) -> tuple[TaskName | None, str]:
    """`TASK=VALUE` in two; a word before `=` that is no task is an error, unless it is part of a path."""
    head, equals, rest = text.partition("=")
    if not equals:
        return None, text
    for task in TASKS:
        if head == task:
            return task, rest
    if head.isidentifier():
        raise WrongInput(f"{text!r}: there is no task {head!r}, only {', '.join(TASKS)}")
    return None, text


def _with_flag(
    models: tuple[ModelSettings, ...], name: str, texts: Sequence[str]
) -> tuple[ModelSettings, ...]:
    """The models with what `--weights` and the like say; a value for one task goes before one for all."""
    flag, by_task = _flag(name), dict(map(_split, texts))
    if len(by_task) < len(texts):
        raise WrongInput(f"{flag} twice for the same model: {' and '.join(texts)}")
    if None in by_task and name in OF_ONE_MODEL and len(models) > 1:
        raise WrongInput(f"{flag} {by_task[None]}: for which model? write {flag} TASK=VALUE")
    for task in by_task:
        known = [model.task for model in models]
        if task and task not in known and (len(models) > 1 or known[0]):
            raise WrongInput(f"{flag} {task}={by_task[task]}: no --model has task {task}")
    everyone = by_task.get(None)
    changed = []
    for model in models:
        said: dict[str, Any] = {}
        if model.task is None and everyone is None and len(by_task) == 1:
            # Then this says its task, which is checked when its source is known.
            said["task"] = next(iter(by_task))
        value = by_task.get(said.get("task", model.task), everyone)
        said |= {} if value is None else {name: value}
        changed.append(read(ModelSettings, model.model_dump(exclude_unset=True) | said, ""))
    return tuple(changed)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _whole(text: str) -> int | str:
    """A whole number as one; any other text as it is, which is then refused as a wrong setting is."""
    return int(text) if text.isascii() and text.isdecimal() else text


def _parser(manual: str) -> argparse.ArgumentParser:
    """All flags, each with its default where `--help` shows it; what is not given does not appear."""
    parser = argparse.ArgumentParser(
        usage="server.py [--demo] [--model [TASK=]SOURCE ...] [flags]   (--help lists all)",
        description=manual,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--settings", metavar="FILE", help="a TOML file with any of these; flags override it")
    sources = (
        "a torchvision name, a file (.pt2, TorchScript .pt, .onnx, .safetensors or .pth with --arch), "
        "package.module:function or torch.hub:REPO[:REF]:ENTRY"
    )
    shown = f"(default: {DEFAULT_MODEL.task}={DEFAULT_MODEL.source})"
    what = f"a model to serve, one for each task: {sources} {shown}"
    add("--model", action="append", metavar="[TASK=]SOURCE", help=what)
    for name in MODEL_FLAGS:
        what = ModelSettings.model_fields[name].description or ""
        add(_flag(name), action="append", metavar="[TASK=]VALUE", help=what)
    for name, field in Settings.model_fields.items():
        what = f"{field.description} (default: {field.get_default(call_default_factory=True)})"
        if field.annotation is bool:
            add(_flag(name), action="store_true", help=field.description)
        elif field.annotation is int:
            metavar = "PORT" if name.endswith("_port") else "N"
            add(_flag(name), type=_whole, metavar=metavar, help=what)
        elif name != "models":
            choices = ",".join(get_args(field.annotation))
            add(_flag(name), metavar=f"{{{choices}}}" if choices else name.upper(), help=what)
    return parser
