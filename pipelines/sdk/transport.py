"""How a request travels to the server and its answer back: what gRPC and HTTP have in common.

Owns addresses, deadlines and the table from a transport's failures to typed errors. Knows no media, no tasks,
and not the form of tensors on the wire.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol
from urllib.parse import quote, urlsplit

from pipelines.protocol.columns import Column, Tensor
from pipelines.protocol.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidOptions,
    ModelUnavailable,
    Overloaded,
    TooLarge,
    TrividError,
)
from pipelines.protocol.options import Scalar
from pipelines.sdk.proxies import Proxy

OTHER_SCHEMES = {"grpc": "http", "http": "grpc", "grpcs": "https", "https": "grpcs"}
DEFAULT_PORTS = {"grpc": 8001, "grpcs": 443, "http": 8000, "https": 443}
MESSAGE_LENGTH_LIMIT = 400

# Triton reports these states of a model only as text; the status code depends on the protocol.
ERRORS_BY_TEXT: tuple[tuple[str, type[TrividError], str], ...] = (
    ("maximum queue size", Overloaded, "try again later"),
    ("timeout expired", Overloaded, "it waited as long as the server allows: try again later"),
    ("unknown model", ModelUnavailable, "is the server starting or stopping, or does it lack this endpoint?"),
    ("not ready", ModelUnavailable, "is the server still starting?"),
    ("not healthy", ModelUnavailable, "restart the server"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server listens, and the proxy on the way; `prefix` is the path before `/v2` on a gateway."""

    scheme: str
    host: str
    port: int
    prefix: str
    proxy: Proxy | None = None

    @property
    def secure(self) -> bool:
        return self.scheme in ("https", "grpcs")

    @property
    def netloc(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def other(self) -> Address:
        """The same port in the other protocol."""
        return replace(self, scheme=OTHER_SCHEMES[self.scheme], prefix="")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


def parse_address(url: str) -> Address:
    """`grpc://host:8001`, `http://host:8000`, or with TLS `grpcs://` and `https://`; the port is optional.

    Raises:
        InvalidOptions: another scheme, no host or not one, an invalid port, or more than an address.
    """
    try:
        if odd := re.search(r"[\s\x00-\x1f\x7f\ud800-\udfff]", url):
            raise ValueError(f"it holds {odd[0]!r}")
        parts = urlsplit(url)
        host, port = _ascii_host(parts.hostname or ""), parts.port
        if port == 0:
            raise ValueError("there is no port 0")
    except ValueError as error:
        wrong = f"url={_without_login(url)!r} is not an address: {error}"
        raise InvalidOptions(wrong, hint=_address_hint(url)) from None
    if parts.username is not None:
        raise InvalidOptions("the url holds a user name or password", hint="send a token instead")
    path = parts.path.rstrip("/")
    more = parts.query or parts.fragment or (path if parts.scheme.startswith("grpc") else "")
    if parts.scheme not in DEFAULT_PORTS or not host or more:
        raise InvalidOptions(f"url={url!r} is not the address of a server", hint=_address_hint(url))
    return Address(
        scheme=parts.scheme,
        host=host,
        port=DEFAULT_PORTS[parts.scheme] if port is None else port,
        prefix=quote(path, safe="/%"),
    )


def _address_hint(url: str) -> str:
    if re.match(r"(\w+://)?[0-9a-f]*:[0-9a-f:.]*:", url.lower()):
        return "an IPv6 address stands in brackets: grpc://[::1]:8001"
    return "one of grpc://HOST:8001, http://HOST:8000, grpcs://HOST, https://HOST"


def _ascii_host(host: str) -> str:
    """A host name as DNS knows it. Raises ValueError for what is none."""
    if ":" in host:
        return host.replace("%25", "%")  # the zone of an address, as URLs write it
    if not re.fullmatch(r"[\w.-]*", host):
        raise ValueError(f"{host!r} is not a host")
    try:
        return host.encode("idna").decode() if host else host
    except UnicodeError:
        raise ValueError(f"{host!r} is not a host") from None


def _without_login(url: str) -> str:
    return re.sub(r"//[^/]*@", "//…@", url)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request: a model, its only BYTES input, options, and the columns of the answer.

    Attributes:
        timeout_s: bound of the whole call; for a stream, of the wait for each answer.
    """

    model: str
    input_name: str
    data: bytes
    columns: Sequence[Column]
    timeout_s: float
    parameters: Mapping[str, Scalar] = field(default_factory=dict)


class Transport(Protocol):
    """One connection to a server. Answers are columns without the row dimension; all errors are typed."""

    address: Address

    def infer(self, call: Call) -> dict[str, Tensor]: ...

    def stream(self, call: Call) -> Generator[dict[str, Tensor], None, None]: ...

    def check_ready(self, model: str, timeout_s: float) -> None:
        """Return if the model is ready, raise ModelUnavailable or DeadlineExceeded if not."""

    def close(self) -> None: ...


class Watchdog:
    """Calls `cut` unless the `with` block ends in time; neither protocol bounds a peer that trickles."""

    def __init__(self, timeout_s: float, cut: Callable[[], object]) -> None:
        self.expired = False
        self._cut = cut
        self._timer = threading.Timer(min(max(timeout_s, 0.0), threading.TIMEOUT_MAX), self._expire)
        self._timer.daemon = True

    def _expire(self) -> None:
        self.expired = True
        self._cut()

    def __enter__(self) -> Watchdog:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()


# The errors that transports raise; each says what to do.


def way_hint(address: Address, text: str) -> str:
    """What to do; a proxy that is on the way may be the reason, so it is named."""
    if address.proxy is None:
        return text
    way = f"it was asked through the proxy of {address.proxy}: no_proxy={address.host} asks it directly"
    return f"{text}; {way}" if text else way


def deadline_error(address: Address, timeout_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"no answer from {address} within {timeout_s:.3g} s",
        hint=way_hint(address, "raise the timeout; in a stream it is for each answer"),
    )


def unreachable_error(address: Address, cause: object) -> ModelUnavailable:
    hint = way_hint(address, "is it running?")
    return ModelUnavailable(f"no server at {address}: {_one_line(str(cause))}", hint=hint)


def broken_off_error(address: Address) -> ModelUnavailable:
    hint = way_hint(address, f"did it stop? {wrong_port_hint(address)}")
    return ModelUnavailable(f"{address} broke off the answer", hint=hint)


def stranger_error(address: Address, what: str) -> ModelUnavailable:
    """Something else listens there: `what` it does."""
    return ModelUnavailable(f"{address} {what}", hint=way_hint(address, wrong_port_hint(address)))


def wrong_port_hint(address: Address) -> str:
    other = address.other()
    return (
        f"if this is the server's {'gRPC' if 'grpc' in other.scheme else 'HTTP'} port, use --url {other}; "
        "unless configured, HTTP is on port 8000, gRPC on 8001"
    )


def access_error(address: Address) -> ModelUnavailable:
    hint = way_hint(address, "send its token, or another one")
    return ModelUnavailable(f"{address} refuses access", hint=hint)


def trust_error(address: Address, cause: object) -> ModelUnavailable:
    plain = replace(address, scheme=address.scheme.removesuffix("s"))
    hint = f"if it has no TLS, use --url {plain}; SSL_CERT_FILE names a file of authorities to trust"
    return ModelUnavailable(f"no TLS with {address}: {_one_line(str(cause))}", hint=way_hint(address, hint))


def too_large_error(address: Address) -> TooLarge:
    return TooLarge(f"the request is larger than {address} accepts", hint="send a shorter medium")


def server_error(message: str) -> TrividError:
    """The typed error for a message of Triton itself, not of Trivid."""
    lowered = message.lower()
    for text, kind, hint in ERRORS_BY_TEXT:
        if text in lowered:
            return kind(_one_line(message), hint=hint)
    return InternalError(f"the server failed: {_one_line(message)}", hint="the server's log has the details")


def _one_line(message: str) -> str:
    """First and last line of a message, since a traceback tells what happened in its last line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()] or ["(no message)"]
    text = lines[0] if len(lines) == 1 else f"{lines[0]} … {lines[-1]}"
    return text if len(text) <= MESSAGE_LENGTH_LIMIT else f"{text[:MESSAGE_LENGTH_LIMIT]}…"
