"""Which frames of a medium are answered: a time range, a rate, key frames, every n-th. Knows no decoder.

Frames come and go one by one. A rate holds one of them back: how long a frame is shown depends on the time of
the next one.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from pipelines.media.medium import Limits
from pipelines.protocol.errors import InvalidMedia, InvalidOptions, TooLarge, TrividError
from pipelines.protocol.options import Options

Frame = TypeVar("Frame")
Other = TypeVar("Other")

# At 15 frames a second a frame may be shown for over a minute. A file that claims years is not believed.
MAX_REPEATS = 1000
# A plan pays only if at most one of so many frames is asked for (docs/performance.md).
LEAST_LEFT_OUT = 3
# The error of sums of times in float64.
EPSILON_S = 1e-9


@dataclass(frozen=True, slots=True)
class Selected(Generic[Frame]):
    """A frame, its number in the whole medium and its time.

    Attributes:
        stretch, damaged: as of a `FrameBatch`.
        shift_s: what `played_s` is after `pts_s`.
    """

    frame_index: int
    pts_s: float
    frame: Frame
    is_key: bool = True
    stretch: int = 0
    damaged: bool = False
    shift_s: float = 0.0

    @property
    def played_s(self) -> float:
        """As of a `FrameBatch`."""
        return self.pts_s + self.shift_s

    def of(self, other: Other) -> Selected[Other]:
        """The same frame in another form."""
        return Selected(
            self.frame_index, self.pts_s, other, self.is_key, self.stretch, self.damaged, self.shift_s
        )


def columns(group: Sequence[Selected[Any]]) -> dict[str, Any]:
    """What a `FrameBatch` says of these frames beside their pixels."""
    return {
        "pts_s": np.array([one.pts_s for one in group]),
        "frame_index": np.array([one.frame_index for one in group], np.int64),
        "stretch": np.array([one.stretch for one in group], np.int64),
        "damaged": np.array([one.damaged for one in group], np.bool_),
        "played_s": np.array([one.played_s for one in group]),
    }


def refuse_damaged(one: Selected[Any], options: Options) -> None:
    """Raise InvalidMedia if a frame is damaged and the options want none that is."""
    if one.damaged and options.damaged == "error":
        raise InvalidMedia(
            f"frame {one.frame_index} at {one.pts_s:.3f} s is damaged, or depends on others that are damaged "
            "or lost",
            hint="without damaged=error it is answered and marked",
        )


def select(
    frames: Iterable[Selected[Frame]],
    options: Options,
    limits: Limits,
    *,
    tick_s: float = 0.0,
    repeat: bool = False,
    look_ahead: Callable[[], None] = lambda: None,
) -> Iterator[Selected[Frame]]:
    """The frames that the options ask for, in the order given; stops reading after the last of them.

    `start_s` and `end_s` bound the medium's own times. `fps` or `keyframes_only` choose among the frames
    between them; `fps` begins anew in every stretch. `stride` then takes every n-th, from the first on.

    Args:
        frames: all frames of the medium, in presentation order.
        tick_s: how finely the medium counts time; for `fps`, times within half a tick are equal.
        repeat: with `fps`, a frame is given as often as the rate asks, up to MAX_REPEATS times; else once.
        look_ahead: raises if no frame at all lies in the range; asked once, if the first ones lie after it.

    Raises:
        TooLarge: `limits.max_frames` are selected and there is one more.
        InvalidOptions: no frame lies between `start_s` and `end_s`.
    """
    within = _within(frames, options, look_ahead)
    if options.fps > 0:
        slack_s = tick_s / 2 + EPSILON_S
        chosen = _resampled(within, options.fps, options.end_s, slack_s, repeat=repeat)
    else:
        before_end = itertools.takewhile(lambda one: one.pts_s < options.end_s, within)
        chosen = (one for one in before_end if one.is_key or not options.keyframes_only)
    for taken, one in enumerate(itertools.islice(chosen, 0, None, options.stride)):
        if taken == limits.max_frames:
            raise TooLarge(
                f"more than {limits.max_frames} frames are selected, the server's limit for one answer",
                hint="use the stream endpoint, or set max_frames, fps, stride, start_s or end_s",
            )
        yield one
        if taken + 1 == options.max_frames:
            return


def lies_within(time_s: float, options: Options) -> bool:
    """Whether a time of the medium is between `start_s` and `end_s`."""
    return time_s < options.end_s and (options.start_s <= 0 or time_s >= options.start_s)


def outside(options: Options, first_s: float, last_s: float) -> InvalidOptions:
    """The error of a range in which no frame lies; the medium's earliest and latest times."""
    asked = [f"{name}={getattr(options, name)}" for name in ("start_s", "end_s") if options.is_set(name)]
    return InvalidOptions(
        f"no frame of the medium lies within {', '.join(asked)}",
        hint=f"its frames lie from {first_s:.3f} s to {last_s:.3f} s",
    )


def _within(
    frames: Iterable[Selected[Frame]], options: Options, look_ahead: Callable[[], None]
) -> Iterator[Selected[Frame]]:
    """Frames between `start_s` and `end_s`, and the one after them that ends the selection.

    That is the first at `end_s` or later, though times may fall after it: the rest is not read for that. A
    `start_s` of 0 takes negative times too.
    """
    first_s, last_s, begun, looked = math.inf, -math.inf, False, False
    for one in frames:
        first_s, last_s = min(first_s, one.pts_s), max(last_s, one.pts_s)
        if lies_within(one.pts_s, options):
            begun = True
            yield one
        elif one.pts_s >= options.end_s:
            if begun:
                yield one
                return
            if not looked:
                look_ahead()
            looked = True
    if not begun and first_s <= last_s:
        raise outside(options, first_s, last_s)


def leaves_out(options: Options, fps: float | None) -> bool:
    """Whether a plan pays: the options take few frames of a medium. `fps` is its rate; None: unknown."""
    each = (fps or 0) / options.fps if options.fps else 1.0
    return each * options.stride >= LEAST_LEFT_OUT


def _resampled(
    frames: Iterable[Selected[Frame]], fps: float, end_s: float, slack_s: float, *, repeat: bool
) -> Iterator[Selected[Frame]]:
    """The frames of all stretches at a rate."""
    for _, stretch in itertools.groupby(frames, lambda one: one.stretch):
        yield from _of_stretch(stretch, fps, end_s, slack_s, repeat=repeat)


def _of_stretch(
    frames: Iterable[Selected[Frame]], fps: float, end_s: float, slack_s: float, *, repeat: bool
) -> Iterator[Selected[Frame]]:
    """The frames of a stretch that are shown at the times t0 + k/fps, t0 being that of the first.

    At a constant rate these are the frames of torchvision's `VideoClips._resample_video_idx`. The last frame
    is shown for as long as the one before it. If the medium breaks off, the frames before that come first.
    """
    slots: _Slots | None = None
    held: Selected[Frame] | None = None
    shown_s, fault = 0.0, None
    try:
        for one in frames:
            if held is None or slots is None:
                most = MAX_REPEATS if repeat else 1
                slots = _Slots(start_s=one.played_s, fps=fps, slack_s=slack_s, most=most)
            else:
                shown_s = one.played_s - held.played_s
                yield from itertools.repeat(held, slots.take(min(one.played_s, end_s + one.shift_s)))
            if one.pts_s >= end_s:
                return
            held = one
    except TrividError as error:
        fault = error
    if held is not None and slots is not None:
        # Its end is a sum of times, each off by half a tick. A single frame's duration is unknown.
        last_s = held.played_s + shown_s - min(2 * slack_s, shown_s / 4)
        rest = slots.take(min(last_s, end_s + held.shift_s)) if slots.past else 1
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
