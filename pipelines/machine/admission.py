"""Bounds the memory of all requests together: what has no room is refused at once. Knows no request."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from pipelines.protocol.errors import Overloaded
from pipelines.telemetry.counters import Telemetry

# The other half is for models, Triton's copies, and whatever the estimates miss.
SHARE = 0.5
# The most that a control group may use (Linux, version 2).
LIMIT_FILE = Path("/sys/fs/cgroup/memory.max")


class Admission:
    """A budget of bytes. Each request holds a part of it while it runs. Safe to use from any thread.

    Attributes:
        held_bytes: what all requests hold now.
        most_bytes: the most that they held since a reader last reset it.
    """

    def __init__(self, budget_bytes: int, telemetry: Telemetry) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = self.most_bytes = 0
        self._lock = threading.Lock()
        telemetry.gauge("memory", "budget_bytes", lambda: self.budget_bytes)
        telemetry.gauge("memory", "held_bytes", lambda: self.held_bytes)

    @contextlib.contextmanager
    def hold(self, size_bytes: int) -> Iterator[None]:
        """Hold `size_bytes` during the `with` block. If nothing else is held, a request is always let in.

        Raises:
            Overloaded: other requests hold too much.
        """
        with self._lock:
            if self.held_bytes and self.held_bytes + size_bytes > self.budget_bytes:
                raise Overloaded(
                    f"no memory for this request next to the others: it takes about {size_bytes >> 20} MiB, "
                    f"{self.held_bytes >> 20} of {self.budget_bytes >> 20} are in use",
                    hint="try again in a few seconds",
                )
            self.held_bytes += size_bytes
            self.most_bytes = max(self.most_bytes, self.held_bytes)
        try:
            yield
        finally:
            with self._lock:
                self.held_bytes -= size_bytes


def default_budget_bytes() -> int:
    """Half of the machine's memory, or of its control group's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = LIMIT_FILE.read_text().strip()
    except OSError:
        limit = "max"
    return int(SHARE * (machine if limit == "max" else min(machine, int(limit))))
