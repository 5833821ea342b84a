"""What is made for the owner alone, and where; each in a process of its own."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.machine import private
from tests.conftest import ROOT

MADE = """
import os, sys
from pipelines.machine import private
private.keep_private()
if (child := os.fork()) == 0:
    made = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR, 0o644)
    os.fchmod(made, 0o644)
    os._exit(0)
os.waitpid(child, 0)
os.fchmod(os.open(sys.argv[2], os.O_CREAT | os.O_RDWR, 0o644), 0o640)
"""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_of_children_stay_their_owners_whatever_mode_they_set(tmp_path: Path) -> None:
    """As Triton's shared memory does; this process itself may still set modes."""
    childs, own = tmp_path / "child", tmp_path / "own"
    subprocess.run([sys.executable, "-c", MADE, childs, own], cwd=ROOT, check=True, timeout=30)
    assert (mode(childs), mode(own)) == (0o600, 0o640)


WITHOUT_FILTER = """
import os, platform
from pipelines.machine import private
machine, _, fchmod = private.CALLS[platform.machine()]
private.CALLS[platform.machine()] = (machine, 99999, fchmod)
private.keep_private()
if os.fork() == 0:
    os._exit(0)
os.wait()
"""


def test_a_kernel_without_filters_is_logged_once() -> None:
    command = [sys.executable, "-c", WITHOUT_FILTER]
    done = subprocess.run(command, cwd=ROOT, check=True, timeout=30, capture_output=True, text=True)
    assert done.stderr.count("no filter of system calls (Function not implemented)") == 1


def test_rights_of_others_are_taken(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.touch(0o644)
    private.close_to_others([there, tmp_path / "gone"])
    assert mode(there) == 0o600


@pytest.mark.parametrize("home", ["home", "a file", ""])
def test_a_cache_is_the_users_own_or_a_new_folder(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / home) if home else "relative")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = private.cache_folder("x", "prefix-")
    assert mode(folder) == 0o700
    assert (folder == tmp_path / "home" / "trivid" / "x") == (home == "home")
    assert folder.name.startswith("prefix-") == (home != "home")
    assert os.path.isabs(folder)
