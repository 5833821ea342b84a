"""Triton's door: KServe v2 over HTTP and gRPC, watched from within since Triton calls dead stubs ready."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipelines.assembly import EngineRoom, example_clip
from pipelines.machine import leftovers, preflight, watchdog
from pipelines.protocol.errors import ModelUnavailable, Overloaded, TrividError
from pipelines.sdk.http_transport import HttpTransport
from pipelines.sdk.transport import Address, Call, Transport
from pipelines.serving.endpoint_table import model_endpoints, status_endpoint
from pipelines.serving.endpoints import Calls, Endpoint
from pipelines.serving.sessions import Sessions
from pipelines.serving.triton import UNARY_INSTANCES, Output, Triton, finish, let_go, make_triton, start
from pipelines.settings.server import Settings

CANARY_PERIOD_S = 15.0
ANSWER_S = 60.0
# A full queue is not a fault, unless nobody has had an answer for this long.
REFUSED_S = 60.0
# If a process dies again within this time, a new Triton is no help.
AGAIN_S = 60.0
GONE_S = 10.0
# In the server's folder.
TRITON = "triton"
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
        wait_s = settings.max_wait_ms / 1000
        endpoints = [dataclasses.replace(endpoint, max_wait_s=wait_s) for endpoint in endpoints]
        host = LOOPBACK.get(settings.host, settings.host)
        self._own = HttpTransport(Address(scheme="http", host=host, port=settings.http_port, prefix=""))
        self._status = status_endpoint(self._describe, room.telemetry, room.status(lambda _: []))
        self._endpoints = [*endpoints, self._status]
        self._answered_s = self._canary_due_s = 0.0
        self._triton: Triton | None = None
        self._output, self._calls = Output(), Calls()
        self._processes: dict[psutil.Process, str] = {}
        self._revived_s = -math.inf

    @property
    def address(self) -> str:
        of = self._settings
        ports = (("http", of.http_port), ("grpc", of.grpc_port))
        return " ".join(str(Address(scheme=name, host=of.host, port=port, prefix="")) for name, port in ports)

    def start(self) -> None:
        """Start Triton, and wait until every endpoint answers. Raises ModelUnavailable if one does not."""
        self._launch()
        self._ask_first()

    def _launch(self) -> None:
        """Start Triton, and once more if it fails: a machine that is busy may have been too slow for it."""
        try:
            self._try()
        except ModelUnavailable as error:
            log.warning("%s: Triton starts again", error.message)
            self._drop()
            self._try()

    def _try(self) -> None:
        try:
            self._triton = make_triton(
                self._endpoints,
                self._room.by_endpoint(),
                self._settings,
                self._calls,
                folder=self._folder / TRITON,
                drain_s=self._drain_s,
            )
            self._output = start(self._triton, self._settings)
        except OSError as error:
            way_out = "see its messages above, and to room in the temp folder and in /dev/shm"
            raise ModelUnavailable(f"Triton cannot be started: {error}", hint=way_out) from error
        finally:
            family = watchdog.children(os.getpid())
            names = {process: name for process, name in family.items() if name.startswith("triton")}
            self._processes = names
        try:
            for endpoint in self._endpoints:
                self._own.check_ready(endpoint.name, ANSWER_S)
        except TrividError as error:
            raise ModelUnavailable(
                f"Triton did not load {endpoint.name}", hint="see its messages above"
            ) from error
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
        """Close sessions that nobody pulls; start Triton again if one of its processes died.

        Says if that is of no avail, or if no answer comes.
        """
        self._sessions.expire()
        for process in watchdog.lost(self._processes):
            fault = f"process {process.pid} ({self._processes[process]}) died"
            if time.monotonic() - self._revived_s < AGAIN_S:
                return f"{fault}, soon after another one"
            log.error("%s: Triton starts again", fault)
            self._revived_s = time.monotonic()
            return self._revive()
        if time.monotonic() > self._canary_due_s:
            if fault := canary_fault(self._own, self._status, lambda: self._answered_s):
                return f"the canary request failed: {fault}"
            self._canary_due_s = time.monotonic() + CANARY_PERIOD_S
        return ""

    def _revive(self) -> str:
        """Start Triton anew: models, sessions and counters stay; what was in flight is lost. Says why not."""
        self._drop()
        try:
            self._launch()
        except TrividError as error:
            return error.message
        log.info("Triton answers again after %.1f s", time.monotonic() - self._revived_s)
        return ""

    def _drop(self) -> None:
        """Kill Triton's processes, and remove its files."""
        for process in self._processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(self._processes, timeout=GONE_S)
        if self._triton is not None:
            let_go(self._triton)
        leftovers.remove(self._folder / TRITON, os.getpid())

    def stop(self) -> None:
        """Accept no more, and finish what is in flight. Triton itself lives on, and is to be killed."""
        if self._triton is not None:
            finish(self._triton, self._output, self._calls)
        self._sessions.close()

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
