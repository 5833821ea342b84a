"""Triton's door: KServe v2 over HTTP and gRPC, watched from within since Triton calls dead stubs ready."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from pipelines.assembly import EngineRoom, example_clip
from pipelines.machine import preflight, watchdog
from pipelines.protocol.errors import ModelUnavailable, Overloaded, TrividError
from pipelines.sdk.http_transport import HttpTransport
from pipelines.sdk.transport import Address, Call, Transport
from pipelines.serving.endpoint_table import model_endpoints, status_endpoint
from pipelines.serving.endpoints import Endpoint
from pipelines.serving.sessions import Sessions
from pipelines.serving.triton import UNARY_INSTANCES, Triton, make_triton, start
from pipelines.settings.server import Settings

CANARY_PERIOD_S = 15.0
ANSWER_S = 60.0
# A full queue is not a fault, unless nobody has had an answer for this long.
REFUSED_S = 60.0
# Where to ask if a server listens on all addresses.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}

log = logging.getLogger("trivid")


class TritonDoor:
    """A Triton server with the endpoints of the room's models.

    Args:
        folder: the server's own, where Triton and its stubs leave their files.
        drain_s: how long requests in flight have to end when it is stopped.
    """

    def __init__(self, room: EngineRoom, settings: Settings, folder: Path, *, drain_s: int) -> None:
        self._room, self._settings, self._folder, self._drain_s = room, settings, folder, drain_s
        self._sessions = Sessions(room.telemetry, most=settings.max_sessions)
        limit = preflight.answer_limit_bytes(settings.max_media_bytes)
        endpoints = model_endpoints(room, limit, self._sessions)
        if settings.endpoints == "media":
            endpoints = [endpoint for endpoint in endpoints if endpoint.inputs[0].name == "media"]
        host = LOOPBACK.get(settings.host, settings.host)
        self._own = HttpTransport(Address(scheme="http", host=host, port=settings.http_port, prefix=""))
        self._status = status_endpoint(self._describe, room.telemetry, room.status(lambda _: []))
        self._endpoints = [*endpoints, self._status]
        self._answered_s = self._canary_due_s = 0.0
        self._triton: Triton | None = None
        self._children: dict[psutil.Process, str] = {}
        self._stub_folders: list[Path] = []

    @property
    def address(self) -> str:
        of = self._settings
        return f"http://{of.host}:{of.http_port} grpc://{of.host}:{of.grpc_port}"

    def start(self) -> None:
        """Start Triton, and wait until every endpoint is ready. Raises ModelUnavailable if one is not."""
        self._triton = make_triton(
            self._endpoints,
            self._room.by_endpoint(),
            self._settings,
            folder=self._folder / "triton",
            drain_s=self._drain_s,
        )
        start(self._triton)
        self._children = watchdog.children(os.getpid())
        self._stub_folders = stub_folders(self._children)
        watchdog.remember(self._folder, self._stub_folders)
        try:
            for endpoint in self._endpoints:
                self._own.check_ready(endpoint.name, ANSWER_S)
        except TrividError as error:
            self.stop()
            raise ModelUnavailable(
                f"Triton did not load {endpoint.name}", hint="see its messages above"
            ) from error
        self._ask_first()
        self._answered_s = time.monotonic()
        self._canary_due_s = self._answered_s + CANARY_PERIOD_S

    def _ask_first(self) -> None:
        """Send a clip to each instance in turn, so that no client's request is the first."""
        clip = example_clip()
        busy = [endpoint for endpoint in self._endpoints if endpoint.name in self._room.by_endpoint()]
        for endpoint in [endpoint for endpoint in busy for _ in range(UNARY_INSTANCES)]:
            try:
                ask(self._own, endpoint, clip)
            except TrividError as error:
                log.warning("the first request to %s failed: %s", endpoint.name, error.message)

    def watch(self) -> str:
        """Close sessions that nobody pulls; says if one of Triton's processes died, or no answer comes."""
        self._sessions.expire()
        for process in watchdog.lost(self._children):
            return f"process {process.pid} ({self._children[process]}) died"
        if time.monotonic() > self._canary_due_s:
            if fault := canary_fault(self._own, self._status, lambda: self._answered_s):
                return f"the canary request failed: {fault}"
            self._canary_due_s = time.monotonic() + CANARY_PERIOD_S
        return ""

    def stop(self) -> None:
        """Accept no more, and finish what is in flight."""
        if self._triton is not None:
            self._triton.stop()
        self._sessions.close()

    def clear(self) -> None:
        """Remove the files of killed stubs and of PyTriton outside the server's folder."""
        for folder in (*self._stub_folders, *stub_folders(watchdog.children(os.getpid()))):
            shutil.rmtree(folder, ignore_errors=True)
        for leftover in preflight.SHM.glob(f"pytrtion{os.getpid()}-*"):
            leftover.unlink(missing_ok=True)

    def _describe(self) -> dict[str, object]:
        self._answered_s = time.monotonic()
        return self._room.status(self._endpoints_of)

    def _endpoints_of(self, model: str) -> list[str]:
        return [endpoint.name for endpoint in self._endpoints if endpoint.model == model]


def ask(own: Transport, endpoint: Endpoint, data: bytes) -> None:
    """Ask as a client would; an error row is an answer too. Raises the typed error of any other fault."""
    name, columns = endpoint.inputs[0].name, endpoint.outputs
    own.infer(Call(model=endpoint.name, input_name=name, data=data, columns=columns, timeout_s=ANSWER_S))


def canary_fault(own: Transport, status: Endpoint, answered_s: Callable[[], float]) -> str:
    """What is wrong with an answer of `status`; empty if nothing is.

    Args:
        answered_s: tells when anybody's question to it was last answered, by `time.monotonic`.
    """
    try:
        ask(own, status, b"canary")
    except TrividError as error:
        full = isinstance(error, Overloaded) and time.monotonic() - answered_s() < REFUSED_S
        return "" if full else error.message
    return ""


def stub_folders(processes: Iterable[psutil.Process]) -> list[Path]:
    """Folders from which Triton's Python stubs run; a stub that is killed leaves its own behind."""
    folders = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            folders += [
                Path(word).parent.parent for word in process.cmdline() if word.endswith("/1/model.py")
            ]
    return folders
