"""Turns: rivals measured one after the other, round after round. Knows no load.

Machines change their pace by a factor of two within minutes, so only what was measured within the same
seconds compares: every second round goes backwards (A B, B A), each round has a ratio of its own, and their
median counts. Of several servers all but the measured one are held still (SIGSTOP), so that they use no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from scripts.servers import Server

T = TypeVar("T")


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
