"""Proxies that the environment names: which address takes which, and both protocols through a real one."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from client import Client
from pipelines.protocol.errors import InvalidOptions, ModelUnavailable, TrividError
from pipelines.sdk.proxies import is_local, proxy_of
from tests.support.stub_server import GrpcStub, StubServer
from tests.support.toy_answers import answer

VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "no_proxy", "no_grpc_proxy")
PROXY = "http://proxy.test:3128"
# A name that only a proxy knows.
FAR = "trivid.test"


@pytest.fixture(autouse=True)
def _no_proxies_of_the_machines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("localhost", "LOCALHOST", "localhost.", "a.localhost", "127.0.0.1")),
        *((host, True) for host in ("127.9.8.7", "127.1", "0x7f.1", "2130706433", "::1", "::ffff:127.0.0.1")),
        *((host, True) for host in ("0.0.0.0", "::", "0:0:0:0:0:0:0:1")),
        *((host, False) for host in (FAR, "10.0.0.1", "128.0.0.1", "127.0.0.1.example", "::2", "fe80::1%lo")),
        *((host, False) for host in ("localhost.example", "xlocalhost", "1")),
    ],
)
def test_what_is_this_machine(host: str, expected: bool) -> None:
    assert is_local(host) is expected
    environ = dict.fromkeys(VARIABLES[:4], PROXY)
    for scheme in ("grpc", "http", "grpcs", "https"):
        assert (proxy_of(scheme, host, 80, environ) is None) is expected


@pytest.mark.parametrize(
    ("scheme", "environ", "variable"),
    [
        ("http", {}, None),
        ("http", {"http_proxy": ""}, None),
        ("http", {"http_proxy": PROXY, "all_proxy": "http://other"}, "http_proxy"),
        ("grpc", {"http_proxy": PROXY}, "http_proxy"),
        ("grpc", {"http_proxy": "http://other", "grpc_proxy": PROXY}, "grpc_proxy"),
        ("http", {"grpc_proxy": PROXY}, None),
        *((scheme, {"https_proxy": PROXY}, None) for scheme in ("http", "grpc")),
        *((scheme, {"http_proxy": PROXY}, None) for scheme in ("https", "grpcs")),
        *((scheme, {"https_proxy": PROXY}, "https_proxy") for scheme in ("https", "grpcs")),
        *((scheme, {"ALL_PROXY": PROXY}, "ALL_PROXY") for scheme in ("http", "grpc", "https", "grpcs")),
        ("http", {"HTTP_PROXY": PROXY}, "HTTP_PROXY"),
        ("http", {"HTTP_PROXY": "http://other", "http_proxy": PROXY}, "http_proxy"),
        ("grpc", {"http_proxy": "proxy.test:3128"}, "http_proxy"),
        *((scheme, {"http_proxy": PROXY, "no_proxy": "*"}, None) for scheme in ("http", "grpc")),
        ("grpc", {"http_proxy": PROXY, "no_grpc_proxy": FAR}, None),
        ("http", {"http_proxy": PROXY, "no_grpc_proxy": FAR}, "http_proxy"),
    ],
)
def test_which_variable_counts(scheme: str, environ: dict[str, str], variable: str | None) -> None:
    found = proxy_of(scheme, FAR, 80, environ)
    assert (found and (found.variable, found.netloc)) == (variable and (variable, "proxy.test:3128"))


@pytest.mark.parametrize(
    ("host", "listed", "excepted"),
    [
        (FAR, "trivid.test", True),
        (FAR, "a, TRIVID.TEST ,b", True),
        (FAR, "a trivid.test", True),
        *((FAR, text, True) for text in (".test", "test", "*.test", "trivid.test:8000", "trivid.test.")),
        *((FAR, text, False) for text in ("", ",", ".", "ivid.test", "trivid.test:80", "test.trivid")),
        *(("10.1.2.3", text, True) for text in ("10.1.2.3", "10.0.0.0/8", "10.1.2.3:8000")),
        *(("10.1.2.3", text, False) for text in ("10.1.2", ".3", "11.0.0.0/8", "10.1.2.3:1")),
        *(("fd00::1", text, True) for text in ("fd00::1", "[fd00::1]", "[fd00::1]:8000", "fd00::/8")),
        ("fd00::1", "fd00::2", False),
    ],
)
def test_exceptions(host: str, listed: str, excepted: bool) -> None:
    environ = {"http_proxy": PROXY, "NO_PROXY": listed}
    assert (proxy_of("http", host, 8000, environ) is None) is excepted


@pytest.mark.parametrize(
    "text", ["socks5://p:1", "https://p:1", "http://", "http://p:x", "http://[::1", "ftp://p"]
)
def test_what_is_no_http_proxy(text: str) -> None:
    with pytest.raises(InvalidOptions, match=r"^all_proxy=.*no_proxy=trivid\.test"):
        proxy_of("grpc", FAR, 80, {"all_proxy": text})


def test_a_login_is_not_shown() -> None:
    found = proxy_of("http", FAR, 80, {"http_proxy": "http://me:s%40cret@[fd00::1]:1"})
    assert found is not None
    assert (found.login, str(found)) == ("me:s@cret", "http_proxy=http://[fd00::1]:1")
    with pytest.raises(InvalidOptions) as caught:
        proxy_of("http", FAR, 80, {"http_proxy": "socks5://me:secret@p"})
    assert "secret" not in str(caught.value)


@dataclass
class Forwarder:
    """An HTTP proxy that takes every name for this machine's."""

    port: int = 0
    heads: list[bytes] = field(default_factory=list)


@contextlib.contextmanager
def forwarder(target_port: int, refuse: bytes = b"") -> Iterator[Forwarder]:
    """A proxy on a port of its own: tunnels for CONNECT, else the request as it is; or it refuses all."""
    listener = socket.create_server(("127.0.0.1", 0))
    found = Forwarder(port=listener.getsockname()[1])

    def copy(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)

    def serve(peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            head = peer.recv(1 << 16)
            found.heads.append(head)
            if refuse:
                peer.sendall(refuse)
                return
            with socket.create_connection(("127.0.0.1", target_port)) as far:
                if head.startswith(b"CONNECT"):
                    peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                else:
                    line, rest = head.split(b"\r\n", 1)
                    far.sendall(line.replace(b"http://" + head.split(b"/")[2], b"") + b"\r\n" + rest)
                back = threading.Thread(target=copy, args=(far, peer), daemon=True)
                back.start()
                copy(peer, far)
                back.join(5)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_far_server_is_asked_through_the_proxy(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.ExitStack() as stack:
        stub: StubServer | GrpcStub = StubServer() if scheme == "http" else GrpcStub()
        stack.enter_context(stub)
        stub.serve(answer([3]))
        port = int(stub.url.rpartition(":")[2])
        proxy = stack.enter_context(forwarder(port))
        monkeypatch.setenv("http_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
        with Client(f"{scheme}://{FAR}:{port}", timeout_s=10) as client:
            assert client.segment(b"x").frame_index.tolist() == [3]
        way = f"CONNECT {FAR}:{port}" if scheme == "grpc" else f"POST http://{FAR}:{port}/v2/models/status"
        assert proxy.heads[0].decode().startswith(way)
        assert b"proxy-authorization: basic bwu6c2vjcmv0" in proxy.heads[0].lower()
        asked = len(proxy.heads)
        with Client(stub.url, timeout_s=10) as client:  # this machine
            assert client.segment(b"x").frame_index.tolist() == [3]
        assert len(proxy.heads) == asked


REFUSAL = b"HTTP/1.1 407 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("scheme", ["http", "grpc", "https"])
@pytest.mark.parametrize("refuse", [True, False])
def test_a_failure_names_the_variable(scheme: str, refuse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "HTTPS_PROXY" if scheme == "https" else "HTTP_PROXY"
    with forwarder(1, REFUSAL) as proxy:
        port = proxy.port if refuse else 1
        monkeypatch.setenv(variable, f"http://me:secret@127.0.0.1:{port}")
        with (
            Client(f"{scheme}://{FAR}:9", timeout_s=10) as client,
            pytest.raises(ModelUnavailable, match=f"{variable}=http://127.0.0.1:{port}: no_proxy=") as caught,
        ):
            client.info()
    assert "secret" not in str(caught.value)


def test_nothing_is_asked_of_a_proxy_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5h://127.0.0.1:1")
    with pytest.raises(TrividError, match="all_proxy"):
        Client(f"grpc://{FAR}")
    Client("grpc://127.0.0.1:1").close()
