"""Checks before the start, settings, and the watchdog, each against the real machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
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
    assert (f"was killed: wait half a minute for its end, `kill -9 {holder.pid}`, or " in problem) != alive


@pytest.mark.parametrize(
    ("host", "problem", "warning"),
    [
        ("127.0.0.1", "", ""),
        ("localhost", "", ""),
        ("0.0.0.0", "", "anyone who reaches this machine at 0.0.0.0 may use the server"),
        ("8.8.8.8", "'8.8.8.8' is not an address of this machine", ""),
        ("no such", "'no such' is not an address of this machine", ""),
        ("x" * 300, "is not an address of this machine", ""),
    ],
)
def test_an_address_is_judged_apart_from_its_ports(host: str, problem: str, warning: str) -> None:
    finding = preflight.check_host(host)
    assert problem in finding.problem
    assert warning in finding.warning
    assert (bool(finding.problem), bool(finding.warning)) == (bool(problem), bool(warning))
    named = [one.name for one in check_machine(parse_args(["--demo", "--host", host], ""))]
    assert f"host {host}" in named
    assert ("http port 8000" in named) != bool(problem)


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


def test_folders_of_dead_owners_are_removed(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=10)
    nobodys = ("trivid-z", "trivid-99999999999-x", "trivid-²-x")
    for name in (f"trivid-{gone.pid}-x", f"trivid-{os.getpid()}-y", *nobodys, "other", "one stub", "two"):
        (tmp_path / name).mkdir()
    watchdog.remember(tmp_path / f"trivid-{gone.pid}-x", [tmp_path / "one stub", tmp_path / "gone"])
    watchdog.remember(tmp_path / f"trivid-{os.getpid()}-y", [tmp_path / "two"])
    watchdog.remove_orphans(tmp_path, "trivid-")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["other", f"trivid-{os.getpid()}-y", *nobodys, "two"]
    )


def test_the_watchdog_sees_children_and_their_death() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        family = watchdog.children(os.getpid())
        (seen,) = (process for process in family if process.pid == child.pid)
        assert "python" in family[seen]
        assert watchdog.lost([seen]) == []
        watchdog.kill_all([seen])
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie
        for _ in range(2):
            assert watchdog.lost([seen]) == [seen]
            assert seen not in watchdog.children(os.getpid())
            watchdog.kill_all([seen])
            child.wait(timeout=10)
        assert watchdog.children(child.pid) == {}
    finally:
        child.kill()
        child.communicate(timeout=10)
