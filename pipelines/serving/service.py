"""A running server: started, watched and stopped. Knows no command line."""

from __future__ import annotations

import atexit
import dataclasses
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.machine import preflight, watchdog
from pipelines.protocol.errors import ModelUnavailable
from pipelines.serving.idleness import Idleness, give_back
from pipelines.serving.probe import Probe
from pipelines.settings.flags import Settings

if TYPE_CHECKING:
    from pipelines.models.spec import TaskName
    from pipelines.pipeline import Pipeline
    from pipelines.serving.endpoints import Endpoint
    from pipelines.serving.triton import Triton

VERSION = "0.1.0"
WATCH_PERIOD_S = 1.0
CANARY_PERIOD_S = 15.0
# Asked to stop, the server is gone after STOP_S; requests in flight have DRAIN_S to end.
STOP_S = 30
DRAIN_S = STOP_S - 4
FOLDER_PREFIX = "trivid-"


class Service:
    """A running server: started, watched and stopped; its files lie in one folder that it removes."""

    def __init__(self, settings: Settings, pipelines: Mapping[TaskName, Pipeline]) -> None:
        self.settings = settings
        self.pipelines = pipelines
        self.probe = Probe(settings.host, settings.http_port)
        # Triton, its stubs and PyTriton leave files in the temp folder when killed: give them one of ours.
        watchdog.remove_orphans(Path(tempfile.gettempdir()), FOLDER_PREFIX)
        self.folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-"))
        os.environ["TMPDIR"] = tempfile.tempdir = str(self.folder)
        os.environ["LD_LIBRARY_PATH"] = ":".join(map(str, preflight.libpython_dirs()))
        atexit.register(self.remove_files)
        from pipelines.serving.sessions import Sessions

        telemetry = next(iter(pipelines.values())).telemetry
        self.sessions = Sessions(telemetry, most=settings.max_sessions)
        self.endpoints = self._endpoints()
        self._triton: Triton | None = None
        self._described_s = time.monotonic()
        self._children: dict[int, str] = {}
        self._stub_folders: list[Path] = []

    def start(self) -> None:
        """Start Triton and wait until every endpoint is ready."""
        from pipelines.serving.triton import UNARY_INSTANCES, make_triton, start

        self._triton = make_triton(
            self.endpoints, self.pipelines, self.settings, folder=self.folder / "triton", drain_s=DRAIN_S
        )
        start(self._triton)
        self._children = watchdog.children(os.getpid())
        self._stub_folders = watchdog.stub_folders(self._children)
        watchdog.remember(self.folder, self._stub_folders)
        if unready := [
            endpoint.name for endpoint in self.endpoints if not self.probe.is_ready(endpoint.name)
        ]:
            self.stop()
            raise ModelUnavailable(f"Triton did not load {unready[0]}", hint="its messages stand above")
        from pipelines.assembly import example_clip

        self.probe.ask_first(
            [task for task in self.pipelines for _ in range(UNARY_INSTANCES)], example_clip()
        )

    def watch(self, stop: threading.Event) -> str:
        """Block until asked to stop (answers "") or until the server is dead (answers why)."""
        canary_at = time.monotonic() + CANARY_PERIOD_S
        first = next(iter(self.pipelines.values()))
        idleness = Idleness(first.admission)
        while not stop.wait(WATCH_PERIOD_S):
            self.sessions.expire()
            if idleness.begins():
                give_back(first.device)
            if lost := watchdog.lost(self._children):
                return f"process {lost[0]} ({self._children[lost[0]]}) died"
            for pipeline in self.pipelines.values():
                if not pipeline.batcher.alive:
                    return f"the batcher of {pipeline.spec.name} died"
            if time.monotonic() > canary_at:
                if fault := self.probe.fault(lambda: self._described_s):
                    return f"the canary request failed: {fault}"
                canary_at = time.monotonic() + CANARY_PERIOD_S
        return ""

    def stop(self) -> None:
        """Accept no more, finish what is in flight, end all processes."""
        if self._triton is not None:
            self._triton.stop()
        self.sessions.close()
        self.kill()

    def kill(self) -> None:
        """End what is left of the children at once, and remove what they left behind."""
        watchdog.kill_all(watchdog.children(os.getpid()))
        self.remove_files()

    def remove_files(self) -> None:
        for folder in (self.folder, *self._stub_folders):
            shutil.rmtree(folder, ignore_errors=True)
        for leftover in preflight.SHM.glob(f"pytrtion{os.getpid()}-*"):
            leftover.unlink(missing_ok=True)

    def describe(self) -> dict[str, Any]:
        """What the `status` endpoint says of this server."""
        self._described_s = time.monotonic()
        first = next(iter(self.pipelines.values()))
        return {
            "version": VERSION,
            "device": first.device,
            "max_media_bytes": first.limits.max_media_bytes,
            "max_frames": first.limits.max_frames,
            "models": {task: _describe(pipeline) for task, pipeline in self.pipelines.items()},
        }

    def _endpoints(self) -> list[Endpoint]:
        from pipelines.serving.endpoint_table import model_endpoints
        from pipelines.serving.endpoints import status_endpoint

        limit = preflight.answer_limit_bytes(self.settings.max_media_bytes)
        endpoints = model_endpoints(self.pipelines, limit, self.sessions)
        if self.settings.endpoints == "media":
            endpoints = [endpoint for endpoint in endpoints if endpoint.inputs[0].name == "media"]
        return [*endpoints, status_endpoint(self.describe, endpoints[0].telemetry)]


def _describe(pipeline: Pipeline) -> dict[str, Any]:
    spec, sizes = pipeline.spec, pipeline.batcher.batch_sizes
    return {
        "name": spec.name,
        "source": spec.source,
        "licence": spec.licence,
        "labels": list(spec.labels),
        "precision": spec.precision,
        "engine": spec.engine,
        "clip": None if spec.clip is None else dataclasses.asdict(spec.clip),
        "batch_sizes": {str(size): count for size, count in sorted(sizes.items())},
    }
