"""Checks before the start, settings, and the watchdog, each against the real machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.machine import preflight, watchdog
from pipelines.settings.flags import parse_args
from server import check_machine


def test_this_machine_can_serve() -> None:
    for finding in (preflight.check_python(), preflight.check_glibc(), preflight.check_libpython()):
        assert not finding.problem
        assert finding.detail


def test_a_missing_libpython_is_named_with_a_remedy(tmp_path: Path) -> None:
    problem = preflight.check_libpython([tmp_path]).problem
    assert f"libpython3.{sys.version_info.minor}.so.1.0 was not found" in problem
    assert "apt-get install" in problem


def test_a_taken_port_is_named_with_the_flag() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        problem = preflight.check_port("127.0.0.1", port, "grpc").problem
    assert f"127.0.0.1:{port}" in problem
    assert f"process {os.getpid()} (" in problem
    assert "has it: stop it, or choose another with --grpc-port" in problem
    assert not preflight.check_port("127.0.0.1", port, "grpc").problem


LISTEN = """
import socket
with socket.create_server(("127.0.0.1", 0)) as listening:
    print(listening.getsockname()[1], flush=True)
    input()
"""


@pytest.mark.parametrize("alive", [True, False])
def test_what_a_killed_server_left_is_told_from_a_server_that_runs(alive: bool) -> None:
    owner = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    folder = f"--model-repository=/tmp/{preflight.FOLDER_PREFIX}{owner.pid}-x/triton/model-store"
    command = [sys.executable, "-c", LISTEN, folder]
    if not alive:
        owner.communicate(timeout=10)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        port = int(holder.stdout.readline())
        with socket.create_server(("127.0.0.2", port)):
            problem = preflight.check_port("127.0.0.1", port, "http").problem
        holder.communicate(timeout=10)
    if alive:
        owner.communicate(timeout=10)
    assert f"process {holder.pid} (" in problem
    assert (f"of the Trivid server with process {owner.pid}: stop that" in problem) == alive
    assert (f"was killed: it ends within a minute: wait, `kill -9 {holder.pid}`, or " in problem) != alive


@pytest.mark.parametrize(
    ("host", "problem", "warning"),
    [
        ("127.0.0.1", "", ""),
        ("localhost", "", ""),
        ("0.0.0.0", "", "anyone who reaches this machine at 0.0.0.0 may use the server"),
        ("::1", "", ""),
        ("[::1]", "", ""),
        ("0:0::0:1", "", ""),
        ("::", "", "anyone who reaches this machine at :: may use the server"),
        ("::1%lo", "is not an address of this machine", ""),
        ("fe80::1", "'fe80::1' is not an address of this machine", ""),
        ("::g", "'::g' is not an address of this machine", ""),
        ("8.8.8.8", "'8.8.8.8' is not an address of this machine", ""),
        ("no such", "'no such' is not an address of this machine", ""),
        ("x" * 300, "is not an address of this machine", ""),
    ],
)
def test_an_address_is_judged_apart_from_its_ports(host: str, problem: str, warning: str) -> None:
    settings = parse_args(["--demo", "--host", host], "")
    finding = preflight.check_host(settings.host)
    assert problem in finding.problem
    assert warning in finding.warning
    assert (bool(finding.problem), bool(finding.warning)) == (bool(problem), bool(warning))
    named = [one.name for one in check_machine(settings)]
    assert f"host {settings.host}" in named
    assert ("http port 8000" in named) != bool(problem)


LONG = "x" * preflight.SOCKET_PATH_BYTES


@pytest.mark.parametrize(
    ("variable", "folder", "problem"),
    [
        ("TMPDIR", ".", ""),
        ("TMPDIR", "ordinary-ü_1.5", ""),
        ("TMPDIR", "gone/", "cannot be used"),
        ("TEMP", "gone/", "cannot be used"),
        ("TMPDIR", "file", "cannot be used"),
        ("TMPDIR", "two words", "has ' ' in its path"),
        ("TMPDIR", "a;b", "has ';' in its path"),
        ("TMPDIR", "$(b)", "has '$' in its path"),
        ("TMPDIR", "latin-1-\udcfc", "in its path"),
        ("TMPDIR", LONG, "bytes too long for Triton's sockets"),
        ("TMPDIR", "/proc", "cannot be used (no file can be made in it)"),
    ],
)
def test_a_temp_folder_is_tried_and_wrong_ones_are_named(
    variable: str, folder: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("TMPDIR", "TEMP", "TMP"):
        monkeypatch.delenv(name, raising=False)
    # Of pytest, the path may be too long itself.
    with tempfile.TemporaryDirectory(dir="/tmp") as base:
        path = Path(base, folder)
        if folder == "file":
            path.touch()
        elif not folder.endswith("/"):
            path.mkdir(exist_ok=True)
        monkeypatch.setenv(variable, str(path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        finding = preflight.check_temp(21, 1 << 20)
        if not problem:
            assert (finding.problem, finding.detail) == ("", str(path))
            assert not list(path.iterdir())
            return
    assert problem in finding.problem
    assert "set TMPDIR to a folder on this machine" in finding.problem


def test_a_temp_folder_needs_room_and_that_for_long_names() -> None:
    assert "MiB are needed" in preflight.check_temp(21, 1 << 60).problem
    longest = preflight.SOCKET_PATH_BYTES
    assert "bytes too long for Triton's sockets" in preflight.check_temp(longest, 1 << 20).problem


def test_a_temp_folder_has_room_for_the_sockets_of_the_longest_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x" * 10) as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        monkeypatch.delenv("TMPDIR", raising=False)
        for name, fits in (("n", True), ("n" * 41, False)):
            settings = parse_args(["--model", f"{name}:classification=squeezenet1_1"], "")
            problems = [one.problem for one in check_machine(settings) if one.name == "temp folder"]
            assert ["bytes too long" in problem for problem in problems] == [not fits]


def test_too_small_shared_memory_is_refused_with_both_numbers() -> None:
    free = preflight.shm_free_bytes()
    problem = preflight.check_shm(free).problem
    assert f"{preflight.shm_needed_bytes(free) >> 20} MiB are needed" in problem
    assert "--shm-size" in problem
    assert not preflight.check_shm(1 << 20).problem


def test_answers_fit_into_shared_memory_beside_a_medium() -> None:
    limit = preflight.answer_limit_bytes(1 << 20)
    assert preflight.MIN_ANSWER_BYTES <= limit <= preflight.MAX_ANSWER_BYTES


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--http-port", "0"], "--http-port is 0 (allowed: a whole number from 1 to 65535)"),
        (["--http-port", "8001"], "must differ"),
        (["--max-frames", "-1"], '--max-frames is "-1" (allowed: a whole number from 1 to 2147483647)'),
        (["--max-media-mb", "4096"], "allowed: 1 to 2047"),
        (["--model", "labeling=resnet50"], "no task 'labeling'"),
        (["--demo", "--model", "segmentation=x"], "--demo brings its own model"),
        (["--demo", "--weights", "x.pth"], "--demo brings its own weights"),
        (["--what"], "unrecognized arguments"),
    ],
)
def test_wrong_settings_end_with_2(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_args(argv, "")
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_the_watchdog_sees_children_and_their_death() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        family = watchdog.children(os.getpid())
        (seen,) = (process for process in family if process.pid == child.pid)
        assert "python" in family[seen]
        assert watchdog.lost([seen]) == []
        seen.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie
        for _ in range(2):
            assert watchdog.lost([seen]) == [seen]
            assert seen not in watchdog.children(os.getpid())
            child.wait(timeout=10)
        assert watchdog.children(child.pid) == {}
    finally:
        child.kill()
        child.communicate(timeout=10)
