"""The server as its clients see it: `Client` turns media into typed answers. Knows no wire, no files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TypedDict, TypeVar

from pipelines.protocol import errors
from pipelines.protocol.answers import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
    answer_columns,
)
from pipelines.protocol.columns import ERROR_COLUMN, STREAM_COLUMNS, Column, Tensor
from pipelines.protocol.errors import DeadlineExceeded, InvalidOptions, ModelUnavailable, TooLarge
from pipelines.protocol.kserve import reading
from pipelines.protocol.options import TRANSFER_OPTIONS, Scalar
from pipelines.sdk.pulls import Pulls
from pipelines.sdk.transport import Call, Transport, parse_address

DEFAULT_URL = "grpc://127.0.0.1:8001"
# It is loaded last: once it is ready, every endpoint is.
STATUS = "status"
STATUS_COLUMNS = (
    Column(name="status", dtype=object, dims=(1,), help="the server's description as JSON"),
    ERROR_COLUMN,
)
READY_POLL_S = 0.2

Media = bytes | str | os.PathLike[str]
AnswerT = TypeVar("AnswerT", bound=Answer)


class ClipInfo(TypedDict):
    """What a clip model takes: `length` frames, `fps` of them per second, and no other length if `fixed`."""

    length: int
    fps: float
    fixed: bool


class ModelInfo(TypedDict):
    """A served model: its name, where its weights are from, its classes (for pixels, the background first).

    `batch_sizes` counts the computed batches by size.
    """

    name: str
    source: str
    licence: str
    labels: list[str]
    precision: str
    engine: str
    clip: ClipInfo | None
    batch_sizes: dict[str, int]


class ServerInfo(TypedDict):
    """What a server says about itself: its models by task; `decoders` counts the media that each has read."""

    version: str
    device: str
    max_media_bytes: int
    max_frames: int
    models: dict[str, ModelInfo]
    decoders: dict[str, int]


class Client:
    """A connection to one server. Calls end in time, and raise errors of `pipelines.protocol.errors`.

    Args:
        url: `grpc://host:8001`, `http://host:8000`, or `grpcs://` and `https://` with TLS.
        timeout_s: bound of each call; for a stream, of the wait for each answer.
        token: sent as `Authorization: Bearer`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 60.0, token: str = "") -> None:
        if not timeout_s > 0:
            raise InvalidOptions(f"timeout_s={timeout_s:g} is not above 0")
        self._transport = _connect(url, token)
        self._timeout_s = timeout_s
        self._known: ServerInfo | None = None

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._transport.close()

    def classify(self, media: Media, **options: Scalar) -> ClassificationAnswer:
        """The likeliest classes of each frame, in one piece; `options` are fields of `Options`."""
        return self.ask(ClassificationAnswer, media, options)

    def classify_stream(self, media: Media, **options: Scalar) -> Generator[ClassificationAnswer, None, None]:
        """The same for a medium of any length, as the answers come; closing the generator ends the call."""
        return self.ask_stream(ClassificationAnswer, media, options)

    def detect(self, media: Media, **options: Scalar) -> DetectionAnswer:
        """The boxes in each frame, in one piece."""
        return self.ask(DetectionAnswer, media, options)

    def detect_stream(self, media: Media, **options: Scalar) -> Generator[DetectionAnswer, None, None]:
        """The same for a medium of any length, as the answers come."""
        return self.ask_stream(DetectionAnswer, media, options)

    def segment(self, media: Media, **options: Scalar) -> SegmentationAnswer:
        """The classes of each frame's pixels, in one piece."""
        return self.ask(SegmentationAnswer, media, options)

    def segment_stream(self, media: Media, **options: Scalar) -> Generator[SegmentationAnswer, None, None]:
        """The same for a medium of any length, as the answers come."""
        return self.ask_stream(SegmentationAnswer, media, options)

    def recognize(self, media: Media, **options: Scalar) -> ActionAnswer:
        """The likeliest actions of each clip of frames, in one piece."""
        return self.ask(ActionAnswer, media, options)

    def recognize_stream(self, media: Media, **options: Scalar) -> Generator[ActionAnswer, None, None]:
        """The same for a medium of any length, as the answers come."""
        return self.ask_stream(ActionAnswer, media, options)

    def ask(self, kind: type[AnswerT], media: Media, options: Mapping[str, Scalar]) -> AnswerT:
        """One answer of a kind, from the endpoint of its task."""
        return _answer(kind, self._transport.infer(self._call(kind, media, options, stream=False)))

    def ask_stream(
        self, kind: type[AnswerT], media: Media, options: Mapping[str, Scalar]
    ) -> Generator[AnswerT, None, None]:
        """The answers of a kind, from the stream of its task.

        They are requested a few at a time, as the caller takes them. A caller that takes none for 30 s loses
        the rest, with Cancelled: the server has closed the stream.
        """
        return self._answers(kind, Pulls(self._transport, self._call(kind, media, options, stream=True)))

    def info(self) -> ServerInfo:
        """What the server says about itself now."""
        return self._info(self._timeout_s)

    def ready(self) -> bool:
        """Whether the server can be reached and its models are ready."""
        try:
            self._check_ready(self._timeout_s)
        except (ModelUnavailable, DeadlineExceeded):
            return False
        return True

    def wait_ready(self, timeout_s: float = 60.0) -> None:
        """Return as soon as the server is ready. Raises ModelUnavailable after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self._check_ready(min(self._timeout_s, deadline - time.monotonic()))
            except (ModelUnavailable, DeadlineExceeded) as error:
                if time.monotonic() + READY_POLL_S >= deadline:
                    raise ModelUnavailable(f"not ready in {timeout_s:g} s: {error}") from None
                time.sleep(READY_POLL_S)

    def _check_ready(self, timeout_s: float) -> None:
        self._transport.check_ready(STATUS, timeout_s)

    def _info(self, timeout_s: float) -> ServerInfo:
        call = Call(model=STATUS, input_name="query", data=b"", columns=STATUS_COLUMNS, timeout_s=timeout_s)
        columns = self._transport.infer(call)
        with reading():
            _raise_error(columns)
            info: ServerInfo = json.loads(columns["status"][0])
            info.setdefault("decoders", {})  # a server that has read nothing yet sends no counts
            if missing := ServerInfo.__annotations__.keys() - info.keys():
                raise ValueError(f"the status lacks {', '.join(sorted(missing))}")
        self._known = info
        return info

    def _call(self, kind: type[Answer], media: Media, options: Mapping[str, Scalar], *, stream: bool) -> Call:
        """The request for a medium; asking for the server's limits takes from the call's own time."""
        for name in TRANSFER_OPTIONS:
            if name in options:
                raise InvalidOptions(
                    f"{name} is not for callers", hint="media are bytes or a path; streams pull automatically"
                )
        deadline = time.monotonic() + self._timeout_s
        info = self._known or self._info(self._timeout_s)
        if kind.task not in info["models"]:
            served = ", ".join(info["models"]) or "none"
            raise InvalidOptions(f"the server has no model for {kind.task}", hint=f"it serves {served}")
        size = len(media) if isinstance(media, bytes) else Path(media).stat().st_size
        if size > (limit := info["max_media_bytes"]):
            raise TooLarge(f"media of {size} bytes, the server takes {limit}", hint="send a shorter medium")
        return Call(
            model=f"{kind.task}_stream" if stream else kind.task,
            input_name="media",
            data=media if isinstance(media, bytes) else Path(media).read_bytes(),
            columns=(*answer_columns(kind), *STREAM_COLUMNS) if stream else answer_columns(kind),
            timeout_s=self._timeout_s if stream else deadline - time.monotonic(),
            parameters=options,
        )

    def _answers(self, kind: type[AnswerT], pulls: Pulls) -> Generator[AnswerT, None, None]:
        with contextlib.closing(pulls.rows()) as rows:
            for columns in rows:
                yield _answer(kind, columns)


def _connect(url: str, token: str) -> Transport:
    """The transport for a URL's scheme; nothing is sent yet."""
    address = parse_address(url)
    if address.scheme.startswith("grpc"):
        from pipelines.sdk.grpc_transport import GrpcTransport  # HTTP needs no grpc

        return GrpcTransport(address, token)
    from pipelines.sdk.http_transport import HttpTransport

    return HttpTransport(address, token)


def _answer(kind: type[AnswerT], columns: Mapping[str, Tensor]) -> AnswerT:
    with reading():
        _raise_error(columns)
        return kind.from_columns(columns)


def _raise_error(columns: Mapping[str, Tensor]) -> None:
    """Raise what the `error` column says, if it says anything."""
    if text := bytes(columns["error"][0]):
        raise errors.from_json(text)
