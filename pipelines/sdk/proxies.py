"""Which proxy the environment names for a server, if any. The same rules hold for HTTP and gRPC.

A server on this machine is never asked through a proxy. Otherwise `http_proxy` is for addresses without TLS,
`https_proxy` for those with TLS, and `all_proxy` for both. `grpc_proxy` comes first for gRPC. Each may be in
capitals. `no_proxy` lists exceptions: hosts, domains, addresses, networks, or `*`. Knows no connection.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from pipelines.protocol.errors import InvalidOptions

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
DEFAULT_PORT = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """An HTTP proxy, and the variable that names it; `login` is `user:password`, or empty."""

    variable: str
    netloc: str
    login: str

    def __str__(self) -> str:
        return f"{self.variable}=http://{self.netloc}"


def proxy_of(scheme: str, host: str, port: int, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy for an address.

    Raises:
        InvalidOptions: the variable does not hold the address of an HTTP proxy.
    """
    grpc = scheme.startswith("grpc")
    names = ["grpc_proxy"] * grpc + ["https_proxy" if scheme in ("https", "grpcs") else "http_proxy"]
    found = _first([*names, "all_proxy"], environ)
    if found is None or is_local(host):
        return None
    for name in ["no_grpc_proxy"] * grpc + ["no_proxy"]:
        listed = _first([name], environ)
        if listed and _is_listed(host, port, listed[1]):
            return None
    return _parse(*found, host)


def is_local(host: str) -> bool:
    """Whether a host is this machine, by its name or address alone."""
    if (address := _address(host)) is not None:
        inner = getattr(address, "ipv4_mapped", None) or address
        return bool(inner.is_loopback or inner.is_unspecified)
    name = host.lower().rstrip(".")
    return name in LOCAL_NAMES or name.endswith(".localhost")


def _first(names: list[str], environ: Mapping[str, str]) -> tuple[str, str] | None:
    """The first of the variables that holds something, and what it holds."""
    both = (spelled for name in names for spelled in (name, name.upper()))
    return next(((name, value) for name in both if (value := environ.get(name, "").strip())), None)


def _parse(variable: str, text: str, host: str) -> Proxy:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        proxy_host, port = parts.hostname, parts.port or DEFAULT_PORT
    except ValueError:
        parts, proxy_host, port = urlsplit(""), None, 0
    if parts.scheme != "http" or not proxy_host:
        shown = re.sub(r"//[^/]*@", "//…@", text)
        raise InvalidOptions(
            f"{variable}={shown} is not the address of an HTTP proxy",
            hint=f"http://HOST:PORT; no_proxy={host} asks the server directly",
        )
    login = unquote(parts.netloc.rpartition("@")[0])
    bracketed = f"[{proxy_host}]" if ":" in proxy_host else proxy_host
    return Proxy(variable=variable, netloc=f"{bracketed}:{port}", login=login)


def _is_listed(host: str, port: int, listed: str) -> bool:
    return any(_matches(host, port, entry) for entry in re.split(r"[\s,]+", listed.lower()) if entry)


def _matches(host: str, port: int, entry: str) -> bool:
    """Whether an entry of no_proxy stands for the host: itself, its domain, its network, or everything."""
    if entry == "*":
        return True
    with_port = re.fullmatch(r"(\[.*\]|[^:]*):(\d+)", entry)
    if with_port:
        entry = with_port[1]
        if int(with_port[2]) != port:
            return False
    entry = entry.strip("[]")
    if (address := _address(host)) is not None:
        with contextlib.suppress(ValueError):
            return address in ipaddress.ip_network(entry, strict=False)
        return False
    domain = entry.removeprefix("*").strip(".")
    name = host.lower().rstrip(".")
    return bool(domain) and (name == domain or name.endswith(f".{domain}"))


def _address(host: str) -> IP | None:
    """The address that a host is written as, in any form that the system takes: 127.1 is one; else None."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0])
    with contextlib.suppress(OSError, ValueError):
        return ipaddress.IPv4Address(socket.inet_aton(host))
    return None
