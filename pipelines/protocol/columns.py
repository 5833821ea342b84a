"""Columns: the named tensors of an answer on the wire, padding included. numpy only; knows no protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Tensor = npt.NDArray[Any]
Row = dict[str, Tensor]
Join = Literal["rows", "first", "last"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One output: its name, numpy dtype (`object` for BYTES) and what its dimensions are called.

    Attributes:
        dims: the dimensions after the row's: a name is a length that varies, a number a fixed one.
        binary: bytes that need not be text; a JSON client asks for those in base64.
        join: how the parts of one medium become one: all rows, or what the first or last part says.
        needs: a column without whose entries this one is empty.
    """

    name: str
    dtype: type[np.generic] | type[object]
    dims: tuple[str | int, ...]
    help: str
    binary: bool = False
    join: Join = "first"
    needs: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that Triton is told: -1 where a length varies."""
        return tuple(dim if isinstance(dim, int) else -1 for dim in self.dims)


def count_column(name: str, help_text: str) -> Column:
    """How many rows are real: Triton knows no tensor without elements."""
    return Column(name=name, dtype=np.int64, dims=(1,), help=help_text)


ERROR_COLUMN = Column(
    name="error", dtype=object, dims=(1,), help='empty, or JSON {"code", "message", "hint"}'
)
COMMON_COLUMNS = (
    count_column("count", "number of real frames; zero frames are padded to one"),
    Column(name="decoder", dtype=object, dims=(1,), help="the decoder that was used"),
    Column(name="decoder_reason", dtype=object, dims=(1,), help="why that decoder was used"),
    Column(name="final", dtype=np.uint8, dims=(1,), help="1 on the last answer of a medium"),
    ERROR_COLUMN,
)

STREAM_COLUMNS = (
    Column(name="seq", dtype=np.int64, dims=(1,), help="index of the answer in its stream, from 0"),
    Column(
        name="session",
        dtype=object,
        dims=(1,),
        help="the token to continue with if the stream pauses after this answer, else empty",
    ),
)


def empty_value(column: Column) -> Tensor:
    """The padding of a column: one zero (or empty text) along each dimension that varies."""
    shape = tuple(dim if isinstance(dim, int) else 1 for dim in column.dims)
    return (
        np.full(shape, b"", dtype=object) if column.dtype is object else np.zeros(shape, dtype=column.dtype)
    )


def to_tensors(columns: Sequence[Column], rows: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rows of columns → tensors with a leading row dimension, short rows padded (zeros, empty text).

    A column that a row lacks, or that has a zero dimension (Triton refuses those), becomes padding.
    """
    return {column.name: _stack(column, [row.get(column.name) for row in rows]) for column in columns}


def _stack(column: Column, values: Sequence[Tensor | None]) -> Tensor:
    filled = [empty_value(column) if value is None or value.size == 0 else value for value in values]
    for value in filled:
        if value.ndim != len(column.dims):
            raise ValueError(f"column {column.name}: {value.ndim} dimensions, expected {column.dims}")
    if len(filled) == 1:
        return filled[0][None].astype(column.dtype, copy=False)
    shape = tuple(max(sizes) for sizes in zip(*(value.shape for value in filled), strict=True))
    stacked: Tensor = np.full((len(filled), *shape), b"" if column.dtype is object else 0, dtype=column.dtype)
    for row, value in enumerate(filled):
        window = (row, *(slice(0, size) for size in value.shape))
        stacked[window] = value
    return stacked


def nbytes(value: Tensor) -> int:
    """Bytes of a tensor's elements."""
    return sum(map(len, value.flat)) if value.dtype == object else value.nbytes


def stacked_bytes(columns: Sequence[Column], rows: Sequence[Mapping[str, Tensor]]) -> int:
    """What `to_tensors` of these rows would take, padding included, without making it."""
    total = 0
    for column in columns:
        values = [row[column.name] for row in rows if column.name in row]
        if column.dtype is object:
            total += sum(map(nbytes, values))
        elif values:
            shape = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
            total += len(rows) * math.prod(shape) * np.dtype(column.dtype).itemsize
    return total


def text_column(text: str | bytes) -> Tensor:
    """One BYTES element, shape `(1,)`."""
    return np.array([text.encode() if isinstance(text, str) else text], dtype=object)


def bytes_column(values: Sequence[bytes]) -> Tensor:
    """BYTES elements `(N,)`; an object array, since numpy's own bytes type strips trailing zeros."""
    column = np.empty(len(values), dtype=object)
    column[:] = list(values)
    return column
