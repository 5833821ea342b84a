"""How what comes from outside at the start is read: by pydantic's models, with one error for all of it.

Settings, flags and the texts beside models or within them differ in form only. Knows none of them.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from pipelines.protocol.errors import ModelUnavailable

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
# Most bytes of a text, characters of a value that a message shows, and of an unknown name.
LARGEST_TEXT = 16 << 20
MOST_SHOWN, LONGEST_SHOWN_NAME = 60, 100
# What is allowed where pydantic says it in words of Python's; its other errors say it well.
ALLOWED = {
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text",
    "float_type": "a number",
    "finite_number": "a number",
    "tuple_type": "a list",
    "model_type": "a table of fields",
    "dataclass_type": "a table of fields",
    "too_long": "at most {max_length} of them",
}
UNKNOWN = ("extra_forbidden", "unexpected_keyword_argument")

M = TypeVar("M", bound=BaseModel)


class WrongInput(ModelUnavailable):
    """What was read at the start is wrong: a flag, the settings file, or a text that tells of a model."""


def read(
    kind: type[M],
    given: object,
    origin: str,
    *,
    root: str = "",
    hint: str = "",
    missing: str = "",
    folder: Path | None = None,
) -> M:
    """`given` as a `kind`.

    Args:
        given: names and values, or JSON as a text.
        origin: the file that messages name; empty: the command line.
        root: what messages call the whole; paths of fields begin with it.
        hint: a way out, told beside what is allowed.
        missing: an example of the field that may be missing.
        folder: of `origin`; the context of validators.

    Raises:
        WrongInput: it names the origin, the path of the field, its value, and what is allowed.
    """
    try:
        if isinstance(given, str):
            return kind.model_validate_json(given, context=folder)
        return kind.model_validate(given, context=folder)
    except ValidationError as error:
        path, wrong, allowed = _explained(kind, error.errors(include_url=False), root, missing)
    place = (path or "the whole") if origin else f"--{path.replace('_', '-')}" if path else "the command line"
    raise WrongInput(
        f"{origin}{': ' * bool(origin)}{place} {wrong}",
        hint="; ".join(part for part in (allowed, hint) if part),
    )


def _explained(
    kind: type[BaseModel], found: Sequence[ErrorDetails], root: str, missing: str
) -> tuple[str, str, str]:
    """The path of the field that is wrong first, what is wrong with it, and what is allowed."""
    # Unknown names explain others that are missing; of a choice of forms the one that came furthest counts.
    first = max(found, key=lambda one: (one["type"] in UNKNOWN, len(one["loc"])))
    path, known = _place(kind, first["loc"], root)
    allowed = ""
    match first["type"]:
        case name if name in UNKNOWN:
            wrong, allowed = "is unknown", f"allowed: {', '.join(known)}"
            if close := difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5):
                allowed = f"did you mean {close[0]}? {allowed}"
        case "missing":
            wrong, allowed = "is missing", missing
        case "json_invalid" | "string_unicode":
            wrong = f"is not JSON: {first.get('ctx', {}).get('error', 'not UTF-8')}"
        case "value_error":
            wrong = f"is wrong: {first['ctx']['error']}"
        case _:
            wrong = f"is {_shown(first['input'])}"
            same = [one for one in found if _place(kind, one["loc"], root)[0] == path]
            texts = [ALLOWED.get(one["type"], one["msg"]).format_map(one.get("ctx", {})) for one in same]
            allowed = f"allowed: {' or '.join(texts).removeprefix('Input should be ')}"
    return path, wrong, allowed


def _shown(value: object) -> str:
    """A value as JSON, printable and short."""
    try:
        text = json.dumps(value, default=str)
    except (ValueError, RecursionError):  # a whole number of thousands of digits; tables within tables
        text = "more than can be shown"
    return text if len(text) <= MOST_SHOWN else f"{text[: MOST_SHOWN - 3]}…"


def _place(kind: Any, steps: Sequence[str | int], path: str) -> tuple[str, list[str]]:
    """Where `steps` lead to within a model, in words, and which names are known where they end."""
    known, last = _fields(kind), list[str]()
    for step in steps:
        if isinstance(step, int):
            path += f"[{step}]"
        elif known:
            name = step if step.isprintable() else ascii(step)
            path, last = f"{path}.{name[:LONGEST_SHOWN_NAME]}", [*known]
            known = _fields(known.get(step))
        # Else it is the form within a choice of forms, which is no part of the path.
    return path.removeprefix("."), last


def _fields(annotation: Any) -> Mapping[str, Any]:
    """The fields of the model that is within an annotation, by the names that are written."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = annotation.model_fields.items()
        return {str(one.validation_alias or name): one.annotation for name, one in fields}
    if isinstance(annotation, type) and is_dataclass(annotation):
        return get_type_hints(annotation)
    return next((found for inner in get_args(annotation) if (found := _fields(inner))), {})


def said(default: Any, what: str) -> Any:
    """A field that has a flag: its default, and what `--help` says of it."""
    return Field(default=default, description=what)


def not_allowed(text: str) -> PydanticCustomError:
    """What a validator raises at a value that is not what `text` says."""
    return PydanticCustomError("allowed", "{text}", {"text": text})


def allowed(text: str, holds: Callable[[Any], bool]) -> WrapValidator:
    """Of a field: what must hold beside its type, and what a message calls all of that.

    What is wrong with an item of a list is said of the item. Lists of JSON need `Strict(False)` before it.
    """

    def check(value: Any, handler: ValidatorFunctionWrapHandler) -> Any:
        try:
            if holds(found := handler(value)):
                return found
        except ValidationError as error:
            if any(one["loc"] for one in error.errors(include_url=False)):
                raise
        raise not_allowed(text)

    return WrapValidator(check)


def between(least: float, most: float) -> WrapValidator:
    """Of a number, a whole one where the bounds are: neither smaller than `least` nor larger than `most`."""
    whole = isinstance(least, int)
    text = f"a whole number from {least} to {most}" if whole else f"a number from {least:g} to {most:g}"
    return allowed(text, lambda value: bool(least <= value <= most))


def read_text(path: Path, what: str) -> str:
    """A small UTF-8 text file; a mark at its begin does not count.

    Raises:
        WrongInput: there is no such file, it is larger than 16 MB, or no UTF-8; `what` names it.
    """
    hint = "check the path"
    try:
        # A pipe would never end.
        if path.exists() and not path.is_file():
            raise WrongInput(f"cannot read the {what} file {path}: it is not a file", hint=hint)
        if path.exists() and path.stat().st_size > LARGEST_TEXT:
            raise WrongInput(f"the {what} file {path} is larger than {LARGEST_TEXT >> 20} MB", hint=hint)
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        wrong = f"the {what} file {path} is not UTF-8 text: {error.reason}"
        raise WrongInput(wrong, hint="save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise WrongInput(f"cannot read the {what} file {path}: {reason}", hint=hint) from error
