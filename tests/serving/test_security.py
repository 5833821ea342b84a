"""Other users of the machine: what of a server they can read, and what Triton lets them do."""

from __future__ import annotations

import http.client
import os
import secrets
import socket
import stat
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from client import Client
from pipelines.machine import preflight
from pipelines.protocol.errors import InvalidMedia
from tests.conftest import Server

NOBODY = 65534
WAIT_S = 30
HTTP_PATHS = (
    "/v2/repository/index",
    "/v2/repository/models/status/load",
    "/v2/repository/models/status/unload",
    "/v2/systemsharedmemory/region/a/register",
    "/v2/systemsharedmemory/status",
    "/v2/cudasharedmemory/status",
    "/v2/trace/setting",
    "/v2/logging",
    "/v2/models/stats",
)
GRPC_METHODS = ("RepositoryIndex", "RepositoryModelLoad", "SystemSharedMemoryRegister", "LogSettings")


def as_nobody(*command: str) -> str:
    """What a command of another user's finds; skips where this user cannot become another."""
    if os.getuid() != 0:
        pytest.skip("needs root, to become another user")
    done = subprocess.run(
        command, user=NOBODY, group=NOBODY, extra_groups=(), capture_output=True, text=True, timeout=WAIT_S
    )
    return done.stdout


@pytest.fixture(scope="module")
def clip(server: Server) -> str:
    """Text of a medium that has passed through the server, as long as those that travel in files."""
    mark = secrets.token_hex(16)
    with Client(server.grpc_url, timeout_s=WAIT_S) as client, pytest.raises(InvalidMedia):
        client.classify((mark * 20_000).encode())
    return mark


@pytest.fixture(scope="module")
def regions(server: Server) -> list[Path]:
    """The shared memory between Triton and its stubs."""
    return list(preflight.SHM.glob(f"pytrtion{server.process.pid}-*"))


def test_no_other_user_reads_a_clip(clip: str, server: Server, regions: Sequence[Path]) -> None:
    assert any(clip.encode() in region.read_bytes() for region in regions)
    assert {stat.S_IMODE(region.stat().st_mode) for region in regions} == {0o600}
    assert clip not in as_nobody("grep", "-h", clip, *map(str, regions))
    (folder,) = Path(tempfile.gettempdir()).glob(f"{preflight.FOLDER_PREFIX}{server.process.pid}-*")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert as_nobody("find", str(folder), *map(str, regions), "-readable") == ""


def lock(server: Server) -> tuple[str, str]:
    """The header and its value that Triton asks for, as everybody can read them."""
    (triton,) = [one for one in server.family() if "tritonserver" in one.name()]
    words = triton.cmdline()
    value = words[words.index("--http-restricted-api") + 1]
    assert value == words[words.index("--grpc-restricted-protocol") + 1]
    header, _, text = value.partition(":")[2].partition("=")
    return header, text


@pytest.mark.parametrize("path", HTTP_PATHS)
def test_what_stands_on_the_command_line_opens_nothing_over_http(server: Server, path: str) -> None:
    header, value = lock(server)
    lines = (
        "",
        f"{header}: {value}",
        f"{header}:{value}",
        f"{header}={value}",
        f"X: y\r\n {header}: {value}",
    )
    for line in lines:
        for method in ("GET", "POST"):
            head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n{line}\r\n".replace(
                "\r\n\r\n", "\r\n"
            )
            with socket.create_connection(("127.0.0.1", server.http_port), WAIT_S) as connection:
                connection.sendall(f"{head}\r\n{{}}".encode())
                answer = http.client.HTTPResponse(connection)
                with closing(answer):
                    answer.begin()
                    assert answer.status == http.client.FORBIDDEN, (line, answer.read())


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def _literal(name: bytes, value: bytes) -> bytes:
    return b"\x00" + bytes((len(name),)) + name + bytes((len(value),)) + value


def grpc_answer(port: int, method: str, extra: dict[str, str]) -> bytes:
    """HTTP/2 by hand, since clients refuse to send such names: all that comes until the stream ends."""
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/inference.GRPCInferenceService/{method}",
        ":authority": "x",
        "te": "trailers",
        "content-type": "application/grpc",
        **extra,
    }
    block = b"".join(_literal(name.encode(), value.encode()) for name, value in headers.items())
    sent = _frame(4, 0, 0, b"") + _frame(1, 4, 1, block) + _frame(0, 1, 1, bytes(5))
    answer = b""
    with socket.create_connection(("127.0.0.1", port), WAIT_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + sent)
        while b"grpc-status" not in answer and (part := connection.recv(1 << 16)):
            answer += part
    return answer


@pytest.mark.parametrize("method", GRPC_METHODS)
def test_what_stands_on_the_command_line_opens_nothing_over_grpc(server: Server, method: str) -> None:
    header, value = lock(server)
    assert b"grpc-status\x010" in grpc_answer(server.grpc_port, "ServerLive", {})
    for name in (header, f"triton-grpc-protocol-{header}", f"triton-grpc-protocol-{header.lower()}"):
        assert b"grpc-status\x010" not in grpc_answer(server.grpc_port, method, {name: value})
    assert b"is restricted" in grpc_answer(server.grpc_port, method, {})
