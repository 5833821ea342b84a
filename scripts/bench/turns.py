"""Turns: rivals measured one after the other, round after round, and how they compare. Knows no load.

Machines change their pace by a factor of two within minutes, so only what was measured within the same
seconds compares: every second round goes backwards (A B, B A), each round has a ratio of its own, and their
median counts. Of several servers all but the measured one are held still (SIGSTOP), so that they use no time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from scripts.bench.figures import median
from scripts.servers import Server

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How much more one rival gives than another: a ratio of each round, their median, least and most."""

    ratios: Sequence[float]
    median: float
    least: float
    most: float

    @classmethod
    def of(cls, ours: Sequence[float], theirs: Sequence[float]) -> Comparison:
        """Of rates, round by round; a round in which the other gave nothing has no ratio (NaN)."""
        ratios = [one / other if other else math.nan for one, other in zip(ours, theirs, strict=True)]
        real = [ratio for ratio in ratios if math.isfinite(ratio)] or [math.nan]
        return cls(ratios=ratios, median=median(real), least=min(real), most=max(real))

    def numbers(self, name: str, bar: str = "") -> dict[str, float]:
        """The same as a scenario's numbers; `bar` says what the median should be."""
        rounds = {f"{name}, round {number}": ratio for number, ratio in enumerate(self.ratios, 1)}
        return {
            **rounds,
            f"{name}, least": self.least,
            f"{name}, most": self.most,
            f"{name}, median{bar}": self.median,
        }


def in_turns(
    rivals: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    servers: Mapping[str, Server] | None = None,
    say: Callable[[str, T], None] = lambda name, found: None,
) -> dict[str, list[T]]:
    """Measure each rival once a round: of each what was found, round by round.

    Args:
        servers: a rival's own one, which goes on for its turns only.
        say: is told of each turn.
    """
    servers = servers or {}
    found: dict[str, list[T]] = {name: [] for name in rivals}
    for server in servers.values():
        server.hold()
    try:
        for number in range(rounds):
            for name in list(rivals)[:: -1 if number % 2 else 1]:
                if name in servers:
                    servers[name].go_on()
                found[name].append(rivals[name]())
                if name in servers:
                    servers[name].hold()
                say(name, found[name][-1])
    finally:
        for server in servers.values():
            server.go_on()
    return found
