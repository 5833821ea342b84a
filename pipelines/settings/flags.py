"""Settings: what the server's command line and its settings file set, read and checked once. stdlib only."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import cast, get_args

from pipelines.machine.admission import default_budget_bytes
from pipelines.machine.threads import Threads, cores
from pipelines.models.spec import Engine, Precision, TaskName
from pipelines.settings.file import EPILOG, SettingsFile, WrongSettings, read_settings_file
from pipelines.settings.model import ModelSettings

MAX_MESSAGE_MB = 2047
LONGEST_WAIT_MS = 3_600_000
DEFAULT_MODEL = ModelSettings(source="fcn_resnet101", task="segmentation")
TASKS: tuple[TaskName, ...] = get_args(TaskName)
# Flags that say something of one model, and what they say; those below belong to one model alone.
MODEL_FLAGS = {
    "weights": "a state dict, a name of torchvision's enum, or 'random' for noise (default: DEFAULT)",
    "labels": "a text file with a label a line",
    "model_proc": "a model-proc JSON file of DL Streamer's",
    "arch": "the torchvision name of the network whose state dict the source is",
    "sha256": "of the file that the weights are read from",
    "precision": f"what the model computes in: {', '.join(get_args(Precision))} (default: fp32)",
    "engine": (
        f"what computes the network: {', '.join(get_args(Engine))} (default: auto, the fastest that agrees)"
    ),
}
CHOICES = {"precision": get_args(Precision), "engine": get_args(Engine)}
OF_ONE_MODEL = ("labels", "model_proc", "arch", "sha256")
_SHOWN = "(default: %(default)s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line and the settings file set."""

    demo: bool
    models: tuple[ModelSettings, ...]
    allow_code: bool
    list_models: bool
    device: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    max_media_mb: int
    max_frames: int
    chunk_frames: int
    workers: int
    max_queue: int
    max_wait_ms: int
    max_memory_mb: int
    max_sessions: int
    endpoints: str
    check: bool
    dry_run: bool

    @property
    def max_media_bytes(self) -> int:
        return self.max_media_mb << 20


def parse_args(argv: Sequence[str], manual: str) -> Settings:
    """The settings of a command line; wrong ones end the process with exit code 2. `manual` heads
    `--help`.
    """
    parser = argparse.ArgumentParser(
        description=manual,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_flags(parser.add_argument)
    try:
        return _settings(parser, argv)
    except WrongSettings as error:
        parser.error(str(error))


def _settings(parser: argparse.ArgumentParser, argv: Sequence[str]) -> Settings:
    args = parser.parse_args(argv)
    found = SettingsFile()
    if args.settings:
        found = read_settings_file(Path(args.settings), _server_types(parser))
        parser.set_defaults(**found.server)
        args = parser.parse_args(argv)
        _check_values(parser, args)
    if len({args.http_port, args.grpc_port, args.metrics_port}) < 3:
        raise WrongSettings("--http-port, --grpc-port and --metrics-port must differ")
    if args.max_media_mb > MAX_MESSAGE_MB:
        raise WrongSettings(
            f"--max-media-mb {args.max_media_mb}: a message of Triton's holds at most {MAX_MESSAGE_MB}"
        )
    values = {one.name: getattr(args, one.name) for one in fields(Settings) if one.name != "models"}
    return Settings(**values, models=_models(args, found))


def _server_types(parser: argparse.ArgumentParser) -> dict[str, type]:
    """The settings of the server that a file may have, and their types: of all that `Settings` holds."""
    return {
        one.name: type(parser.get_default(one.name))
        for one in fields(Settings)
        if one.name not in ("models", "list_models", "check", "dry_run")
    }


def _check_values(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """What the file set passes by argparse's own checks of choices and numbers."""
    for action in parser._actions:
        value = getattr(args, action.dest, None)
        if action.choices is not None and value is not None and value not in action.choices:
            raise WrongSettings(
                f"[server] {action.dest} = {value!r}: expected one of {', '.join(action.choices)}"
            )
        if action.type in (_port, _positive, _wait_ms) and isinstance(value, int):
            try:
                cast(Callable[[str], int], action.type)(str(value))
            except argparse.ArgumentTypeError as error:
                raise WrongSettings(f"[server] {action.dest} = {value}: {error}") from error


def _models(args: argparse.Namespace, found: SettingsFile) -> tuple[ModelSettings, ...]:
    """The models of the command line, else of the file, else the default; with what flags say of them."""
    flags = [name for name in MODEL_FLAGS if getattr(args, name)]
    if args.demo:
        # Models of the file stand back: the command line wins.
        if args.model or (found.models and "demo" in found.server):
            raise WrongSettings("--demo brings its own models: leave --model out, or --demo")
        if flags:
            flag = _flag(flags[0])
            raise WrongSettings(f"--demo brings its own weights: leave {flag} out, or --demo")
        return ()
    models = tuple(map(_model, args.model)) or found.models or (DEFAULT_MODEL,)
    seen: dict[str, str] = {}
    for model in models:
        if model.task and seen.setdefault(model.task, model.source) != model.source:
            raise WrongSettings(
                f"two models of task {model.task}: {seen[model.task]} and {model.source}; a server has one "
                "of each"
            )
    for name in flags:
        models = _with_flag(models, name, getattr(args, name))
    return models


def _model(text: str) -> ModelSettings:
    task, source = _split(text)
    if not source:
        raise WrongSettings(f"--model {text!r}: expected [TASK=]SOURCE, e.g. classification=resnet50")
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
        raise WrongSettings(f"{text!r}: there is no task {head!r}, only {', '.join(TASKS)}")
    return None, text


def _with_flag(
    models: tuple[ModelSettings, ...], name: str, texts: Sequence[str]
) -> tuple[ModelSettings, ...]:
    """The models with what `--weights` and the like say; a value for one task goes before one for all."""
    by_task = dict(_split(text) for text in texts)
    if len(by_task) < len(texts):
        raise WrongSettings(f"{_flag(name)} twice for the same model: {' and '.join(texts)}")
    if None in by_task and name in OF_ONE_MODEL and len(models) > 1:
        raise WrongSettings(f"{_flag(name)} {by_task[None]}: for which model? write {_flag(name)} TASK=VALUE")
    for task in by_task:
        known = [model.task for model in models]
        if task and task not in known and (len(models) > 1 or known[0]):
            raise WrongSettings(f"{_flag(name)} {task}={by_task[task]}: no --model has task {task}")
    choices = CHOICES.get(name, ())
    if choices and (wrong := [one for one in by_task.values() if one not in choices]):
        raise WrongSettings(f"{_flag(name)} {wrong[0]}: expected one of {', '.join(choices)}")
    everyone = by_task.get(None)
    changed = []
    for model in models:
        if model.task is None and everyone is None and len(by_task) == 1:
            # Then this says its task, which is checked when its source is known.
            model = replace(model, task=next(iter(by_task)))
        value = by_task.get(model.task, everyone)
        changed.append(model if value is None else _replaced(model, name, value))
    return tuple(changed)


def _replaced(model: ModelSettings, name: str, value: str) -> ModelSettings:
    return replace(model, **{name: value})  # type: ignore[arg-type]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _add_flags(add: Callable[..., argparse.Action]) -> None:
    """All flags, each with its default where `--help` shows it."""
    add("--settings", metavar="FILE", default="", help="a TOML file with all of these; flags go before it")
    add("--demo", action="store_true", help="serve the embedded demo models (drawn shapes)")
    add(
        "--model",
        action="append",
        default=[],
        metavar="[TASK=]SOURCE",
        help="a model to serve, one for each task: a torchvision name, a file (.pt2, TorchScript .pt, .onnx, "
        ".safetensors or .pth with --arch), package.module:function or torch.hub:REPO[:REF]:ENTRY "
        f"(default: {DEFAULT_MODEL.task}={DEFAULT_MODEL.source})",
    )
    for name, what in MODEL_FLAGS.items():
        add(_flag(name), action="append", default=[], metavar="[TASK=]VALUE", help=what)
    add(
        "--allow-code",
        action="store_true",
        help="let models be Python code, which runs with all rights of this server",
    )
    add(
        "--list-models",
        action="store_true",
        help="print all of torchvision's models that can be served, and exit",
    )
    devices = ("auto", "cpu", "cuda")
    add("--device", choices=devices, default="auto", help=f"where models run; auto is a GPU if any {_SHOWN}")
    add("--host", default="127.0.0.1", help=f"address to listen on; keep it private, behind a proxy {_SHOWN}")
    for name, port, what in (
        ("http", 8000, "HTTP"),
        ("grpc", 8001, "gRPC"),
        ("metrics", 8002, "Triton's metrics"),
    ):
        add(f"--{name}-port", type=_port, default=port, metavar="PORT", help=f"port of {what} {_SHOWN}")
    _add_limits(add)
    what = "media: those that take media alone; all: those of bare tensors too"
    add("--endpoints", choices=("all", "media"), default="all", help=f"{what} {_SHOWN}")
    add("--check", action="store_true", help="check the machine and exit")
    add("--dry-run", action="store_true", help="push a picture through every stage and exit")


def _add_limits(add: Callable[..., argparse.Action]) -> None:
    """Those of how much the server takes at once."""
    for name, number, what in (
        ("max-media-mb", 64, "largest medium of a request, in MiB"),
        ("max-frames", 300, "most frames of one answer; streams have no limit"),
        ("chunk-frames", 16, "frames decoded and answered at once"),
        ("workers", Threads.of(cores()).workers, "media of an endpoint worked on at once"),
        ("max-queue", 64, "requests of an endpoint that wait; a further one is overloaded"),
        (
            "max-memory-mb",
            default_budget_bytes() >> 20,
            "memory of all requests, in MiB; half of the machine's",
        ),
        ("max-sessions", 64, "streams open at once, running or paused"),
    ):
        add(f"--{name}", type=_positive, default=number, metavar="N", help=f"{what} {_SHOWN}")
    what = (
        "longest wait for its turn of a medium that gets one answer, else overloaded; 0: as long as it takes"
    )
    add("--max-wait-ms", type=_wait_ms, default=0, metavar="N", help=f"{what} {_SHOWN}")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _wait_ms(text: str) -> int:
    if not text.isdecimal() or int(text) > LONGEST_WAIT_MS:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 0 to {LONGEST_WAIT_MS}")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)
