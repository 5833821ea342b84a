"""What the server counted since its start (frames, errors, seconds of each stage), and what it holds now."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator


class Telemetry:
    """Thread-safe counters; `snapshot` is what the `status` endpoint shows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, Counter[str]] = {}
        self._seconds: dict[str, float] = {}
        self._gauges: dict[tuple[str, str], Callable[[], float]] = {}

    def count(self, group: str, name: str, amount: int = 1) -> None:
        """Add `amount` to one counter, e.g. `count("decoders", "pyav")`."""
        with self._lock:
            self._counts.setdefault(group, Counter())[name] += amount

    def gauge(self, group: str, name: str, read: Callable[[], float]) -> None:
        """Show what `read` says at the time of each snapshot; it may be called from any thread."""
        with self._lock:
            self._gauges[group, name] = read

    @contextlib.contextmanager
    def span(self, stage: str) -> Iterator[None]:
        """Add the wall time of the block to a stage's seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            took = time.perf_counter() - start
            with self._lock:
                self._seconds[stage] = self._seconds.get(stage, 0.0) + took

    def snapshot(self) -> dict[str, dict[str, float]]:
        """All counters and gauges by group, and `stage_seconds`."""
        with self._lock:
            groups: dict[str, dict[str, float]] = {group: {**names} for group, names in self._counts.items()}
            groups["stage_seconds"] = {stage: round(value, 6) for stage, value in self._seconds.items()}
            gauges = dict(self._gauges)
        for (group, name), read in gauges.items():
            groups.setdefault(group, {})[name] = read()
        return groups
