"""Drawing on frames: what is where, that nothing falls out of the frame, and that no text breaks it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.rendering.annotate import COCO_BONES, draw_boxes, draw_caption, draw_keypoints, line_px
from tests.support.media import picture

Array = npt.NDArray[Any]
RED, BLUE = (250, 10, 10), (10, 10, 250)


def grey(height: int = 120, width: int = 160, level: int = 90) -> npt.NDArray[np.uint8]:
    return np.full((height, width, 3), level, np.uint8)


def boxes(*rows: tuple[float, float, float, float]) -> npt.NDArray[np.float32]:
    return np.array(rows, np.float32).reshape(-1, 4)


def colours(*rows: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    return np.array(rows, np.uint8).reshape(-1, 3)


def changed(before: Array, after: Array) -> tuple[int, int, int, int]:
    """First and last column and row of what differs: left, top, right, bottom."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    return columns.min(), rows.min(), columns.max(), rows.max()


@pytest.mark.parametrize("width_px", [1, 2, 5])
def test_lines_lie_within_the_box(width_px: int) -> None:
    frame = grey()
    drawn = draw_boxes(frame, boxes((20.2, 30.7, 99.5, 80.0)), [""], colours(RED), width_px)
    expected = grey()
    expected[30:80, 20:100] = RED
    expected[30 + width_px : 80 - width_px, 20 + width_px : 100 - width_px] = 90
    assert np.array_equal(drawn, expected)
    assert np.array_equal(frame, grey())


def test_the_first_box_lies_on_top() -> None:
    drawn = draw_boxes(grey(), boxes((10, 20, 60, 60), (10, 20, 60, 60)), ["", ""], colours(RED, BLUE), 1)
    assert tuple(drawn[40, 10]) == RED


def test_a_width_of_nothing_leaves_the_caption_alone() -> None:
    drawn = draw_boxes(grey(), boxes((20, 40, 100, 80)), ["dog 0.87"], colours(RED), 0)
    assert changed(grey(), drawn)[3] == 39


@pytest.mark.parametrize(
    ("box", "rows"),
    [
        pytest.param((20, 60, 100, 100), slice(0, 60), id="above"),
        pytest.param((20, 0, 100, 100), slice(0, 30), id="within, at the top"),
        pytest.param((20, 3, 100, 100), slice(3, 33), id="within, where there is no room above"),
        pytest.param((150, 60, 160, 100), slice(0, 60), id="moved to the left"),
    ],
)
def test_captions_lie_in_the_frame(box: tuple[float, float, float, float], rows: slice) -> None:
    framed = draw_boxes(grey(), boxes(box), [""], colours(RED), 1)
    named = draw_boxes(grey(), boxes(box), ["person 0.87"], colours(RED), 1)
    left, top, right, bottom = changed(framed, named)
    assert rows.start <= top <= bottom < rows.stop
    assert right - left > 50
    assert (named[top : bottom + 1, left : right + 1] == RED).all(axis=2).sum() > 200


@pytest.mark.parametrize(
    ("colour", "letters"), [(RED, 255), (BLUE, 255), ((250, 240, 30), 0), ((30, 250, 90), 0)]
)
def test_letters_stand_out_from_their_plate(colour: tuple[int, int, int], letters: int) -> None:
    drawn = draw_boxes(grey(), boxes((20, 60, 100, 100)), ["person"], colours(colour), 1)
    far = np.abs(drawn.astype(int) - letters).max(axis=2)
    assert far.min() < 40


@pytest.mark.parametrize(
    "box", [(-50, -50, -1, -1), (160, 0, 200, 50), (0, 120, 50, 200), (np.nan, 0, 9, 9), (0, 0, np.inf, 9)]
)
def test_a_box_outside_of_the_frame_is_not_drawn(box: tuple[float, float, float, float]) -> None:
    assert np.array_equal(draw_boxes(grey(), boxes(box), ["dog"], colours(RED), 3), grey())


def test_a_box_is_cut_at_the_frame() -> None:
    drawn = draw_boxes(grey(), boxes((-30, -20, 999, 999)), [""], colours(RED), 2)
    expected = draw_boxes(grey(), boxes((0, 0, 160, 120)), [""], colours(RED), 2)
    assert np.array_equal(drawn, expected)


def test_nothing_to_draw_leaves_the_frame() -> None:
    none = boxes()
    assert np.array_equal(draw_boxes(grey(), none, [], colours(), 2), grey())
    assert np.array_equal(draw_keypoints(grey(), np.empty((0, 17, 3), np.float32), colours(), 2), grey())
    assert np.array_equal(draw_keypoints(grey(), np.empty((1, 0, 3), np.float32), colours(RED), 2), grey())
    assert np.array_equal(draw_caption(grey(), []), grey())
    assert np.array_equal(draw_caption(grey(), ["", ""]), grey())


def person() -> npt.NDArray[np.float32]:
    """17 points on a circle."""
    angles = np.arange(17) * 2 * np.pi / 17
    points = [80 + 50 * np.cos(angles), 60 + 50 * np.sin(angles), np.ones(17)]
    return np.array(points, np.float32).T[None]


def test_a_person_has_points_and_bones() -> None:
    points = person()
    drawn = draw_keypoints(grey(), points, colours(RED), 2)
    for x, y, _ in points[0]:
        assert tuple(drawn[int(y), int(x)]) == (255, 255, 255)
    for start, end in COCO_BONES:
        x, y = points[0, [start, end], :2].mean(axis=0)
        assert (drawn[int(y) - 2 : int(y) + 3, int(x) - 2 : int(x) + 3] == RED).all(axis=2).any()


def test_keypoints_that_are_not_seen_are_not_drawn() -> None:
    points = person()
    points[0, 1:, 2] = 0
    points[0, 2, :2], points[0, 2, 2] = np.nan, 1
    points[0, 3, :2], points[0, 3, 2] = (-40, 900), 1
    left, top, right, bottom = changed(grey(), draw_keypoints(grey(), points, colours(RED), 2))
    assert 126 <= left <= right <= 134
    assert 56 <= top <= bottom <= 64


def test_other_keypoints_have_no_bones() -> None:
    drawn = draw_keypoints(grey(), person()[:, :16], colours(RED), 2)
    assert np.array_equal(drawn[50:70, 60:100], grey()[50:70, 60:100])


@pytest.mark.parametrize("level", [0, 90, 170, 255])
def test_a_banner_is_legible_on_any_frame(level: int) -> None:
    drawn = draw_caption(grey(level=level), ["0.87 tennis racket", "0.05 dog"])
    left, top, right, bottom = changed(grey(level=level), drawn) if level else (0, 0, 100, 25)
    assert (left, top) == (0, 0)
    assert right < 159
    assert bottom < 60
    banner = drawn[: bottom + 1, : right + 1]
    assert banner.max() > 240
    assert np.median(banner) <= 90


def test_a_banner_has_a_row_a_line() -> None:
    one, three = (changed(grey(), draw_caption(grey(), ["dog"] * count))[3] for count in (1, 3))
    assert three > 2.2 * one


SIZES = [(1, 1), (8, 8), (1, 300), (300, 1), (13, 20), (2160, 3840)]


@pytest.mark.parametrize("hw", SIZES)
def test_frames_of_all_sizes(hw: tuple[int, int]) -> None:
    """Text that does not fit is left out; on larger frames it is larger."""
    frame = picture(1, width=max(8, hw[1]), height=hw[0])[:, : hw[1]]
    box = boxes((0, 0, hw[1], hw[0]), (hw[1] / 4, hw[0] / 3, hw[1] / 2, hw[0] / 2))
    drawn = draw_boxes(frame, box, ["person 0.87", "dog"], colours(RED, BLUE), line_px(hw))
    captioned = draw_caption(draw_keypoints(drawn, person(), colours(RED), line_px(hw)), ["person", "dog"])
    assert captioned.shape == (*hw, 3)
    assert captioned.dtype == np.uint8
    assert tuple(drawn[hw[0] - 1, 0]) == RED or hw[0] < 20


TEXTS = [
    "Straße, Öl, Čeština",
    "日本語 한국어",
    "🚗🚙",
    "שלום مرحبا",
    "a\u0301\u0302" * 20,
    "\0\n\t\x1b[31m\u202e",
    "\ud800",
    "x" * 100_000,
    " ",
]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_can_be_drawn(text: str) -> None:
    drawn = draw_boxes(grey(), boxes((20, 60, 100, 100)), [text], colours(RED), 1)
    assert draw_caption(drawn, [text, "dog"]).shape == (120, 160, 3)


def test_long_text_is_shortened() -> None:
    named = draw_boxes(grey(), boxes((0, 60, 160, 100)), ["person " * 30], colours(RED), 0)
    left, _, right, _ = changed(grey(), named)
    assert left == 0
    assert 140 <= right <= 159


@pytest.mark.parametrize(
    ("hw", "expected"), [((8, 8), 1), ((480, 640), 2), ((1080, 1920), 4), ((2160, 3840), 7)]
)
def test_lines_fit_the_frame(hw: tuple[int, int], expected: int) -> None:
    assert line_px(hw) == expected
