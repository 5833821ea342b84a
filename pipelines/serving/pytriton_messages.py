"""Requests from Triton's stubs to the callables, and answers back: within PyTriton's messages, or in files.

PyTriton would lay each tensor into shared memory that another process hands out, one for every endpoint: two
questions to it for each tensor, and /dev/shm never shrinks. Runs on both sides, and a stub gets a copy of
this file: Python's standard library alone. Both sides are one server's own processes, and their socket and
files lie in its folder, which nobody else may enter; so pickles are safe between them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# A message is copied six times on its way, a file two or three times.
WITHIN_MESSAGE_BYTES = 1 << 18


class Messages:
    """PyTriton's serializer of requests and responses.

    Args:
        request, response: PyTriton's classes, which each side imports from elsewhere.
    """

    def __init__(self, request: Callable[..., Any], response: Callable[..., Any]) -> None:
        self._request, self._response = request, response

    def serialize_requests(self, requests: Sequence[Any]) -> bytes:
        """Requests to a message; spans of OpenTelemetry stay behind."""
        values = [(each.data, each.parameters, each.requested_output_names) for each in requests]
        return _pack(values, [each.data for each in requests])

    def deserialize_requests(self, message: bytes) -> list[Any]:
        return [
            self._request(data=data, parameters=parameters, requested_output_names=names)
            for data, parameters, names in _unpack(message)
        ]

    def serialize_responses(self, responses: Sequence[Mapping[str, Any]]) -> bytes:
        values = [dict(tensors) for tensors in responses]
        return _pack(values, values)

    def deserialize_responses(self, message: bytes) -> list[Any]:
        """An empty message, as at a stream's end, holds no responses."""
        return [self._response(data=tensors) for tensors in _unpack(message)] if message else []

    def free_requests_resources(self, message: bytes) -> None:
        """To be called behind each message, read or not."""
        _discard(message)

    def free_responses_resources(self, message: bytes) -> None:
        """To be called behind each message, read or not."""
        _discard(message)

    def start(self, *_address: object, **_key: object) -> None:
        """Nothing: there is no store to start."""

    def connect(self, *_address: object, **_key: object) -> None:
        """Nothing: there is no store to connect to."""

    def close(self) -> None:
        """Nothing: there is no store to close."""


def _pack(value: object, tensors: Iterable[Mapping[str, Any]]) -> bytes:
    """A message: the value itself, or the path of a file with it; where a file has no room, the value."""
    if sum(_nbytes(tensor) for named in tensors for tensor in named.values()) > WITHIN_MESSAGE_BYTES:
        with contextlib.suppress(OSError):
            return _to_file(value)
    return pickle.dumps(value, pickle.HIGHEST_PROTOCOL)


def _unpack(message: bytes) -> Any:
    """What was packed; a file is gone then."""
    if _within(message):
        return pickle.loads(message)
    with open(message, "rb") as file:
        os.unlink(message)
        return pickle.load(file)


def _discard(message: bytes) -> None:
    """Remove the file that was not read."""
    if message and not _within(message):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(message)


def _within(message: bytes) -> bool:
    return message[:1] == pickle.PROTO


def _nbytes(tensor: Any) -> int:
    return sum(map(len, tensor.flat)) if tensor.dtype.hasobject else int(tensor.nbytes)


def _to_file(value: object) -> bytes:
    # The server's folder. If it was once full, Python would choose another, which nobody would clean up.
    descriptor, path = tempfile.mkstemp(prefix="message-", dir=os.environ.get("TMPDIR"))
    try:
        with open(descriptor, "wb") as file:
            pickle.dump(value, file, pickle.HIGHEST_PROTOCOL)
    except BaseException:
        os.unlink(path)
        raise
    return os.fsencode(path)
