"""Squares around boxes against the example that they are taken from; how many are prepared at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.frames import crops
from pipelines.frames.crops import pieces, square_around, squares
from pipelines.frames.geometry import geometry
from pipelines.frames.preprocess import Preprocessor
from pipelines.models.spec import Preprocessing
from tests.support.media import picture

HEIGHT, WIDTH = 48, 64
SIDE = st.floats(0, 1, width=32)


def edges_of_the_example(box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
    """First and last row and column, as the example for DeepStream cuts them from numbers of pixels."""
    w, h = WIDTH, HEIGHT
    left, top = int(box[0]), int(box[1])
    width, height = int(box[2] - box[0]), int(box[3] - box[1])
    if width <= height:
        diff = int((height - width) / 2)
        return top, top + height, max(0, left - diff), min(w, left + width + diff)
    diff = int((width - height) / 2)
    return max(0, top - diff), min(h, top + height + diff), left, left + width


@settings(deadline=None, max_examples=300)
@given(SIDE, SIDE, SIDE, SIDE)
def test_boxes_are_squared_as_in_the_example(one: float, two: float, three: float, four: float) -> None:
    left, right = sorted((one * WIDTH, two * WIDTH))
    top, bottom = sorted((three * HEIGHT, four * HEIGHT))
    if right - left < 1 or bottom - top < 1:
        return
    rows, columns = square_around((left, top, right, bottom), (HEIGHT, WIDTH))
    expected = edges_of_the_example((left, top, right, bottom))
    assert (rows.start, rows.stop, columns.start, columns.stop) == expected


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ((20, 10, 30, 40), (30, 30)),  # widened by ten on both sides
        ((20, 10, 50, 20), (30, 30)),
        ((2, 10, 12, 40), (30, 22)),  # as far as the frame reaches
        ((20, 1, 50, 11), (21, 30)),
        ((20, 10, 31, 40), (30, 29)),  # an odd pixel is left out
        ((20, 10, 30, 20), (10, 10)),
        ((0, 0, WIDTH, HEIGHT), (HEIGHT, WIDTH)),
        ((20.2, 10.2, 20.4, 10.3), (1, 1)),
        ((63.5, 47.5, 64, 48), (1, 1)),
        ((63.5, 0, 64, 48), (48, 24)),
    ],
)
def test_what_is_cut(box: tuple[float, ...], shape: tuple[int, int]) -> None:
    frames = np.stack([picture(number, width=WIDTH, height=HEIGHT) for number in range(2)])
    (cut,) = squares(frames, np.array([1]), np.array([box], np.float32))
    assert cut.shape == (*shape, 3)
    rows, columns = square_around(box, (HEIGHT, WIDTH))
    assert np.array_equal(np.asarray(cut), frames[1, rows, columns])


@pytest.mark.parametrize(
    ("preprocessing", "room", "expected"),
    [
        (Preprocessing(resize_px=(8, 8)), 20_000, [5]),
        (Preprocessing(resize_px=32, crop_px=(8, 8)), 20_000, [5]),
        (Preprocessing(resize_px=8), 20_000, [2, 1, 2]),  # what has another size is apart
        (Preprocessing(resize_px=(16, 16)), 2 * (12 * 16 * 16 + 20 * 20 * 3), [2, 1, 2]),  # or has no room
        # Pictures count: of 1200 and 2400 bytes, of which the model sees little.
        (Preprocessing(resize_px=(1, 1)), 4000, [2, 2, 1]),
        (Preprocessing(resize_px=(64, 64)), 20_000, [1] * 5),  # at least one goes
    ],
)
def test_pieces_have_one_size_and_little_room(
    monkeypatch: pytest.MonkeyPatch, preprocessing: Preprocessing, room: int, expected: list[int]
) -> None:
    monkeypatch.setattr(crops, "PIECE_BYTES", room)
    pictures = [np.full((20, side, 3), number, np.uint8) for number, side in enumerate((20, 20, 40, 20, 20))]
    made = list(pieces(iter(pictures), preprocessing))
    assert [len(piece) for piece in made] == expected
    assert [int(one[0, 0, 0]) for piece in made for one in piece] == list(range(5))
    for piece in made:
        assert len({geometry(preprocessing, *one.shape[:2]).model_hw for one in piece}) == 1
    assert list(pieces([], preprocessing)) == []


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(resize_px=(24, 32)),
        Preprocessing(resize_px=24, crop_px=(20, 20)),
        Preprocessing(resize_px=(24, 24), fit="letterbox", pad_value=114, channels="BGR"),
    ],
)
def test_dali_prepares_pictures_of_several_sizes_at_once(preprocessing: Preprocessing) -> None:
    preprocess = Preprocessor(preprocessing, device="cpu", max_frames=3)
    sizes = ((40, 60), (30, 30), (77, 12), (40, 60), (9, 50))
    pictures = [picture(number, width=width, height=high) for number, (high, width) in enumerate(sizes)]
    alone = torch.cat([preprocess(one[None]) for one in pictures])
    assert torch.equal(preprocess.pictures(pictures), alone)
