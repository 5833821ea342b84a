"""The front before the real server: our client reaches it through nginx over both protocols, with a token."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.protocol.errors import ModelUnavailable
from pipelines.sdk.client import Client
from tests.conftest import Server
from tests.docker.front_rig import TOKEN, Front, running_front
from tests.support import media


@pytest.fixture(scope="module")
def front(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    env = {
        "TRIVID_UPSTREAM_HTTP": f"127.0.0.1:{server.http_port}",
        "TRIVID_UPSTREAM_GRPC": f"127.0.0.1:{server.grpc_port}",
        "TRIVID_BIND": "0.0.0.0",
        "TRIVID_TOKEN": TOKEN,
    }
    with running_front(tmp_path_factory.mktemp("front"), env) as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, front: Front) -> str:
    return f"{request.param}://127.0.0.1:{getattr(front, f'{request.param}_port')}"


def test_a_client_with_the_token_is_served(url: str) -> None:
    clip = media.clip(frames=40)
    with Client(url, token=TOKEN) as client:
        assert client.ready()
        assert client.segment(clip, max_frames=3).frame_index.tolist() == [0, 1, 2]
        parts = list(client.segment_stream(clip))
    assert [index for part in parts for index in part.frame_index] == list(range(40))


def test_a_client_without_it_is_not(url: str) -> None:
    with Client(url) as client, pytest.raises(ModelUnavailable, match="refuses access"):
        client.segment(media.image())
