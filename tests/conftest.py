"""Fixtures: a served demo model for the whole run, free ports, and the marks for GPU tests."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

SHARED_MEDIA = ROOT.parent / "shared" / "data"
START_S = 200.0
STOP_S = 60.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` tests without a GPU; with FAIL_WITHOUT_CUDA set they run, and fail, so none passes by
    skipping.
    """
    import torch

    if torch.cuda.is_available() or os.environ.get("FAIL_WITHOUT_CUDA"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Server:
    """A server process and where it listens; its output goes to `log`."""

    process: subprocess.Popen[bytes]
    http_port: int
    grpc_port: int
    metrics_port: int
    log: Path

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_ready(self) -> None:
        """Wait for the server's own word that it is ready; fail with its output if it ends or takes too
        long.
        """
        deadline = time.monotonic() + START_S
        while "ready: " not in self.output():
            assert self.process.poll() is None, self.output()
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.1)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; a server that does not end is killed with all it started."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(timeout=10)
            raise

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def start_server(folder: Path, *flags: str, env: dict[str, str] | None = None) -> Server:
    """Start server.py on free ports; `--demo` on the CPU unless flags say otherwise. Does not wait."""
    http_port, grpc_port, metrics_port = free_ports(3)
    log = folder / f"server-{http_port}.log"
    ports = ["--http-port", http_port, "--grpc-port", grpc_port, "--metrics-port", metrics_port]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "server.py", *map(str, ports), *(flags or ("--demo", "--device", "cpu"))],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(
        process=process, http_port=http_port, grpc_port=grpc_port, metrics_port=metrics_port, log=log
    )


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The demo model on the CPU, for all tests that only ask it."""
    running = start_server(tmp_path_factory.mktemp("server"))
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


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
