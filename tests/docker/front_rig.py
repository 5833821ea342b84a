"""A front (nginx as docker/front.sh starts it) and stand-ins for Triton behind it, on real sockets."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from tests.conftest import ROOT, free_ports

FRONT_SH = ROOT / "docker" / "front.sh"
# Debian keeps nginx out of a user's PATH.
PATH = f"{os.environ.get('PATH', '')}:/usr/sbin"
WAIT_S = 20.0
TOKEN = "Aa0._~+/=-token-of-the-tests"
SERVICE = "/inference.GRPCInferenceService/"


def run_front(folder: Path, *arguments: str, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start front.sh with only these variables; skips where a program is missing."""
    for program in ("nginx", "envsubst"):
        if shutil.which(program, path=PATH) is None:
            pytest.skip(f"{program} is not installed")
    # As root, nginx would hand its workers to `nobody`, who may not enter a test's folder.
    as_root = ("-g", "user root;") if os.geteuid() == 0 else ()
    defaults = {"PATH": PATH, "TRIVID_FRONT_DIR": str(folder), "TRIVID_TLS_DIR": str(folder / "no-tls")}
    return subprocess.Popen(
        ["sh", str(FRONT_SH), *as_root, *arguments],
        env={**defaults, "TRIVID_ACCESS_LOG": str(folder / "access.log"), **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """A running front's ports; `tls` is what its clients trust, if it speaks TLS."""

    http_port: int
    grpc_port: int
    tls: ssl.SSLContext | None = None

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=WAIT_S)
        return http.client.HTTPSConnection("127.0.0.1", self.http_port, timeout=WAIT_S, context=self.tls)

    def ask(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        """One request with the token, unless `headers` has its own: status, headers and the JSON body."""
        sent = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
        with contextlib.closing(self.connect()) as connection:
            # A refusal can arrive, and the connection close, before a large body is sent.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return response.status, response.headers, json.loads(response.read())


@contextlib.contextmanager
def running_front(
    folder: Path, env: Mapping[str, str], *, tls: ssl.SSLContext | None = None
) -> Iterator[Front]:
    """A front that accepts connections, until the block ends."""
    http_port, grpc_port = free_ports(2)
    ports = {"TRIVID_FRONT_HTTP_PORT": str(http_port), "TRIVID_FRONT_GRPC_PORT": str(grpc_port)}
    folder.mkdir(parents=True, exist_ok=True)
    process = run_front(folder, env={**ports, **env})
    try:
        for port in (http_port, grpc_port):
            _wait_listening(process, port)
        yield Front(http_port=http_port, grpc_port=grpc_port, tls=tls)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate(timeout=WAIT_S)


def _wait_listening(process: subprocess.Popen[str], port: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"nothing listens on {port}"
        time.sleep(0.02)


@dataclass
class Upstream:
    """What the stand-ins for Triton listen on and were asked; `go_on` lets a stream send its second event."""

    http_port: int = 0
    grpc_port: int = 0
    requests: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    go_on: threading.Event = field(default_factory=threading.Event)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers what it was asked; `generate_stream` sends one event and waits to be told before the second."""

    protocol_version = "HTTP/1.1"
    upstream: Upstream

    def do_GET(self) -> None:
        length = self.headers.get("Content-Length")
        body = self.rfile.read(int(length or 0))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.upstream.requests.append((self.command, self.path, headers, body))
        if self.path.endswith("/generate_stream"):
            self._stream()
        elif self.path.endswith("/late/infer"):
            self.upstream.go_on.wait(WAIT_S)
        else:
            self._answer(json.dumps({"path": self.path, "bytes": len(body)}).encode())

    def do_POST(self) -> None:
        self.do_GET()

    def do_PUT(self) -> None:
        """Triton refuses the method before it reads the body."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"data: 1\n\n")
        if self.upstream.go_on.wait(WAIT_S):
            self.wfile.write(b"data: 2\n\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests' output clean."""


class _AnyMethod(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Echoes every message of every method, one by one."""

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def service(self, details: Any) -> Any:
        self._upstream.calls.append(details.method)
        return grpc.stream_stream_rpc_method_handler(lambda messages, _context: messages)


@contextlib.contextmanager
def running_upstream() -> Iterator[Upstream]:
    """Stand-ins for Triton's HTTP and gRPC ports."""
    upstream = Upstream()
    handler = type("Handler", (_Handler,), {"upstream": upstream})
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    web.daemon_threads = True
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    calls = grpc.server(
        ThreadPoolExecutor(4),
        handlers=[_AnyMethod(upstream)],
        options=[("grpc.max_receive_message_length", -1)],
    )
    upstream.http_port = web.server_address[1]
    upstream.grpc_port = calls.add_insecure_port("127.0.0.1:0")
    calls.start()
    try:
        yield upstream
    finally:
        upstream.go_on.set()
        web.shutdown()
        web.server_close()
        thread.join(WAIT_S)
        calls.stop(grace=0.5).wait(WAIT_S)


def upstream_env(upstream: Upstream) -> dict[str, str]:
    return {
        "TRIVID_UPSTREAM_HTTP": f"127.0.0.1:{upstream.http_port}",
        "TRIVID_UPSTREAM_GRPC": f"127.0.0.1:{upstream.grpc_port}",
    }


def call(port: int, method: str, messages: list[bytes], **options: Any) -> list[bytes]:
    """Send messages to a method of Triton's service, return the answers. Raises grpc.RpcError."""
    options.setdefault("metadata", [("authorization", f"Bearer {TOKEN}")])
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return list(channel.stream_stream(SERVICE + method)(iter(messages), timeout=WAIT_S, **options))


def refusal(port: int, method: str, messages: list[bytes], **options: Any) -> str:
    """The name of the state that a method refuses with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(port, method, messages, **options)
    return str(caught.value.code().name)


def self_signed(folder: Path) -> ssl.SSLContext:
    """Make tls.crt and tls.key for 127.0.0.1 in `folder`; the context of a client that trusts them."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder.mkdir(parents=True)
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=trivid"
    )
    files = [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        folder / "tls.key",
        "-out",
        folder / "tls.crt",
    ]
    subprocess.run([*command.split(), *map(str, files)], check=True, capture_output=True, timeout=WAIT_S)
    return ssl.create_default_context(cafile=str(folder / "tls.crt"))
