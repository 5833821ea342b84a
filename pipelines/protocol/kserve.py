"""Tensors and options on the wire: KServe v2's binary form, and the flat JSON of generate endpoints.

numpy only; knows no connection. Whatever does not fit its column is an InternalError that names it.
"""

from __future__ import annotations

import base64
import contextlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.protocol.columns import Column, Tensor, bytes_column, empty_value
from pipelines.protocol.errors import InternalError, InvalidOptions
from pipelines.protocol.options import Scalar

DTYPES: dict[str, type[np.generic]] = {
    "BOOL": np.bool_,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "FP32": np.float32,
    "FP64": np.float64,
}


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """An answer that is not as agreed is a fault of the program, not of the caller's."""
    try:
        yield
    except (ArithmeticError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise InternalError(
            f"the answer cannot be read: {error!r}", hint="are client and server of the same version?"
        ) from None


def wire_parameters(parameters: Mapping[str, object]) -> dict[str, Scalar]:
    """Options as every KServe server takes them: fractions as text, since JSON has no infinity.

    Raises:
        InvalidOptions: a value is no text, number or truth value, or its text is not UTF-8.
    """
    wired: dict[str, Scalar] = {}
    for name, value in parameters.items():
        if not isinstance(value, str | int | float):
            kind = type(value).__name__
            raise InvalidOptions(f"option {name} is a {kind}", hint="text, a number or a boolean")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise InvalidOptions(f"option {name}={value!r} is not UTF-8")
        too_long = isinstance(value, int) and not -(2**63) <= value < 2**63
        wired[name] = str(value) if isinstance(value, float) or too_long else value
    return wired


def pack_bytes(value: bytes) -> bytes:
    """One BYTES element: its length in four bytes, little-endian, and itself."""
    return len(value).to_bytes(4, "little") + value


def read_tensor(datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """A tensor in the KServe v2 binary form. Raises InternalError if bytes and shape disagree."""
    if datatype != "BYTES" and datatype not in DTYPES:
        raise InternalError(f"the answer has a tensor of unknown type {datatype!r}")
    flat = _unpack_bytes(raw) if datatype == "BYTES" else _from_buffer(raw, np.dtype(DTYPES[datatype]))
    if flat.size != math.prod(shape):
        raise InternalError(
            f"the answer has a {datatype} tensor of {flat.size} elements, shape {list(shape)}"
        )
    return flat.reshape(shape)


def _from_buffer(raw: bytes, dtype: np.dtype[np.generic]) -> Tensor:
    if len(raw) % dtype.itemsize:
        raise InternalError(f"the answer has {len(raw)} bytes for elements of {dtype.itemsize}")
    return np.frombuffer(raw, dtype).copy()


def _unpack_bytes(raw: bytes) -> Tensor:
    values, offset = [], 0
    while offset < len(raw):
        end = offset + 4 + int.from_bytes(raw[offset : offset + 4], "little")
        if end > len(raw):
            raise InternalError(f"the answer has a BYTES element that ends at {end} of {len(raw)} bytes")
        values.append(raw[offset + 4 : end])
        offset = end
    return bytes_column(values)


def read_columns(columns: Sequence[Column], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors → columns, the row dimension of a unary answer dropped.

    Raises:
        InternalError: a column is missing or has other dimensions, so client and server are no pair.
    """
    read: dict[str, Tensor] = {}
    for column in columns:
        tensor = tensors.get(column.name)
        if tensor is None:
            raise InternalError(
                f"the answer has no {column.name!r}", hint="are client and server of the same version?"
            )
        if (tensor.dtype == object) != (column.dtype is object):
            raise InternalError(f"the answer's {column.name!r} is of type {tensor.dtype}")
        row = tensor[0] if tensor.ndim == len(column.dims) + 1 and len(tensor) == 1 else tensor
        if row.ndim != len(column.dims):
            raise InternalError(f"the answer's {column.name!r} has shape {tensor.shape}, not {column.dims}")
        read[column.name] = row.astype(column.dtype, copy=False)
    return read


def read_json(columns: Sequence[Column], event: Mapping[str, Any]) -> dict[str, Tensor]:
    """An event's flat lists (a scalar where there is one element) in the shapes of their columns."""
    flat = {column.name: _flat(column, event[column.name]) for column in columns if column.name in event}
    sizes: dict[str | int, int] = {}
    for column in columns:
        if len(column.dims) == 1 and column.name in flat:
            # A column without elements is padded to one, so the longest tells.
            sizes[column.dims[0]] = max(sizes.get(column.dims[0], 1), flat[column.name].size)
    return {
        column.name: _shaped(column, flat[column.name], sizes) for column in columns if column.name in flat
    }


def _flat(column: Column, value: Any) -> Tensor:
    values = value if isinstance(value, list) else [value]
    try:
        if column.dtype is not object:
            return np.array(values, dtype=column.dtype).reshape(len(values))
        if column.binary:
            return bytes_column([base64.b64decode(text, validate=True) for text in values])
        return bytes_column([text.encode() for text in values])
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise InternalError(f"the answer's {column.name!r} cannot be read: {error}") from None


def _shaped(column: Column, flat: Tensor, sizes: Mapping[str | int, int]) -> Tensor:
    if len(column.dims) == 1:
        return flat
    shape = [dim if isinstance(dim, int) else sizes.get(dim, 1) for dim in column.dims]
    if flat.size == math.prod(shape):
        return flat.reshape(shape)
    padding = empty_value(column)
    if flat.size == padding.size:
        return padding
    raise InternalError(f"the answer's {column.name!r} has {flat.size} elements, not {shape}")
