"""Child processes: which there are, whether they live, their end, and what a killed owner left behind.

Triton never restarts a stub that died, and goes on calling its model ready: so a door watches its processes.
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
    """All descendants of a process that are alive, and their names."""
    below: dict[psutil.Process, str] = {}
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if _is_alive(child):
                    below[child] = child.name()
    return below


def lost(expected: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Those of the expected processes that are gone or dead; another one with the same id does not count."""
    return [process for process in expected if not _is_alive(process)]


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error as error:
        return isinstance(error, psutil.AccessDenied)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """SIGKILL, without complaint about those already gone."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def remember(folder: Path, elsewhere: Iterable[Path]) -> None:
    """Note in an owner's folder which folders elsewhere are to go with it."""
    (folder / ELSEWHERE).write_text("\n".join(map(str, elsewhere)))


def remove_orphans(parent: Path, prefix: str) -> None:
    """Remove folders named `<prefix><process id>-…`, and those noted in them, whose process was killed."""
    for folder in parent.glob(f"{prefix}*-*"):
        owner = folder.name.removeprefix(prefix).split("-")[0]
        # Anybody may make a folder of such a name: the number need not be one of a process.
        if re.fullmatch("[0-9]{1,9}", owner) and not psutil.pid_exists(int(owner)):
            noted = folder / ELSEWHERE
            # Nobody but its owner and we may write there, or the list would be anybody's.
            if noted.is_file() and folder.stat().st_uid == os.getuid():
                for other in noted.read_text().splitlines():
                    shutil.rmtree(other, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)


def end_after(seconds: float, kill: Callable[[], None]) -> None:
    """End this process with exit code 0 once the time is over, whatever it then waits for.

    Supervisors rely on it: PyTriton waits for Triton twice, then for every answer in the making, and Python
    for the threads of pools.
    """

    def end() -> None:
        log.warning("stopping: some requests did not finish in time; they are ended")
        # The threads that still stop miss their children from here on, and would say so.
        logging.disable()
        warnings.simplefilter("ignore")
        kill()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
