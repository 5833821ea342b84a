"""This process's memory: what malloc keeps for the next chunk of frames, and what goes back once nothing runs."""

from __future__ import annotations

import ctypes
import logging

from pipelines.admission import Admission

# As malloc.h numbers them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BLOCK_BYTES = 32 << 20
KEPT_TOP_BYTES = 128 << 20
# Below this, what requests leave behind is worth more to the next ones than to the system.
MUCH_BYTES = 128 << 20
QUIET_LOOKS = 5

log = logging.getLogger("trivid")


def tune_malloc() -> None:
    """Let glibc keep the memory of a chunk of frames for the next one; to be called before threads start.

    By default each chunk would be mapped anew, page by page, and each thread would keep an arena of its own.
    """
    libc = _libc()
    libc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
    libc.mallopt(M_TRIM_THRESHOLD, KEPT_TOP_BYTES)
    libc.mallopt(M_ARENA_MAX, 2)


def give_back(device: str) -> None:
    """Give all freed memory back to the system, on a GPU to its other processes. Takes up to a second."""
    _libc().malloc_trim(0)
    if device == "cpu":
        return
    import torch

    from pipelines.graph import release_unused

    try:
        torch.cuda.empty_cache()
        release_unused()
    except RuntimeError as error:
        # A GPU that fails is told of by the requests that need it.
        log.warning("the GPU's memory was not given back: %s", error)


class Idleness:
    """Sees when requests that held much have all ended, and none came for a while; to be asked every second.

    Args:
        admission: which knows what requests about media hold.
    """

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._quiet_looks = 0

    def begins(self) -> bool:
        """Whether this look is the one at which it is quiet for long enough, since much was held."""
        self._quiet_looks = 0 if self._admission.held_bytes else self._quiet_looks + 1
        if self._quiet_looks < QUIET_LOOKS or self._admission.most_bytes < MUCH_BYTES:
            return False
        self._admission.most_bytes = 0
        return True


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6")
