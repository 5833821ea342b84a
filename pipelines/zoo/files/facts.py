"""What a model file says of itself: a `ModelSpec` without its network, as JSON text. Knows no file format.

    {"version": 1, "name": …, "task": …, "labels": […], "licence": …, "probabilities": false,
     "keypoint_names": […], "clip": null | {"length", "fps", "fixed"}, "preprocessing": {every field of it}}

The text lies under `MODEL_FACTS_KEY` in the metadata of a file, so that the file alone is enough to serve it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import NoReturn, TypeVar, get_args

from torch import nn

from pipelines.models.spec import MAX_SIDE_PX, Clip, Interpolation, ModelSpec, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.texts import LONGEST_NAME, MOST_NAMES, wrong_name

MODEL_FACTS_KEY = "trivid"
VERSION = 1
LARGEST_WHOLE = (1 << 31) - 1
HINT = "write it again with python -m scripts.export, or give the preprocessing as options"

T = TypeVar("T")
Read = Callable[[object], T]


def facts_to_json(spec: ModelSpec) -> str:
    """The text that `spec_from_facts` reads: what the spec says of answers and pixels, not of how it runs."""
    facts = {
        "version": VERSION,
        "name": spec.name,
        "task": spec.task,
        "labels": spec.labels,
        "licence": spec.licence,
        "probabilities": spec.probabilities,
        "keypoint_names": spec.keypoint_names,
        "clip": spec.clip and asdict(spec.clip),
        "preprocessing": asdict(spec.preprocessing),
    }
    return json.dumps(facts, ensure_ascii=False)


def spec_from_facts(text: str, *, build: Callable[[], nn.Module], source: str, file: str | Path) -> ModelSpec:
    """The spec that a model file holds; `build` and `source` as `ModelSpec` has them, `file` names it in
    errors.

    Fields that have a default in `ModelSpec`, `Preprocessing` or `Clip` may be missing, others may not be
    there.

    Raises:
        ModelUnavailable: the text is no such JSON, of another version, or a field is missing, unknown or
            wrong.
    """
    facts = _Facts(_parsed(text, file), file)
    version = facts.need("version", _whole)
    if version != VERSION:
        facts.fail("version", f"is {version}, this server reads {VERSION}")
    spec = _made(
        facts,
        "clip",
        lambda: ModelSpec(
            name=facts.need("name", _text),
            task=facts.need("task", _one_of(get_args(TaskName))),
            build=build,
            source=source,
            labels=facts.take("labels", _texts, ()),
            licence=facts.take("licence", _text, ""),
            probabilities=facts.take("probabilities", _flag, False),
            keypoint_names=facts.take("keypoint_names", _texts, ()),
            clip=facts.take("clip", _or_none(_clip(facts)), None),
            preprocessing=facts.need("preprocessing", _preprocessing(facts)),
        ),
    )
    facts.done()
    return spec


def _parsed(text: str, file: str | Path) -> object:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deep"
        raise ModelUnavailable(
            f"{file}: its metadata {MODEL_FACTS_KEY!r} is no JSON: {reason}", hint=HINT
        ) from error


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


class _Facts:
    """An object of the text, read field by field; `path` is where it lies within the whole."""

    def __init__(self, value: object, file: str | Path, path: str = "") -> None:
        self.file, self.path = file, path
        if not isinstance(value, dict):
            self.fail("", f"is {_shown(value)}, not an object")
        self.left: dict[str, object] = dict(value)

    def fail(self, name: str, wrong: str) -> NoReturn:
        field = ".".join(part for part in (MODEL_FACTS_KEY, self.path, name) if part)
        raise ModelUnavailable(f"{self.file}: field {field} of its metadata {wrong}", hint=HINT)

    def need(self, name: str, read: Read[T]) -> T:
        if name not in self.left:
            self.fail(name, "is missing")
        return self._read(name, read)

    def take(self, name: str, read: Read[T], default: T) -> T:
        return self._read(name, read) if name in self.left else default

    def _read(self, name: str, read: Read[T]) -> T:
        value = self.left.pop(name)
        try:
            return read(value)
        except _Wrong as wrong:
            self.fail(name, f"is {_shown(value)}, not {wrong}")

    def done(self) -> None:
        for name in self.left:
            self.fail(name if name.isprintable() else ascii(name)[:40], "is unknown")


class _Wrong(Exception):
    """A value is not what its field takes; says what that is."""


def _made(facts: _Facts, field: str, make: Callable[[], T]) -> T:
    """What `make` gives; what its constructor finds wrong is an error of `field`."""
    try:
        return make()
    except ValueError as error:
        facts.fail(field, f"is wrong: {error}")


def _preprocessing(outer: _Facts) -> Read[Preprocessing]:
    def read(value: object) -> Preprocessing:
        facts = _Facts(value, outer.file, "preprocessing")
        default = Preprocessing(resize_px=None)
        made = _made(
            facts,
            "",
            lambda: Preprocessing(
                resize_px=facts.need("resize_px", _or_none(_side_or_size)),
                max_px=facts.take("max_px", _or_none(_side), default.max_px),
                fit=facts.take("fit", _one_of(("stretch", "letterbox")), default.fit),
                crop_px=facts.take("crop_px", _or_none(_size), default.crop_px),
                mean=facts.take("mean", _three, default.mean),
                std=facts.take("std", _three, default.std),
                interpolation=facts.take(
                    "interpolation", _one_of(get_args(Interpolation)), default.interpolation
                ),
                antialias=facts.take("antialias", _flag, default.antialias),
                round_pixels=facts.take("round_pixels", _flag, default.round_pixels),
                channels=facts.take("channels", _one_of(("RGB", "BGR")), default.channels),
                pad_value=facts.take("pad_value", _level, default.pad_value),
            ),
        )
        facts.done()
        return made

    return read


def _clip(outer: _Facts) -> Read[Clip]:
    def read(value: object) -> Clip:
        facts = _Facts(value, outer.file, "clip")
        length, fps = facts.need("length", _whole), facts.need("fps", _number)
        fixed = facts.take("fixed", _flag, False)
        facts.done()
        return _made(facts, "", lambda: Clip(length=length, fps=fps, fixed=fixed))

    return read


def _shown(value: object) -> str:
    # Escapes: what is wrong may be that it cannot be printed.
    try:
        text = json.dumps(value)
    except RecursionError:
        return "nested too deep"
    return text if len(text) <= 40 else f"{text[:37]}…"


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise _Wrong("a text")
    if wrong_name(value):
        raise _Wrong(f"a printable text of at most {LONGEST_NAME} characters")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise _Wrong("a list of texts")
    if len(value) > MOST_NAMES or any(map(wrong_name, value)):
        raise _Wrong(f"a list of at most {MOST_NAMES} printable texts of at most {LONGEST_NAME} characters")
    return tuple(value)


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise _Wrong("true or false")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise _Wrong("a whole number")
    if abs(value) > LARGEST_WHOLE:
        raise _Wrong(f"a whole number of at most {LARGEST_WHOLE}")
    return value


def _side(value: object) -> int:
    if not 1 <= (side_px := _whole(value)) <= MAX_SIDE_PX:
        raise _Wrong(f"a side of 1 to {MAX_SIDE_PX} px")
    return side_px


def _level(value: object) -> int:
    if not 0 <= (level := _whole(value)) <= 255:
        raise _Wrong("a level from 0 to 255")
    return level


def _number(value: object) -> float:
    # Whole numbers may be too large for a float.
    if not isinstance(value, int | float) or isinstance(value, bool) or abs(value) > 1e30:
        raise _Wrong("a finite number")
    return float(value)


def _three(value: object) -> tuple[float, float, float]:
    if not isinstance(value, list) or len(value) != 3:
        raise _Wrong("a list of three numbers")
    first, second, third = map(_number, value)
    return first, second, third


def _size(value: object) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2:
        raise _Wrong("[height, width]")
    height_px, width_px = map(_side, value)
    return height_px, width_px


def _side_or_size(value: object) -> int | tuple[int, int]:
    return _size(value) if isinstance(value, list) else _side(value)


def _or_none(read: Read[T]) -> Read[T | None]:
    return lambda value: None if value is None else read(value)


def _one_of(choices: tuple[T, ...]) -> Read[T]:
    def read(value: object) -> T:
        for choice in choices:
            if value == choice:
                return choice
        raise _Wrong(f"one of {', '.join(map(str, choices))}")

    return read
