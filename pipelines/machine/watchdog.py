"""Child processes: which exist, and whether they live; and an end in time, whatever a process waits for.

Triton never restarts a stub that died, and still calls its model ready. So a door watches its processes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterable

import psutil

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
