"""This process's memory: what malloc keeps for the next chunk of frames."""

from __future__ import annotations

import ctypes
import logging

# As malloc.h numbers them.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT_BLOCK_BYTES = 32 << 20
KEPT_TOP_BYTES = 128 << 20
log = logging.getLogger("trivid")


def tune_malloc() -> None:
    """Let glibc keep the memory of a chunk of frames for the next one; to be called before threads start.

    By default each chunk would be mapped anew, page by page, and each thread would keep an arena of its own.
    """
    malloc = libc()
    malloc.mallopt(M_MMAP_THRESHOLD, KEPT_BLOCK_BYTES)
    malloc.mallopt(M_TRIM_THRESHOLD, KEPT_TOP_BYTES)
    malloc.mallopt(M_ARENA_MAX, 2)


def libc() -> ctypes.CDLL:
    return ctypes.CDLL("libc.so.6")
