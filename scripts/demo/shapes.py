"""Draws clips of moving shapes with their exact masks and boxes. Knows no model and no codec.

A `Scene` comes from a seed alone and any of its frames can be drawn on its own, in any order.
"""

from __future__ import annotations

import colorsys
import sys
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, Drawn, Pixels

CIRCLE, SQUARE, TRIANGLE, STAR = 1, 2, 3, 4
SHUTTER_S = 0.5 / FRAMES_PER_S
SUB_FRAMES = 4
DRIFT_PX = 40
NOISE_SPAN_PX = 64
# Circumradius over the size of a scene's shapes: pointed shapes reach further for the same area.
REACH = {CIRCLE: 0.85, SQUARE: 1.1, TRIANGLE: 1.3, STAR: 1.35}
STAR_WAIST = 0.5
# Of the circumradius squared.
AREA = {CIRCLE: np.pi, SQUARE: 2.0, TRIANGLE: 0.75 * np.sqrt(3), STAR: 5 * STAR_WAIST * np.sin(np.pi / 5)}
# Less of a shape than this is no fair demand on a detector.
LEAST_SHARE, LEAST_PX = 0.35, 150
# A frame's dominant class has more than this many times the pixels of the next, or there is none.
CLEAR_LEAD = 1.25
# Each class has its own family of hues (degrees: middle, width), so that a tiny model learns them in minutes;
# the segmenter then goes by colour first: with hues swapped between the classes it finds next to nothing.
HUES = {CIRCLE: (0, 36), SQUARE: (125, 50), TRIANGLE: (225, 40), STAR: (54, 22)}

T = TypeVar("T")
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """What is exactly true of one drawn frame, at the middle of its exposure.

    Attributes:
        class_ids: uint8 `(H, W)`, 0 where no shape is: a pixel is the frontmost shape that covers its centre.
        owners: uint8 `(H, W)`, the same by shape: 0, or 1 + its row in `boxes`.
        boxes: float32 `(D, 4)`, x0 y0 x1 y1 in pixels around the visible pixels of each shape that has any.
        box_class: uint8 `(D,)`.
        box_ignored: bool `(D,)`, shapes of which less than `LEAST_SHARE` of their area or less than
            `LEAST_PX` pixels are visible: a detector is not asked for them, and not blamed for finding them.
    """

    class_ids: Pixels
    owners: Pixels
    boxes: Floats
    box_class: Pixels
    box_ignored: npt.NDArray[np.bool_]

    @property
    def dominant(self) -> int:
        """The class with most pixels as an index from 0 (circle), -1 unless it has the `CLEAR_LEAD`."""
        counts = np.bincount(self.class_ids.ravel(), minlength=STAR + 1)[CIRCLE:]
        second, first = np.sort(counts)[-2:]
        return int(counts.argmax()) if first > CLEAR_LEAD * second else -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One shape and its motion: straight on, bouncing before half of it has left the frame; turning.

    Attributes:
        radius_px: of the circle around the shape.
        colour: RGB float32 `(3,)`, 0..255; `stripes` are the depth and the frequency (1/px) of its pattern.
    """

    class_id: int
    radius_px: float
    start_px: tuple[float, float]
    velocity_px_s: tuple[float, float]
    angle_rad: float
    spin_rad_s: float
    colour: Floats
    stripes: tuple[float, float]

    def place(self, time_s: float) -> tuple[float, float, float, float]:
        """Centre x, centre y (pixels), angle (radians) and circumradius (pixels) at `time_s`."""
        margin = self.radius_px / 2
        axes = zip(self.start_px, self.velocity_px_s, (WIDTH_PX, HEIGHT_PX), strict=True)
        x, y = (
            margin + _bounce(start + speed * time_s, length - 2 * margin) for start, speed, length in axes
        )
        return x, y, self.angle_rad + self.spin_rad_s * time_s, self.radius_px


class Drawing(Generic[T]):
    """What a seed decides: a textured background under a drifting camera, with sensor noise.

    Attributes:
        frame_count: after so many frames it starts over.
    """

    frame_count = sys.maxsize

    def __init__(self, seed: int, rng: np.random.Generator, drift_px: int, *, wander: bool = False) -> None:
        self.seed = seed
        self._canvas = _background(rng, drift_px)
        self._drift_px, self._drift_rad = drift_px, rng.uniform(0, 2 * np.pi, 2)
        self._drift_rad_s = rng.uniform(0.2, 0.8, 2) * rng.choice([-1, 1], 2) if wander else 0.6
        # Larger than a frame, so that every frame cuts another window.
        size = HEIGHT_PX + NOISE_SPAN_PX, WIDTH_PX + NOISE_SPAN_PX
        self._noise = rng.standard_normal(size, np.float32) * np.float32(rng.uniform(1, 7))

    def draw(self, frame_index: int) -> Drawn[T]:
        """Pixels uint8 RGB `(H, W, 3)` of one frame, and what is true of it."""
        time_s = frame_index % self.frame_count / FRAMES_PER_S
        drift = 1 + np.sin(self._drift_rad + self._drift_rad_s * time_s)
        pixels = _window(self._canvas, self._drift_px / 2 * drift).copy()
        truth = self.paint(time_s, pixels)
        place = np.random.default_rng([self.seed, frame_index]).integers(0, NOISE_SPAN_PX, 2)
        noisy = pixels + _window(self._noise, place)[..., None]
        return np.clip(noisy + 0.5, 0, 255).astype(np.uint8), truth

    def paint(self, time_s: float, pixels: Floats) -> T:
        """Lay over the background what is in front of it; returns what is true of the frame."""
        raise NotImplementedError


class Scene(Drawing[Truth]):
    """Shapes, the last one in front."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        super().__init__(seed, rng, DRIFT_PX)
        self._shapes = _shapes(rng)

    def paint(self, time_s: float, pixels: Floats) -> Truth:
        layers = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
        for layer, shape in enumerate(self._shapes, start=1):
            paint(shape, time_s, pixels, layers, layer)
        return _truth(layers, self._shapes)


def _window(pixels: Floats, place: npt.NDArray[Any]) -> Floats:
    """A frame's height and width of a larger picture, from `place`: y, x."""
    top, left = place.astype(int)
    return pixels[top : top + HEIGHT_PX, left : left + WIDTH_PX]


def _truth(layers: Pixels, shapes: list[Shape]) -> Truth:
    """What is true of a frame whose pixels belong to `layers`: 0, or 1 + the index in `shapes`."""
    masks = layers == np.arange(1, len(shapes) + 1)[:, None, None]
    (left, right), (top, bottom) = (_span(masks.any(axis)) for axis in (1, 2))
    counts = masks.sum(axis=(1, 2))
    seen = counts > 0
    classes = np.array([shape.class_id for shape in shapes], np.uint8)
    least = [max(LEAST_PX, LEAST_SHARE * AREA[shape.class_id] * shape.radius_px**2) for shape in shapes]
    return Truth(
        class_ids=np.append(np.uint8(0), classes)[layers],
        owners=np.append(0, np.cumsum(seen) * seen).astype(np.uint8)[layers],
        boxes=np.stack([left, top, right, bottom], axis=1)[seen].astype(np.float32),
        box_class=classes[seen],
        box_ignored=(counts < least)[seen],
    )


def _span(shown: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Of each row its first true value, and one past its last."""
    return shown.argmax(1), shown.shape[1] - shown[:, ::-1].argmax(1)


def _bounce(position: float, length: float) -> float:
    """Fold an unbounded position into 0..length as a ball between two walls."""
    return length - abs(position % (2 * length) - length)


def paint(shape: Shape, time_s: float, pixels: Floats, layers: Pixels, layer: int) -> None:
    """Lay one shape over a frame: blurred by its motion in `pixels`, sharp as `layer` in `layers`."""
    x, y, angle, radius = shape.place(time_s)
    reach = radius + 8
    top, left = max(int(y - reach), 0), max(int(x - reach), 0)
    window = np.s_[top : int(y + reach) + 1, left : int(x + reach) + 1]
    height, width = layers[window].shape
    columns = np.arange(left, left + width, dtype=np.float32) + 0.5
    rows = np.arange(top, top + height, dtype=np.float32)[:, None] + 0.5
    coverage = np.zeros((height, width), np.float32)
    for offset in (np.arange(SUB_FRAMES) + 0.5) / SUB_FRAMES - 0.5:
        *blurred, blurred_radius = shape.place(time_s + offset * SHUTTER_S)
        local = _local(columns, rows, *blurred)
        coverage += np.clip(0.5 - distance(shape.class_id, *local, blurred_radius), 0, 1)
    across, along = _local(columns, rows, x, y, angle)
    depth, frequency = shape.stripes
    colour = shape.colour * (1 + depth * np.sin(frequency * across))[..., None]
    pixels[window] += (coverage / SUB_FRAMES)[..., None] * (colour - pixels[window])
    layers[window][distance(shape.class_id, across, along, radius) <= 0] = layer


def _local(columns: Floats, rows: Floats, x: float, y: float, angle: float) -> tuple[Floats, Floats]:
    """Coordinates of a grid of pixels in a shape's own turned frame, float32 `(h, w)` each."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    right, down = columns - np.float32(x), rows - np.float32(y)
    return right * cos + down * sin, down * cos - right * sin


def distance(class_id: int, x: Floats, y: Floats, radius: float) -> Floats:
    """Signed distance in pixels from the nearest edge of a shape around the origin, negative inside."""
    if class_id == CIRCLE:
        return np.asarray(np.hypot(x, y) - np.float32(radius))
    if class_id == SQUARE:
        return np.asarray(np.maximum(abs(x), abs(y)) - np.float32(radius * np.sqrt(0.5)))
    if class_id == TRIANGLE:
        slanted = abs(x) * np.float32(np.sqrt(0.75)) + y * np.float32(0.5)
        return np.asarray(np.maximum(-y, slanted) - np.float32(radius / 2))
    return _star_distance(x, y, radius)


def _star_distance(x: Floats, y: Floats, radius: float) -> Floats:
    """Two mirrors fold the five points onto the upper one, a third halves it: one edge is left to measure."""
    x = abs(x)
    for side in (1, -1):
        mirror_x, mirror_y = np.float32(side * np.cos(np.pi / 5)), np.float32(-np.sin(np.pi / 5))
        beyond = 2 * np.maximum(x * mirror_x + y * mirror_y, 0)
        x, y = x - beyond * mirror_x, y - beyond * mirror_y
    edge_x = STAR_WAIST * np.sin(np.pi / 5)
    edge_y = STAR_WAIST * np.cos(np.pi / 5) - 1
    length = np.hypot(edge_x, edge_y)
    normal_x, normal_y = np.float32(-edge_y / length), np.float32(edge_x / length)
    return np.asarray(abs(x) * normal_x + (y - np.float32(radius)) * normal_y)


def _shapes(rng: np.random.Generator) -> list[Shape]:
    """Each class once and up to two more, in random order."""
    classes = [CIRCLE, SQUARE, TRIANGLE, STAR, *rng.integers(CIRCLE, STAR + 1, rng.integers(0, 3))]
    shapes = []
    for class_id in rng.permutation(classes):
        middle, width = HUES[int(class_id)]
        heading, speed_px_s = rng.uniform(0, 2 * np.pi), rng.uniform(20, 170)
        shapes.append(
            Shape(
                class_id=int(class_id),
                radius_px=REACH[int(class_id)] * rng.uniform(42, 72),
                start_px=(rng.uniform(0, WIDTH_PX), rng.uniform(0, HEIGHT_PX)),
                velocity_px_s=(speed_px_s * np.cos(heading), speed_px_s * np.sin(heading)),
                angle_rad=rng.uniform(0, 2 * np.pi),
                spin_rad_s=rng.uniform(-1.5, 1.5),
                colour=rgb(
                    (middle + rng.uniform(-width / 2, width / 2)) / 360 % 1,
                    rng.uniform(0.7, 1),
                    rng.uniform(0.65, 0.95),
                ),
                stripes=(rng.uniform(0, 0.15), rng.uniform(0.05, 0.5)),
            )
        )
    return shapes


def rgb(hue: float, saturation: float, value: float) -> Floats:
    """A colour of three numbers 0..1 as RGB float32 `(3,)`, 0..255."""
    return np.array([255 * level for level in colorsys.hsv_to_rgb(hue, saturation, value)], np.float32)


def _background(rng: np.random.Generator, drift_px: int) -> Floats:
    """Cloudy, muted colour, often with stripes: float32 `(H + drift_px, W + drift_px, 3)`, about 0..255."""
    height, width = HEIGHT_PX + drift_px, WIDTH_PX + drift_px
    tint = rng.uniform(50, 200) + rng.uniform(-22, 22, 3)
    canvas = np.broadcast_to(tint.astype(np.float32), (height, width, 3)).copy()
    for cells, depth in ((3, 22), (9, 14), (40, 10), (120, 8)):
        # Mostly light and dark, a little colour.
        grain = rng.normal(0, depth * rng.uniform(0.2, 1), (cells, cells * 16 // 9, 1))
        grain = grain + rng.normal(0, depth / 4, (cells, cells * 16 // 9, 3))
        for channel in range(3):
            layer = Image.fromarray(grain[..., channel].astype(np.float32))
            canvas[..., channel] += np.asarray(layer.resize((width, height), Image.Resampling.BILINEAR))
    if rng.random() < 0.5:
        angle, frequency = rng.uniform(0, np.pi), rng.uniform(0.03, 0.4)
        wave = np.arange(width) * np.cos(angle) + np.arange(height)[:, None] * np.sin(angle)
        canvas += (rng.uniform(4, 20) * np.sin(frequency * wave)).astype(np.float32)[..., None]
    return canvas
