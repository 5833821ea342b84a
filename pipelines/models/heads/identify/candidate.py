"""A way to read a network's outputs, before it is known to be the right one; and what the choice needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipelines.models.graph import Dims, Port
from pipelines.models.spec import Head

# Strides of the grids of dense detectors: usual ones, with a coarser one, tiny ones, with a finer one.
STRIDES = ((8, 16, 32), (8, 16, 32, 64), (16, 32), (4, 8, 16, 32))
ANCHORS = 3
BY_NAME, BY_SHAPE, PERHAPS = 2, 1, 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A head that may fit.

    Attributes:
        why: what speaks for it, in words; empty: names or metadata, which assume nothing.
        read: the names of the outputs that it reads.
        level: how much speaks for it: `BY_NAME`, `BY_SHAPE` or `PERHAPS`.
        doubt: what must be said before it can be read so, in words; empty: nothing.
    """

    head: Head
    why: str = ""
    read: tuple[str, ...] = ()
    level: int = BY_SHAPE
    doubt: str = ""

    def __str__(self) -> str:
        return f"{self.head.family} ({self.why})" if self.why else self.head.family


def cells(size_hw: tuple[int, int] | None, each: int = 1) -> dict[int, tuple[int, ...]]:
    """How many rows a dense detector has with `each` of a cell, and the strides of its grids."""
    if size_hw is None:
        return {}
    height, width = size_hw
    return {
        each * sum(-(-height // stride) * -(-width // stride) for stride in strides): strides
        for strides in STRIDES
    }


def of_rank(ports: Sequence[Port], *ranks: int) -> Iterator[Port]:
    return (port for port in ports if len(port.dims) in ranks)


def is_whole(port: Port) -> bool:
    """Whether its numbers are integers."""
    return port.dtype.startswith(("int", "uint", "bool"))


def named(port: Port, *words: str) -> bool:
    """Whether its name has one of the words in it."""
    return any(word in port.name.lower() for word in words)


def operators(port: Port) -> frozenset[str]:
    """What computes it; empty: not known."""
    return frozenset(port.operator.split("+")) - {""}


def shown(dims: Dims) -> str:
    return f"({', '.join('?' if side is None else str(side) for side in dims)})"
