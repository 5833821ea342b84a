"""The arithmetic of the bench: rates, ceilings, percentiles, shares. Measures nothing.

Times are seconds of one clock that all processes share (`time.monotonic`).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# The first part of a run counts for nothing: queues fill, and clients have started together.
WARM_UP = 0.2
# From when until when replies count, seconds.
Window = tuple[float, float]


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
    def latency_ms(self) -> float:
        return 1000 * (self.end_s - self.start_s)

    @property
    def first_answer_ms(self) -> float:
        return 1000 * ((self.at_s[0] if self.at_s else self.end_s) - self.start_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What clients saw.

    Attributes:
        start_s, end_s: when they began, and when the first of them sent no more; `cpu_s`: what they used.
        waited_s: of an open loop, by how much a request was sent too late at most.
    """

    replies: tuple[Reply, ...]
    start_s: float
    end_s: float
    cpu_s: float
    waited_s: float = 0.0

    def window(self, seconds: float) -> Window:
        """All but the warm-up, until clients began to leave; with long media they do after the run's time."""
        end_s = max(self.start_s + seconds, self.end_s)
        return self.start_s + WARM_UP * (end_s - self.start_s), end_s

    def good(self, seconds: float) -> list[Reply]:
        """Requests without an error that began or ended within the window."""
        start_s, end_s = self.window(seconds)
        return [one for one in self.replies if not one.error and one.end_s > start_s and one.start_s < end_s]

    def frames_per_s(self, seconds: float, frames: int) -> float:
        """Frames answered within the window; `frames` is how many the medium of each request has."""
        start_s, end_s = window = self.window(seconds)
        done = sum(frames_within(reply, window, frames) for reply in self.good(seconds))
        return done / (end_s - start_s) if end_s > start_s else math.nan

    def errors(self) -> Counter[str]:
        return Counter(one.error for one in self.replies if one.error)

    def latencies_ms(self, seconds: float) -> list[float]:
        """Of all that were answered well, but those of the warm-up."""
        start_s, _ = self.window(seconds)
        return [one.latency_ms for one in self.replies if not one.error and one.start_s > start_s]


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


def frames_within(reply: Reply, window: Window, frames: int) -> float:
    """Frames of one request that were worked on within a window.

    Each answer's share of the medium is spread evenly from the answer before, or the start, to when it came.
    """
    done, start_s = 0.0, reply.start_s
    for at_s, rows in zip(reply.at_s, reply.rows, strict=True):
        within_s = min(at_s, window[1]) - max(start_s, window[0])
        if rows and within_s > 0:
            done += within_s / (at_s - start_s) * rows * frames / sum(reply.rows)
        start_s = at_s
    return done


def percentile(values: Sequence[float], percent: float) -> float:
    """As numpy has it, NaN of nothing."""
    return float(np.percentile(values, percent)) if len(values) else math.nan


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """The usual three, by name, and the mean."""
    mean = sum(values) / len(values) if values else math.nan
    return {f"p{percent}": percentile(values, percent) for percent in (50, 95, 99)} | {"mean": mean}


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


def compared(ours: Sequence[float], theirs: Sequence[float], name: str, bar: str = "") -> dict[str, float]:
    """How much more one rival gives than another: a ratio of each round, their least, most and median.

    A round in which the other gave nothing has no ratio (NaN). `bar` says what the median should be.
    """
    ratios = [one / other if other else math.nan for one, other in zip(ours, theirs, strict=True)]
    real = [ratio for ratio in ratios if math.isfinite(ratio)] or [math.nan]
    found = {f"round {number}": ratio for number, ratio in enumerate(ratios, 1)}
    found |= {"least": min(real), "most": max(real), f"median{bar}": median(real)}
    return {f"{name}, {which}": ratio for which, ratio in found.items()}
