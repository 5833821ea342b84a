"""What both libraries need: an import when they are asked for, and labels that can be shown."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.texts import MOST_NAMES, wrong_name


def library(module: str) -> Any:
    """A module of a library that not every installation has.

    Raises:
        ModelUnavailable: it is not installed.
    """
    name = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ModelUnavailable(
            f"{name} is not installed: {error}", hint=f"uv sync --extra {name}, or pip install {name}"
        ) from error


def checked_labels(names: Iterable[Any], count: int, owner: str) -> tuple[str, ...]:
    """The names of `count` classes, as `owner` says them.

    Raises:
        ModelUnavailable: there are more or less of them, or one cannot be shown.
    """
    labels = tuple(names)
    wrong = f"{len(labels)} labels for {count} classes" if len(labels) != count else ""
    wrong = wrong or (f"{count} labels, more than {MOST_NAMES}" if count > MOST_NAMES else "")
    for number, label in enumerate(labels):
        reason = wrong_name(label) if isinstance(label, str) else f"a {type(label).__name__}"
        if reason:
            wrong = wrong or f"as label {number} a text that is {reason}"
    if wrong:
        raise ModelUnavailable(f"{owner} has {wrong}", hint="correct them in its config.json")
    return labels
