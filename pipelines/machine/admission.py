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
    def hold(self, size_bytes: int) -> Iterator[Held]:
        """Hold `size_bytes` during the `with` block, or more if the block finds that it needs more.

        If nothing else is held, a request is always let in.

        Raises:
            Overloaded: other requests hold too much.
        """
        held = Held(self)
        try:
            held.grow_to(size_bytes)
            yield held
        finally:
            with self._lock:
                self.held_bytes -= held.size_bytes

    def grow(self, held: Held, size_bytes: int) -> None:
        """Let a request hold `size_bytes` in all; less than it holds changes nothing. Raises Overloaded."""
        with self._lock:
            others = self.held_bytes - held.size_bytes
            size_bytes = max(size_bytes, held.size_bytes)
            if others and others + size_bytes > self.budget_bytes and size_bytes > held.size_bytes:
                raise Overloaded(
                    f"no memory for this request next to the others: it takes about {size_bytes >> 20} MiB, "
                    f"{others >> 20} of {self.budget_bytes >> 20} are in use",
                    hint="try again in a few seconds",
                )
            self.held_bytes = others + size_bytes
            self.most_bytes = max(self.most_bytes, self.held_bytes)
            held.size_bytes = size_bytes


class Held:
    """What one request holds."""

    def __init__(self, admission: Admission) -> None:
        self.size_bytes = 0
        self._admission = admission

    def grow_to(self, size_bytes: int) -> None:
        """Hold so much in all. Raises Overloaded; then what was held is still held."""
        self._admission.grow(self, size_bytes)


def default_budget_bytes() -> int:
    """Half of the machine's memory, or of its control group's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = LIMIT_FILE.read_text().strip()
    except OSError:
        limit = "max"
    return int(SHARE * (machine if limit == "max" else min(machine, int(limit))))
