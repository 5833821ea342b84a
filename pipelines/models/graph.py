"""What a file shows of its network without serving it: inputs, outputs, metadata. Knows no file format."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Dims = tuple[int | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """An input or an output.

    Attributes:
        name: its own, or the number of its place where it has none.
        dtype: as torch names it: `float32`, `uint8`, `int64`, …
        dims: None where any size is taken, or it is not known.
        operator: of an output, what computes it, in small letters and without what only moves numbers
            (reshape, transpose, concat, cast …): `softmax`, `sigmoid`, `relu`, `add`, …; empty: not known.
    """

    name: str
    dtype: str
    dims: Dims
    operator: str = ""

    def __str__(self) -> str:
        sizes = ", ".join("?" if size is None else str(size) for size in self.dims)
        return f"{self.name} {self.dtype} ({sizes})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """A network as its file shows it.

    Attributes:
        metadata: what its exporter wrote beside it.
        run: pixels float32 (N, 3, h, w), as the network is served → its outputs by name.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    run: Callable[[Tensor], Mapping[str, Tensor]] | None = None

    def __str__(self) -> str:
        """For messages: all that it takes and gives."""
        return f"takes {'; '.join(map(str, self.inputs))}; gives {'; '.join(map(str, self.outputs))}"
