"""The server: settings → checks → models → doors → serve.

    python server.py --demo            the embedded demo models, nothing to download
    python server.py                   torchvision's fcn_resnet101, downloaded on first use
    python server.py --model resnet50 --model detection=my.onnx     models by name or file
    python server.py --model gate:=a.onnx --model cars:=b.onnx      several of a task, each under a name
    python server.py --list-models     torchvision's models by name
    python server.py --check           look at the machine, change nothing
    python server.py --dry-run --demo  a picture and a video through every stage, no port opened

Exit codes: 0 stopped when asked to, 2 wrong settings or machine, 3 no model, 4 the serving process died,
130 interrupted during the start or a second time, 143 terminated likewise.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import queue
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pipelines.machine import leftovers, memory, preflight, private, watchdog
from pipelines.protocol.errors import TrividError
from pipelines.settings.flags import parse_args
from pipelines.settings.server import Settings

if TYPE_CHECKING:
    from pipelines.assembly import EngineRoom

EXIT_SETTINGS, EXIT_MODEL, EXIT_DEAD = 2, 3, 4
# Of the endpoints that bear the name of a task.
LONGEST_NAME = "classification_stream"
# `timeout` and others signal both a process and its group: two signals within this time count as one.
ONE_SIGNAL_S = 0.1
WATCH_PERIOD_S = 1.0
# When asked to stop, the server ends within STOP_S; requests in flight have DRAIN_S.
STOP_S = 30
DRAIN_S = STOP_S - 4
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Unlike an Event's `set`, its `put` may be called by a signal in the midst of its `get`.
Stop = queue.SimpleQueue[int]
log = logging.getLogger("trivid")


class Door(Protocol):
    """A way in for requests; all doors of the server share its engine room."""

    @property
    def address(self) -> str:
        """Where it listens, as the log shows it."""

    def start(self) -> None:
        """Open, and return once requests are answered. Raises ModelUnavailable."""

    def watch(self) -> str:
        """Called once a second: do what is due; returns why the server cannot go on, or an empty text."""

    def stop(self) -> None:
        """Accept no more, and finish what is in flight."""


def check_machine(settings: Settings) -> list[preflight.Finding]:
    """All findings about this machine, before anything heavy is imported."""
    ports = ((settings.http_port, "http"), (settings.grpc_port, "grpc"), (settings.metrics_port, "metrics"))
    findings = [preflight.check_python(), preflight.check_glibc(), preflight.check_libpython()]
    if not settings.dry_run:
        findings.append(preflight.check_host(settings.host))
        # Of another machine's address, all ports would be wrong.
        if not findings[-1].problem:
            findings += [preflight.check_port(settings.host, port, purpose) for port, purpose in ports]
    longest = max([LONGEST_NAME, *(f"{model.name}_stream" for model in settings.models)], key=len)
    findings.append(preflight.check_temp(len(longest), settings.max_media_bytes))
    findings.append(preflight.check_shm(settings.max_media_bytes))
    findings.append(preflight.check_nvdec(settings.device))
    return findings


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """The process's temp folder, since Triton, its stubs and PyTriton leave files there when killed.

    In the end it is removed, and all is ended that was started meanwhile.
    """
    os.umask(private.OWNER_ONLY)
    # The next start removes the folders of dead processes.
    before, prefix = tempfile.gettempdir(), f"{preflight.FOLDER_PREFIX}{os.getpid()}-"
    os.environ["TMPDIR"] = tempfile.tempdir = tempfile.mkdtemp(prefix=prefix)
    folder = Path(tempfile.tempdir)
    leftovers.guard(folder)
    try:
        yield folder
    finally:
        leftovers.clear(folder, os.getpid())
        os.environ["TMPDIR"] = tempfile.tempdir = before


def end_on_signals(kill: Callable[[], None]) -> None:
    """From now on SIGNALS kill, and end the process at once: there is nothing to finish.

    So does SIGHUP: the terminal was closed. `nohup` has it ignored, and so it remains.
    """

    def on_signal(number: int, _frame: object) -> None:
        kill()
        os._exit(128 + number)

    hangs_up = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN
    for number in (*SIGNALS, *([signal.SIGHUP] if hangs_up else [])):
        signal.signal(number, on_signal)


def stop_on_signals(kill: Callable[[], None]) -> Stop:
    """What the first SIGTERM or SIGINT fills from now on; a second one kills and ends the process at once.

    From the first one on the process ends in time, even if Triton is just being started again.
    """
    stop, asked_s = Stop(), 0.0

    def on_signal(number: int, _frame: object) -> None:
        nonlocal asked_s
        if asked_s and time.monotonic() - asked_s > ONE_SIGNAL_S:
            kill()
            os._exit(128 + number)
        if not asked_s:
            asked_s = time.monotonic()
            watchdog.end_after(STOP_S - 1, kill)
            stop.put(number)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    return stop


def watch(room: EngineRoom, doors: Sequence[Door], stop: Stop) -> str:
    """Block until asked to stop (returns "") or until something is dead (returns what)."""
    from pipelines.assembly import give_back

    idleness = memory.Idleness(room.admission)
    while True:
        with contextlib.suppress(queue.Empty):
            stop.get(timeout=WATCH_PERIOD_S)
            return ""
        if idleness.begins():
            give_back(room.device)
        for look in (room.fault, *(door.watch for door in doors)):
            # A signal to the whole group ends Triton too, which is no fault then.
            if (fault := look()) and stop.empty():
                return fault


def serve(settings: Settings, room: EngineRoom, folder: Path) -> int:
    """Open the doors, log where, wait for a signal or a death, stop within STOP_S."""
    os.environ["LD_LIBRARY_PATH"] = ":".join(map(str, preflight.libpython_dirs()))
    private.keep_private()
    doors: list[Door] = []

    def kill() -> None:
        """End what is left of the server's processes at once, and remove what they left behind."""
        logging.disable()  # threads that miss their processes would log it
        leftovers.clear(folder, os.getpid())

    end_on_signals(kill)
    try:
        from pipelines.serving.door import TritonDoor

        doors.append(TritonDoor(room, settings, folder, drain_s=DRAIN_S))
        for door in doors:
            door.start()
        stop = stop_on_signals(kill)
        log.info("ready: %s", " ".join(door.address for door in doors))
        if fault := watch(room, doors, stop):
            log.error("%s: the server cannot continue and stops; start it again", fault)
            kill()
            os._exit(EXIT_DEAD)
        log.info("stopping: finishing requests in flight, within %d s", STOP_S)
        for door in doors:
            door.stop()
        kill()
        os._exit(0)  # DALI, torch and the engines take seconds for their own end, which nobody needs
    finally:
        kill()


def print_models() -> int:
    """Print torchvision's models by name."""
    from pipelines.zoo.vision.models import list_models

    try:
        print("\n".join(list_models()), flush=True)
    except BrokenPipeError:
        # A reader of only the first lines, such as `head`, closes the pipe; the rest is dropped.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def use_streams() -> None:
    """Let what is printed reach standard output and error, whatever they are."""
    # A file or socket would else get the number of a stream that is closed, and with it what is printed.
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # PyTriton prints Triton's lines: in a file they would stand late, and some not at all.
            stream.reconfigure(line_buffering=True, errors="backslashreplace")


def clear_orphans() -> None:
    """Clear up behind servers that were killed: one of them may still have the ports."""
    # `check_temp` tells what is wrong with the temp folder.
    with contextlib.suppress(OSError):
        leftovers.clear_orphans(Path(tempfile.gettempdir()), preflight.FOLDER_PREFIX)


def print_findings(findings: Sequence[preflight.Finding]) -> None:
    """A line for each, as `--check` shows them."""
    for finding in findings:
        verdict = "wrong" if finding.problem else "note" if finding.warning else "ok"
        print(f"{verdict:6}{finding.name}: {finding.problem or finding.warning or finding.detail}")


def prepare_torch() -> None:
    """Set what torch reads when it is loaded."""
    # Threads that spin between batches would take cores from decoding.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        # torch's own is in /tmp with the user's name: others may put code there, and a number has no name.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private.cache_folder("inductor", "inductor-"))


def run(settings: Settings, folder: Path) -> int:
    """Load the models, try each with an example, and serve them unless it is a dry run; the exit code."""
    end_on_signals(lambda: leftovers.clear(folder, os.getpid()))
    memory.tune_malloc()
    prepare_torch()
    try:
        from pipelines.assembly import check_example, make_engine_room

        room = make_engine_room(settings)
        for name, pipeline in room.pipelines.items():
            check_example(pipeline)
            if settings.dry_run:
                spec = pipeline.spec
                whose = "" if name == spec.task else f"{name}: "
                print(f"ok: {whose}{spec.name} answered {spec.task} on {pipeline.device}")
        return 0 if settings.dry_run else serve(settings, room, folder)
    except TrividError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_MODEL


def main(argv: Sequence[str] | None = None) -> int:
    use_streams()
    settings = parse_args(sys.argv[1:] if argv is None else argv, __doc__ or "")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    log.setLevel(logging.INFO)
    if settings.list_models:
        return print_models()
    if not settings.check and not settings.dry_run:
        clear_orphans()
    findings = check_machine(settings)
    problems = [finding.problem for finding in findings if finding.problem]
    if settings.check:
        print_findings(findings)
        return EXIT_SETTINGS if problems else 0
    for warning in (finding.warning for finding in findings if finding.warning):
        log.warning("%s", warning)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if problems:
        return EXIT_SETTINGS
    with own_folder() as folder:
        return run(settings, folder)


if __name__ == "__main__":
    sys.exit(main())
