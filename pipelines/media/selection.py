"""Which frames of a medium are answered: a time range, a rate, key frames, every n-th. Knows no decoder.

Frames come and go one by one. A rate holds one of them back: how long a frame is shown depends on the time of
the next one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from pipelines.media.medium import Limits
from pipelines.protocol.errors import TooLarge, TrividError
from pipelines.protocol.options import Options

Frame = TypeVar("Frame")

# At 15 frames a second a frame may be shown for over a minute. A file that claims years is not believed.
MAX_REPEATS = 1000
# A plan pays only if at most one of so many frames is asked for (docs/performance.md).
LEAST_LEFT_OUT = 3
# The error of sums of times in float64.
EPSILON_S = 1e-9


@dataclass(frozen=True, slots=True)
class Selected(Generic[Frame]):
    """A frame, its number in the whole medium, its time, and whether it is a key frame."""

    frame_index: int
    pts_s: float
    frame: Frame
    is_key: bool = True


def select(
    frames: Iterable[Selected[Frame]],
    options: Options,
    limits: Limits,
    *,
    tick_s: float = 0.0,
    repeat: bool = False,
) -> Iterator[Selected[Frame]]:
    """The frames that the options ask for, in the order given; stops reading after the last of them.

    `start_s` and `end_s` bound the time; a `start_s` of 0 takes negative times too. `fps` or `keyframes_only`
    choose among the frames between them. `stride` then takes every n-th of these, beginning with the first.

    Args:
        frames: all frames of the medium, in presentation order.
        tick_s: how finely the medium counts time; for `fps`, times within half a tick are equal.
        repeat: with `fps`, a frame is given as often as the rate asks, up to MAX_REPEATS times; else once.

    Raises:
        TooLarge: `limits.max_frames` are selected and there is one more.
    """
    begun = (one for one in frames if options.start_s <= 0 or one.pts_s >= options.start_s)
    if options.fps > 0:
        chosen = _resampled(begun, options.fps, options.end_s, tick_s / 2 + EPSILON_S, repeat=repeat)
    else:
        within = itertools.takewhile(lambda one: one.pts_s < options.end_s, begun)
        chosen = (one for one in within if one.is_key or not options.keyframes_only)
    for taken, one in enumerate(itertools.islice(chosen, 0, None, options.stride)):
        if taken == limits.max_frames:
            raise TooLarge(
                f"more than {limits.max_frames} frames are selected, the server's limit for one answer",
                hint="use the stream endpoint, or set max_frames, fps, stride, start_s or end_s",
            )
        yield one
        if taken + 1 == options.max_frames:
            return


def leaves_out(options: Options, fps: float | None) -> bool:
    """Whether a plan pays: the options take few frames of a medium. `fps` is its rate; None: unknown."""
    each = (fps or 0) / options.fps if options.fps else 1.0
    return each * options.stride >= LEAST_LEFT_OUT


def _resampled(
    frames: Iterable[Selected[Frame]], fps: float, end_s: float, slack_s: float, *, repeat: bool
) -> Iterator[Selected[Frame]]:
    """The frame that is shown at each of the times t0 + k/fps, t0 being that of the first.

    At a constant rate these are the frames of torchvision's `VideoClips._resample_video_idx`. The last frame
    is shown for as long as the one before it. If the medium breaks off, the frames before that come first.
    """
    slots: _Slots | None = None
    held: Selected[Frame] | None = None
    shown_s, fault = 0.0, None
    try:
        for one in frames:
            if held is None or slots is None:
                slots = _Slots(start_s=one.pts_s, fps=fps, slack_s=slack_s, most=MAX_REPEATS if repeat else 1)
            else:
                shown_s = one.pts_s - held.pts_s
                yield from itertools.repeat(held, slots.take(min(one.pts_s, end_s)))
            if one.pts_s >= end_s:
                return
            held = one
    except TrividError as error:
        fault = error
    if held is not None and slots is not None:
        # Its end is a sum of times, each off by half a tick. A single frame's duration is unknown.
        last_s = held.pts_s + shown_s - min(2 * slack_s, shown_s / 4)
        rest = slots.take(min(last_s, end_s)) if slots.past else 1
        yield from itertools.repeat(held, rest)
    if fault is not None:
        raise fault


@dataclass(slots=True, kw_only=True)
class _Slots:
    """Times k/fps after a start, taken in order: `past` of them so far, and `most` at once."""

    start_s: float
    fps: float
    slack_s: float
    most: int
    past: int = 0

    def take(self, time_s: float) -> int:
        """How many of them lie before a time, not counting those already past."""
        before = math.ceil((time_s - self.slack_s - self.start_s) * self.fps)
        count = before - self.past
        self.past = max(self.past, before)
        return min(max(0, count), self.most)


def in_groups(frames: Iterable[Frame], length: int) -> Iterator[list[Frame]]:
    """Lists of `length` frames, the last one maybe shorter; an error comes after the frames before it."""
    group: list[Frame] = []
    try:
        for frame in frames:
            group.append(frame)
            if len(group) == length:
                yield group
                group = []
    except TrividError:
        if group:
            yield group
        raise
    if group:
        yield group
