"""KServe v2 over HTTP with the standard library only: binary tensors, and server-sent events for streams.

A call opens its own connection, so calls may come from several threads. Knows no gRPC, media or tasks.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pipelines.protocol.columns import Tensor
from pipelines.protocol.errors import (
    BY_CODE,
    DeadlineExceeded,
    InternalError,
    ModelUnavailable,
    Overloaded,
    TrividError,
    from_json,
)
from pipelines.protocol.kserve import (
    pack_bytes,
    read_columns,
    read_json,
    read_tensor,
    reading,
    wire_parameters,
)
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
    way_hint,
)

HEADER_LENGTH = "Inference-Header-Content-Length"
READ_BYTES = 1 << 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request; `path` begins with `/v2`."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str]


class HttpTransport:
    """A server's HTTP port, with or without TLS."""

    def __init__(self, address: Address, token: str = "") -> None:
        self.address = address
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._tls = ssl.create_default_context() if address.secure else None

    def infer(self, call: Call) -> dict[str, Tensor]:
        """The one answer of a unary endpoint."""
        request = binary_request(call)
        with self._open(call.timeout_s) as exchange:
            return exchange.guard(lambda: read_answer(self.address, call, exchange.send(request)))

    def stream(self, call: Call) -> Generator[dict[str, Tensor], None, None]:
        """The answers of a stream endpoint; closing the iterator closes the connection."""
        body = {**wire_parameters(call.parameters), "base64": True}
        body[call.input_name] = base64.b64encode(call.data).decode()
        request = Request(
            method="POST",
            path=f"/v2/models/{call.model}/generate_stream",
            body=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Accept": "text/event-stream"},
        )
        with self._open(call.timeout_s) as exchange:
            events = _Events(exchange.guard(lambda: exchange.send(request)))
            while (event := exchange.guard(events.read)) is not None:
                with reading():
                    row = read_columns(call.columns, read_json(call.columns, event))
                yield row

    def check_ready(self, model: str, timeout_s: float) -> None:
        """Return if the model is ready, raise ModelUnavailable or DeadlineExceeded if not."""
        request = Request(method="GET", path=f"/v2/models/{model}/ready", headers={})
        try:
            with self._open(timeout_s) as exchange:
                exchange.guard(lambda: exchange.send(request).read())
        except InternalError:
            raise ModelUnavailable(
                f"{model} at {self.address} is not ready", hint="is the server still starting?"
            ) from None

    def close(self) -> None:
        """Nothing is held between calls."""

    @contextlib.contextmanager
    def _open(self, timeout_s: float) -> Iterator[_Exchange]:
        exchange = _Exchange(self.address, self._headers, self._tls, timeout_s)
        try:
            yield exchange
        finally:
            exchange.connection.close()


class _Exchange:
    """One connection with one request on it; each guarded step ends within `timeout_s`."""

    def __init__(
        self, address: Address, headers: Mapping[str, str], tls: ssl.SSLContext | None, timeout_s: float
    ) -> None:
        self._address, self._headers, self._timeout_s = address, headers, max(timeout_s, 1e-3)
        self._connected = False
        place = address.netloc if address.proxy is None else address.proxy.netloc
        self.connection = (
            http.client.HTTPConnection(place, timeout=self._timeout_s)
            if tls is None
            else http.client.HTTPSConnection(place, timeout=self._timeout_s, context=tls)
        )
        self._start = address.prefix
        if address.proxy is not None:
            login = base64.b64encode(address.proxy.login.encode()).decode()
            permit = {"Proxy-Authorization": f"Basic {login}"} if login else {}
            if tls is None:
                self._start = str(address)
                self._headers = {**headers, **permit}
            else:
                self.connection.set_tunnel(address.host, address.port, headers=permit)

    def send(self, request: Request) -> http.client.HTTPResponse:
        """Send, and wait for the head of a good answer; for any other, raise its typed error."""
        self.connection.connect()
        self._connected = True
        # A server that refuses a large body answers before it has read all of it; the rest cannot be sent.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.connection.request(
                request.method,
                self._start + request.path,
                body=request.body or None,
                headers={**self._headers, **request.headers},
            )
        return raise_for_status(self._address, self.connection.getresponse())

    def guard(self, step: Callable[[], T]) -> T:
        """Run one step, bounded in time; failures of the network become typed errors."""
        result: T | None = None
        failure: TrividError | None = None
        with Watchdog(self._timeout_s, self._cut) as watchdog:
            try:
                result = step()
            except (OSError, http.client.HTTPException) as error:
                failure = self._typed(error)
        if watchdog.expired:
            raise deadline_error(self._address, self._timeout_s)
        if failure is not None:
            raise failure
        return result  # type: ignore[return-value]

    def _cut(self) -> None:
        """Wake any thread that reads or writes; closing the socket would leave it waiting."""
        if self.connection.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self.connection.sock, socket.SHUT_RDWR)

    def _typed(self, error: OSError | http.client.HTTPException) -> TrividError:
        if isinstance(error, TimeoutError):
            return deadline_error(self._address, self._timeout_s)
        if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
            return stranger_error(self._address, "does not speak HTTP")
        if self._connected:
            return broken_off_error(self._address)
        if isinstance(error, ssl.SSLError):
            return trust_error(self._address, error.reason)
        return unreachable_error(self._address, getattr(error, "strerror", None) or error)


def raise_for_status(address: Address, response: http.client.HTTPResponse) -> http.client.HTTPResponse:
    """The same response, if it is a success; else raises its typed error."""
    if response.status != http.HTTPStatus.OK:
        where = response.headers.get("Location", "")
        raise _status_error(address, response.status, response.read(), where)
    return response


def read_answer(address: Address, call: Call, response: http.client.HTTPResponse) -> dict[str, Tensor]:
    """The columns of a good response to `binary_request`.

    Raises:
        ModelUnavailable: it is another server's; InternalError: the columns cannot be read.
    """
    body = response.read()
    if HEADER_LENGTH not in response.headers:
        raise stranger_error(address, f"is not a Trivid server: its answer begins {body[:20]!r}")
    with reading():
        return read_columns(call.columns, _binary_tensors(response.headers[HEADER_LENGTH], body))


def _status_error(address: Address, status: int, body: bytes, location: str = "") -> TrividError:
    """The typed error of a status and body: Triton's `{"error": …}`, the front's JSON, a proxy's page."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        told = None
    fields: dict[str, Any] = told if isinstance(told, dict) else {}
    message = str(fields.get("error", ""))
    if str(fields.get("code")) in BY_CODE and "message" in fields:
        return from_json(body)
    if 300 <= status < 400:
        return stranger_error(address, f"sends its callers on to {location[:200]!r} (HTTP {status})")
    if status in (401, 403):
        return access_error(address)
    if status == 413:
        return too_large_error(address)
    if status == 429:
        return Overloaded(f"{address} has no room for this request", hint="try again later")
    if status in (408, 504):
        return DeadlineExceeded(f"{address} did not answer its proxy in time", hint=way_hint(address, ""))
    typed = server_error(message or f"HTTP {status} {http.client.responses.get(status, '')}")
    if status in (404, 405, 407, 502, 503) and isinstance(typed, InternalError):
        wrong = f"does not serve this: HTTP {status} {message}".rstrip()
        if status == 405:
            return stranger_error(address, wrong)
        return ModelUnavailable(f"{address} {wrong}", hint=way_hint(address, ""))
    return typed


def binary_request(call: Call) -> Request:
    """The request of a unary call, with its medium unchanged."""
    data = pack_bytes(call.data)
    tensor = {
        "name": call.input_name,
        "datatype": "BYTES",
        "shape": [1, 1],
        "parameters": {"binary_data_size": len(data)},
    }
    outputs = [{"name": column.name, "parameters": {"binary_data": True}} for column in call.columns]
    parameters = wire_parameters(call.parameters)
    head = json.dumps({"inputs": [tensor], "outputs": outputs, "parameters": parameters}).encode()
    return Request(
        method="POST",
        path=f"/v2/models/{call.model}/infer",
        body=head + data,
        headers={"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))},
    )


def _binary_tensors(head_bytes: str | None, body: bytes) -> dict[str, Tensor]:
    """The tensors after the JSON head. Raises InternalError for anything else."""
    try:
        offset = int(head_bytes or "")
        outputs = json.loads(body[:offset])["outputs"]
        tensors: dict[str, Tensor] = {}
        for output in outputs:
            size = output["parameters"]["binary_data_size"]
            raw = body[offset : offset + size]
            tensors[output["name"]] = read_tensor(output["datatype"], output["shape"], raw)
            offset += size
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InternalError(f"the answer is not KServe v2 in binary form: {error!r}") from None
    return tensors


class _Events:
    """JSON objects of the `data:` lines of a stream of server-sent events."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self._response = response
        self._buffer = bytearray()

    def read(self) -> dict[str, Any] | None:
        """The next object, None at the end. Raises the typed error of a `{"error": …}` from Triton itself."""
        while (line := self._line()) is not None:
            if line.startswith(b"data:"):
                return _event(line[5:])
        return None

    def _line(self) -> bytes | None:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            piece = self._response.read1(READ_BYTES)
            if not piece:
                return None
            self._buffer += piece
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line


def _event(text: bytes) -> dict[str, Any]:
    try:
        event = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InternalError(f"the stream holds an event that is not JSON: {error}") from None
    if not isinstance(event, dict):
        raise InternalError("the stream holds an event that is not a JSON object")
    if set(event) == {"error"}:
        raise server_error(str(event["error"]))
    return event
