"""How many threads each stage gets: the only place that decides it. Knows no stage.

A model's batch takes all cores. There are as many workers as cores, and each prepares media with one thread.
Decoders have several threads: otherwise a single stream would leave cores idle while the model waits for it.
Many streams lose nothing by that (docs/performance.md).
"""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path

# FFmpeg's threads: more add latency and little speed.
MOST_DECODING = 4
# What control groups allow (Linux, version 2): microseconds of processor time, and in how many of them.
QUOTA_FILE = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True, slots=True, kw_only=True)
class Threads:
    """How many workers; threads of a batch, of a medium's decoder, of a worker's resizing and drawing."""

    model: int
    decode: int
    worker: int
    workers: int

    @classmethod
    def of(cls, cores: int) -> Threads:
        """The shares of a machine."""
        return cls(model=cores, decode=min(MOST_DECODING, cores), worker=1, workers=max(2, cores))


@functools.cache
def cores() -> int:
    """Cores that this process may use by its affinity and its control group's quota, as of the first call."""
    bound = len(os.sched_getaffinity(0))
    try:
        quota, period = QUOTA_FILE.read_text().split()
    except (OSError, ValueError):
        return bound
    return bound if quota == "max" else max(1, min(bound, math.ceil(int(quota) / int(period))))


def use_threads(count: int) -> None:
    """Set how many threads torch uses for calls from this thread."""
    import torch

    # A thread's first query or operation adopts what any thread set last. After this call it would undo it.
    torch.get_num_threads()
    torch.set_num_threads(count)
