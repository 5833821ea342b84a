"""The server: settings → checks → models → endpoints → serve.

    python server.py --demo            the embedded demo models, nothing to download
    python server.py                   torchvision's fcn_resnet101, downloaded on first use
    python server.py --model resnet50 --model detection=my.onnx     models by name or file, one a task
    python server.py --list-models     torchvision's models by name
    python server.py --check           look at the machine, change nothing
    python server.py --dry-run --demo  a picture and a video through every stage of every model, no port opened

Exit codes: 0 stopped when asked to, 2 wrong settings or machine, 3 no model, 4 the serving process died.
"""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import memory, preflight, watchdog
from pipelines.errors import ModelUnavailable, TrividError
from pipelines.probe import Probe
from pipelines.settings import Settings, parse_args

if TYPE_CHECKING:
    from model_inference import TaskName
    from pipelines.endpoints import Endpoint
    from pipelines.pipeline import Pipeline
    from pipelines.triton import Triton

VERSION = "0.1.0"
EXIT_SETTINGS, EXIT_MODEL, EXIT_DEAD = 2, 3, 4
WATCH_PERIOD_S = 1.0
CANARY_PERIOD_S = 15.0
# Asked to stop, the server is gone after STOP_S; requests in flight have DRAIN_S to end.
STOP_S = 30
DRAIN_S = STOP_S - 4
# `timeout` and others send a signal to a process and to its group: within this time they are one.
ONE_SIGNAL_S = 0.1
FOLDER_PREFIX = "trivid-"

log = logging.getLogger("trivid")


def check_machine(settings: Settings) -> list[preflight.Finding]:
    """All findings about this machine, before anything heavy is imported."""
    ports = ((settings.http_port, "http"), (settings.grpc_port, "grpc"), (settings.metrics_port, "metrics"))
    findings = [preflight.check_python(), preflight.check_glibc(), preflight.check_libpython()]
    if not settings.dry_run:
        findings += [preflight.check_port(settings.host, port, purpose) for port, purpose in ports]
    findings.append(preflight.check_shm(settings.max_media_bytes))
    findings.append(preflight.check_nvdec(settings.device))
    return findings


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
        from pipelines.sessions import Sessions

        telemetry = next(iter(pipelines.values())).telemetry
        self.sessions = Sessions(telemetry, most=settings.max_sessions)
        self.endpoints = self._endpoints()
        self._triton: Triton | None = None
        self._described_s = time.monotonic()
        self._children: dict[int, str] = {}
        self._stub_folders: list[Path] = []

    def start(self) -> None:
        """Start Triton and wait until every endpoint is ready."""
        from pipelines.triton import UNARY_INSTANCES, make_triton, start

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
        idleness = memory.Idleness(first.admission)
        while not stop.wait(WATCH_PERIOD_S):
            self.sessions.expire()
            if idleness.begins():
                memory.give_back(first.device)
            if lost := watchdog.lost(self._children):
                return f"process {lost[0]} ({self._children[lost[0]]}) died"
            for pipeline in self.pipelines.values():
                if not pipeline.engine.alive:
                    return f"the engine of {pipeline.spec.name} died"
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
        from pipelines.endpoints import status_endpoint
        from pipelines.services import model_endpoints

        limit = preflight.answer_limit_bytes(self.settings.max_media_bytes)
        endpoints = model_endpoints(self.pipelines, limit, self.sessions)
        if self.settings.endpoints == "media":
            endpoints = [endpoint for endpoint in endpoints if endpoint.inputs[0].name == "media"]
        return [*endpoints, status_endpoint(self.describe, endpoints[0].telemetry)]


def _describe(pipeline: Pipeline) -> dict[str, Any]:
    spec, sizes = pipeline.spec, pipeline.engine.batch_sizes
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


def serve(service: Service) -> int:
    """Start, tell where, wait for a signal or a death, stop within STOP_S. A second signal stops at once."""
    stop, asked_s = threading.Event(), 0.0

    def on_signal(number: int, _frame: object) -> None:
        nonlocal asked_s
        if stop.is_set() and time.monotonic() - asked_s > ONE_SIGNAL_S:
            service.kill()
            os._exit(128 + number)
        if not stop.is_set():
            asked_s = time.monotonic()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    service.start()
    settings = service.settings
    log.info(
        "ready: http://%s:%d grpc://%s:%d",
        settings.host,
        settings.http_port,
        settings.host,
        settings.grpc_port,
    )
    if fault := service.watch(stop):
        log.error("%s: the server cannot go on and ends; start it again", fault)
        service.kill()
        os._exit(EXIT_DEAD)
    log.info("stopping: finishing what is in flight, within %d s", STOP_S)
    watchdog.end_after(STOP_S - 1, service.kill)
    service.stop()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    settings = parse_args(sys.argv[1:] if argv is None else argv, __doc__ or "")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    if settings.list_models:
        from pipelines.sources.torchvision_models import list_models

        try:
            print("\n".join(list_models()), flush=True)
        except BrokenPipeError:
            # Whoever reads the first lines only, as `head` does, closes the pipe; what is left goes nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    findings = check_machine(settings)
    problems = [finding.problem for finding in findings if finding.problem]
    if settings.check:
        for finding in findings:
            print(
                f"{'wrong' if finding.problem else 'ok':6}{finding.name}: {finding.problem or finding.detail}"
            )
        return EXIT_SETTINGS if problems else 0
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return EXIT_SETTINGS
    memory.tune_malloc()
    # Read when torch is loaded: threads that spin between two batches take the cores from decoding.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from pipelines.assembly import build_pipelines, check_example

        pipelines = build_pipelines(settings)
        for pipeline in pipelines.values():
            check_example(pipeline)
            if settings.dry_run:
                print(f"ok: {pipeline.spec.name} answered {pipeline.spec.task} on {pipeline.device}")
        return 0 if settings.dry_run else serve(Service(settings, pipelines))
    except TrividError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MODEL


if __name__ == "__main__":
    sys.exit(main())
