"""What is left of a server that ended: of one that was killed, and of those before the start."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from pipelines.machine import leftovers, watchdog
from tests.conftest import ROOT

NOBODY = 65534
needs_others = pytest.mark.skipif(os.getuid() != 0, reason="only root can act as another user")

# A server with a child and a grandchild.
OWNER = """
import os, subprocess, sys, tempfile
from pathlib import Path
from pipelines.machine import leftovers
folder = os.environ["TMPDIR"] = tempfile.mkdtemp(prefix=f"trivid-{os.getpid()}-")
leftovers.guard(Path(folder))
wait = "import time; time.sleep(60)"
child = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {wait!r}]); {wait}"
subprocess.Popen([sys.executable, "-c", child])
input()
"""


@contextlib.contextmanager
def owner(temp: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server whose guardian, child and grandchild run."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temp)},
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_for(lambda: len(watchdog.children(process.pid)) == 3)
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_behind_a_server_that_is_killed_nothing_is_left(tmp_path: Path) -> None:
    temp, other = tmp_path / "a temp", tmp_path / "other"
    for folder in (temp, other):
        folder.mkdir()
    with owner(temp) as process, owner(other) as stays:
        family, (folder,) = watchdog.children(process.pid), temp.iterdir()
        segment = Path(tempfile.mkstemp(prefix=f"pytrtion{process.pid}-", dir=leftovers.SHM)[1])
        process.kill()
        wait_for(lambda: len(watchdog.lost(family)) == len(family))
        assert [path for path in (folder, segment) if path.exists()] == []
        assert len(watchdog.children(stays.pid)) == 3


def test_a_guardian_holds_none_of_the_servers_streams(tmp_path: Path) -> None:
    """Else `server.py 2>&1 | tee` would wait for it."""
    with owner(tmp_path) as process:
        (guardian,) = [one for one in watchdog.children(process.pid) if leftovers.__file__ in one.cmdline()]
        held = {os.readlink(f"/proc/{guardian.pid}/fd/{number}") for number in range(3)}
    assert held == {os.devnull}


@pytest.fixture
def gone_pid() -> int:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait(timeout=10)
    return gone.pid


def test_folders_of_dead_owners_are_removed(tmp_path: Path, gone_pid: int) -> None:
    """Not what links lead to, whoever made them."""
    dead, alive, linked = f"trivid-{gone_pid}-x", f"trivid-{os.getpid()}-y", f"trivid-{gone_pid}-z"
    stay = ["trivid-z", "trivid-99999999999-x", "trivid-²-x", "other", alive]
    for name in (dead, *stay):
        (tmp_path / name).mkdir()
    (tmp_path / linked).symlink_to(tmp_path / "other")
    leftovers.clear_orphans(tmp_path, "trivid-")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*stay, linked])


@contextlib.contextmanager
def others_process(folder: Path, word: Path) -> Iterator[psutil.Process]:
    """A process of another user that looks like a stub of the server with that folder."""
    command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "sh", "-c", "read x"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    with subprocess.Popen([*command, str(word)], env=environment, stdin=subprocess.PIPE) as process:
        wait_for(lambda: psutil.Process(process.pid).name() == "sh")
        yield psutil.Process(process.pid)
        process.communicate()


@needs_others
def test_another_user_can_have_nothing_cleared(tmp_path: Path, gone_pid: int) -> None:
    """Neither by a folder with a server's name, nor by a process with a stub's environment and arguments."""
    theirs, ours, victim = (
        tmp_path / f"trivid-{gone_pid}-x",
        tmp_path / f"trivid-{gone_pid}-y",
        tmp_path / "z",
    )
    for folder in (theirs, ours, victim):
        folder.mkdir()
    os.chown(theirs, NOBODY, NOBODY)
    word = victim / "1/model.py"
    with others_process(theirs, word) as first, others_process(ours, word) as second:
        leftovers.clear_orphans(tmp_path, "trivid-")
        assert watchdog.lost([first, second]) == []
    assert [path.exists() for path in (theirs, ours, victim)] == [True, False, True]


@needs_others
def test_shared_memory_of_another_user_is_left_to_them(gone_pid: int) -> None:
    segment = Path(tempfile.mkstemp(prefix=f"pytrtion{gone_pid}-", dir=leftovers.SHM)[1])
    parent = Path(tempfile.mkdtemp())
    (parent / f"trivid-{gone_pid}-x").mkdir()
    try:
        for path in (parent, *parent.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        leftovers.clear_orphans(parent, "trivid-")
        assert [*parent.iterdir()] == []
        assert segment.exists()
    finally:
        os.seteuid(0)
        segment.unlink()
        shutil.rmtree(parent)
