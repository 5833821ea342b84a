"""Small servers of HTTP and gRPC that say what a test tells them to, and sockets that misbehave."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import ssl
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2

from pipelines.protocol.answers import Answer, SegmentationAnswer, answer_columns
from pipelines.protocol.columns import STREAM_COLUMNS, Column, Tensor, text_column, to_tensors

STATUS_COLUMNS = (
    Column(name="status", dtype=object, dims=(1,), help=""),
    Column(name="error", dtype=object, dims=(1,), help=""),
)
STATUS: dict[str, Any] = {
    "version": "1",
    "device": "cpu",
    "max_media_bytes": 1000,
    "max_frames": 300,
    "models": {
        task: {"name": "m", "source": "here", "labels": ["background", "cat"]}
        for task in ("segmentation", "classification", "detection", "action", "embedding")
    },
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
        self.replies: dict[str, Reply | Callable[[Seen], Reply]] = {}
        self.status(STATUS)
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

    def status(self, told: Mapping[str, Any]) -> None:
        """What it says of itself."""
        row = {"status": text_column(json.dumps(told))}
        self.replies["/v2/models/status/infer"] = binary(STATUS_COLUMNS, row)

    def infer(self, reply: Reply | Callable[[Seen], Reply], task: str = "segmentation") -> None:
        self.replies[f"/v2/models/{task}/infer"] = reply

    def stream(self, reply: Reply | Callable[[Seen], Reply], task: str = "segmentation") -> None:
        self.replies[f"/v2/models/{task}_stream/generate_stream"] = reply

    def serve(self, *parts: Answer) -> None:
        """Answer a task with these parts: as a stream, and as one."""
        self.infer(unary(type(parts[0]).concatenate(parts)), parts[0].task)
        events = [event(part, seq=seq) for seq, part in enumerate(parts)]
        self.stream(Reply(chunks=events), parts[0].task)

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


class GrpcStub:
    """The same over gRPC: `status`, and the answers of `serve`."""

    def __init__(self, port: int = 0) -> None:
        status = to_tensors(STATUS_COLUMNS, [{"status": text_column(json.dumps(STATUS))}])
        self._rows: dict[str, list[Mapping[str, Tensor]]] = {"status": [status]}
        self._streams: dict[str, Callable[[Any], Iterator[Mapping[str, Tensor]]]] = {}
        self.seen: list[Any] = []
        request, reply = service_pb2.ModelInferRequest, service_pb2.ModelInferResponse
        one = grpc.unary_unary_rpc_method_handler(self._one, request.FromString, reply.SerializeToString)
        many = grpc.stream_stream_rpc_method_handler(
            self._many, request.FromString, service_pb2.ModelStreamInferResponse.SerializeToString
        )
        methods = {"ModelInfer": one, "ModelStreamInfer": many}
        service = grpc.method_handlers_generic_handler("inference.GRPCInferenceService", methods)
        self._server = grpc.server(ThreadPoolExecutor(2), handlers=[service])
        self.url = f"grpc://127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"

    def serve(self, *parts: Answer) -> None:
        columns, task = answer_columns(type(parts[0])), parts[0].task
        whole = type(parts[0]).concatenate(parts)
        self._rows[task] = [to_tensors(columns, [whole.to_columns()])]
        columns = (*columns, *STREAM_COLUMNS)
        each = [to_tensors(columns, [part.to_columns() | said(seq)]) for seq, part in enumerate(parts)]
        self._rows[f"{task}_stream"] = [{name: row[name][0] for name in row} for row in each]

    def stream(self, rows: Callable[[Any], Iterator[Mapping[str, Tensor]]], task: str) -> None:
        """Answer the stream of a task with what this makes of each request; a ConnectionError ends it."""
        self._streams[f"{task}_stream"] = rows

    def _one(self, request: Any, _context: Any) -> Any:
        self.seen.append(request)
        return _message(self._rows[request.model_name][0])

    def _many(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        for request in requests:
            self.seen.append(request)
            made = self._streams.get(request.model_name)
            try:
                for row in self._rows[request.model_name] if made is None else made(request):
                    yield service_pb2.ModelStreamInferResponse(infer_response=_message(row))
            except ConnectionError:
                context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")

    def __enter__(self) -> GrpcStub:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.stop(None).wait()


def _encoded(tensor: Tensor) -> tuple[str, bytes]:
    """A tensor's KServe type and its bytes."""
    kinds = {"O": "BYTES", "i8": "INT64", "f8": "FP64", "f4": "FP32", "u1": "UINT8"}
    kind = kinds[tensor.dtype.str.lstrip("<|")]
    if kind != "BYTES":
        return kind, tensor.tobytes()
    return kind, b"".join(len(item).to_bytes(4, "little") + item for item in tensor.flat)


def _message(tensors: Mapping[str, Tensor]) -> Any:
    reply = service_pb2.ModelInferResponse(model_name="stub")
    for name, tensor in tensors.items():
        kind, raw = _encoded(tensor)
        reply.outputs.add(name=name, datatype=kind, shape=tensor.shape)
        reply.raw_output_contents.append(raw)
    return reply


def binary(columns: Sequence[Column], row: Mapping[str, Tensor]) -> Reply:
    """A unary answer in the KServe v2 binary form, one row."""
    outputs, parts = [], []
    for name, tensor in to_tensors(columns, [row]).items():
        kind, raw = _encoded(tensor)
        size = {"binary_data_size": len(raw)}
        outputs.append({"name": name, "datatype": kind, "shape": tensor.shape, "parameters": size})
        parts.append(raw)
    head = json.dumps({"model_name": "stub", "outputs": outputs}).encode()
    return Reply(body=head + b"".join(parts), headers={"Inference-Header-Content-Length": str(len(head))})


def unary(given: Answer | Mapping[str, Tensor], kind: type[Answer] = SegmentationAnswer) -> Reply:
    """An answer, or an error row of an endpoint that answers in that form."""
    if isinstance(given, Answer):
        return binary(answer_columns(type(given)), given.to_columns())
    return binary(answer_columns(kind), given)


def said(seq: int = 0, session: str = "") -> dict[str, Tensor]:
    """What a stream adds to its answers."""
    return {"seq": np.array([seq], np.int64), "session": text_column(session)}


def event(
    given: Answer | Mapping[str, Tensor],
    kind: type[Answer] = SegmentationAnswer,
    *,
    seq: int = 0,
    session: str = "",
) -> bytes:
    """One server-sent event as Triton writes it: flat lists, and a scalar where there is one element."""
    columns = (*answer_columns(type(given) if isinstance(given, Answer) else kind), *STREAM_COLUMNS)
    row = given.to_columns() if isinstance(given, Answer) else given
    tensors = to_tensors(columns, [{**row, **said(seq, session)}])
    flat: dict[str, Any] = {"model_name": "stub", "model_version": "1"}
    for column in columns:
        values = [_text(column, value) for value in tensors[column.name].ravel().tolist()]
        flat[column.name] = values if len(values) != 1 else values[0]
    return f"data: {json.dumps(flat)}\n\n".encode()


def _text(column: Column, value: Any) -> Any:
    if not isinstance(value, bytes):
        return value
    return (base64.b64encode(value) if column.binary else value).decode()


@contextlib.contextmanager
def talker(say: Sequence[bytes] = (), pause_s: float = 0.0, close: bool = False) -> Iterator[int]:
    """A port that takes every connection and says one thing after the other, or nothing at all."""
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
