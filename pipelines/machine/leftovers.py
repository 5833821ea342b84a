"""What a server leaves when it ends, however it ends: its processes, its folder, its shared memory.

All that a server starts inherits TMPDIR, its own folder, whose name was drawn. By that name the processes are
found once their parent is gone, and no other process is taken for one of them, even if it got the same id.

As a script, which is the guardian, this waits for the end of the server and clears up behind it. That takes
9 MB, since it needs only the standard library, and of that not much at first.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PROC, SHM = Path("/proc"), Path("/dev/shm")
LOOK_S = 0.1
# The kernel ends a killed process that is large, or busy with a disk, after a while.
CLEAR_S = 10.0


def clear(folder: Path, pid: int) -> None:
    """Kill all that the server with this folder and this id has started, and remove its files."""
    deadline_s = time.monotonic() + CLEAR_S
    while (found := [*_processes(folder)]) and time.monotonic() < deadline_s:
        for one in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        time.sleep(LOOK_S / 5)
    remove(folder, pid)


def remove(folder: Path, pid: int) -> None:
    """Remove this folder, and the shared memory of the stubs of the server with this id."""
    import shutil  # which the guardian needs only in the end

    shutil.rmtree(folder, ignore_errors=True)
    for file in SHM.glob(f"pytrtion{pid}-*"):
        if _is_ours(file):
            with contextlib.suppress(OSError):
                file.unlink()


def _processes(folder: Path) -> Iterator[int]:
    """Ids of the user's living processes that have this folder for their temporary files."""
    mark = b"TMPDIR=" + os.fsencode(folder)
    for one in filter(str.isdigit, os.listdir(PROC)):
        with contextlib.suppress(OSError):
            # The owner of the folder of a process is its user, even where that of its files is root.
            if _is_ours(PROC / one) and mark in (PROC / one / "environ").read_bytes().split(b"\0"):
                yield int(one)


def _is_ours(path: Path) -> bool:
    """Whether this user owns it: others may give their files and processes any name. Follows no link."""
    with contextlib.suppress(OSError):
        return path.lstat().st_uid == os.geteuid()
    return False


def clear_orphans(parent: Path, prefix: str) -> None:
    """Clear up behind this user's servers with folders `<prefix><process id>-…` whose process is gone."""
    for folder in parent.glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).split("-")[0]
        # The number need not be a process id.
        if not re.fullmatch("[0-9]{1,9}", owner) or (PROC / owner).exists():
            continue
        if _is_ours(folder) and folder.is_dir() and not folder.is_symlink():
            clear(folder, int(owner))


def guard(folder: Path) -> None:
    """Start the guardian of this process, which clears up behind it. It outlives signals to the group."""
    import subprocess

    # Without the folder's name in its environment it is not one of those that it ends.
    environment = {name: value for name, value in os.environ.items() if name != "TMPDIR"}
    subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(folder), str(os.getpid())],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _guard(folder: Path, pid: int) -> None:
    """Wait until the parent, whose id is `pid`, is gone, then clear up behind it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while os.getppid() == pid:
        time.sleep(LOOK_S)
    clear(folder, pid)
    # What it had just begun to start was not yet to be seen.
    time.sleep(1)
    clear(folder, pid)


if __name__ == "__main__":
    _guard(Path(sys.argv[1]), int(sys.argv[2]))
