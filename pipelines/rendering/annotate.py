"""Boxes, keypoints and text on frames, with Pillow. Knows no task: it draws what it is told.

All functions take uint8 RGB `(H, W, 3)` and return a new array. Coordinates are continuous: 0 is the left
edge of the first pixel. What does not fit, such as text on a tiny frame, is shortened or left out.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Pixels = npt.NDArray[np.uint8]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
# The smallest legible text size, and how many lines of text a frame should hold.
LEAST_FONT_PX = 10
FONT_LINES, BANNER_LINES = 50, 36
LONGEST_TEXT = 200
DOTS = ".."
# The width of a line, as a part of a frame's shorter side.
LINE_PART = 300
BANNER_SHADE = 0.35
DARK, LIGHT = (0, 0, 0), (255, 255, 255)
# A person's bones between COCO's 17 keypoints, from 0: "skeleton" in its person_keypoints annotations.
COCO_BONES = (
    *((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8)),
    *((7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6)),
)
COCO_KEYPOINTS = 17


def line_px(frame_hw: tuple[int, int]) -> int:
    """A line width that is visible on a frame of this size and hides little of it."""
    return max(1, round(min(frame_hw) / LINE_PART))


def draw_boxes(
    pixels_hwc: Pixels,
    boxes_d4: npt.NDArray[np.float32],
    captions: Sequence[str],
    colours_d3: Pixels,
    width_px: int,
) -> Pixels:
    """Outlines just within the boxes, each with its caption above it or, at the top of the frame, inside it.

    Args:
        boxes_d4: `(D, 4)` xyxy in pixels; the first is drawn last, on top. Boxes outside are left out.
        captions: D texts; an empty one draws no caption.
        colours_d3: uint8 RGB `(D, 3)`.
        width_px: width of the lines; 0 for none.
    """
    image = Image.fromarray(pixels_hwc)
    draw = ImageDraw.Draw(image)
    spans = [_span(box, image.size) for box in boxes_d4]
    for span, colour in reversed(list(zip(spans, colours_d3, strict=True))):
        if span is not None and width_px > 0:
            draw.rectangle(span, outline=_rgb(colour), width=width_px)
    font = _font(image.height, FONT_LINES)
    for span, caption, colour in reversed(list(zip(spans, captions, colours_d3, strict=True))):
        if span is not None:
            _label(draw, image.size, span, caption, _rgb(colour), font)
    return np.array(image)


def draw_keypoints(
    pixels_hwc: Pixels, keypoints_dp3: npt.NDArray[np.float32], colours_d3: Pixels, width_px: int
) -> Pixels:
    """The points of D objects, and the bones between them if they are COCO's 17 points of a person.

    Args:
        keypoints_dp3: `(D, P, 3)` x, y, and above 0 if visible. Points outside the frame are not drawn.
        colours_d3: uint8 RGB `(D, 3)`, of the bones; the points on them are white.
        width_px: width of the bones; the points are three times as wide.
    """
    image = Image.fromarray(pixels_hwc)
    draw = ImageDraw.Draw(image)
    radius = 1.5 * width_px
    for points, colour in zip(keypoints_dp3, colours_d3, strict=True):
        seen = [_inside(point, image.size) for point in points]
        if len(points) == COCO_KEYPOINTS:
            for start, end in COCO_BONES:
                if seen[start] and seen[end]:
                    ends = [*map(float, points[start, :2]), *map(float, points[end, :2])]
                    draw.line(ends, fill=_rgb(colour), width=width_px)
        for x, y, _ in points[seen].tolist():
            spot = (x - radius, y - radius, x + radius, y + radius)
            draw.ellipse(spot, fill=LIGHT, outline=_rgb(colour))
    return np.array(image)


def draw_caption(pixels_hwc: Pixels, lines: Sequence[str]) -> Pixels:
    """As many lines of text as fit, at the top left, white on the darkened frame."""
    height_px, width_px = pixels_hwc.shape[:2]
    font = _font(height_px, BANNER_LINES)
    line_height_px = _line_height_px(font)
    margin_px = line_height_px // 4
    room_px = height_px - 2 * margin_px
    shown = [_shortened(line, font, width_px - 2 * margin_px) for line in lines[: room_px // line_height_px]]
    widest_px = max((_length_px(line, font) for line in shown), default=0)
    pixels = np.array(pixels_hwc)
    if not widest_px:
        return pixels
    banner = (
        slice(len(shown) * line_height_px + 2 * margin_px),
        slice(min(width_px, widest_px + 2 * margin_px)),
    )
    pixels[banner] = (pixels[banner] * BANNER_SHADE).astype(np.uint8)
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    for number, line in enumerate(shown):
        draw.text((margin_px, margin_px + number * line_height_px), line, fill=LIGHT, font=font)
    return np.array(image)


def _span(box: npt.NDArray[np.float32], size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """The first and last column and row that a box touches, (x, y, x, y), in a frame of (width, height)."""
    if not np.isfinite(box).all():
        return None
    left, top, right, bottom = (float(edge) for edge in box)
    if left >= size[0] or top >= size[1] or right <= 0 or bottom <= 0:
        return None
    first = [max(0, math.floor(edge)) for edge in (left, top)]
    ends = (math.ceil(edge) - 1 for edge in (right, bottom))
    last = [max(start, min(side - 1, end)) for start, side, end in zip(first, size, ends, strict=True)]
    return first[0], first[1], last[0], last[1]


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    span: tuple[int, int, int, int],
    caption: str,
    colour: tuple[int, int, int],
    font: Font,
) -> None:
    """A caption on a plate of the box's colour, moved into the frame."""
    height_px = _line_height_px(font)
    pad_px = height_px // 6
    text = _shortened(caption, font, size[0] - 2 * pad_px)
    if not text or height_px > size[1]:
        return
    width_px = _length_px(text, font) + 2 * pad_px
    left = min(span[0], size[0] - width_px)
    top = span[1] - height_px if span[1] >= height_px else min(span[1], size[1] - height_px)
    draw.rectangle((left, top, left + width_px - 1, top + height_px - 1), fill=colour)
    draw.text((left + pad_px, top), text, fill=_contrast(colour), font=font)


def _inside(point: npt.NDArray[np.float32], size: tuple[int, int]) -> bool:
    """Whether a keypoint is visible and within the frame; never if a coordinate is NaN."""
    x, y, visible = (float(value) for value in point)
    return visible > 0 and 0 <= x <= size[0] and 0 <= y <= size[1]


def _rgb(colour: Pixels) -> tuple[int, int, int]:
    red, green, blue = (int(level) for level in colour)
    return red, green, blue


def _contrast(colour: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black on bright colours, white on dark ones, by the luma of BT.601."""
    red, green, blue = colour
    return DARK if 0.299 * red + 0.587 * green + 0.114 * blue > 127 else LIGHT


@cache
def _font_of(size_px: int) -> Font:
    return ImageFont.load_default(size_px)


def _font(height_px: int, lines: int) -> Font:
    return _font_of(max(LEAST_FONT_PX, round(height_px / lines)))


def _line_height_px(font: Font) -> int:
    """From one line's top to the next, measured on the highest and lowest Latin letters."""
    return math.ceil(font.getbbox("ÁÜgj|")[3] * 1.15)


def _length_px(text: str, font: Font) -> int:
    return math.ceil(font.getlength(text))


def _shortened(text: str, font: Font, room_px: int) -> str:
    """As much of one line of text as there is room for; empty if not even a letter fits.

    Pillow's own font knows only ASCII and shows other letters as boxes. So letters lose their accents.
    """
    letters = unicodedata.normalize("NFKD", text[:LONGEST_TEXT])
    clean = "".join(
        letter if letter.isprintable() else " " for letter in letters if not unicodedata.combining(letter)
    )
    if _length_px(clean, font) <= room_px:
        return clean
    fewest, most = 0, len(clean)
    while fewest < most:
        middle = (fewest + most + 1) // 2
        if _length_px(f"{clean[:middle]}{DOTS}", font) <= room_px:
            fewest = middle
        else:
            most = middle - 1
    return f"{clean[:fewest]}{DOTS}" if fewest else ""
