"""This process's memory: what malloc keeps for the next chunk of frames, and when it is released."""

from __future__ import annotations

import ctypes

import psutil

from pipelines.machine.admission import Admission

# Numbers from malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BLOCK_BYTES = 32 << 20
KEPT_TOP_BYTES = 128 << 20
# Less than this is not given back: the next requests need it more than the system does.
MUCH_BYTES = 128 << 20
QUIET_LOOKS = 5


def tune_malloc() -> None:
    """Let glibc keep the memory of a chunk of frames for the next one. Call it before threads start.

    By default each chunk would be mapped anew, page by page, and each thread would keep an arena of its own.
    """
    malloc = _libc()
    malloc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
    malloc.mallopt(M_TRIM_THRESHOLD, KEPT_TOP_BYTES)
    malloc.mallopt(M_ARENA_MAX, 2)


def trim_malloc() -> None:
    """Give all freed memory back to the system; takes up to a second."""
    _libc().malloc_trim(0)


def resident_bytes() -> int:
    """This process's memory in RAM, after what is free of it went back to the system."""
    trim_malloc()
    return int(psutil.Process().memory_info().rss)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6")


class Idleness:
    """Notices when requests that held much have all ended and none came for a while. Ask it every second."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._quiet_looks = 0

    def begins(self) -> bool:
        """Whether, for the first time since much was held, it has been quiet for long enough."""
        self._quiet_looks = 0 if self._admission.held_bytes else self._quiet_looks + 1
        if self._quiet_looks < QUIET_LOOKS or self._admission.most_bytes < MUCH_BYTES:
            return False
        self._admission.most_bytes = 0
        return True
