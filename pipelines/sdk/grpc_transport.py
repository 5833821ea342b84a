"""KServe v2 over gRPC, on tritonclient's generated stubs. Knows no HTTP, media or tasks.

The stubs are used directly. tritonclient's own stream reads ahead without bound and has no deadline for an
answer. A call on the stub is pulled, so a slow reader slows the server down.
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2, service_pb2_grpc

from pipelines.protocol.columns import Tensor
from pipelines.protocol.errors import Cancelled, InternalError, ModelUnavailable, TrividError
from pipelines.protocol.kserve import pack_bytes, read_columns, read_tensor, wire_parameters
from pipelines.protocol.options import Scalar
from pipelines.sdk.transport import (
    Address,
    Call,
    Watchdog,
    access_error,
    broken_off_error,
    deadline_error,
    server_error,
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
)
# gRPC turns a proxy's HTTP answer into a text like "Received http2 header with status: 413".
PROXY_STATUS = re.compile(r"status: (\d{3})")


class GrpcTransport:
    """One channel; calls may come from several threads."""

    def __init__(self, address: Address, token: str = "") -> None:
        self.address = address
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channel = (
            grpc.secure_channel(address.netloc, _credentials(), CHANNEL_OPTIONS)
            if address.secure
            else grpc.insecure_channel(address.netloc, CHANNEL_OPTIONS)
        )
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    def infer(self, call: Call) -> dict[str, Tensor]:
        """The one answer of a unary endpoint."""
        request = _request(call, (1, 1))
        reply = self._unary(self._stub.ModelInfer, request, call.timeout_s)
        return read_columns(call.columns, _tensors(reply))

    def stream(self, call: Call) -> Generator[dict[str, Tensor], None, None]:
        """The answers of a stream endpoint; closing the iterator cancels the call."""
        # The request stream ends after one request, so the server ends its stream after the last answer.
        requests = iter([_request(call, (1,))])
        try:
            replies = self._stub.ModelStreamInfer(requests, metadata=self._metadata)
        except ValueError as error:  # what gRPC raises if the channel is closed
            raise Cancelled(f"the call was not made: {error}") from None
        try:
            while (reply := self._next(replies, call.timeout_s)) is not None:
                if reply.error_message:
                    raise server_error(reply.error_message)
                if reply.infer_response.outputs:
                    yield read_columns(call.columns, _tensors(reply.infer_response))
        finally:
            replies.cancel()

    def check_ready(self, model: str, timeout_s: float) -> None:
        """Return if the model is ready, raise ModelUnavailable or DeadlineExceeded if not."""
        request = service_pb2.ModelReadyRequest(name=model)
        if not self._unary(self._stub.ModelReady, request, timeout_s).ready:
            raise ModelUnavailable(
                f"{model} at {self.address} is not ready", hint="is the server still starting?"
            )

    def close(self) -> None:
        self._channel.close()

    def _unary(self, method: Any, request: Any, timeout_s: float) -> Any:
        try:
            return method(request, timeout=max(timeout_s, 0.0), metadata=self._metadata)
        except grpc.RpcError as error:
            raise self._typed(error, timeout_s) from None

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
            raise deadline_error(self.address, timeout_s)
        if failure is not None:
            raise failure
        return reply

    def _typed(self, error: Any, timeout_s: float) -> TrividError:
        code, details = error.code(), error.details() or ""
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
            if "closed" in lowered:
                return broken_off_error(self.address)
            return unreachable_error(self.address, details)
        return typed


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


def _tensors(reply: Any) -> dict[str, Tensor]:
    if len(reply.outputs) != len(reply.raw_output_contents):
        raise InternalError("the answer's tensors are not in the raw form that Triton sends")
    return {
        output.name: read_tensor(output.datatype, tuple(output.shape), raw)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }
