"""Child processes: which exist, whether they live, ending them, and what a killed owner left behind.

Triton never restarts a stub that died, and still calls its model ready. So a door watches its processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

ELSEWHERE = "elsewhere"

log = logging.getLogger("trivid")


def children(pid: int) -> dict[psutil.Process, str]:
    """All living descendants of a process, and their names."""
    below: dict[psutil.Process, str] = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if _is_alive(child):
                    below[child] = child.name()
    return below


def lost(expected: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The expected processes that are gone or dead, even if another one has taken over the id."""
    return [process for process in expected if not _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error as error:
        return isinstance(error, psutil.AccessDenied)


def hold_all(pid: int) -> list[psutil.Process]:
    """Suspend all descendants of a process, and those that they make meanwhile."""
    held: list[psutil.Process] = []
    while new := [child for child in children(pid) if child not in held]:
        for child in new:
            with contextlib.suppress(psutil.Error):
                child.suspend()
        held += new
    return held


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Send SIGKILL; processes that are already gone are ignored."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def remember(folder: Path, elsewhere: Iterable[Path]) -> None:
    """Note in an owner's folder which folders elsewhere must be removed with it."""
    (folder / ELSEWHERE).write_text("\n".join(map(str, elsewhere)))


def remove_orphans(parent: Path, prefix: str) -> None:
    """Remove folders named `<prefix><process id>-…` whose process was killed, and those noted in them."""
    for folder in parent.glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).split("-")[0]
        # Anybody may create a folder with such a name: the number need not be a process id.
        if re.fullmatch("[0-9]{1,9}", owner) and not psutil.pid_exists(int(owner)):
            noted = folder / ELSEWHERE
            # The folder must be ours: otherwise anybody could have written the list.
            if noted.is_file() and folder.stat().st_uid == os.getuid():
                for other in noted.read_text().splitlines():
                    shutil.rmtree(other, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def end_after(seconds: float, kill: Callable[[], None]) -> None:
    """End this process with exit code 0 after some seconds, whatever it is waiting for then.

    Supervisors rely on it: PyTriton waits for Triton twice, then for every answer in progress, and Python
    waits for pool threads.
    """

    def end() -> None:
        log.warning("stopping: some requests did not finish in time; they are ended")
        # Threads that are still stopping will miss their children, and would log it.
        logging.disable()
        warnings.simplefilter("ignore")
        kill()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
