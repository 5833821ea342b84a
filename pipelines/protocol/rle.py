"""A class map as run lengths, and back: COCO's uncompressed form, one entry a class, as JSON. numpy only.

`[{"class_id", "class_name", "size": [h, w], "counts": […]}, …]` for the classes that are there, the
background (0) left out. `counts` run down the columns, from the left: so many pixels that are not of the
class, so many that are, and so on; pycocotools takes an entry as it is (`frPyObjects`).

One object's mask is shorter: `{"size": [h, w], "counts": "…"}`, COCO's compressed form, in which pycocotools
has its own masks (`decode`). The runs are as above. From the fourth on, each is written as its difference
from the run two before it. A number is written in base 32, lowest digit first. A digit is a character counted
from "0", shifted by 32 if more digits follow. A last digit of 16 or more makes the number negative.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.protocol.errors import InternalError

ClassMap = npt.NDArray[np.uint8]
ObjectMask = npt.NDArray[np.bool_]
RADIX_BITS = 5
FIRST_LETTER, MORE = ord("0"), 32
# More digits than the difference of two runs has in a picture of any size.
MOST_DIGITS = 12


def encode(class_map_hw: ClassMap, names: Sequence[str]) -> bytes:
    """A class map uint8 `(h, w)`, with the names of all classes, as JSON."""
    height, width = class_map_hw.shape
    pixels = class_map_hw.ravel(order="F")
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.concatenate([[0], starts])
    ends = np.append(starts[1:], pixels.size)
    class_of_run = pixels[starts]
    entries = []
    for class_id in np.unique(class_of_run[class_of_run > 0]).tolist():
        own = class_of_run == class_id
        borders = np.stack([starts[own], ends[own]], axis=1).ravel()
        counts = np.diff(borders, prepend=0).tolist()
        if borders[-1] < pixels.size:
            counts.append(pixels.size - int(borders[-1]))
        entries.append(
            {"class_id": class_id, "class_name": names[class_id], "size": [height, width], "counts": counts}
        )
    return json.dumps(entries, separators=(",", ":")).encode()


def decode(text: bytes, size: tuple[int, int]) -> ClassMap:
    """The class map uint8 `(h, w)` of this size that `encode` was given.

    Raises:
        InternalError: the text is something else, or run lengths do not fill the size.
    """
    height, width = size
    pixels = np.zeros(height * width, np.uint8)
    for class_id, counts in _read(text):
        if not 0 < class_id < 256:
            raise InternalError(f"a mask holds classes 1 to 255, not {class_id}")
        if (counts < 0).any() or (counts > pixels.size).any() or counts.sum() != pixels.size:
            raise InternalError(f"run lengths of class {class_id} do not fill a mask of {width}x{height} px")
        pixels[np.repeat(np.arange(len(counts)) % 2 == 1, counts)] = class_id
    return pixels.reshape((height, width), order="F")


def encode_object(
    mask_hw: ObjectMask, *, corner: tuple[int, int] = (0, 0), size: tuple[int, int] | None = None
) -> bytes:
    """One object's mask bool `(h, w)` as JSON.

    Args:
        corner, size: where the mask's first row and column lie in a frame, and how high and wide that is,
            where the mask is but a part of it.
    """
    height, width = size or mask_hw.shape
    (top, left), (rows, columns) = corner, mask_hw.shape
    # Column by column, between pixels of no object before and after.
    pixels = np.zeros(columns * height + 2, bool)
    pixels[1:-1].reshape(columns, height)[:, top : top + rows] = mask_hw.T
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + left * height
    runs = np.diff(borders, prepend=0)
    if not borders.size or borders[-1] < height * width:
        runs = np.append(runs, height * width - (borders[-1] if borders.size else 0))
    counts = _letters(runs).decode()
    return json.dumps({"size": [height, width], "counts": counts}, separators=(",", ":")).encode()


def decode_object(text: bytes) -> ObjectMask:
    """The mask bool `(h, w)` that `encode_object` was given.

    Raises:
        InternalError: the text is something else, or run lengths do not fill the size.
    """
    try:
        entry: dict[str, Any] = json.loads(text)
        height, width = (int(side) for side in entry["size"])
        runs = _numbers(entry["counts"].encode("ascii"))
    except (ValueError, TypeError, KeyError, OverflowError, AttributeError) as error:
        raise InternalError(f"the mask does not hold run lengths ({error}): {text[:40]!r}") from None
    if (
        min(height, width) < 0
        or (runs < 0).any()
        or (runs > height * width).any()
        or runs.sum() != height * width
    ):
        raise InternalError(f"run lengths do not fill a mask of {width}x{height} px")
    inside: ObjectMask = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return inside.reshape((height, width), order="F")


def _letters(runs: npt.NDArray[np.int64]) -> bytes:
    """Run lengths in COCO's letters."""
    left = runs.copy()
    left[3:] -= runs[1:-2]
    digits = np.zeros((len(runs), MOST_DIGITS), np.uint8)
    open_rows = np.arange(len(runs))
    for place in range(MOST_DIGITS):
        digit = left[open_rows] & (2**RADIX_BITS - 1)
        left[open_rows] >>= RADIX_BITS
        more = left[open_rows] != np.where(digit & 16, -1, 0)
        digits[open_rows, place] = FIRST_LETTER + digit + MORE * more
        open_rows = open_rows[more]
    return digits[digits > 0].tobytes()


def _numbers(letters: bytes) -> npt.NDArray[np.int64]:
    """The run lengths that `_letters` was given. Raises ValueError at other letters."""
    digits = np.frombuffer(letters, np.uint8).astype(np.int64) - FIRST_LETTER
    if not digits.size or digits.min() < 0 or digits.max() >= 2 * MORE or digits[-1] >= MORE:
        raise ValueError("counts are not COCO's")
    ends = np.flatnonzero(digits < MORE)
    starts = np.append(0, ends[:-1] + 1)
    places = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    if places.max() >= MOST_DIGITS:
        raise ValueError("counts have too many digits")
    values = np.add.reduceat((digits & 31) << RADIX_BITS * places, starts)
    negative = (digits[ends] & 16) > 0
    values[negative] -= np.int64(1) << RADIX_BITS * (places[ends][negative] + 1)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def _read(text: bytes) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Class and run lengths of each entry."""
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        pairs = [(int(entry["class_id"]), np.array(entry["counts"], np.int64)) for entry in entries]
        if any(counts.ndim != 1 for _, counts in pairs):
            raise ValueError("counts are not a list of numbers")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InternalError(f"the mask does not hold run lengths ({error}): {text[:40]!r}") from None
    return pairs
