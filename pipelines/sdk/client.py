"""The server as its clients see it: `Client` turns media into typed answers. Knows no wire, no files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
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
from pipelines.protocol.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidMedia,
    InvalidOptions,
    ModelUnavailable,
    TooLarge,
    TrividError,
)
from pipelines.protocol.kserve import reading
from pipelines.protocol.options import TRANSFER_OPTIONS, Scalar
from pipelines.sdk.folders import special_kind
from pipelines.sdk.proxies import proxy_of
from pipelines.sdk.pulls import Pulls
from pipelines.sdk.served import ServerInfo, endpoint_of, kind_of, read_info
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
T = TypeVar("T")
# How a call fails whose endpoint has gone, or is another model's since.
OUTDATED = (ModelUnavailable, InternalError)
LONGEST_S = 1e6


class Client:
    """A connection to one server. Calls end in time, and raise errors of `pipelines.protocol.errors`.

    It outlives its server: what it knows of it (models, limits) is asked again where that may be out of date.
    Threads may share it, and a process that was forked may go on with it, except with a stream begun before.

    Args:
        url: `grpc://host:8001`, `http://host:8000`, or `grpcs://` and `https://` with TLS.
        timeout_s: bound of each call; for a stream, of the wait for each answer.
        token: sent as `Authorization: Bearer`.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 60.0, token: str = "") -> None:
        if not timeout_s > 0:
            raise InvalidOptions(f"timeout_s={timeout_s:g} is not above 0")
        self._transport = _connect(url, token)
        self._timeout_s = min(timeout_s, LONGEST_S)
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
        """One answer of a kind, from the model that `options` name, else from the only one of its task.

        The error of a medium that breaks off has what was answered before it as its `answer`.
        """
        deadline, known = time.monotonic() + self._timeout_s, self._known
        call = self._call(kind, media, options, deadline)
        try:
            return _answer(kind, self._transport.infer(call))
        except OUTDATED:
            other = self._other_call(call, known, lambda: self._call(kind, media, options, deadline))
            if other is None:
                raise
        return _answer(kind, self._transport.infer(other))

    def ask_stream(
        self, kind: type[AnswerT], media: Media, options: Mapping[str, Scalar]
    ) -> Generator[AnswerT, None, None]:
        """The same as a stream of answers.

        They are requested a few at a time, as the caller takes them. A caller that takes none for 30 s loses
        the rest, with Cancelled: the server has closed the stream.
        """
        known = self._known

        def make() -> Call:
            return self._call(kind, media, options, time.monotonic() + self._timeout_s, stream=True)

        return self._answers(kind, make(), known, make)

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
        self._known = None
        columns = self._transport.infer(call)
        with reading():
            if error := _error(columns):
                raise error
            info = read_info(columns["status"][0])
        self._known = info
        return info

    def _call(
        self,
        kind: type[Answer],
        media: Media,
        options: Mapping[str, Scalar],
        deadline: float,
        *,
        stream: bool = False,
    ) -> Call:
        """The request for a medium; asking for the server's limits takes from the call's own time."""
        for name in TRANSFER_OPTIONS:
            if name in options:
                raise InvalidOptions(
                    f"{name} is not for callers", hint="media are bytes or a path; streams pull automatically"
                )
        size = len(media) if isinstance(media, bytes) else _file_size(media)

        def admit(info: ServerInfo) -> str:
            endpoint = endpoint_of(kind.task, str(options.get(MODEL, "")), info)
            if size > (limit := info["max_media_bytes"]):
                raise TooLarge(
                    f"media of {size} bytes, the server takes {limit}", hint="send a shorter medium"
                )
            return endpoint

        endpoint = self._judge(admit, deadline)
        return Call(
            model=f"{endpoint}_stream" if stream else endpoint,
            input_name="media",
            data=media if isinstance(media, bytes) else Path(media).read_bytes(),
            columns=(*answer_columns(kind), *STREAM_COLUMNS) if stream else answer_columns(kind),
            timeout_s=self._timeout_s if stream else deadline - time.monotonic(),
            parameters={name: value for name, value in options.items() if name != MODEL},
        )

    def _judge(self, judge: Callable[[ServerInfo], T], deadline: float) -> T:
        """What `judge` makes of the server's facts; before it refuses, they are asked anew."""
        if self._known is not None:
            with contextlib.suppress(InvalidOptions, TooLarge, ModelUnavailable):
                return judge(self._known)
        return judge(self._info(deadline - time.monotonic()))

    def _other_call(self, call: Call, known: ServerInfo | None, make: Callable[[], Call]) -> Call | None:
        """After a call that failed: one to another endpoint, where the server has changed since `known`."""
        self._known = None
        if known is None:
            return None
        with contextlib.suppress(TrividError):
            other = make()
            return None if other.model == call.model else other
        return None

    def _kind(self, model: str) -> type[Answer]:
        deadline = time.monotonic() + self._timeout_s
        return self._judge(lambda info: kind_of(info, model=model)[0], deadline)

    def _answers(
        self, kind: type[AnswerT], call: Call, known: ServerInfo | None, make: Callable[[], Call]
    ) -> Generator[AnswerT, None, None]:
        pulls = Pulls(self._transport, call)
        try:
            return (yield from _read(kind, pulls))
        except OUTDATED:
            other = None if pulls.begun else self._other_call(call, known, make)
            if other is None:
                raise
        yield from _read(kind, Pulls(self._transport, other))


def _read(kind: type[AnswerT], pulls: Pulls) -> Generator[AnswerT, None, None]:
    with contextlib.closing(pulls.rows()) as rows:
        for columns in rows:
            yield _answer(kind, columns)


def _file_size(path: str | os.PathLike[str]) -> int:
    """Bytes of a file. Raises InvalidMedia for a pipe, a device or a socket: reading may never end."""
    found = Path(path).stat()
    if kind := special_kind(found.st_mode):
        raise InvalidMedia(
            f"{os.fspath(path)} is a {kind}, not a file", hint="save it as a file, or send bytes"
        )
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    return found.st_size


def _connect(url: str, token: str) -> Transport:
    """The transport for a URL's scheme; nothing is sent yet."""
    address = parse_address(url)
    address = replace(address, proxy=proxy_of(address.scheme, address.host, address.port, os.environ))
    if not re.fullmatch(r"[!-~]*", token):
        raise InvalidOptions("the token holds a blank or a sign that is not ASCII", hint="is it whole?")
    if address.scheme.startswith("grpc"):
        try:
            from pipelines.sdk.grpc_transport import GrpcTransport  # HTTP needs no grpc
        except ImportError as error:
            hint = "pip install 'tritonclient[grpc]', or use HTTP, by default port 8000"
            raise InvalidOptions(f"{address} needs tritonclient: {error}", hint=hint) from None
        return GrpcTransport(address, token)
    from pipelines.sdk.http_transport import HttpTransport

    return HttpTransport(address, token)


def _answer(kind: type[AnswerT], columns: Mapping[str, Tensor]) -> AnswerT:
    """The answer; or raise the error that it holds, with the rows that came before it."""
    with reading():
        if error := _error(columns):
            if columns["count"][0]:
                error.answer = kind.from_columns(columns)
            raise error
        return kind.from_columns(columns)


def _error(columns: Mapping[str, Tensor]) -> errors.TrividError | None:
    """What the `error` column says, if it says anything."""
    text = bytes(columns["error"][0])
    return errors.from_json(text) if text else None
