"""A small HTTP server that says what a test tells it to, and sockets that misbehave: no Triton needed."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import numpy as np

from pipelines.contract import Column, Tensor, text_column, to_tensors
from pipelines.results import SEGMENTATION_COLUMNS, SegmentationAnswer

STATUS_COLUMNS = (
    Column(name="status", dtype=object, dims=(1,), help=""),
    Column(name="error", dtype=object, dims=(1,), help=""),
)
STATUS: dict[str, Any] = {
    "version": "1",
    "device": "cpu",
    "max_media_bytes": 1000,
    "max_frames": 300,
    "models": {"segmentation": {"name": "m", "source": "here", "labels": ["background", "cat"]}},
}


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What is sent back; `cut` closes the connection in the middle of a chunked body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    chunks: Sequence[bytes] | None = None
    cut: bool = False


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def head(self) -> Any:
        """The JSON of the request, before binary tensors."""
        length = self.headers.get("Inference-Header-Content-Length")
        return json.loads(self.body[: int(length)] if length else self.body)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has left is what many tests are about."""
        if not isinstance(sys.exc_info()[1], ConnectionError | ssl.SSLError):
            super().handle_error(request, client_address)


class StubServer:
    """Answers `status`, and by path what `replies` holds; anything else is 404."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        self.replies: dict[str, Reply | Callable[[Seen], Reply]] = {
            "/v2/models/status/infer": binary(STATUS_COLUMNS, {"status": text_column(json.dumps(STATUS))})
        }
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                stub._answer(self)

            do_GET = do_POST  # noqa: N815

            def log_message(self, *_args: object) -> None:
                """Say nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.url = f"http{'' if tls is None else 's'}://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)

    def segment(self, reply: Reply | Callable[[Seen], Reply]) -> None:
        self.replies["/v2/models/segmentation/infer"] = reply

    def stream(self, reply: Reply | Callable[[Seen], Reply]) -> None:
        self.replies["/v2/models/segmentation_stream/generate_stream"] = reply

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        seen = Seen(path=handler.path, headers=dict(handler.headers), body=body)
        self.seen.append(seen)
        told = self.replies.get(handler.path, Reply(status=404))
        reply = told(seen) if callable(told) else told
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.chunks is None:
            handler.send_header("Content-Length", str(len(reply.body)))
            handler.end_headers()
            handler.wfile.write(reply.body)
            return
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for chunk in [*reply.chunks, *([] if reply.cut else [b""])]:
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
        handler.close_connection = reply.cut

    def __enter__(self) -> StubServer:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def answer(frames: Sequence[int] = (0, 1), *, final: bool = True, **fields: Any) -> SegmentationAnswer:
    """An answer of two classes for frames of 2 × 3 pixels, `index` of them cat."""
    index = np.array(frames, np.int64)
    return SegmentationAnswer(
        frame_index=index,
        pts_s=index / 10,
        class_names=("background", "cat"),
        class_pixels=np.stack([6 - index % 6, index % 6], axis=1),
        height_px=2,
        width_px=3,
        decoder="stub",
        final=final,
        **fields,
    )


def binary(columns: Sequence[Column], row: Mapping[str, Tensor]) -> Reply:
    """A unary answer in the KServe v2 binary form, one row."""
    kinds = {"O": "BYTES", "i8": "INT64", "f8": "FP64", "u1": "UINT8"}
    outputs, parts = [], []
    for name, tensor in to_tensors(columns, [row]).items():
        raw = (
            b"".join(len(item).to_bytes(4, "little") + item for item in tensor.flat)
            if tensor.dtype == object
            else tensor.tobytes()
        )
        datatype = kinds[tensor.dtype.str.lstrip("<|")]
        size = {"binary_data_size": len(raw)}
        outputs.append({"name": name, "datatype": datatype, "shape": tensor.shape, "parameters": size})
        parts.append(raw)
    head = json.dumps({"model_name": "stub", "outputs": outputs}).encode()
    return Reply(body=head + b"".join(parts), headers={"Inference-Header-Content-Length": str(len(head))})


def unary(given: SegmentationAnswer | Mapping[str, Tensor]) -> Reply:
    """A segmentation answer, or an error row."""
    row = given.to_columns() if isinstance(given, SegmentationAnswer) else given
    return binary(SEGMENTATION_COLUMNS, row)


def event(given: SegmentationAnswer | Mapping[str, Tensor]) -> bytes:
    """One server-sent event as Triton writes it: flat lists, and a scalar where there is one element."""
    row = given.to_columns() if isinstance(given, SegmentationAnswer) else given
    tensors = to_tensors(SEGMENTATION_COLUMNS, [row])
    flat: dict[str, Any] = {"model_name": "stub", "model_version": "1"}
    for column in SEGMENTATION_COLUMNS:
        values = [_text(column, value) for value in tensors[column.name].ravel().tolist()]
        flat[column.name] = values if len(values) != 1 else values[0]
    return f"data: {json.dumps(flat)}\n\n".encode()


def _text(column: Column, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return (base64.b64encode(value) if column.binary else value).decode()


@contextlib.contextmanager
def talker(say: Sequence[bytes] = (), pause_s: float = 0.0, close: bool = False) -> Iterator[int]:
    """A port that takes every connection and says one thing after the other, or nothing at all: a black hole."""
    done = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.02)
    threads: list[threading.Thread] = []

    def talk(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(5)
            if say:
                peer.recv(1 << 16)
            for piece in say:
                if done.wait(pause_s):
                    return
                peer.sendall(piece)
            if not close:
                done.wait()

    def accept() -> None:
        while not done.is_set():
            with contextlib.suppress(TimeoutError):
                threads.append(threading.Thread(target=talk, args=(listener.accept()[0],)))
                threads[-1].start()

    threads.append(threading.Thread(target=accept))
    threads[0].start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        done.set()
        for thread in threads:
            thread.join(10)
        listener.close()
