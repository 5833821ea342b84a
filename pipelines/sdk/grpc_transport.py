"""KServe v2 over gRPC, on tritonclient's generated stubs. Knows no HTTP, media or tasks.

The stubs are used directly. tritonclient's own stream reads ahead without bound and has no deadline for an
answer. A call on the stub is pulled, so a slow reader slows the server down.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipelines.protocol.columns import Tensor
from pipelines.protocol.errors import Cancelled, InternalError, ModelUnavailable, TrividError
from pipelines.protocol.kserve import pack_bytes, read_columns, read_tensor, reading, wire_parameters
from pipelines.protocol.options import Scalar
from pipelines.sdk.transport import (
    Address,
    Call,
    Watchdog,
    access_error,
    broken_off_error,
    deadline_error,
    server_error,
    stranger_error,
    too_large_error,
    trust_error,
    unreachable_error,
)

CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Callers that wait for a server's start want to know soon; gRPC would retry only after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Else channels to one address share a connection: a child's with its parent's, a new with a broken one.
    ("grpc.use_local_subchannel_pool", 1),
)
# gRPC turns a proxy's HTTP answer into a text like "Received http2 header with status: 413".
PROXY_STATUS = re.compile(r"status: (\d{3})")


# The calls under way, and whether there was one when this process was forked: gRPC is then in pieces here.
_under_way: set[object] = set()
_forked_amid = False


def _look_back() -> None:
    global _forked_amid
    _forked_amid = _forked_amid or bool(_under_way)
    _under_way.clear()


os.register_at_fork(after_in_child=_look_back)


@contextlib.contextmanager
def _noted() -> Iterator[None]:
    call = object()
    _under_way.add(call)
    try:
        yield
    finally:
        _under_way.discard(call)


class GrpcTransport:
    """One channel at a time; calls may come from several threads, and from processes forked from this one."""

    def __init__(self, address: Address, token: str = "") -> None:
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._closed = False
        self._opened: _Opened | None = None
        self._left: list[_Opened] = []

    @property
    def _stub(self) -> Any:
        """The stub of an open channel; another one after a fork, and after a channel that failed.

        A channel that failed would wait before it connects again, though the server may be back. One of the
        process that this was forked from has no threads here, so it is neither used nor closed nor freed.
        """
        if self._closed:
            raise Cancelled("the call was not made: the client is closed")
        if _forked_amid:
            raise Cancelled(
                "gRPC cannot be used here: this process was forked while another thread was in a gRPC call",
                hint="use http://, or fork while no call and no stream is under way, or spawn the process",
            )
        opened = self._opened
        if opened is not None and opened.pid != os.getpid():
            self._left.append(opened)
            opened = None
        if opened is None:
            opened = self._opened = _open(self.address)
        return opened.stub

    def infer(self, call: Call) -> dict[str, Tensor]:
        """The one answer of a unary endpoint."""
        request = _request(call, (1, 1))
        reply = self._unary("ModelInfer", request, call.timeout_s)
        return _columns(call, reply)

    def stream(self, call: Call) -> Generator[dict[str, Tensor], None, None]:
        """The answers of a stream endpoint; closing the iterator cancels the call."""
        # The request stream ends after one request, so the server ends its stream after the last answer.
        requests = iter([_request(call, (1,))])
        ask = self._stub.ModelStreamInfer
        with _noted():
            try:
                replies = ask(requests, metadata=self._metadata)
            except ValueError as error:  # what gRPC raises if the channel is closed
                raise Cancelled(f"the call was not made: {error}") from None
            try:
                while (reply := self._next(replies, call.timeout_s)) is not None:
                    if reply.error_message:
                        raise server_error(reply.error_message)
                    if reply.infer_response.outputs:
                        yield _columns(call, reply.infer_response)
            finally:
                replies.cancel()

    def check_ready(self, model: str, timeout_s: float) -> None:
        """Return if the model is ready, raise ModelUnavailable or DeadlineExceeded if not."""
        request = service_pb2.ModelReadyRequest(name=model)
        if not self._unary("ModelReady", request, timeout_s).ready:
            raise ModelUnavailable(
                f"{model} at {self.address} is not ready", hint="is the server still starting?"
            )

    def close(self) -> None:
        self._closed = True
        if self._opened is not None and self._opened.pid == os.getpid():
            self._opened.channel.close()

    def _unary(self, method: str, request: Any, timeout_s: float) -> Any:
        ask = getattr(self._stub, method)
        try:
            with _noted():
                return ask(request, timeout=max(timeout_s, 0.0), metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._typed(error, timeout_s) from None
        except ValueError as error:  # what gRPC raises if the channel is closed
            raise Cancelled(f"the call was not made: {error}") from None

    def _next(self, replies: Any, timeout_s: float) -> Any:
        """The next reply, None at the end. Cancels the call if it takes longer than `timeout_s`."""
        failure: TrividError | None = None
        reply = None
        with Watchdog(timeout_s, replies.cancel) as watchdog:
            try:
                reply = next(replies, None)
            except grpc.RpcError as error:
                failure = self._typed(error, timeout_s)
        if watchdog.expired:
            self._opened = None
            raise deadline_error(self.address, timeout_s)
        if failure is not None:
            raise failure
        return reply

    def _typed(self, error: Any, timeout_s: float) -> TrividError:
        code, details = error.code(), error.details() or ""
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            self._opened = None  # calls that are under way keep its channel
        proxy_status = PROXY_STATUS.search(details)
        if proxy_status and proxy_status[1] == "413":
            return too_large_error(self.address)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return deadline_error(self.address, timeout_s)
        if code in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED):
            return access_error(self.address)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "message" in details:
            return too_large_error(self.address)
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return ModelUnavailable(f"{self.address} does not serve this: {details}")
        if code is grpc.StatusCode.CANCELLED:
            return Cancelled("the call was cancelled")
        typed = server_error(details)
        if code is grpc.StatusCode.UNAVAILABLE and not _said_by_triton(typed):
            lowered = details.lower()
            if "handshake" in lowered:
                return trust_error(self.address, details)
            if "closed" in lowered or "reset by peer" in lowered:
                return broken_off_error(self.address)
            if "parsing http/2" in lowered:
                return stranger_error(self.address, "does not speak gRPC")
            return unreachable_error(self.address, details)
        return typed


class _Opened(NamedTuple):
    """A channel, its stub, and the process that opened it."""

    pid: int
    channel: Any
    stub: Any


def _open(address: Address) -> _Opened:
    proxy = address.proxy
    way: tuple[str, str | int] = ("grpc.enable_http_proxy", 0)
    if proxy is not None:
        login = f"{quote(proxy.login, safe=':')}@" if proxy.login else ""
        way = ("grpc.http_proxy", f"http://{login}{proxy.netloc}")
    options = (*CHANNEL_OPTIONS, way)
    channel = (
        grpc.secure_channel(address.netloc, _credentials(), options)
        if address.secure
        else grpc.insecure_channel(address.netloc, options)
    )
    return _Opened(os.getpid(), channel, service_pb2_grpc.GRPCInferenceServiceStub(channel))


def _credentials() -> Any:
    """Trust the same certificates as the rest of Python: gRPC itself ignores SSL_CERT_FILE."""
    authorities = os.environ.get("SSL_CERT_FILE")
    return grpc.ssl_channel_credentials(Path(authorities).read_bytes() if authorities else None)


def _said_by_triton(error: TrividError) -> bool:
    """Whether the text is one of Triton's, since a missing server gives the same status."""
    return error.code != "internal_error"


def _request(call: Call, shape: tuple[int, ...]) -> Any:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(
        name=call.input_name, datatype="BYTES", shape=shape
    )
    return service_pb2.ModelInferRequest(
        model_name=call.model,
        inputs=[tensor],
        parameters=_parameters(wire_parameters(call.parameters)),
        raw_input_contents=[pack_bytes(call.data)],
    )


def _parameters(parameters: Mapping[str, Scalar]) -> dict[str, Any]:
    """Options as typed messages; bool is checked first, since in Python it is an int."""
    fields: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, bool):
            fields[name] = service_pb2.InferParameter(bool_param=value)
        elif isinstance(value, int):
            fields[name] = service_pb2.InferParameter(int64_param=value)
        else:
            fields[name] = service_pb2.InferParameter(string_param=str(value))
    return fields


def _columns(call: Call, reply: Any) -> dict[str, Tensor]:
    with reading():
        return read_columns(call.columns, _tensors(reply))


def _tensors(reply: Any) -> dict[str, Tensor]:
    if len(reply.outputs) != len(reply.raw_output_contents):
        raise InternalError("the answer's tensors are not in the raw form that Triton sends")
    return {
        output.name: read_tensor(output.datatype, tuple(output.shape), raw)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
