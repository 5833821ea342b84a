"""Pulled streams on the real server, as strangers ask for them and as the client does."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client import Client
from pipelines.protocol.kserve import read_tensor
from tests.conftest import Server
from tests.support import media

FRAMES = 90  # six answers
TASKS: dict[str, dict[str, Any]] = {
    "segmentation": {"mask": "png", "overlay": "mp4"},
    "action": {"top_k": 2, "clip_length": 8, "clip_stride": 5},
    "detection": {"overlay": "jpeg"},
}
Event = dict[str, Any]
WAIT_S = 20.0


@pytest.fixture(scope="module")
def film() -> bytes:
    return media.clip(frames=FRAMES, width=96, height=64, rate=10)


def over_http(server: Server, task: str, sent: bytes = b"", **options: Any) -> list[Event]:
    """All events of one request."""
    body = {"media": base64.b64encode(sent).decode(), "base64": True, **options}
    url = f"{server.http_url}/v2/models/{task}_stream/generate_stream"
    with urllib.request.urlopen(
        urllib.request.Request(url, json.dumps(body).encode()), timeout=60
    ) as response:
        lines = response.read().decode().split("\n")
    return [json.loads(line.removeprefix("data:")) for line in lines if line.startswith("data:")]


def over_grpc(server: Server, task: str, sent: bytes = b"", **options: Any) -> list[Event]:
    """The same by the stubs that Triton's gRPC clients are made of; tensors as their bytes."""
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="media", datatype="BYTES", shape=[1])
    kinds = {int: "int64_param", bool: "bool_param", str: "string_param"}
    parameters = {
        name: service_pb2.InferParameter(**{kinds[type(value)]: value}) for name, value in options.items()
    }
    request = service_pb2.ModelInferRequest(
        model_name=f"{task}_stream",
        inputs=[tensor],
        raw_input_contents=[len(sent).to_bytes(4, "little") + sent],
        parameters=parameters,
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        replies = list(stub.ModelStreamInfer(iter([request]), timeout=60))
    assert not any(reply.error_message for reply in replies)
    return [as_event(reply.infer_response) for reply in replies if reply.infer_response.outputs]


def as_event(response: Any) -> Event:
    """The tensors of an answer as server-sent events have them: flat lists, and single values alone."""
    event: Event = {}
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        values = read_tensor(output.datatype, tuple(output.shape), raw).ravel().tolist()
        values = [value.decode("latin-1") if isinstance(value, bytes) else value for value in values]
        event[output.name] = values if len(values) != 1 else values[0]
    return event


ASK: dict[str, Callable[..., list[Event]]] = {"http": over_http, "grpc": over_grpc}


def assert_same(one: list[Event], other: list[Event]) -> None:
    """All columns alike; which frames shared a batch shows in the last digits of what a model computes."""
    assert len(one) == len(other)
    for got, expected in zip(one, other, strict=True):
        assert got.keys() == expected.keys()
        for name in got.keys() - {"session"}:
            values, wanted = np.atleast_1d(got[name]), np.atleast_1d(expected[name])
            if values.dtype.kind == "f":
                np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-6, err_msg=name)
            else:
                np.testing.assert_array_equal(values, wanted, err_msg=name)


def error_code(events: list[Event]) -> str:
    (event,) = events
    return str(json.loads(event["error"])["code"])


@pytest.mark.parametrize("protocol", ASK)
@pytest.mark.parametrize("task", TASKS)
def test_pulls_joined_are_the_stream_as_a_whole(
    server: Server, film: bytes, task: str, protocol: str
) -> None:
    """All columns of all answers, whether in one go, two at a time, or said again."""
    ask, options = ASK[protocol], TASKS[task]
    whole = ask(server, task, film, **options)
    assert len(whole) >= 5
    assert [event["session"] for event in whole] == [""] * len(whole)
    pulled = ask(server, task, film, credits=2, **options)
    token = pulled[-1]["session"]
    assert [event["session"] for event in pulled] == ["", token]
    lost = ask(server, task, session=token, credits=2)
    assert ask(server, task, session=token, credits=2, last_seq=1) == lost
    pulled += lost
    pulled += ask(server, task, session=token)
    assert_same(pulled, whole)
    assert error_code(ask(server, task, session=token)) == "cancelled"


@pytest.mark.parametrize("protocol", ASK)
def test_wrong_sessions_are_typed_errors(server: Server, film: bytes, protocol: str) -> None:
    ask = ASK[protocol]
    assert error_code(ask(server, "detection", session="guessed")) == "cancelled"
    token = ask(server, "detection", film, credits=1)[-1]["session"]
    assert error_code(ask(server, "segmentation", session=token)) == "cancelled"
    assert error_code(ask(server, "detection", film, session=token)) == "invalid_options"
    assert error_code(ask(server, "detection", session=token, stride=2)) == "invalid_options"
    assert error_code(ask(server, "detection", session=token, last_seq=5)) == "invalid_options"
    assert ask(server, "detection", session=token, cancel=True) == []
    assert error_code(ask(server, "detection", session=token)) == "cancelled"


def counters(client: Client) -> dict[str, int]:
    """Streams by what became of them, and chunks decoded."""
    info: Any = client.info()
    return {"decoded": info["chunks"]["decoded"], **info["streams"]}


def await_paused(client: Client, before: int) -> None:
    deadline = time.monotonic() + WAIT_S
    while counters(client)["paused"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_client_that_vanishes_costs_its_credits(server: Server, film: bytes) -> None:
    body = {"media": base64.b64encode(film).decode(), "base64": True, "credits": 3}
    text = json.dumps(body).encode()
    path = "/v2/models/segmentation_stream/generate_stream"
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    with Client(server.grpc_url) as client:
        before = counters(client)
        with socket.create_connection(("127.0.0.1", server.http_port), timeout=WAIT_S) as leaving:
            leaving.sendall(head + text)
            leaving.recv(10)
        await_paused(client, before["paused"])
        after = counters(client)
    assert after["open"] == before["open"] + 1
    assert after["decoded"] - before["decoded"] <= 3 + 1


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_slow_reader_holds_the_server_back_and_leaving_ends_it(server: Server, scheme: str) -> None:
    long = media.clip(frames=800, width=64, height=48)  # fifty answers
    with Client(server.grpc_url if scheme == "grpc" else server.http_url) as client:
        before = counters(client)
        stream = client.classify_stream(long)
        next(stream)
        await_paused(client, before["paused"])
        time.sleep(0.2)  # a server that is not held back would be through
        assert counters(client)["decoded"] - before["decoded"] <= 2 + 1
        stream.close()
        after = counters(client)
    for name in ("open", "paused"):
        assert after[name] == before[name]
    assert after["cancelled_total"] == before.get("cancelled_total", 0) + 1


class Proxy:
    """Passes bytes on to a port until its connections are cut."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near = self._listener.accept()[0]
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for one, other in ((near, far), (far, near)):
                    self._threads.append(threading.Thread(target=self._pass_on, args=(one, other)))
                    self._threads[-1].start()

    @staticmethod
    def _pass_on(one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
            other.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._open.clear()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(WAIT_S)


@pytest.fixture(params=["grpc", "http"])
def proxied(request: pytest.FixtureRequest, server: Server) -> Iterator[tuple[Client, Proxy]]:
    proxy = Proxy(server.grpc_port if request.param == "grpc" else server.http_port)
    try:
        with Client(f"{request.param}://127.0.0.1:{proxy.port}") as client:
            yield client, proxy
    finally:
        proxy.close()


def test_broken_connections_are_bridged(proxied: tuple[Client, Proxy]) -> None:
    client, proxy = proxied
    long = media.clip(frames=800, width=64, height=48)
    frames: list[int] = []
    for number, one in enumerate(client.classify_stream(long)):
        frames.extend(one.frame_index.tolist())
        if number in (1, 4, 20):
            proxy.cut()
    assert frames == list(range(800))
