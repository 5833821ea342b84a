"""Small texts beside a model, and pinned files: looked at before they are read. Knows no torch."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import allowed

# Most characters of a name in a text beside a model, and names.
LONGEST_NAME = 1000
MOST_NAMES = 100_000
# Characters that break lines of a log, move a terminal's cursor, or turn the direction of the text around.
UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def wrong_name(text: str) -> str:
    """What is wrong with a label or a name that is shown to people; empty: nothing."""
    if len(text) > LONGEST_NAME:
        return f"longer than {LONGEST_NAME} characters"
    if any(unicodedata.category(one) in UNSEEN or one in TURNING for one in text):
        return "not printable"
    return ""


IS_NAME = f"a printable text of at most {LONGEST_NAME} characters"
Name = Annotated[str, allowed(IS_NAME, lambda text: not wrong_name(text))]
Names = Annotated[tuple[Name, ...], Field(max_length=MOST_NAMES, fail_fast=True)]


def check_file(path: Path, sha256: str = "", what: str = "weights", *, beside: Path | None = None) -> None:
    """Raise ModelUnavailable unless `path` is a file that, where a `sha256` is given, has this one.

    With a file `beside` it, the digest is of both, one after the other.
    """
    if not path.is_file():
        raise ModelUnavailable(f"no {what} file {path}", hint="check the path")
    if not sha256:
        return
    digest = hashlib.sha256()
    for one in (path,) if beside is None else (path, beside):
        with one.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    if (found := digest.hexdigest()) != sha256.lower():
        raise ModelUnavailable(
            f"{path} is not the pinned file: expected sha256 {sha256.lower()}, found {found}",
            hint="get the right file, or pin this one",
        )
