"""Squares around boxes, and how many of them are prepared at once. Knows no detector and no classifier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt

from pipelines.frames.batch import FLOAT_RGB_BYTES, PixelArray
from pipelines.frames.geometry import geometry
from pipelines.models.spec import Preprocessing

# Squares and their model pixels of this many bytes are made at once: 44 of 224x224 where both have that size.
PIECE_BYTES = 32 << 20


def square_around(box_4: Sequence[float], frame_hw: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of a square about a box of left, top, right, bottom that lies in the frame.

    A tall box is widened on both sides, a wide one heightened, as far as the frame reaches. Numbers are
    truncated to whole pixels; at least one remains.
    """
    left, top = int(box_4[0]), int(box_4[1])
    width, height = max(1, int(box_4[2] - box_4[0])), max(1, int(box_4[3] - box_4[1]))
    right, bottom = left + width, top + height
    margin = abs(height - width) // 2
    if width <= height:
        left, right = max(0, left - margin), min(frame_hw[1], right + margin)
    else:
        top, bottom = max(0, top - margin), min(frame_hw[0], bottom + margin)
    return slice(top, bottom), slice(left, right)


def squares(
    pixels_nhwc: PixelArray, rows_d: npt.NDArray[np.int64], boxes_d4: npt.NDArray[np.float32]
) -> Iterator[PixelArray]:
    """The squares around D boxes, uint8 RGB `(h, w, 3)`, views of the frames on their device.

    Args:
        pixels_nhwc: the frames, uint8 RGB `(N, H, W, 3)`.
        rows_d: which frame each box is in.
    """
    frame_hw = int(pixels_nhwc.shape[1]), int(pixels_nhwc.shape[2])
    for row, box in zip(rows_d.tolist(), boxes_d4.tolist(), strict=True):
        yield pixels_nhwc[(row, *square_around(box, frame_hw))]


def pieces(pictures: Iterable[PixelArray], preprocessing: Preprocessing) -> Iterator[list[PixelArray]]:
    """Pictures in their order, in lists that have one size for the model and fit in PIECE_BYTES.

    Copies of the pictures count with their model pixels. A picture that alone is more is a list of its own.
    """
    piece: list[PixelArray] = []
    piece_hw, room = (0, 0), 0
    for picture in pictures:
        model_hw = geometry(preprocessing, picture.shape[0], picture.shape[1]).model_hw
        size = FLOAT_RGB_BYTES * math.prod(model_hw) + math.prod(picture.shape)
        if piece and (model_hw != piece_hw or size > room):
            yield piece
            piece = []
        if not piece:
            piece_hw, room = model_hw, PIECE_BYTES
        piece.append(picture)
        room -= size
    if piece:
        yield piece
