"""Servers as processes: what clients see while one starts, is pressed, drains, dies, and cleans up.

A server that ends in a test answers the tests before it first.
"""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import psutil
import pytest

from client import Client
from pipelines.assembly import EngineRoom
from pipelines.machine import watchdog
from pipelines.machine.admission import Admission
from pipelines.media.medium import Limits
from pipelines.protocol.answers import ClassificationAnswer
from pipelines.protocol.errors import ModelUnavailable, Overloaded, TrividError
from pipelines.serving.door import TRITON, TritonDoor
from pipelines.settings.server import Settings
from pipelines.telemetry.counters import Telemetry
from server import Stop, watch
from tests.conftest import ROOT, Server, free_ports, start_server
from tests.support import media

# Each endpoint takes Triton a second or two to start, and each model its comparison of engines.
MODEL = ("--model", "classification=squeezenet1_1", "--weights", "random", "--engine", "torch")
FLAGS = ("--device", "cpu", "--endpoints", "media", *MODEL)
FRAMES, CLIENTS = 120, 12


def belongings(server: Server) -> set[Path]:
    """What the processes of this server use in /dev/shm and of Triton's folders in the temp folder."""
    used: set[str] = set()
    for process in server.family():
        with contextlib.suppress(psutil.Error):
            used |= {*process.cmdline(), *(part.path for part in process.memory_maps())}
    places = (Path("/dev/shm").iterdir(), Path(tempfile.gettempdir()).glob("folder*"))
    return {path for place in places for path in place if any(one.startswith(str(path)) for one in used)}


def left_behind(server: Server, had: set[Path]) -> list[Path]:
    """What is still there of what an ended server had, and what bears its process's number."""
    pid = server.process.pid
    named = (Path("/dev/shm").glob(f"pytrtion{pid}-*"), Path(tempfile.gettempdir()).glob(f"trivid-{pid}-*"))
    return [path for place in (had, *named) for path in place if path.exists()]


def all_lost(family: Mapping[psutil.Process, str]) -> bool:
    """Whether all of a server's processes end soon: SIGKILL takes its time."""
    deadline_s = time.monotonic() + 10
    while len(watchdog.lost(family)) < len(family) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    return watchdog.lost(family) == list(family)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A server, and what clients were told while it started."""

    server: Server
    codes: set[str]


def codes_until_ready(server: Server) -> set[str]:
    """What clients of both protocols are told while the server starts."""
    codes = set()
    while "ready: " not in server.output() and server.process.poll() is None:
        for url in (server.http_url, server.grpc_url):
            try:
                with Client(url, timeout_s=5) as client:
                    client.classify(media.image("png"))
            except TrividError as error:
                codes.add(error.code)
        time.sleep(0.3)
    return codes


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A server with next to no environment, whose requests may wait for a moment only."""
    env = {name: os.environ[name] for name in ("HOME", "PATH", "SSL_CERT_FILE") if name in os.environ}
    folder = tmp_path_factory.mktemp("impatient")
    server = start_server(folder, *FLAGS, "--max-wait-ms=50", "--workers=1", env=env)
    try:
        codes = codes_until_ready(server)
        server.wait_ready()
        yield Started(server=server, codes=codes)
    finally:
        server.stop()


def rows(url: str, clip: bytes) -> int | TrividError:
    """How many frames were answered, or why none."""
    with Client(url) as client:
        try:
            return len(client.classify(clip))
        except TrividError as error:
            return error


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_who_waits_too_long_is_refused_and_the_others_are_answered(impatient: Started, protocol: str) -> None:
    url = impatient.server.grpc_url if protocol == "grpc" else impatient.server.http_url
    clip = media.clip(frames=FRAMES, width=320, height=240)
    with ThreadPoolExecutor(CLIENTS) as pool:
        told = list(pool.map(rows, [url] * CLIENTS, [clip] * CLIENTS))
    errors = [one for one in told if isinstance(one, TrividError)]
    assert [one for one in told if one not in errors] == [FRAMES] * (CLIENTS - len(errors))
    assert 0 < len(errors) < CLIENTS
    assert {type(error) for error in errors} == {Overloaded}
    assert "waited as long as" in errors[0].hint
    assert rows(url, clip) == FRAMES


def test_sigterm_finishes_what_is_in_flight_and_leaves_nothing(impatient: Started) -> None:
    server, answers = impatient.server, list[ClassificationAnswer]()
    # Its endpoint may be there before it is ready, and 50 ms are short on a busy machine.
    assert impatient.codes - {"overloaded"} == {"model_unavailable"}
    assert server.get("/v2/models/dali_preprocess/ready")[0] == 200
    assert server.get("/v2/models/torch_classification/ready")[0] != 200
    clip = media.clip(frames=290, width=640, height=360)

    def ask() -> None:
        with Client(server.grpc_url, timeout_s=60) as client:
            answers.append(client.classify(clip))

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    family, had = watchdog.children(server.process.pid), belongings(server)
    assert not answers, "the request must still be in flight"
    (triton,) = [process for process, name in family.items() if "tritonserver" in name]
    # So that it gives back the memory of large uploads.
    assert "MALLOC_TRIM_THRESHOLD_" in triton.environ()
    assert "successfully loaded 'status'" in server.output(), "Triton's lines come as they are written"
    code = server.stop()
    asking.join(timeout=30)
    assert code == 0, server.output()
    assert [len(answer) for answer in answers] == [290]
    assert all_lost(family)
    assert had
    assert not left_behind(server, had)
    assert "Traceback" not in server.output()


BUSY = """
import threading, time
from pipelines.machine import watchdog
from concurrent.futures import ThreadPoolExecutor
watchdog.end_after(0.2, lambda: print("killed", flush=True))
ThreadPoolExecutor(1).submit(time.sleep, 600)
threading.Event().wait({wait_s})
"""


@pytest.mark.parametrize("wait_s", [0, 600])
def test_stopping_ends_in_time_whatever_goes_on(wait_s: int) -> None:
    """A main thread that waits for Triton, and an interpreter that waits for the threads of a pool."""
    done = subprocess.run(
        [sys.executable, "-c", BUSY.format(wait_s=wait_s)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "killed\n"), done.stderr


def empty_room() -> EngineRoom:
    telemetry = Telemetry()
    admission = Admission(1 << 20, telemetry)
    return EngineRoom(device="cpu", limits=Limits(), telemetry=telemetry, admission=admission)


ASKED = """
import os, signal, time, server
server.STOP_S = 1
server.stop_on_signals(lambda: print("killed", flush=True))
os.kill(os.getpid(), signal.SIGTERM)
time.sleep(600)
"""


def test_the_time_to_stop_runs_from_the_signal_whatever_goes_on() -> None:
    """Such as Triton's start after one of its processes died."""
    command = [sys.executable, "-c", ASKED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (0, "killed\n"), done.stderr


def test_a_triton_that_cannot_be_made_has_a_message(tmp_path: Path) -> None:
    (tmp_path / TRITON).touch()
    door = TritonDoor(empty_room(), Settings(models=()), tmp_path, drain_s=1)
    with pytest.raises(ModelUnavailable, match=r"Triton cannot be started: .*File exists"):
        door.start()
    assert "File exists" in door._revive()


def test_a_server_that_is_gone_is_model_unavailable_over_both_protocols(tmp_path: Path) -> None:
    server = Server(
        process=subprocess.Popen([sys.executable, "-c", ""]),
        http_port=free_ports(1)[0],
        grpc_port=free_ports(1)[0],
        metrics_port=1,
        log=tmp_path / "none",
    )
    server.process.wait(timeout=10)
    for url in (server.http_url, server.grpc_url):
        with Client(url, timeout_s=5) as client, pytest.raises(TrividError) as error:
            client.segment(b"x")
        assert error.value.code == "model_unavailable"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_ended_while_it_starts_leaves_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    server = start_server(tmp_path, *FLAGS)
    while not any("triton_py" in name for name in watchdog.children(server.process.pid).values()):
        server.check_alive()
        time.sleep(0.05)
    family, had = watchdog.children(server.process.pid), belongings(server)
    code = -number if number == signal.SIGKILL else 128 + number
    assert server.stop(number) == code, server.output()
    assert "ready: " not in server.output()
    assert all_lost(family)
    assert had
    assert not left_behind(server, had)


def test_a_closed_terminal_ends_a_server_whose_models_load(tmp_path: Path) -> None:
    server = start_server(tmp_path, *FLAGS)
    while "loading" not in server.output():
        server.check_alive()
        time.sleep(0.05)
    assert server.stop(signal.SIGHUP) == 128 + signal.SIGHUP, server.output()
    assert "Traceback" not in server.output()


class EndedByTheSameSignal:
    """A door that loses its processes in the moment in which the server is asked to stop."""

    address = ""

    def __init__(self) -> None:
        self.stop_asked = Stop()

    def watch(self) -> str:
        self.stop_asked.put(signal.SIGTERM)
        return "a process died"

    def start(self) -> None: ...
    def stop(self) -> None: ...


def test_processes_that_end_by_the_signal_to_stop_are_no_fault() -> None:
    door = EndedByTheSameSignal()
    assert watch(empty_room(), [door], door.stop_asked) == ""


def peak_bytes(pid: int) -> int:
    """Peak resident memory of a process since its start."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


FILM_RATE = 10


def film(seconds: int) -> bytes:
    """H.264 of any length: one second encoded once, its packets written again and again."""
    second = io.BytesIO(
        media.clip(frames=FILM_RATE, width=640, height=360, rate=FILM_RATE, options={"crf": "20"})
    )
    sink = io.BytesIO()
    with av.open(second, "r") as source, av.open(sink, "w", format="matroska") as target:
        template = source.streams.video[0]
        stream = target.add_stream_from_template(template)
        time_base = Fraction(template.time_base or 0)
        packets = [packet for packet in source.demux(template) if packet.dts is not None]
        parts = [(bytes(packet), packet.dts or 0, packet.pts or 0, packet.is_keyframe) for packet in packets]
        for start in (round(number / time_base) for number in range(seconds)):
            for data, dts, pts, is_keyframe in parts:
                packet = av.Packet(data)
                packet.dts, packet.pts = dts + start, pts + start
                packet.time_base, packet.stream, packet.is_keyframe = time_base, stream, is_keyframe
                target.mux(packet)
    return sink.getvalue()


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that is asked first, and loses a stub in the end."""
    with start_server(tmp_path_factory.mktemp("mortal"), *FLAGS, "--max-media-mb=200") as server:
        yield server


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_length_of_a_film(mortal: Server) -> None:
    """Ten minutes against ten seconds, streamed. Some 10 MB of upload lie in memory too."""
    pid = mortal.process.pid
    with Client(mortal.grpc_url, timeout_s=120) as client:
        frames = [len(part) for part in client.classify_stream(film(10))]
        short = peak_bytes(pid)
        assert sum(frames) == 10 * FILM_RATE
        frames = [len(part) for part in client.classify_stream(film(600), stride=5)]
        long = peak_bytes(pid)
    assert sum(frames) == 600 * FILM_RATE // 5
    assert long <= 1.15 * short, f"{short >> 20} MiB for ten seconds, {long >> 20} MiB for ten minutes"


def kill_a_stub(server: Server) -> None:
    family = watchdog.children(server.process.pid)
    next(process for process, name in family.items() if "triton_py" in name).kill()


def test_triton_starts_again_after_a_stub_died_and_the_server_ends_after_the_next(mortal: Server) -> None:
    server, clip = mortal, media.clip(frames=12, width=64, height=48)
    kill_a_stub(server)
    while "answers again" not in server.output():
        server.check_alive()
        time.sleep(0.1)
    assert rows(server.grpc_url, clip) == rows(server.http_url, clip) == 12
    family, had = watchdog.children(server.process.pid), belongings(server)
    kill_a_stub(server)
    code = server.process.wait(timeout=10)
    assert code == 4, server.output()
    assert "died, soon after another one" in server.output()
    assert all_lost(family)
    assert had
    assert not left_behind(server, had)
    assert "Traceback" not in server.output()


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    with start_server(tmp_path, *FLAGS) as server:
        family, had = watchdog.children(server.process.pid), belongings(server)
        os.killpg(server.process.pid, signal.SIGINT)
        time.sleep(0.3)
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGINT)
        code = server.process.wait(timeout=20)
    assert code in (0, 130), server.output()
    assert all_lost(family)
    assert had
    assert not left_behind(server, had)
    assert "Traceback" not in server.output()
