"""Fixtures: a served demo model for the whole run, and the marks for GPU tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import ROOT
from scripts.servers import Server, free_ports, start_server

__all__ = ["ROOT", "Server", "free_ports", "start_server"]
SHARED_MEDIA = ROOT.parent / "shared" / "data"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests without a GPU; with FAIL_WITHOUT_CUDA set they run and fail: none passes unrun."""
    import torch

    if torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model on the CPU, for all tests that only ask it."""
    with start_server(tmp_path_factory.mktemp("server"), "--demo", "--device", "cpu") as running:
        yield running


@pytest.fixture(scope="session")
def http_url(server: Server) -> str:
    return server.http_url


@pytest.fixture(scope="session")
def grpc_url(server: Server) -> str:
    return server.grpc_url


@pytest.fixture(scope="session")
def shared_media() -> Path:
    """The folder of real media beside the project; skips where it is absent."""
    if not SHARED_MEDIA.is_dir():
        pytest.skip(f"no real media at {SHARED_MEDIA}")
    return SHARED_MEDIA


@pytest.fixture
def seeded() -> Iterator[None]:
    """Networks have the same random weights whatever ran before, and torch its threads afterwards."""
    import torch

    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
