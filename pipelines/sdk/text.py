"""Text that can be shown and read back, whatever a file's name, a label or a server holds. Knows no stream.

Names of files are bytes; Python holds those that are not UTF-8 as lone surrogates (`os.fsdecode`). These, and
whatever would steer a terminal or end a line, are written as JSON writes them: `\\udce9`, `\\u001b`.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

UNSHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
NOT_ASCII = re.compile(r"[^\x00-\x7f]+")


def one_line(text: str) -> str:
    """The text without control characters and lone surrogates: each is escaped."""
    return UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def fitting(text: str, encoding: str | None) -> str:
    """The text, with all that is not ASCII escaped where the encoding cannot hold it."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeError, LookupError):
        return NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text)
    return text


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON as RFC 8259 has it; numbers that are not finite, which it lacks, become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
