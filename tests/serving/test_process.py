"""The server as a process: how it starts, refuses to start, drains, dies and cleans up after itself."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import pytest

from client import Client
from pipelines.machine import watchdog
from pipelines.protocol.answers import SegmentationAnswer
from pipelines.protocol.errors import TrividError
from tests.conftest import ROOT, Server, free_ports, start_server
from tests.support import media

# Each endpoint takes Triton a second or two to start.
FEW_ENDPOINTS = ("--demo", "--device", "cpu", "--endpoints", "media")


def run_server(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "server.py", *flags],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def leftovers() -> set[str]:
    """What this project's servers may leave: files of Triton's in /dev/shm and folders in the temp folder."""
    temporary = Path(tempfile.gettempdir())
    places = (Path("/dev/shm").iterdir(), temporary.glob("trivid-*"), temporary.glob("folder*"))
    return {str(path) for place in places for path in place}


def test_check_lists_what_it_looked_at() -> None:
    ports = free_ports(3)
    names = ("--http-port", "--grpc-port", "--metrics-port")
    flags = [text for name, port in zip(names, ports, strict=True) for text in (name, str(port))]
    done = run_server("--check", *flags)
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * len(done.stdout.splitlines())
    assert "libpython" in done.stdout
    assert "/dev/shm" in done.stdout


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_server("--demo", "--http-port", port)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model", "segmentation=fcn_resnet999"], 3, "no model 'fcn_resnet999'"),
        (["--weights", "/no/such/file.pth"], 3, "no weights file /no/such/file.pth"),
        (["--weights", __file__], 3, "is no state dict"),
        (["--max-media-mb", "0"], 2, "not a positive whole number"),
    ],
)
def test_what_cannot_be_served_ends_with_its_own_code(flags: list[str], code: int, message: str) -> None:
    done = run_server("--dry-run", "--device", "cpu", *flags)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_without_weights_the_error_names_the_ways_out(tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_ports(1)[0]}"
    env = {**os.environ, "TORCH_HOME": str(tmp_path), "https_proxy": closed, "http_proxy": closed}
    done = run_server("--dry-run", "--device", "cpu", env=env)
    assert done.returncode == 3
    for way_out in ("--weights FILE", str(tmp_path), "--demo"):
        assert way_out in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_torchvision_model_serves_with_weights_of_ones_own(tmp_path: Path) -> None:
    import torch
    from torchvision import models

    torch.manual_seed(1)
    network = models.get_model(
        "lraspp_mobilenet_v3_large", weights=None, weights_backbone=None, num_classes=21
    )
    weights = tmp_path / "own.pth"
    torch.save(network.state_dict(), weights)
    flags = ["--dry-run", "--device", "cpu", "--model", "segmentation=lraspp_mobilenet_v3_large"]
    done = run_server(*flags, "--weights", str(weights))
    assert done.returncode == 0, done.stderr
    assert "lraspp_mobilenet_v3_large answered segmentation on cpu" in done.stdout


def test_sigterm_finishes_what_is_in_flight_and_leaves_nothing(tmp_path: Path) -> None:
    before = leftovers()
    env = {name: os.environ[name] for name in ("HOME", "PATH", "SSL_CERT_FILE") if name in os.environ}
    server = start_server(tmp_path, *FEW_ENDPOINTS, env=env)
    answers: list[SegmentationAnswer] = []
    try:
        assert codes_until_ready(server) == {"model_unavailable"}
        server.wait_ready()
        assert server.get("/v2/models/dali_preprocess/ready")[0] == 200
        assert server.get("/v2/models/torch_segmentation/ready")[0] != 200
        clip = media.clip(frames=290, width=640, height=360)

        def ask() -> None:
            with Client(server.grpc_url, timeout_s=60) as client:
                answers.append(client.segment(clip, mask="none"))

        asking = threading.Thread(target=ask)
        asking.start()
        time.sleep(0.5)
        family = watchdog.children(server.process.pid)
        assert not answers, "the request must still be in flight"
        (triton,) = [process for process, name in family.items() if "tritonserver" in name]
        # So that it gives back the memory of large uploads.
        assert "MALLOC_TRIM_THRESHOLD_" in triton.environ()
    finally:
        code = server.stop()
    asking.join(timeout=30)
    assert code == 0, server.output()
    assert [len(answer) for answer in answers] == [290]
    assert watchdog.lost(family) == list(family)
    assert leftovers() <= before
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


def test_a_killed_stub_ends_the_server_with_a_message(tmp_path: Path) -> None:
    before = leftovers()
    server = start_server(tmp_path, *FEW_ENDPOINTS)
    try:
        server.wait_ready()
        family = watchdog.children(server.process.pid)
        stubs = [process for process, name in family.items() if "triton_py" in name]
        stubs[0].kill()
        code = server.process.wait(timeout=10)
    finally:
        server.stop()
    assert code == 4, server.output()
    assert "died" in server.output()
    assert watchdog.lost(family) == list(family)
    assert leftovers() <= before


def test_ctrl_c_twice_ends_at_once(tmp_path: Path) -> None:
    before = leftovers()
    server = start_server(tmp_path, *FEW_ENDPOINTS)
    try:
        server.wait_ready()
        family = watchdog.children(server.process.pid)
        os.killpg(server.process.pid, signal.SIGINT)
        time.sleep(0.3)
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGINT)
        code = server.process.wait(timeout=20)
    finally:
        server.stop()
    assert code in (0, 130), server.output()
    assert watchdog.lost(family) == list(family)
    assert leftovers() <= before
    assert "Traceback" not in server.output()


def codes_until_ready(server: Server) -> set[str]:
    """What clients of both protocols are told while the server starts."""
    codes = set()
    while "ready: " not in server.output() and server.process.poll() is None:
        for url in (server.http_url, server.grpc_url):
            try:
                with Client(url, timeout_s=5) as client:
                    client.segment(media.image("png"), mask="none")
            except TrividError as error:
                codes.add(error.code)
        time.sleep(0.3)
    return codes


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


def peak_bytes(pid: int) -> int:
    """Peak resident memory of a process since its start."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


FILM_RATE = 10


def film(seconds: int) -> bytes:
    """H.264 720p of any length: one second encoded once, its packets written again and again."""
    second = io.BytesIO(
        media.clip(frames=FILM_RATE, width=1280, height=720, rate=FILM_RATE, options={"crf": "20"})
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


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_memory_does_not_grow_with_the_length_of_a_film(tmp_path: Path) -> None:
    """Ten minutes against ten seconds, streamed. Some 30 MB of upload lie in memory too."""
    server = start_server(tmp_path, *FEW_ENDPOINTS, "--max-media-mb", "200")
    try:
        server.wait_ready()
        with Client(server.grpc_url, timeout_s=120) as client:
            frames = [len(part) for part in client.segment_stream(film(10), mask="none")]
            short = peak_bytes(server.process.pid)
            assert sum(frames) == 10 * FILM_RATE
            frames = [len(part) for part in client.segment_stream(film(600), mask="none", stride=5)]
            long = peak_bytes(server.process.pid)
    finally:
        server.stop()
    assert sum(frames) == 600 * FILM_RATE // 5
    assert long <= 1.15 * short, f"{short >> 20} MiB for ten seconds, {long >> 20} MiB for ten minutes"
