"""Small texts beside a model, and pinned files: looked at before they are read. Knows no torch."""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path

from pipelines.protocol.errors import ModelUnavailable

# Most bytes of a text beside a model, characters of a name in it, and names.
LARGEST_TEXT = 16 << 20
LONGEST_NAME = 1000
MOST_NAMES = 100_000
# Characters that break lines of a log, move a terminal's cursor, or turn the direction of the text around.
UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
TURNING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def read_text(path: Path, what: str) -> str:
    """A small UTF-8 text file, without a byte order mark at its start.

    Raises:
        ModelUnavailable: there is no such file, it is larger than 16 MB, or not UTF-8; `what` names it.
    """
    try:
        if not path.is_file():
            reason = "is no file" if path.exists() else "No such file or directory"
            raise ModelUnavailable(f"cannot read the {what} file {path}: {reason}", hint="check the path")
        if path.stat().st_size > LARGEST_TEXT:
            raise ModelUnavailable(
                f"the {what} file {path} is larger than {LARGEST_TEXT >> 20} MB", hint="check the path"
            )
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelUnavailable(
            f"the {what} file {path} is no UTF-8 text: {error.reason}", hint="save it as UTF-8"
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelUnavailable(
            f"cannot read the {what} file {path}: {reason}", hint="check the path"
        ) from error


def wrong_name(text: str) -> str:
    """What is wrong with a label or a name that is shown to people; empty: nothing."""
    if len(text) > LONGEST_NAME:
        return f"longer than {LONGEST_NAME} characters"
    if any(unicodedata.category(one) in UNSEEN or one in TURNING for one in text):
        return "not printable"
    return ""


def check_file(path: Path, sha256: str = "", what: str = "weights") -> None:
    """Raise ModelUnavailable unless `path` is a file that, where a `sha256` is given, has this one."""
    if not path.is_file():
        raise ModelUnavailable(f"no {what} file {path}", hint="check the path")
    if not sha256:
        return
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise ModelUnavailable(
            f"{path} is not the pinned file: expected sha256 {sha256.lower()}, found {found}",
            hint="get the right file, or pin this one",
        )
