"""A server where requests may wait only for a moment: who waits longer is told, nobody else notices."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from client import Client
from pipelines.protocol.errors import Overloaded, TrividError
from tests.conftest import Server, start_server
from tests.support import media

FRAMES, CLIENTS = 120, 12
FLAGS = (
    "--device cpu --endpoints media --model classification=squeezenet1_1 --weights random --max-wait-ms 50"
)


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = start_server(tmp_path_factory.mktemp("impatient"), *FLAGS.split(), "--workers", "1")
    try:
        running.wait_ready()
        yield running
    finally:
        assert running.stop() == 0, running.output()


def rows(url: str, clip: bytes) -> int | TrividError:
    """How many frames were answered, or why none."""
    with Client(url) as client:
        try:
            return len(client.classify(clip))
        except TrividError as error:
            return error


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_who_waits_too_long_is_refused_and_the_others_are_answered(impatient: Server, protocol: str) -> None:
    url = impatient.grpc_url if protocol == "grpc" else impatient.http_url
    clip = media.clip(frames=FRAMES, width=320, height=240)
    with ThreadPoolExecutor(CLIENTS) as pool:
        told = list(pool.map(rows, [url] * CLIENTS, [clip] * CLIENTS))
    errors = [one for one in told if isinstance(one, TrividError)]
    assert [one for one in told if one not in errors] == [FRAMES] * (CLIENTS - len(errors))
    assert 0 < len(errors) < CLIENTS
    assert {type(error) for error in errors} == {Overloaded}
    assert "waited for its turn" in errors[0].hint
    assert rows(url, clip) == FRAMES
