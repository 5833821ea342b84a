"""The server as its clients see it: `Client` turns media into typed answers. Knows no wire, no files."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TypeVar

from pipelines.protocol import errors
from pipelines.protocol.answers import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
    answer_columns,
)
from pipelines.protocol.columns import ERROR_COLUMN, STREAM_COLUMNS, Column, Tensor
from pipelines.protocol.errors import DeadlineExceeded, InvalidOptions, ModelUnavailable, TooLarge
from pipelines.protocol.kserve import reading
from pipelines.protocol.options import TRANSFER_OPTIONS, Scalar
from pipelines.sdk.pulls import Pulls
from pipelines.sdk.served import ServerInfo, endpoint_of, kind_of
from pipelines.sdk.transport import Call, Transport, parse_address

DEFAULT_URL = "grpc://127.0.0.1:8001"
# It is loaded last: once it is ready, every endpoint is.
STATUS = "status"
STATUS_COLUMNS = (
    Column(name="status", dtype=object, dims=(1,), help="the server's description as JSON"),
    ERROR_COLUMN,
)
READY_POLL_S = 0.2
# Among the options of a call, the name of the model; it is a part of the address, and not sent.
MODEL = "model"

Media = bytes | str | os.PathLike[str]
AnswerT = TypeVar("AnswerT", bound=Answer)


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
        """The likeliest classes of each frame, in one piece; `options` are fields of `Options`.

        Beside them, here and below, `model` names the served model, where there are several of the task.
        """
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

    def embed(self, media: Media, **options: Scalar) -> EmbeddingAnswer:
        """The vector of each frame, in one piece."""
        return self.ask(EmbeddingAnswer, media, options)

    def embed_stream(self, media: Media, **options: Scalar) -> Generator[EmbeddingAnswer, None, None]:
        """The same for a medium of any length, as the answers come."""
        return self.ask_stream(EmbeddingAnswer, media, options)

    def ask_model(self, model: str, media: Media, **options: Scalar) -> Answer:
        """One answer of the served model of that name, in the form of its task."""
        return self.ask(self._kind(model), media, {**options, MODEL: model})

    def ask_model_stream(self, model: str, media: Media, **options: Scalar) -> Generator[Answer, None, None]:
        """The same as a stream of answers."""
        return self.ask_stream(self._kind(model), media, {**options, MODEL: model})

    def ask(self, kind: type[AnswerT], media: Media, options: Mapping[str, Scalar]) -> AnswerT:
        """One answer of a kind, from the model that `options` name, else from the only one of its task."""
        return _answer(kind, self._transport.infer(self._call(kind, media, options, stream=False)))

    def ask_stream(
        self, kind: type[AnswerT], media: Media, options: Mapping[str, Scalar]
    ) -> Generator[AnswerT, None, None]:
        """The same as a stream of answers.

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
        endpoint = endpoint_of(kind.task, str(options.get(MODEL, "")), info)
        size = len(media) if isinstance(media, bytes) else Path(media).stat().st_size
        if size > (limit := info["max_media_bytes"]):
            raise TooLarge(f"media of {size} bytes, the server takes {limit}", hint="send a shorter medium")
        return Call(
            model=f"{endpoint}_stream" if stream else endpoint,
            input_name="media",
            data=media if isinstance(media, bytes) else Path(media).read_bytes(),
            columns=(*answer_columns(kind), *STREAM_COLUMNS) if stream else answer_columns(kind),
            timeout_s=self._timeout_s if stream else deadline - time.monotonic(),
            parameters={name: value for name, value in options.items() if name != MODEL},
        )

    def _kind(self, model: str) -> type[Answer]:
        return kind_of(self._known or self._info(self._timeout_s), model=model)[0]

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
