"""A client that lives on: its server restarts with other limits and models, its process forks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from client import Client, SegmentationAnswer
from pipelines.protocol.columns import text_column
from pipelines.protocol.errors import InternalError, InvalidOptions, ModelUnavailable, TooLarge, TrividError
from tests.conftest import ROOT
from tests.support import media
from tests.support.stub_server import (
    STATUS,
    STATUS_COLUMNS,
    GrpcStub,
    Reply,
    Seen,
    StubServer,
    binary,
    event,
    unary,
)
from tests.support.toy_answers import answer, detected

Ask = Callable[[Client, bytes], SegmentationAnswer]


def whole(client: Client, media: bytes) -> SegmentationAnswer:
    return client.segment(media)


def stream(client: Client, media: bytes) -> SegmentationAnswer:
    return SegmentationAnswer.concatenate(list(client.segment_stream(media)))


both = pytest.mark.parametrize("ask", [whole, stream])


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as running:
        running.serve(answer([1]))
        yield running


def named(*names: str, task: str = "segmentation", limit: int = 1000) -> dict[str, Any]:
    """The status of a server of these models of one task."""
    return {**STATUS, "max_media_bytes": limit, "models": {name: {"task": task} for name in names}}


def serve_as(stub: StubServer, name: str) -> None:
    """A model of that name, and no longer one named after its task."""
    stub.replies = {path: reply for path, reply in stub.replies.items() if "segmentation" not in path}
    stub.status(named(name))
    stub.infer(unary(answer([2])), name)
    stub.stream(Reply(chunks=[event(answer([2]))]), name)


@both
def test_other_limits(stub: StubServer, ask: Ask) -> None:
    with Client(stub.url) as client:
        assert len(ask(client, bytes(10))) == 1
        with pytest.raises(TooLarge):
            ask(client, bytes(2000))
        stub.status({**STATUS, "max_media_bytes": 3000})
        assert len(ask(client, bytes(2000))) == 1
        asked = len(stub.seen)
        ask(client, bytes(2000))
        assert len(stub.seen) == asked + 1  # what is known is asked for once


@both
def test_another_model_of_the_task(stub: StubServer, ask: Ask) -> None:
    with Client(stub.url) as client:
        assert ask(client, b"x").frame_index.tolist() == [1]
        serve_as(stub, "gate")
        assert ask(client, b"x").frame_index.tolist() == [2]
        serve_as(stub, "door")
        assert ask(client, b"x").frame_index.tolist() == [2]


@both
def test_what_is_gone_is_said(stub: StubServer, ask: Ask) -> None:
    with Client(stub.url) as client:
        ask(client, b"x")
        stub.replies = {}
        stub.status(named("boxes", task="detection"))
        with pytest.raises(ModelUnavailable):
            ask(client, b"x")
        with pytest.raises(InvalidOptions, match="no model for segmentation; it serves boxes"):
            ask(client, b"x")


def test_a_model_that_came_and_one_that_changed_its_task(stub: StubServer) -> None:
    with Client(stub.url) as client:
        with pytest.raises(InvalidOptions, match="no model 'gate'"):
            client.ask_model("gate", b"x")
        serve_as(stub, "gate")
        assert client.ask_model("gate", b"x").frame_index.tolist() == [2]
        stub.status(named("gate", task="detection"))
        stub.infer(unary(detected([1])), "gate")
        with pytest.raises(TrividError):  # and it is known from then on
            client.ask_model("gate", b"x")
        assert len(client.ask_model("gate", b"x")) == 1


@pytest.mark.parametrize("failure", [Reply(status=404), Reply(body=b"{}")])
def test_a_failure_of_the_same_server_is_not_tried_again(stub: StubServer, failure: Reply) -> None:
    tries: list[Seen] = []

    def fail(seen: Seen) -> Reply:
        tries.append(seen)
        return failure

    with Client(stub.url) as client:
        client.segment(b"x")
        stub.infer(fail)
        with pytest.raises(ModelUnavailable):
            client.segment(b"x")
        assert len(tries) == 1


def test_a_stream_that_broke_is_not_begun_again(stub: StubServer) -> None:
    with Client(stub.url) as client:
        client.segment(b"x")
        stub.stream(Reply(chunks=[event(answer([1], final=False))], cut=True))
        answers = client.segment_stream(b"x")
        next(answers)
        serve_as(stub, "gate")
        with pytest.raises(ModelUnavailable, match="broke off"):
            next(answers)


@pytest.mark.parametrize(
    "status",
    [
        *("[]", "null", "1", '"x"', "{}", "{", "[" * 100_000, json.dumps({**STATUS, "models": ["m"]})),
        *(json.dumps({**STATUS, "models": {"m": 1}}), json.dumps({**STATUS, "max_media_bytes": "much"})),
        *(json.dumps({**STATUS, "max_media_bytes": None}), json.dumps({**STATUS, "max_media_bytes": 1e999})),
    ],
)
def test_a_status_of_another_form(status: str, stub: StubServer) -> None:
    reply = binary(STATUS_COLUMNS, {"status": text_column(status)})
    stub.replies["/v2/models/status/infer"] = reply
    with Client(stub.url) as client:
        for ask in (client.info, lambda: client.segment(b"x")):
            with pytest.raises(InternalError, match="same version"):
                ask()


def test_a_server_that_is_back_is_found_at_once() -> None:
    """gRPC would wait for longer after each attempt that failed; each call here makes its own."""
    with GrpcStub() as first:
        first.serve(answer([1]))
        port = int(first.url.rpartition(":")[2])
        client = Client(first.url, timeout_s=10)
        assert client.segment(b"x").frame_index.tolist() == [1]
    for _ in range(6):
        with pytest.raises(ModelUnavailable, match="no server at"):
            client.segment(b"x")
    with GrpcStub(port) as second:
        second.serve(answer([2]))
        assert client.segment(b"x").frame_index.tolist() == [2]
    client.close()
    with pytest.raises(Exception, match="the client is closed"):
        client.segment(b"x")


FORKING = """
import os, sys
from client import Client
url, clip = sys.argv[1:]
kept = Client(url, timeout_s=30)
kept.info()

def ask(whose):
    client = kept if whose == "parent" else Client(url, timeout_s=30)
    return whose, "version" in client.info() and len(client.segment(clip, max_frames=1))

def in_a_child(work):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            said = str(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read()

for whose in ("parent", "own"):
    print(in_a_child(lambda: ask(whose)), ask("parent"))
print(in_a_child(lambda: in_a_child(lambda: ask("parent"))))

# A stream is its own process's; a child that leaves it does not end it.
stream = kept.segment_stream(clip)
first = next(stream)
def go_on():
    try:
        return [len(part) for part in stream]
    finally:
        stream.close()
print(in_a_child(go_on))
print(len(first) + sum(len(part) for part in stream), "frames")
"""


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_client_and_its_children(scheme: str, request: pytest.FixtureRequest, tmp_path: Any) -> None:
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(media.clip(frames=40, width=32, height=32))
    url = request.getfixturevalue(f"{scheme}_url")
    command = [sys.executable, "-W", "ignore:This process:DeprecationWarning", "-c", FORKING, url, str(clip)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "('parent', 1) ('parent', 1)",
        "('own', 1) ('parent', 1)",
        "('parent', 1)",
        "Cancelled: the stream was begun before a fork (begin another in this process)",
        "40 frames",
    ]
