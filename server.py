"""The server: settings → checks → models → endpoints → serve.

    python server.py --demo            the embedded demo models, nothing to download
    python server.py                   torchvision's fcn_resnet101, downloaded on first use
    python server.py --model resnet50 --model detection=my.onnx     models by name or file, one a task
    python server.py --list-models     torchvision's models by name
    python server.py --check           look at the machine, change nothing
    python server.py --dry-run --demo  a picture and a video through every stage, no port opened

Exit codes: 0 stopped when asked to, 2 wrong settings or machine, 3 no model, 4 the serving process died.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.machine import memory, preflight, watchdog
from pipelines.protocol.errors import TrividError
from pipelines.settings.flags import Settings, parse_args

if TYPE_CHECKING:
    pass
from pipelines.serving.service import STOP_S, Service

EXIT_SETTINGS, EXIT_MODEL, EXIT_DEAD = 2, 3, 4
# `timeout` and others send a signal to a process and to its group: within this time they are one.
ONE_SIGNAL_S = 0.1
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
        from pipelines.zoo.vision.models import list_models

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
