"""Draws clips in which one shape does one thing at a time, with the action of every frame. Knows no model.

Each action has a shape of its own, which comes and goes with it. Neither class nor colour tells the action,
nor does the background, which drifts as it likes; only that no circle rotates, since none would be seen to.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX
from scripts.demo.shapes import CIRCLE, SQUARE, STAR, Drawing, Floats, Shape, paint, rgb

MOVES_LEFT, MOVES_RIGHT, ROTATES, GROWS = range(4)
PAN_PX = 160
SEGMENTS = 40
# Of 8 frames, 6 show what the clip is called: a clip across a change has no action.
CLEAR_SHARE = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor(Shape):
    """A shape and its one action, from `begin_s` to `end_s`.

    Attributes:
        start_px, angle_rad, radius_px: at `begin_s`.
        wobble: phases (radians) of the slight swaying and breathing that every shape shows.
        growth_hz: rate of exponential growth.
    """

    action: int
    begin_s: float
    end_s: float
    growth_hz: float
    wobble: tuple[float, float]

    def place(self, time_s: float) -> tuple[float, float, float, float]:
        """As a shape's, without walls."""
        passed_s = time_s - self.begin_s
        x, y = (
            start + speed * passed_s for start, speed in zip(self.start_px, self.velocity_px_s, strict=True)
        )
        # At most 0.3 rad/s and 8 % in a second, well under what rotating and growing shapes do.
        sway = self.angle_rad + 0.15 * np.sin(2 * time_s + self.wobble[0])
        breath = 1 + 0.04 * np.sin(2 * time_s + self.wobble[1])
        radius = self.radius_px * breath * np.exp(self.growth_hz * passed_s)
        return x, y, float(sway + self.spin_rad_s * passed_s), float(radius)


class ActionScene(Drawing[int]):
    """Who acts when, before a wandering camera; of each frame its action is known, 0..3.

    Every four actions show each once, in random order, of 1.5 to 2 s each; after the last it starts over.
    """

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng([seed, 1])
        super().__init__(seed, rng, PAN_PX, wander=True)
        self.actors: list[Actor] = []
        while len(self.actors) < SEGMENTS:
            for action in rng.permutation(4):
                begin_s = self.actors[-1].end_s if self.actors else 0.0
                self.actors.append(_actor(rng, int(action), begin_s))
        self.frame_count = int(self.actors[-1].end_s * FRAMES_PER_S)

    def paint(self, time_s: float, pixels: Floats) -> int:
        actor = next(actor for actor in self.actors if time_s < actor.end_s)
        paint(actor, time_s, pixels, np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8), 1)
        return actor.action


def _actor(rng: np.random.Generator, action: int, begin_s: float) -> Actor:
    """A shape for one action; one that moves starts so that it ends within the frame."""
    seconds = rng.uniform(1.5, 2)
    classes = range(SQUARE, STAR + 1) if action == ROTATES else range(CIRCLE, STAR + 1)
    radius_px = rng.uniform(32, 50) if action == GROWS else rng.uniform(42, 85)
    side = {MOVES_LEFT: -1, MOVES_RIGHT: 1}.get(action, 0)
    heading, drift_px_s = rng.uniform(0, 2 * np.pi), rng.uniform(0, 25)
    velocity_px_s = (
        side * rng.uniform(110, 220) + (0 if side else drift_px_s * np.cos(heading)),
        drift_px_s * np.sin(heading),
    )
    start_px = (_start(rng, WIDTH_PX, velocity_px_s[0] * seconds), _start(rng, HEIGHT_PX, 0))
    return Actor(
        action=action,
        begin_s=begin_s,
        end_s=begin_s + seconds,
        class_id=int(rng.choice(classes)),
        radius_px=radius_px,
        start_px=start_px,
        velocity_px_s=velocity_px_s,
        angle_rad=rng.uniform(0, 2 * np.pi),
        spin_rad_s=rng.uniform(1.3, 3) * rng.choice([-1, 1]) if action == ROTATES else 0,
        growth_hz=rng.uniform(0.35, 0.55) if action == GROWS else 0,
        wobble=(rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)),
        # Of any hue, saturated so that it stands out from the muted background.
        colour=rgb(rng.uniform(0, 1), rng.uniform(0.6, 1), rng.uniform(0.5, 0.95)),
        stripes=(rng.uniform(0, 0.3), rng.uniform(0.05, 0.5)),
    )


def _start(rng: np.random.Generator, length_px: int, travel_px: float, margin_px: int = 60) -> float:
    """Where along an axis to start so that start and end keep `margin_px` from both borders."""
    lowest, highest = margin_px - min(travel_px, 0), length_px - margin_px - max(travel_px, 0)
    return rng.uniform(lowest, highest)


def clip_action(actions: npt.NDArray[np.int64]) -> int:
    """The most frequent action of a clip's frames, -1 unless `CLEAR_SHARE` of them show it."""
    counts = np.bincount(actions)
    return int(counts.argmax()) if counts.max() >= CLEAR_SHARE * len(actions) else -1
