"""The arithmetic of the bench: rates, ceilings, percentiles, shares. Measures nothing.

Times are seconds of one clock that all processes share (`time.monotonic`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One request as its client saw it.

    Attributes:
        start_s, end_s: when it was sent, and when its last answer was there.
        at_s, rows: of each answer, when it came and how many rows it had.
        error: the code of the error that it ended with; empty if all went well.
    """

    start_s: float
    end_s: float
    at_s: Sequence[float] = ()
    rows: Sequence[int] = ()
    error: str = ""

    @property
    def latency_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def first_answer_s(self) -> float:
        return (self.at_s[0] if self.at_s else self.end_s) - self.start_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What counts of a run: from when all clients were at work until the first was done."""

    start_s: float
    end_s: float

    @property
    def length_s(self) -> float:
        return self.end_s - self.start_s

    def overlap_s(self, start_s: float, end_s: float) -> float:
        return max(0.0, min(end_s, self.end_s) - max(start_s, self.start_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A run in numbers; milliseconds and frames a second."""

    frames_per_s: float
    requests: int
    errors: Mapping[str, int] = field(default_factory=dict)
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    first_answer_ms: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage alone.

    Attributes:
        frames_per_s: with all cores busy; `callers` is how many threads that took.
        cpu_ms: of all threads, for a frame.
        alone_ms: of the first piece of the medium (a picture, a chunk), when nothing else runs.
    """

    frames_per_s: float
    cpu_ms: float
    alone_ms: float
    callers: int

    def mean(self, other: Stage) -> Stage:
        """Of two measurements of one stage: of the times that a frame takes."""
        return Stage(
            frames_per_s=statistics.harmonic_mean([self.frames_per_s, other.frames_per_s]),
            cpu_ms=(self.cpu_ms + other.cpu_ms) / 2,
            alone_ms=(self.alone_ms + other.alone_ms) / 2,
            callers=self.callers,
        )


def figures(replies: Sequence[Reply], window: Window, frames: int) -> Figures:
    """Frames answered within the window, and how long requests took that began or ended in it.

    Args:
        frames: of the medium that each request sent.
    """
    good = [reply for reply in replies if not reply.error]
    inside = [one for one in good if one.end_s > window.start_s and one.start_s < window.end_s]
    done = sum(frames_within(reply, window, frames) for reply in good)
    return Figures(
        frames_per_s=done / window.length_s if window.length_s > 0 else math.nan,
        requests=len(inside),
        errors=dict(Counter(reply.error for reply in replies if reply.error)),
        latency_ms=percentiles([1000 * one.latency_s for one in inside]),
        first_answer_ms=percentiles([1000 * one.first_answer_s for one in inside]),
    )


def frames_within(reply: Reply, window: Window, frames: int) -> float:
    """Frames of one request that were worked on within a window.

    Each answer's share of the medium is spread evenly from the answer before, or the start, to when it came.
    """
    rows = sum(reply.rows)
    if not rows:
        return 0.0
    done, before_s = 0.0, reply.start_s
    for at_s, count in zip(reply.at_s, reply.rows, strict=True):
        share = window.overlap_s(before_s, at_s) / (at_s - before_s) if at_s > before_s else 0.0
        done += share * count * frames / rows
        before_s = at_s
    return done


def percentile(values: Sequence[float], percent: float) -> float:
    """As numpy has it, NaN of nothing."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The usual three, by name, and the mean."""
    named = {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}
    return {**named, "mean": sum(values) / len(values) if values else math.nan}


def median(values: Sequence[float]) -> float:
    return percentile(values, 50)


def ceiling(rates: Mapping[str, float], *, shared: bool) -> float:
    """The most frames a second that stages of these rates can do together.

    Args:
        rates: of each stage alone, with the whole machine to itself.
        shared: whether all stages use the same cores, one second of each frame's share after the other
            (1 / sum of 1 / rate), or each has its own part of the machine, as on a GPU (the slowest).
    """
    real = [rate for rate in rates.values() if math.isfinite(rate)]
    if not real or min(real) <= 0:
        return math.nan
    return 1 / sum(1 / rate for rate in real) if shared else min(real)


def fallen(now: Mapping[str, float], before: Mapping[str, float], tolerance: float) -> dict[str, float]:
    """Ratios that have fallen by more than the tolerance, or are gone: name → share of what each was."""
    lost = {}
    for name, old in before.items():
        new = now.get(name, math.nan)
        if not new >= old * (1 - tolerance):
            lost[name] = new / old if old else math.nan
    return lost
