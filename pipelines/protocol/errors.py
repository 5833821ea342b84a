"""One tree of errors with stable codes. Knows nothing of transport, models or media.

    TrividError
    ├── InvalidMedia      (client)  the bytes are no readable image or video, or break off
    ├── UnsupportedMedia  (client)  readable, but of a kind that is not served
    ├── TooLarge          (client)  bytes, pixels, frames or the answer exceed a limit
    ├── InvalidOptions    (client)  an option is unknown, of the wrong type or out of range
    ├── Overloaded        (server)  no room for this request now; try again later
    ├── DeadlineExceeded  (server)  the answer would come too late, or did not come in time
    ├── Cancelled         (client)  the client left
    ├── ModelUnavailable  (server)  the model or the server is not there or not ready
    └── InternalError     (server)  a fault of this program: report it

An error crosses the wire as JSON `{"code", "message", "hint"}` in the `error` column of an answer.
"""

from __future__ import annotations

import json
from typing import ClassVar, Literal

Fault = Literal["client", "server"]
MOST_CHARACTERS = 1000


class TrividError(Exception):
    """Base of all typed errors: a stable `code`, whose `fault` it is, and a `hint` at what to do."""

    code: ClassVar[str] = "error"
    fault: ClassVar[Fault] = "server"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_json(self) -> bytes:
        """The error as in the `error` column; what a client sent may be long, and is cut."""
        message = self.message[:MOST_CHARACTERS] + ("…" if len(self.message) > MOST_CHARACTERS else "")
        return json.dumps({"code": self.code, "message": message, "hint": self.hint}).encode()


class InvalidMedia(TrividError):
    code = "invalid_media"
    fault = "client"


class UnsupportedMedia(TrividError):
    code = "unsupported_media"
    fault = "client"


class TooLarge(TrividError):
    code = "too_large"
    fault = "client"


class InvalidOptions(TrividError):
    code = "invalid_options"
    fault = "client"


class Overloaded(TrividError):
    code = "overloaded"


class DeadlineExceeded(TrividError):
    code = "deadline_exceeded"


class Cancelled(TrividError):
    code = "cancelled"
    fault = "client"


class ModelUnavailable(TrividError):
    code = "model_unavailable"


class InternalError(TrividError):
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
