"""Run lengths of one object's mask: those of COCO, and back."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.protocol import rle
from pipelines.protocol.errors import InternalError

OBJECTS: list[npt.NDArray[np.bool_]] = [
    np.zeros((5, 7), bool),
    np.ones((5, 7), bool),
    np.eye(6, 9, dtype=bool),
    np.eye(1, dtype=bool),
    np.random.default_rng(0).random((37, 53)) < 0.5,
    np.pad(np.ones((400, 1), bool), ((0, 0), (3000, 2000))),
    np.pad(np.random.default_rng(1).random((90, 200)) < 0.97, ((900, 90), (1000, 720))),
]


@pytest.mark.parametrize("mask", OBJECTS)
def test_run_lengths_of_an_object_come_back(mask: npt.NDArray[np.bool_]) -> None:
    assert np.array_equal(rle.decode_object(rle.encode_object(mask)), mask)


def test_run_lengths_of_a_part_are_those_of_the_frame() -> None:
    part = np.random.default_rng(0).random((5, 7)) < 0.6
    for corner, size in (((2, 3), (9, 20)), ((0, 0), (5, 30)), ((0, 13), (5, 20)), ((4, 0), (9, 7))):
        frame = np.zeros(size, bool)
        frame[corner[0] : corner[0] + 5, corner[1] : corner[1] + 7] = part
        assert rle.encode_object(part, corner=corner, size=size) == rle.encode_object(frame)
    nothing = np.zeros((0, 7), bool)
    assert rle.encode_object(nothing, corner=(9, 0), size=(9, 7)) == rle.encode_object(np.zeros((9, 7), bool))


def test_run_lengths_of_an_object_are_cocos() -> None:
    """The letters are what `pycocotools.mask.encode` gives for this mask."""
    mask = np.zeros((5, 7), bool)
    mask[1:4, 2:6] = True
    mask[2, 3] = False
    assert rle.encode_object(mask) == b'{"size":[5,7],"counts":";32NO012004"}'


BROKEN = [
    b"",
    b"[]",
    b'{"size":[5,7]}',
    b'{"size":[5],"counts":"0"}',
    b'{"size":[5,7],"counts":""}',
    b'{"size":[5,7],"counts":"4"}',
    b'{"size":[5,7],"counts":"\xc3\xa9"}',
    b'{"size":[5,7],"counts":"P"}',
    b'{"size":[5,7],"counts":"~~"}',
    b'{"size":[5,7],"counts":[35]}',
    b'{"size":[-5,-7],"counts":"S1"}',
    b'{"size":[5,7],"counts":"oooooooooooooooooooooooo0"}',
]


@pytest.mark.parametrize("text", BROKEN)
def test_other_run_lengths_are_refused(text: bytes) -> None:
    with pytest.raises(InternalError, match="run lengths"):
        rle.decode_object(text)
