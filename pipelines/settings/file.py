"""The settings file: TOML with a `[server]` table and a `[[model]]` table for each model. stdlib only, but
for tomli.

Every key is checked against what there is, every value against its type: a typing error must not go
    unnoticed.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from pipelines.models.spec import Channels, Engine, Fit, Interpolation, Precision, TaskName
from pipelines.settings.model import ModelSettings

EPILOG = """settings file (--settings FILE, TOML; paths in it are relative to it):
  [server]                              every flag above of the server, with _ for -, without the leading --
  device = "cpu"
  http_port = 8000

  [[model]]                             a table for each model; flags go before what is written here
  source = "resnet50"                   as of --model; and task, weights, labels, model_proc, arch, sha256,
                                        precision, engine as their flags; max_batch, score_threshold,
                                        clip_length, clip_fps
  [model.preprocessing]                 what to do differently from what the model says of itself:
  resize_px = 256                       the shorter side, or [height, width]; 0: no resize
  crop_px = 224                         one number or [height, width]
  mean = [0.485, 0.456, 0.406]          and std, of values in 0..1
  interpolation = "bilinear"            or nearest, bicubic; and antialias = true, channels = "RGB" or "BGR",
                                        fit = "stretch" or "letterbox", pad_value, max_px, tile_px,
                                        tile_overlap_px
"""
# Fields of a [[model]] table that are in its sub-table `preprocessing`.
PREPROCESSING = (
    "resize_px",
    "fit",
    "crop_px",
    "mean",
    "std",
    "interpolation",
    "antialias",
    "channels",
    "pad_value",
    "max_px",
    "tile_px",
    "tile_overlap_px",
)
CHOICES: dict[str, tuple[str, ...]] = {
    "task": get_args(TaskName),
    "precision": get_args(Precision),
    "engine": get_args(Engine),
    "fit": get_args(Fit),
    "interpolation": get_args(Interpolation),
    "channels": get_args(Channels),
}
WHOLES = ("max_batch", "clip_length", "pad_value", "max_px", "tile_overlap_px")
NUMBERS = ("score_threshold", "clip_fps")
FLAGS = ("antialias",)
PATHS = ("labels", "model_proc")
LISTS = {"resize_px": int, "crop_px": int, "tile_px": int, "mean": float, "std": float}
LARGEST_BYTES = 16 << 20
LARGEST_NUMBER = 1e30
# Sources and weights that are files go by these endings.
FILE_SUFFIXES = (".pt2", ".pt", ".ts", ".torchscript", ".onnx", ".safetensors", ".pth", ".bin")


class WrongSettings(Exception):
    """Settings are wrong; the message says which, and what is expected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingsFile:
    """What a settings file says: of the server by the names of `Settings`, and of the models."""

    server: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[ModelSettings, ...] = ()


def read_settings_file(path: Path, server_types: Mapping[str, type]) -> SettingsFile:
    """Read a TOML file.

    Args:
        server_types: the keys of the `[server]` table, and their types.

    Raises:
        WrongSettings: it cannot be read, or a key is unknown, or a value of the wrong type.
    """
    whole = _parsed(path)
    _check_keys(path, "", whole, ("server", "model"))
    server, models = whole.get("server", {}), whole.get("model", [])
    if not isinstance(server, dict):
        raise WrongSettings(f"{path}: server is {_shown(server)}, expected a table: [server]")
    if not isinstance(models, list) or not all(isinstance(model, dict) for model in models):
        raise WrongSettings(f"{path}: model is no list of tables, expected [[model]]")
    _check_keys(path, "server.", server, tuple(server_types))
    for name, value in server.items():
        if type(value) is not server_types[name]:
            raise _wrong(path, f"server.{name}", value, _kind(server_types[name]))
    return SettingsFile(server=server, models=tuple(_model(path, model) for model in models))


def _parsed(path: Path) -> dict[str, Any]:
    # The standard library has it since Python 3.11, and type checkers know one of the two only.
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        # A pipe would never end.
        if path.exists() and not path.is_file():
            raise WrongSettings(f"cannot read the settings file {path}: it is no file")
        if path.exists() and path.stat().st_size > LARGEST_BYTES:
            raise WrongSettings(f"the settings file {path} is larger than {LARGEST_BYTES >> 20} MB")
        whole: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSettings(f"cannot read the settings file {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WrongSettings(f"the settings file {path} is no TOML: {error}") from error
    return whole


def _check_keys(path: Path, where: str, table: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise WrongSettings(f"{path}: unknown key {where}{name}; {hint}")


def _model(path: Path, table: Mapping[str, Any]) -> ModelSettings:
    plain = tuple(one.name for one in fields(ModelSettings) if one.name not in PREPROCESSING)
    for name in table:
        if name in PREPROCESSING:
            raise WrongSettings(f"{path}: model.{name} belongs into [model.preprocessing]")
    _check_keys(path, "model.", table, (*plain, "preprocessing"))
    inner = table.get("preprocessing", {})
    if not isinstance(inner, dict):
        raise WrongSettings(f"{path}: model.preprocessing is {_shown(inner)}, expected a table")
    _check_keys(path, "model.preprocessing.", inner, PREPROCESSING)
    values = {name: _value(path, f"model.{name}", name, table[name]) for name in table if name in plain}
    values |= {name: _value(path, f"model.preprocessing.{name}", name, inner[name]) for name in inner}
    if not values.get("source"):
        raise WrongSettings(f"{path}: a [[model]] has no source")
    return ModelSettings(**values)


def _value(path: Path, where: str, name: str, value: Any) -> Any:
    """The value of a field of `ModelSettings`, checked."""
    if name in CHOICES:
        if value not in CHOICES[name]:
            raise _wrong(path, where, value, f"one of {', '.join(CHOICES[name])}")
        return value
    if name in LISTS:
        return _numbers(path, where, value, whole=LISTS[name] is int)
    if name in FLAGS:
        return _typed(path, where, value, (bool,), "true or false")
    if name in WHOLES:
        return _typed(path, where, value, (int,), "a whole number")
    if name in NUMBERS:
        return _finite(path, where, _typed(path, where, value, (int, float), "a number"))
    text = _typed(path, where, value, (str,), "a text")
    is_file = name in PATHS or (name in ("source", "weights") and text.lower().endswith(FILE_SUFFIXES))
    return str(path.parent / Path(text).expanduser()) if is_file and text else text


def _numbers(path: Path, where: str, value: Any, *, whole: bool) -> tuple[float, ...]:
    kinds: tuple[type, ...] = (int,) if whole else (int, float)
    expected = f"{'whole numbers' if whole else 'numbers'}: one, or a list"
    values = value if isinstance(value, list) else [value]
    if not values:
        raise _wrong(path, where, value, expected)
    found = tuple(_typed(path, where, one, kinds, expected) for one in values)
    return found if whole else tuple(_finite(path, where, one) for one in found)


def _finite(path: Path, where: str, value: float) -> float:
    # TOML has inf and nan, and whole numbers that no float holds.
    if not abs(value) < LARGEST_NUMBER:
        raise _wrong(path, where, value, "a number")
    return float(value)


def _typed(path: Path, where: str, value: Any, kinds: tuple[type, ...], expected: str) -> Any:
    # True and false are whole numbers in Python, and are none in TOML.
    if type(value) not in kinds:
        raise _wrong(path, where, value, expected)
    return value


def _wrong(path: Path, where: str, value: object, expected: str) -> WrongSettings:
    return WrongSettings(f"{path}: {where} is {_shown(value)}, expected {expected}")


def _kind(kind: type) -> str:
    return {bool: "true or false", int: "a whole number", str: "a text"}[kind]


def _shown(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)
