"""Draws clips of moving shapes with their exact masks, and writes them as H.264. Knows no model.

A `Scene` comes from a seed alone and any of its frames can be drawn on its own, in any order.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

WIDTH_PX, HEIGHT_PX, FRAMES_PER_S = 640, 360, 30
CIRCLE, SQUARE, TRIANGLE, STAR = 1, 2, 3, 4
SHUTTER_S = 0.5 / FRAMES_PER_S
SUB_FRAMES = 4
DRIFT_PX = 40
NOISE_SPAN_PX = 64
# Circumradius over the size of a scene's shapes: pointed shapes reach further for the same area.
REACH = {CIRCLE: 0.85, SQUARE: 1.1, TRIANGLE: 1.3, STAR: 1.35}
STAR_WAIST = 0.5
# Each class has its own family of hues (degrees: middle, width), so that a tiny model learns them in minutes;
# it then goes by colour first: with hues swapped between the classes it finds next to nothing.
HUES = {CIRCLE: (0, 36), SQUARE: (125, 50), TRIANGLE: (225, 40), STAR: (54, 22)}

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


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

    def place(self, time_s: float) -> tuple[float, float, float]:
        """Centre x, centre y (pixels) and angle (radians) at `time_s`."""
        margin = self.radius_px / 2
        x, y = (
            margin + _bounce(start + speed * time_s, length - 2 * margin)
            for start, speed, length in zip(
                self.start_px, self.velocity_px_s, (WIDTH_PX, HEIGHT_PX), strict=True
            )
        )
        return x, y, self.angle_rad + self.spin_rad_s * time_s


class Scene:
    """Everything a seed decides: a drifting textured background and shapes, the last one in front."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        rng = np.random.default_rng(seed)
        self._canvas = _background(rng)
        self._drift_rad = rng.uniform(0, 2 * np.pi, 2)
        self._noise = _noise(rng)
        self._shapes = _shapes(rng)

    def draw(self, frame_index: int) -> tuple[Pixels, Pixels]:
        """Pixels uint8 RGB `(H, W, 3)` and class ids uint8 `(H, W)` of one frame.

        The ids hold at the middle of the exposure: a pixel is the frontmost shape that covers its centre.
        """
        time_s = frame_index / FRAMES_PER_S
        top, left = (DRIFT_PX / 2 * (1 + np.sin(self._drift_rad + 0.6 * time_s))).astype(int)
        pixels = self._canvas[top : top + HEIGHT_PX, left : left + WIDTH_PX].copy()
        ids = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
        for shape in self._shapes:
            _paint(shape, time_s, pixels, ids)
        shift = np.random.default_rng([self.seed, frame_index]).integers(0, NOISE_SPAN_PX, 2)
        pixels += self._noise[shift[0] : shift[0] + HEIGHT_PX, shift[1] : shift[1] + WIDTH_PX, None]
        return np.clip(pixels + 0.5, 0, 255).astype(np.uint8), ids


def _bounce(position: float, length: float) -> float:
    """Fold an unbounded position into 0..length as a ball between two walls."""
    return length - abs(position % (2 * length) - length)


def _paint(shape: Shape, time_s: float, pixels: Floats, ids: Pixels) -> None:
    """Lay one shape over a frame: blurred by its motion in `pixels`, sharp in `ids`."""
    x, y, angle = shape.place(time_s)
    reach = shape.radius_px + 8
    top, left = max(int(y - reach), 0), max(int(x - reach), 0)
    window = np.s_[top : int(y + reach) + 1, left : int(x + reach) + 1]
    height, width = ids[window].shape
    columns = np.arange(left, left + width, dtype=np.float32) + 0.5
    rows = np.arange(top, top + height, dtype=np.float32)[:, None] + 0.5
    coverage = np.zeros((height, width), np.float32)
    for offset in (np.arange(SUB_FRAMES) + 0.5) / SUB_FRAMES - 0.5:
        local = _local(columns, rows, *shape.place(time_s + offset * SHUTTER_S))
        coverage += np.clip(0.5 - distance(shape.class_id, *local, shape.radius_px), 0, 1)
    across, along = _local(columns, rows, x, y, angle)
    depth, frequency = shape.stripes
    colour = shape.colour * (1 + depth * np.sin(frequency * across))[..., None]
    pixels[window] += (coverage / SUB_FRAMES)[..., None] * (colour - pixels[window])
    ids[window][distance(shape.class_id, across, along, shape.radius_px) <= 0] = shape.class_id


def _local(columns: Floats, rows: Floats, x: float, y: float, angle: float) -> tuple[Floats, Floats]:
    """Coordinates of a grid of pixels in a shape's own turned frame, float32 `(h, w)` each."""
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    right, down = columns - np.float32(x), rows - np.float32(y)
    return right * cos + down * sin, down * cos - right * sin


def distance(class_id: int, x: Floats, y: Floats, radius: float) -> Floats:
    """Signed distance in pixels from the nearest edge line, negative inside, for a shape around the origin."""
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
        heading, speed_px_s = rng.uniform(0, 2 * np.pi), rng.uniform(20, 170)
        shapes.append(
            Shape(
                class_id=int(class_id),
                radius_px=REACH[int(class_id)] * rng.uniform(42, 72),
                start_px=(rng.uniform(0, WIDTH_PX), rng.uniform(0, HEIGHT_PX)),
                velocity_px_s=(speed_px_s * np.cos(heading), speed_px_s * np.sin(heading)),
                angle_rad=rng.uniform(0, 2 * np.pi),
                spin_rad_s=rng.uniform(-1.5, 1.5),
                colour=_colour(rng, int(class_id)),
                stripes=(rng.uniform(0, 0.15), rng.uniform(0.05, 0.5)),
            )
        )
    return shapes


def _colour(rng: np.random.Generator, class_id: int) -> Floats:
    """A saturated colour of the class's family, RGB float32 `(3,)`."""
    middle, width = HUES[class_id]
    hue = (middle + rng.uniform(-width / 2, width / 2)) / 360 % 1
    colour = colorsys.hsv_to_rgb(hue, rng.uniform(0.7, 1), rng.uniform(0.65, 0.95))
    return np.array([255 * level for level in colour], np.float32)


def _background(rng: np.random.Generator) -> Floats:
    """Cloudy, muted colour, often with stripes: float32 `(H + DRIFT_PX, W + DRIFT_PX, 3)`, about 0..255."""
    height, width = HEIGHT_PX + DRIFT_PX, WIDTH_PX + DRIFT_PX
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


def _noise(rng: np.random.Generator) -> Floats:
    """Sensor noise, larger than a frame so that every frame cuts another window: float32, two axes."""
    size = HEIGHT_PX + NOISE_SPAN_PX, WIDTH_PX + NOISE_SPAN_PX
    return rng.standard_normal(size, np.float32) * np.float32(rng.uniform(1, 7))


def encode(target: Path | IO[bytes], frames: Iterable[Pixels], crf: int) -> None:
    """Write frames `(H, W, 3)` as MP4: H.264 with B-frames, 4:2:0, BT.601 without saying so, as PyAV reads it."""
    with av.open(target, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "bf": "2", "g": "60", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def decode(source: Path | IO[bytes]) -> Iterator[Pixels]:
    """The frames of a clip in presentation order, uint8 RGB `(H, W, 3)`."""
    with av.open(source, "r") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def draw_clip(
    seed: int, frame_indices: Iterable[int], target: Path | IO[bytes], crf: int
) -> npt.NDArray[np.uint8]:
    """Draw and encode some frames of a scene; returns their masks, uint8 `(N, H, W)`."""
    scene, masks = Scene(seed), []

    def frames() -> Iterator[Pixels]:
        for index in frame_indices:
            pixels, ids = scene.draw(index)
            masks.append(ids)
            yield pixels

    encode(target, frames(), crf)
    return np.stack(masks)
