"""A class map as run lengths, and back: COCO's uncompressed form, one entry a class, as JSON. numpy only.

`[{"class_id", "class_name", "size": [h, w], "counts": […]}, …]` for the classes that are there, the background
(0) left out. `counts` run down the columns, from the left: so many pixels that are not of the class, so many that
are, and so on; pycocotools takes an entry as it is (`frPyObjects`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.errors import InternalError

ClassMap = npt.NDArray[np.uint8]


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


def _read(text: bytes) -> list[tuple[int, npt.NDArray[np.int64]]]:
    """Class and run lengths of each entry."""
    try:
        entries: list[dict[str, Any]] = json.loads(text)
        pairs = [(int(entry["class_id"]), np.array(entry["counts"], np.int64)) for entry in entries]
        if any(counts.ndim != 1 for _, counts in pairs):
            raise ValueError("counts are no list of numbers")
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InternalError(f"the mask holds no run lengths ({error}): {text[:40]!r}") from None
    return pairs
