"""The client without Triton: what it sends, and what it makes of answers good and bad."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import Client
from pipelines.protocol.answers import DetectionAnswer, SegmentationAnswer, answer_columns
from pipelines.protocol.columns import text_column
from pipelines.protocol.errors import (
    BY_CODE,
    DeadlineExceeded,
    InternalError,
    InvalidMedia,
    InvalidOptions,
    ModelUnavailable,
    Overloaded,
    TooLarge,
    TrividError,
)
from pipelines.sdk.grpc_transport import GrpcTransport
from pipelines.sdk.http_transport import HttpTransport
from pipelines.sdk.pulls import FIRST_CREDITS
from pipelines.sdk.transport import Call, parse_address, server_error
from tests.conftest import ROOT
from tests.support.stub_server import Reply, StubServer, binary, event, talker, unary
from tests.support.toy_answers import answer, detected

SHORT_S = 0.05


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as running:
        yield running


# --- addresses ---


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("grpc://host", "grpc://host:8001"),
        ("http://host", "http://host:8000"),
        ("https://host/trivid/", "https://host:443/trivid"),
        ("grpcs://host:9", "grpcs://host:9"),
        ("http://[::1]:8", "http://[::1]:8"),
        ("http://münchen.test/ä", "http://xn--mnchen-3ya.test:8000/%C3%A4"),
        ("grpc://[fe80::1%25eth0]:9", "grpc://[fe80::1%eth0]:9"),
        ("grpc://my_host/", "grpc://my_host:8001"),
        *((url, None) for url in ("", "host:8001", "ftp://host", "http://", "http://h:x", "http://h:99999")),
        *(
            (url, None)
            for url in ("http://user:secret@host", "http://user:secret@h:x", "//h", "http:h", "grpc://h/x")
        ),
        *(
            (url, None)
            for url in ("http://h ", " http://h", "http://h\n", "http://a b", "http://h\0", "http://\udce9")
        ),
        *((url, None) for url in ("http://h?x=1", "http://h#x", "http://h:0", "http://h:-1", "http://[::1")),
        *((url, None) for url in ("http://a..b", f"http://{70 * 'a'}", "http://a,b", "http://[1.2.3.4]")),
        *((url, None) for url in ("grpc://::1", "grpc://::1:8001", "http://fe80::1%eth0", "::1")),
    ],
)
def test_address(url: str, expected: str | None) -> None:
    if expected is not None:
        assert str(parse_address(url)) == expected
        return
    with pytest.raises(InvalidOptions) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)
    if url.startswith(("::", "grpc://::", "http://fe80:")):
        assert "in brackets: grpc://[::1]:8001" in caught.value.hint


@pytest.mark.parametrize("token", ["two words", "line\n", "schlüssel", "\udce9"])
def test_a_token_that_no_header_can_hold(token: str) -> None:
    for scheme in ("http", "grpc"):
        with pytest.raises(InvalidOptions, match="token") as caught:
            Client(f"{scheme}://host", token=token)
        assert token not in str(caught.value)


# --- what is sent, and what comes back ---


def test_a_unary_answer_is_read_in_full(stub: StubServer) -> None:
    given = answer(
        mask=[b"\x00a\x00", b"b"], overlay=[b"\xff\x00", b""], video=b"\x00film", decoder_reason="why"
    )
    stub.infer(unary(given))
    with Client(stub.url, token="t0ken") as client:
        got = client.segment(b"\x00media\x00", stride=2, end_s=float("inf"), class_name="cat", alpha=0.5)
    np.testing.assert_array_equal(got.class_pixels, given.class_pixels)
    np.testing.assert_array_equal(got.pts_s, given.pts_s)
    assert [*got.mask, *got.overlay, got.video] == [*given.mask, *given.overlay, given.video]
    assert (got.class_names, got.decoder_reason, got.final) == (("background", "cat"), "why", True)
    request = stub.seen[-1]
    assert request.headers["Authorization"] == "Bearer t0ken"
    assert request.body.endswith(b"\x07\x00\x00\x00\x00media\x00")
    assert request.head["inputs"][0]["shape"] == [1, 1]
    assert request.head["parameters"] == {"stride": 2, "end_s": "inf", "class_name": "cat", "alpha": "0.5"}


@pytest.mark.parametrize("frames", [(0,), (0, 1, 2), ()])
@pytest.mark.parametrize("with_mask", [True, False])
def test_stream_answers_are_read_in_full(stub: StubServer, frames: tuple[int, ...], with_mask: bool) -> None:
    mask = [b"\x00%d" % index for index in frames] if with_mask else []
    first, last = answer(frames, mask=mask, final=False), answer(frames, mask=mask)
    text = event(first) + event(last)
    stub.stream(Reply(chunks=[text[:7], text[7:-5], text[-5:]]))  # events do not keep to chunks
    with Client(stub.url) as client:
        got = list(client.segment_stream(b"\x00media", stride=2, start_s=0.5))
    assert [one.final for one in got] == [False, True]
    for one in got:
        assert one.frame_index.tolist() == list(frames)
        assert one.class_pixels.tolist() == first.class_pixels.tolist()
        assert list(one.mask) == mask
    sent = {"media": "AG1lZGlh", "base64": True, "stride": 2, "start_s": "0.5"}
    assert stub.seen[-1].head == {**sent, "credits": FIRST_CREDITS}


def test_media_may_be_a_path(stub: StubServer, tmp_path: Path) -> None:
    stub.infer(lambda seen: unary(answer(range(int(seen.body[-1:])))))
    path = tmp_path / "clip"
    path.write_bytes(b"3")
    with Client(stub.url) as client:
        assert [len(client.segment(one)) for one in (path, str(path), b"4")] == [3, 3, 4]
        with pytest.raises(FileNotFoundError):
            client.segment(tmp_path / "absent")
        assert client.info()["models"]["segmentation"]["labels"] == ["background", "cat"]


@pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
def test_what_may_never_end_is_not_opened(kind: str, stub: StubServer, tmp_path: Path) -> None:
    path = tmp_path / "p.mp4"
    with socket.socket(socket.AF_UNIX) as listener, Client(stub.url) as client:
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            listener.bind(str(path))
        given = Path("/dev/zero") if kind == "device" else path
        with pytest.raises(InvalidMedia, match=f"is a {kind}, not a file"):
            client.segment(given)
        with pytest.raises(IsADirectoryError):
            client.segment(tmp_path)


def test_media_over_the_servers_limit_is_not_sent(stub: StubServer, tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes(bytes(1001))
    with Client(stub.url) as client:
        for media in (bytes(1001), path):
            with pytest.raises(TooLarge, match=r"1001 bytes.* 1000"):
                client.segment(media)
            with pytest.raises(TooLarge):
                client.segment_stream(media)
    assert {seen.path for seen in stub.seen} == {"/v2/models/status/infer"}


@pytest.mark.parametrize(
    "options",
    [
        *({"base64": True}, {"credits": 1}, {"session": ""}, {"stride": None}, {"class_name": ["cat"]}),
        {"class_name": "caf\udce9"},
    ],
)
def test_options_that_cannot_travel(stub: StubServer, options: dict[str, Any]) -> None:
    with Client(stub.url) as client, pytest.raises(InvalidOptions, match=next(iter(options))):
        client.segment(b"", **options)


@pytest.mark.parametrize("kind", BY_CODE.values())
def test_an_error_column_is_raised_as_what_it_is(stub: StubServer, kind: type[TrividError]) -> None:
    row = {"error": text_column(kind("what", hint="do").to_json())}
    stub.infer(unary(row))
    stub.infer(unary(row, DetectionAnswer), "detection")
    stub.stream(Reply(chunks=[event(answer(final=False)), event(row)]))
    with Client(stub.url) as client:
        for ask in (client.segment, client.detect):
            with pytest.raises(kind, match=r"^what \(do\)$"):
                ask(b"")
        stream = client.segment_stream(b"")
        assert len(next(stream)) == 2  # what came before the error counts
        with pytest.raises(kind, match=r"^what \(do\)$"):
            next(stream)


# --- a server or a proxy that fails ---


def binary_of(**tensors: Any) -> Reply:
    """An answer some of whose columns are of another form."""
    columns = [
        replace(column, dtype=object if tensors[column.name].dtype == object else np.float64)
        if column.name in tensors
        else column
        for column in answer_columns(SegmentationAnswer)
    ]
    return binary(columns, {**answer().to_columns(), **tensors})


PAGE = b"<html>no</html>"


@pytest.mark.parametrize(
    ("reply", "expected", "message"),
    [
        (Reply(status=413, body=PAGE), TooLarge, "larger"),
        (Reply(status=413, body=TooLarge("over 9 MiB").to_json()), TooLarge, "^over 9 MiB$"),
        (Reply(status=401), ModelUnavailable, "refuses access"),
        (Reply(status=403), ModelUnavailable, "token"),
        (Reply(status=404, body=b'{"error": "Request for unknown model"}'), ModelUnavailable, "unknown"),
        (Reply(status=404, body=PAGE), ModelUnavailable, "404"),
        (Reply(status=405), ModelUnavailable, "405 .if this is the server.s gRPC port"),
        (Reply(status=429), Overloaded, "again"),
        (Reply(status=500, body=b'{"error": "Exceeds maximum queue size"}'), Overloaded, "queue"),
        (Reply(status=503, body=b'{"error": "Request timeout expired"}'), Overloaded, "as long as"),
        (Reply(status=500, body=b'{"error": "Stub process is not healthy"}'), ModelUnavailable, "healthy"),
        (Reply(status=500, body=b'{"error": "one\\n two\\nthree"}'), InternalError, "one … three"),
        (Reply(status=502, body=PAGE), ModelUnavailable, "502"),
        (Reply(status=504, body=PAGE), DeadlineExceeded, "in time"),
        (Reply(status=302, headers={"Location": "/x"}), ModelUnavailable, "sends its callers on to '/x'"),
        (Reply(status=400, body=b'{"code": [], "message": ""}'), InternalError, "HTTP 400"),
        (Reply(status=500, body=b"[" * 100_000), InternalError, "HTTP 500"),
        (Reply(body=PAGE), ModelUnavailable, "is not a Trivid server: its answer begins b'<html>no"),
        (
            Reply(body=b"[" * 100_000, headers={"Inference-Header-Content-Length": "90000"}),
            InternalError,
            "KS",
        ),
        (binary_of(frame_index=text_column("0")), InternalError, "'frame_index' is of type object"),
        (binary_of(decoder=np.zeros(1)), InternalError, "'decoder' is of type float64"),
        (Reply(body=b"{}", headers={"Inference-Header-Content-Length": "2"}), InternalError, "KServe"),
        (unary(detected(), SegmentationAnswer), InternalError, "no 'class_names'.*same version"),
        (Reply(body=unary(answer()).body[:-1], headers=unary(answer()).headers), InternalError, "BYTES"),
    ],
)
def test_unary_failures(stub: StubServer, reply: Reply, expected: type[TrividError], message: str) -> None:
    stub.infer(reply)
    with Client(stub.url) as client, pytest.raises(expected, match=message):
        client.segment(b"x")


@pytest.mark.parametrize(
    ("reply", "expected", "message"),
    [
        (Reply(status=413, body=PAGE), TooLarge, "larger"),
        (Reply(status=400, body=b'{"error": "Request for unknown model"}'), ModelUnavailable, "unknown"),
        (Reply(chunks=[b'data: {"error": "boom"}\n\n']), InternalError, "boom"),
        (Reply(chunks=[b"data: {\n\n"]), InternalError, "not JSON"),
        (Reply(chunks=[b"data: []\n\n"]), InternalError, "not a JSON object"),
        (Reply(chunks=[b'data: {"count": 1, "error": ""}\n\n']), InternalError, "no 'frame_index'"),
        (Reply(chunks=[event(answer()).replace(b'"final": 1', b'"final": "x"')]), InternalError, "'final'"),
        (Reply(chunks=[event(answer()).replace(b'"video": ""', b'"video": "*"')]), InternalError, "'video'"),
        (Reply(chunks=[event(answer(final=False))], cut=True), ModelUnavailable, "broke off"),
        (Reply(chunks=[event(answer(final=False))]), ModelUnavailable, "broke off"),
        (Reply(chunks=[]), ModelUnavailable, "broke off"),
    ],
)
def test_stream_failures(stub: StubServer, reply: Reply, expected: type[TrividError], message: str) -> None:
    stub.stream(reply)
    with Client(stub.url) as client, pytest.raises(expected, match=message):
        list(client.segment_stream(b"x"))


def test_a_traceback_becomes_one_line() -> None:
    assert str(server_error("Traceback:\n  File x\nValueError: 3")).startswith(
        "the server failed: Traceback: … ValueError: 3 ("
    )


def asks(client: Client) -> Any:
    """All ways of asking, each with the client's own bound."""
    return [client.info, lambda: client.segment(b"x"), lambda: list(client.segment_stream(b"x"))]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_no_server(scheme: str) -> None:
    with Client(f"{scheme}://127.0.0.1:1") as client:
        for ask in asks(client):
            with pytest.raises(ModelUnavailable, match=f"no server at {scheme}://127.0.0.1:1"):
                ask()
        assert not client.ready()
        with pytest.raises(ModelUnavailable, match=r"not ready in 0.3 s: no server"):
            client.wait_ready(0.3)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_black_hole_costs_the_timeout_alone(scheme: str) -> None:
    with talker() as port, Client(f"{scheme}://127.0.0.1:{port}", timeout_s=SHORT_S) as client:
        for ask in asks(client):
            with pytest.raises(DeadlineExceeded, match=r"within 0\.0\d+ s"):
                ask()
        assert not client.ready()


def test_a_grpc_stream_into_a_black_hole_ends() -> None:
    call = Call(model="m", input_name="media", data=b"", columns=(), timeout_s=SHORT_S)
    with talker() as port:
        transport = GrpcTransport(parse_address(f"grpc://127.0.0.1:{port}"))
        with pytest.raises(DeadlineExceeded):
            next(transport.stream(call))
        transport.close()


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 400\r\n\r\n"


@pytest.mark.parametrize("say", [HEAD, HEAD + 400 * b"x"], ids=["head", "body"])
def test_a_server_that_trickles_is_cut_off(say: bytes) -> None:
    """Each byte comes in time, the whole answer in half a minute: a DeadlineExceeded all the same."""
    pieces = [say[index : index + 1] for index in range(len(say))]
    with (
        talker(pieces, pause_s=0.07, close=True) as port,
        Client(f"http://127.0.0.1:{port}", timeout_s=0.2) as client,
        pytest.raises(DeadlineExceeded),
    ):
        client.info()


GREETING = b"SSH-2.0-x\r\n"


@pytest.mark.parametrize(
    ("scheme", "say", "message"),
    [
        ("http", GREETING, "does not speak HTTP"),
        ("http", HEAD, "broke off"),
        ("http", HEAD + 400 * b"<", "is not a Trivid server"),
        ("http", b"", "broke off.*this is the server's gRPC port"),
        ("https", GREETING, "no TLS"),
        ("grpc", GREETING + 9 * b"x", "does not speak gRPC.*this is the server's HTTP port"),
        ("grpc", HEAD, "does not speak gRPC"),
        ("grpcs", GREETING, "no TLS"),
    ],
)
def test_whoever_else_listens(scheme: str, say: bytes, message: str) -> None:
    with (
        talker([say], close=True) as port,
        Client(f"{scheme}://127.0.0.1:{port}", timeout_s=5) as client,
        pytest.raises(ModelUnavailable, match=message),
    ):
        client.info()


def test_a_proxy_that_refuses_before_it_has_read_all() -> None:
    """nginx answers 413 and closes while megabytes are still on their way."""
    refusal = b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
    call = Call(model="m", input_name="media", data=bytes(32 << 20), columns=(), timeout_s=20)
    with talker([refusal], close=True) as port:
        transport = HttpTransport(parse_address(f"http://127.0.0.1:{port}"))
        with pytest.raises((TooLarge, ModelUnavailable)):  # a reset may swallow the answer
            transport.infer(call)


@pytest.mark.parametrize(("url", "needs_grpc"), [("http://127.0.0.1:1", False), ("grpc://127.0.0.1:1", True)])
def test_the_client_is_light_to_import(url: str, needs_grpc: bool) -> None:
    code = (
        "import sys, client; client.Client(sys.argv[1]);"
        "print([m for m in ('torch', 'nvidia.dali', 'av', 'PIL', 'pytriton', 'grpc') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ("['grpc']" if needs_grpc else "[]")
