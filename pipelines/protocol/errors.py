"""One tree of errors with stable codes. Knows nothing of transport, models or media.

An error crosses the wire as JSON `{"code", "message", "hint"}` in the `error` column of an answer.
"""

from __future__ import annotations

import json
from typing import Any, ClassVar, Literal

Fault = Literal["client", "server"]
MOST_CHARACTERS = 1000


class TrividError(Exception):
    """Base of all typed errors: a stable `code`, whose `fault` it is, and a `hint` at what to do.

    In a client, `answer` is what was answered of a medium before it broke off, or None.

    The docstring of each kind says what it means and what a client does; docs/reference.md shows it.
    """

    code: ClassVar[str] = "error"
    fault: ClassVar[Fault] = "server"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.answer: Any = None

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        brackets = "(" in self.message + self.hint  # within others they are hard to read
        return f"{self.message}; {self.hint}" if brackets else f"{self.message} ({self.hint})"

    def to_json(self) -> bytes:
        """The error as in the `error` column; what a client sent may be long, and is cut."""
        message = self.message[:MOST_CHARACTERS] + ("…" if len(self.message) > MOST_CHARACTERS else "")
        return json.dumps({"code": self.code, "message": message, "hint": self.hint}).encode()


class InvalidMedia(TrividError):
    """The bytes are no readable image or video, or break off. Check the file."""

    code = "invalid_media"
    fault = "client"


class UnsupportedMedia(TrividError):
    """It is readable, but of a kind that is not served. Convert it."""

    code = "unsupported_media"
    fault = "client"


class TooLarge(TrividError):
    """Bytes, pixels, frames or the answer exceed a limit. Use the stream, or ask for less."""

    code = "too_large"
    fault = "client"


class InvalidOptions(TrividError):
    """An option is unknown, of the wrong type or out of range. See the hint."""

    code = "invalid_options"
    fault = "client"


class Overloaded(TrividError):
    """There is no room for this request now. Try again later."""

    code = "overloaded"


class DeadlineExceeded(TrividError):
    """The answer would come too late, or did not come in time."""

    code = "deadline_exceeded"


class Cancelled(TrividError):
    """The client left, or the session is closed. Begin anew."""

    code = "cancelled"
    fault = "client"


class ModelUnavailable(TrividError):
    """The model or the server is not there, or not ready."""

    code = "model_unavailable"


class InternalError(TrividError):
    """A fault of the server. Report it."""

    code = "internal_error"


BY_CODE: dict[str, type[TrividError]] = {kind.code: kind for kind in TrividError.__subclasses__()}


def from_json(text: bytes) -> TrividError:
    """The typed error of an `error` column; an unknown code becomes InternalError and is named."""
    fields = json.loads(text)
    code = str(fields["code"])
    kind = BY_CODE.get(code, InternalError)
    message = (
        str(fields["message"]) if code in BY_CODE else f"unknown error code {code!r}: {fields['message']}"
    )
    return kind(message, hint=str(fields.get("hint", "")))
