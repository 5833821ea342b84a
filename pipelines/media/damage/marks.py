"""Which decoded frames are damaged: by what decoder and demuxer say, and by what depends on what.

A frame is damaged from the first broken packet on, in decoding order, until a key frame heals the stream.
Knows no container and no options.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from av.video.frame import PictureType, VideoFrame

# The most frames that one waits for: those of the deepest hierarchies of B pictures that are in use.
MOST_HELD = 16

# A frame, and whether it is damaged.
Judged = tuple[VideoFrame, bool]


class _Place(NamedTuple):
    """A packet's number in decoding order, and its time in ticks."""

    number: int
    ticks: float


@dataclass(slots=True)
class _Held:
    """A frame that came out; without a place, a B picture waits for the next picture of another type."""

    frame: VideoFrame
    place: _Place | None
    damaged: bool = False
    between: bool = False


class Marks:
    """Follows packets into the decoder and frames out of it.

    A picture that is shown early may depend on one that is shown later. So a frame waits until all that were
    decoded before it have come.
    """

    def __init__(self) -> None:
        self._fed = 0
        # Packets whose frames have not come yet: ticks → number.
        self._inside: dict[int, int] = {}
        self._held: list[_Held] = []
        self._breaks: list[_Place] = []
        self._key = self._key_before = _Place(-1, float("-inf"))
        self._errors = 0
        self._half_healed = self._broken = False

    def feed(self, packet: Any, *, breaks_after: int | None = None) -> None:
        """A packet goes into the decoder; `breaks_after`: how many packets after it the damage begins."""
        ticks = packet.pts if packet.pts is not None else packet.dts
        if ticks is not None and not packet.is_discard:
            self._inside[ticks] = self._fed
        if breaks_after is not None:
            self._break(_Place(self._fed + breaks_after, float("inf") if ticks is None else ticks))
        self._fed += 1

    def fail(self) -> None:
        """The decoder gave an error, so a packet has no frame: its time tells which, once it is past."""
        self._errors += 1
        if not self._inside:
            self._break(_Place(self._fed, float("inf")))

    def take(self, frames: Iterable[VideoFrame], *, certain: bool = False) -> Iterator[Judged]:
        """Frames that came out, in presentation order → those that need not wait.

        Args:
            certain: these frames are damaged, whatever the decoder says.
        """
        for frame in frames:
            self._held.append(self._enter(frame, certain=certain))
            while self._held and (len(self._held) > MOST_HELD or not self._waits(self._held[0])):
                yield self._judge(self._held.pop(0))

    def rest(self) -> Iterator[Judged]:
        """The frames that still wait, when the decoder is empty."""
        self._lose(float("inf"))
        yield from map(self._judge, self._held)

    def _enter(self, frame: VideoFrame, *, certain: bool) -> _Held:
        ticks = frame.pts if frame.pts is not None else frame.dts
        number = None if ticks is None else self._inside.pop(ticks, None)
        place = None if ticks is None or number is None else _Place(number, ticks)
        if ticks is not None:
            self._lose(ticks)
        damaged = certain or bool(frame.is_corrupt)
        if frame.key_frame and self._heals(frame):
            self._broken = False
            if place is not None:
                self._key_before, self._key, self._errors = self._key, place, 0
                self._breaks = [one for one in self._breaks if one.number >= self._key_before.number]
        if damaged:
            self._break(place or _Place(self._fed, float("inf")))
        between = place is None and frame.pict_type == PictureType.B
        return _Held(frame, place, damaged or (place is None and self._broken), between)

    def _heals(self, frame: VideoFrame) -> bool:
        """An intra picture heals at once. Else a refresh begins here, and ends where the next one begins."""
        whole = frame.pict_type == PictureType.I
        healed, self._half_healed = whole or self._half_healed, not whole
        return healed

    def _break(self, place: _Place) -> None:
        self._breaks.append(place)
        self._broken, self._half_healed = True, False
        for one in self._held:
            one.damaged |= one.between

    def _lose(self, ticks: float) -> None:
        """Packets before this time have no frame: skipped, or after an error of the decoder lost."""
        for lost in [one for one in self._inside if one < ticks]:
            number = self._inside.pop(lost)
            if self._errors:
                self._break(_Place(number, lost))

    def _waits(self, one: _Held) -> bool:
        if one.place is None:
            return one.between and all(other.between for other in self._held)
        return one.place.number > min(self._inside.values(), default=self._fed)

    def _judge(self, one: _Held) -> Judged:
        """The frame, and whether a break lies between the key frame that it depends on and itself.

        Frames that are decoded after a key frame and shown before it depend on those before it too. No other
        frame depends on them.
        """
        if one.damaged or one.place is None:
            return one.frame, one.damaged
        number, ticks = one.place
        keys = (self._key, self._key_before)
        key = next((key for key in keys if key.number <= number and key.ticks <= ticks), self._key_before)
        found = (key.number <= each.number <= number and key.ticks <= each.ticks for each in self._breaks)
        return one.frame, any(found)
