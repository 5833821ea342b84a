"""The front lets through inference, metadata and health only, and refuses the rest in form."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from pipelines.protocol.errors import ModelUnavailable
from pipelines.sdk.grpc_transport import GrpcTransport
from pipelines.sdk.http_transport import HttpTransport
from pipelines.sdk.transport import Transport, parse_address
from tests.conftest import free_ports
from tests.docker.front_rig import (
    SERVICE,
    TOKEN,
    WAIT_S,
    Front,
    Upstream,
    call,
    refusal,
    running_front,
    running_upstream,
    self_signed,
    upstream_env,
)

INFER = "/v2/models/segmentation/infer"
MIB = 1 << 20
# TRIVID_MAX_MEDIA_MB=3 makes 3 * 4 / 3 + 2.
BODY_MIB = 6


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream() as running:
        yield running


@pytest.fixture(scope="module")
def front(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A front open to others, with a token and small limits."""
    limits = {"TRIVID_MAX_MEDIA_MB": "3", "TRIVID_MAX_STREAM_MB": "8"}
    env = {**upstream_env(upstream), **limits, "TRIVID_BIND": "0.0.0.0", "TRIVID_TOKEN": TOKEN}
    with running_front(tmp_path_factory.mktemp("front"), env) as running:
        yield running


@pytest.fixture(scope="module")
def lone_front(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """A front without a token whose gRPC server is gone, and who waits for a second."""
    gone = {"TRIVID_UPSTREAM_GRPC": f"127.0.0.1:{free_ports(1)[0]}", "TRIVID_TIMEOUT_S": "1"}
    with running_front(tmp_path_factory.mktemp("lone"), {**upstream_env(upstream), **gone}) as running:
        yield running


@pytest.mark.parametrize(
    ("method", "path", "seen"),
    [
        ("GET", "/v2", "/v2"),
        ("GET", "/v2/health/live", "/v2/health/live"),
        ("GET", "/v2/health/ready", "/v2/models/status/ready"),
        ("GET", "/v2/models/segmentation", "/v2/models/segmentation"),
        ("GET", "/v2/models/segmentation/ready", "/v2/models/segmentation/ready"),
        ("GET", "/v2/models/ResNet101/versions/1/ready", "/v2/models/ResNet101/versions/1/ready"),
        ("POST", INFER, INFER),
        ("POST", "/v2/models/segmentation/generate", "/v2/models/segmentation/generate"),
        # Another spelling is read once, here, and Triton sees what was read.
        ("POST", "/v2//models/x/../segmentation/%69nfer?a=b", INFER),
    ],
)
def test_passes(front: Front, upstream: Upstream, method: str, path: str, seen: str) -> None:
    body = b"\x00media\x00" if method == "POST" else None
    status, _, answer = front.ask(method, path, body=body, headers={"Trivid-Max-Frames": "3"})
    assert (status, answer) == (200, {"path": seen, "bytes": len(body or b"")})
    headers = upstream.requests[-1][2]
    assert headers["trivid-max-frames"] == "3"
    assert "authorization" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/metrics",
        "/v2/repository/index",
        "/v2/repository/models/segmentation/unload",
        "/v2/systemsharedmemory/region/a/register",
        "/v2/cudasharedmemory/status",
        "/v2/trace/setting",
        "/v2/logging",
        "/v2/models/stats",
        "/v2/models/segmentation/stats",
        "/v2/models/segmentation/config",
        "/v2/models/segmentation/infer/more",
        "/v2/models/segmentation/../../repository/index",
        "/v2/models/x%2f..%2f..%2frepository%2findex",
        "/v2/models/x%0a/infer",
        "/v2/health/live/../../logging",
    ],
)
def test_keeps_out(front: Front, upstream: Upstream, path: str) -> None:
    upstream.requests.clear()
    for method in ("GET", "POST"):
        status, _, answer = front.ask(method, path, body=b"{}")
        assert (status, answer["code"]) == (404, "not_served")
    assert not upstream.requests


@pytest.mark.parametrize(
    "header",
    [
        "",
        "Bearer",
        "Bearer ",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN.swapcase()}",
        f"Bearer {TOKEN.replace('.', 'x')}",
        f"Bearer x, Bearer {TOKEN}",
    ],
)
def test_wants_the_token(front: Front, upstream: Upstream, header: str) -> None:
    upstream.requests.clear()
    status, headers, answer = front.ask("POST", INFER, body=b"{}", headers={"Authorization": header})
    assert (status, answer["code"]) == (401, "unauthorized")
    assert headers["WWW-Authenticate"] == 'Bearer realm="trivid"'
    assert not upstream.requests
    metadata = [("authorization", header)] if header else []
    assert refusal(front.grpc_port, "ModelInfer", [b"x"], metadata=metadata) == "UNAUTHENTICATED"


def test_health_needs_no_token(front: Front) -> None:
    assert front.ask("GET", "/v2/health/live", headers={"Authorization": ""})[0] == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_limits_the_body(front: Front, upstream: Upstream, chunked: bool) -> None:
    fitting, larger = bytes(BODY_MIB * MIB), bytes(BODY_MIB * MIB + 1)
    status, _, answer = front.ask("POST", INFER, body=iter([fitting]) if chunked else fitting)
    assert (status, answer["bytes"]) == (200, len(fitting))
    # Triton never sees chunks, only a length.
    assert "transfer-encoding" not in upstream.requests[-1][2]
    upstream.requests.clear()
    status, _, answer = front.ask("POST", INFER, body=iter([larger]) if chunked else larger)
    assert (status, answer["code"]) == (413, "too_large")
    assert not upstream.requests


GENERATE = "/v2/models/segmentation/generate"
LENGTH = "Inference-Header-Content-Length"


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(
    ("path", "length", "opens", "closes", "expected"),
    [
        (INFER, None, b"[", b"]", 422),
        (INFER, None, b'{"a": ', b"}", 422),
        (INFER, None, b"[1, [2], ", b"]", 422),
        (INFER, None, b"[[", b"", 422),
        (GENERATE, None, b"[", b"]", 422),
        (f"{GENERATE}_stream", None, b"[", b"]", 422),
        ("/v2/models/segmentation/versions/1/infer", None, b"[", b"]", 422),
        # `generate` reads JSON whatever this says.
        (GENERATE, "0", b"[", b"]", 422),
        (INFER, "1000000", b"[", b"]", 400),
        (INFER, "-1", b"[", b"]", 400),
        (INFER, "0, 1000000", b"[", b"]", 400),
        (INFER, "0", b"[", b"]", 200),
        (INFER, "999999", b"[", b"]", 200),
        # A million brackets need a million bytes, which Triton's stack has room for.
        (INFER, None, b"QUJD", b"=", 200),
        (GENERATE, None, b"QUJD", b"=", 200),
    ],
)
def test_deep_json_does_not_reach_triton(
    front: Front,
    upstream: Upstream,
    path: str,
    length: str | None,
    opens: bytes,
    closes: bytes,
    expected: int,
    chunked: bool,
) -> None:
    body = b'{"media": ' + opens * 500_000 + b"1" + closes * 500_000 + b"}"
    upstream.requests.clear()
    headers = {} if length is None else {LENGTH: length}
    status, _, answer = front.ask("POST", path, body=iter([body]) if chunked else body, headers=headers)
    assert status == expected
    if expected == 200:
        assert (answer["path"], answer["bytes"]) == (path, len(body))
    else:
        assert answer["code"] == "invalid_options"
        assert not upstream.requests


@pytest.mark.parametrize("brackets", [99_998, 99_999])
def test_json_may_have_many_brackets(front: Front, brackets: int) -> None:
    body = b"{" + b" " * 1_000_000 + b"[" * brackets
    status, _, _ = front.ask("POST", INFER, body=body)
    assert status == (422 if brackets == 99_999 else 200)


@pytest.mark.parametrize(("encoding", "expected"), [("identity", 200), ("gzip", 415), ("deflate", 415)])
def test_takes_no_compressed_body(front: Front, encoding: str, expected: int) -> None:
    status, _, answer = front.ask("POST", INFER, body=b"{}", headers={"Content-Encoding": encoding})
    assert (status, answer.get("code")) == (expected, "unsupported_media" if expected == 415 else None)


def test_events_are_not_held_back(front: Front, upstream: Upstream) -> None:
    upstream.go_on.clear()
    connection = front.connect()
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        connection.request("POST", "/v2/models/segmentation_stream/generate_stream", b"{}", headers)
        response = connection.getresponse()
        assert response.readline() == b"data: 1\n"  # the server sends nothing more until it is told to
        upstream.go_on.set()
        assert response.read() == b"\ndata: 2\n\n"
    finally:
        upstream.go_on.set()
        connection.close()


def test_says_when_the_server_is_late_or_gone(lone_front: Front, upstream: Upstream) -> None:
    upstream.go_on.clear()
    status, _, answer = lone_front.ask("POST", "/v2/models/late/infer", body=b"{}")
    upstream.go_on.set()
    assert (status, answer["code"]) == (504, "deadline_exceeded")
    assert refusal(lone_front.grpc_port, "ModelInfer", [b"x"]) == "UNAVAILABLE"


def test_says_when_the_server_is_not_there(tmp_path: Path) -> None:
    with running_front(tmp_path, {"TRIVID_UPSTREAM_HTTP": f"127.0.0.1:{free_ports(1)[0]}"}) as lonely:
        status, headers, answer = lonely.ask("GET", "/v2")
    assert (status, headers["Retry-After"], answer["code"]) == (503, "5", "model_unavailable")


def test_says_when_uploads_have_no_room(upstream: Upstream, tmp_path: Path) -> None:
    with running_front(tmp_path, upstream_env(upstream)) as front:
        (tmp_path / "body").rmdir()
        (tmp_path / "body").touch()
        status, _, answer = front.ask("POST", INFER, body=bytes(MIB), headers={LENGTH: "0"})
    assert (status, answer["code"]) == (429, "overloaded")


@pytest.mark.parametrize(
    "method",
    [
        "ModelInfer",
        "ModelStreamInfer",
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ModelMetadata",
        "ServerMetadata",
    ],
)
def test_grpc_passes(front: Front, method: str) -> None:
    assert call(front.grpc_port, method, [b"one", b"two"]) == [b"one", b"two"]


@pytest.mark.parametrize(
    "method",
    [
        "RepositoryIndex",
        "RepositoryModelLoad",
        "SystemSharedMemoryRegister",
        "CudaSharedMemoryStatus",
        "ModelStatistics",
        "ModelConfig",
        "TraceSetting",
        "LogSettings",
        "ModelInfer/x",
        "ModelReady/../LogSettings",
    ],
)
def test_grpc_keeps_out(front: Front, upstream: Upstream, method: str) -> None:
    upstream.calls.clear()
    assert refusal(front.grpc_port, method, [b"x"]) == "UNIMPLEMENTED"
    assert not upstream.calls


def test_grpc_limits(front: Front) -> None:
    pieces = [bytes(2 * MIB)] * 3
    assert call(front.grpc_port, "ModelStreamInfer", pieces) == pieces
    assert refusal(front.grpc_port, "ModelInfer", [b"".join(pieces)]) == "RESOURCE_EXHAUSTED"
    assert refusal(front.grpc_port, "ModelStreamInfer", [bytes(9 * MIB)]) == "RESOURCE_EXHAUSTED"
    gzip = {"compression": grpc.Compression.Gzip}
    assert refusal(front.grpc_port, "ModelInfer", [bytes(MIB)], **gzip) == "UNIMPLEMENTED"


def test_grpc_stream_runs_both_ways_at_once(front: Front) -> None:
    """The second message is sent when the first is answered, so neither way may wait for the other's end."""
    answered = threading.Event()

    def messages() -> Iterator[bytes]:
        yield b"one"
        if answered.wait(WAIT_S):
            yield b"two"

    metadata = [("authorization", f"Bearer {TOKEN}")]
    with grpc.insecure_channel(f"127.0.0.1:{front.grpc_port}") as channel:
        method = channel.stream_stream(f"{SERVICE}ModelStreamInfer")
        answers = method(messages(), metadata=metadata, timeout=WAIT_S)
        assert next(answers) == b"one"
        answered.set()
        assert list(answers) == [b"two"]


def test_tls(upstream: Upstream, tmp_path: Path) -> None:
    trust = self_signed(tmp_path / "tls")
    env = {**upstream_env(upstream), "TRIVID_TLS_DIR": str(tmp_path / "tls")}
    with running_front(tmp_path / "front", env, tls=trust) as front:
        assert front.ask("GET", "/v2")[0] == 200
        plain = Front(http_port=front.http_port, grpc_port=front.grpc_port)
        assert plain.ask("GET", "/v2")[0] == 400
        roots = grpc.ssl_channel_credentials((tmp_path / "tls" / "tls.crt").read_bytes())
        with grpc.secure_channel(f"127.0.0.1:{front.grpc_port}", roots) as channel:
            answers = channel.stream_stream(f"{SERVICE}ServerLive")(iter([b"x"]), timeout=WAIT_S)
            assert list(answers) == [b"x"]


@pytest.mark.parametrize("kind", [HttpTransport, GrpcTransport])
def test_our_client_understands(front: Front, kind: Callable[..., Transport]) -> None:
    port = front.http_port if kind is HttpTransport else front.grpc_port
    scheme = "http" if kind is HttpTransport else "grpc"
    transport = kind(parse_address(f"{scheme}://127.0.0.1:{port}"), "a-wrong-token-of-a-client")
    try:
        with pytest.raises(ModelUnavailable, match="refuses access"):
            transport.check_ready("segmentation", WAIT_S)
    finally:
        transport.close()
