"""Notices when the server behind this process no longer answers. Linux only; stdlib only.

Triton never restarts a stub that died, and goes on calling its model ready. The watchdog keeps the process
ids of Triton's children and looks whether all are still alive; the server adds a canary request of its own.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

PROC = Path("/proc")
ELSEWHERE = "elsewhere"

log = logging.getLogger("trivid")


def children(pid: int) -> dict[int, str]:
    """All descendants of a process that are alive: process id → command name."""
    parents: dict[int, list[tuple[int, str]]] = {}
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (found := _stat(int(entry.name))):
            parent, name, state = found
            if state != "Z":
                parents.setdefault(parent, []).append((int(entry.name), name))
    below: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        for child, name in parents.get(waiting.pop(), []):
            below[child] = name
            waiting.append(child)
    return below


def _stat(pid: int) -> tuple[int, str, str] | None:
    """Parent, command name and state of a process, or None once it is gone."""
    try:
        text = (PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    # The name stands in brackets and may hold blanks and brackets itself.
    name = text[text.index("(") + 1 : text.rindex(")")]
    state, parent = text[text.rindex(")") + 2 :].split()[:2]
    return int(parent), name, state


def stub_folders(pids: Iterable[int]) -> list[Path]:
    """Folders from which Triton's Python stubs run; a stub that is killed leaves its own behind."""
    folders = []
    for pid in pids:
        try:
            words = (PROC / str(pid) / "cmdline").read_text().split("\0")
        except OSError:
            continue
        folders += [Path(word).parent.parent for word in words if word.endswith("/1/model.py")]
    return folders


def remember(folder: Path, elsewhere: Iterable[Path]) -> None:
    """Note in an owner's folder which folders elsewhere are to go with it."""
    (folder / ELSEWHERE).write_text("\n".join(map(str, elsewhere)))


def remove_orphans(parent: Path, prefix: str) -> None:
    """Remove folders named `<prefix><process id>-…` whose process is gone: it was killed before it could. And
    those that it had noted.
    """
    for folder in parent.glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not (PROC / owner).exists():
            noted = folder / ELSEWHERE
            # Nobody but its owner and we may write there, or the list would be anybody's.
            if noted.is_file() and folder.stat().st_uid == os.getuid():
                for other in noted.read_text().splitlines():
                    shutil.rmtree(other, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def lost(expected: Iterable[int]) -> list[int]:
    """Those of the expected processes that are gone or dead."""
    return [pid for pid in expected if (found := _stat(pid)) is None or found[2] == "Z"]


def kill_all(pids: Iterable[int]) -> None:
    """SIGKILL, without complaint about those already gone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def end_after(seconds: float, kill: Callable[[], None]) -> None:
    """End this process with exit code 0 once the time is over, whatever it then waits for: a promise to
    supervisors.

    PyTriton waits for Triton twice, then for every answer in the making, and Python for the threads of pools.
    """

    def end() -> None:
        log.warning("stopping: not all was finished in time; ending the rest")
        # The threads that still stop miss their children from here on, and would say so.
        logging.disable()
        warnings.simplefilter("ignore")
        kill()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
