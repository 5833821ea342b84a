"""A medium's clock: which of a frame's times count, and where they break off. Knows no decoder.

Times break off where they fall, leap or stand still: recordings are joined, or a clock is set anew. A new
stretch begins there, and goes on where the one before it would have: one usual spacing after its last frame.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

FALLBACK_FPS = 25.0
# A gap is a leap if it is longer than this, and so many times longer than any before it. A slide may be shown
# for a minute, and a camera may take a picture an hour. Two such gaps in a row are the medium's pace.
PAUSE_S, PAUSES = 120.0, 10
# Where frames usually are so many ticks apart, a third one within a tick shows that the clock stands still.
# Two may be fields, or a pair of views.
STANDING_TICKS = 4
RECENT = 9


@dataclass(slots=True, kw_only=True)
class Clock:
    """Sees the times of all frames in presentation order.

    Attributes:
        tick_s: how finely the medium counts time, in seconds; 0: as finely as floats.
        fps: the rate that the medium claims, for the time before it shows one.
        last_s: the last time seen; None before the first.
        stretch: number of the stretch that it lies in.
        shift_s: added to a time of this stretch, it gives the time at which it is played.
    """

    tick_s: float
    fps: float | None
    last_s: float | None = None
    stretch: int = 0
    shift_s: float = 0.0
    _rises_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _longest_s: float = 0.0
    _leapt: bool = False
    _standing: int = 0
    _last: tuple[int | None, int | None] = (None, None)
    _faults: int = 0
    _by_dts: bool = False

    def best_ticks(self, pts: int | None, dts: int | None) -> int | None:
        """FFmpeg's best effort: pts, but dts while more of the pts than of the dts have failed to rise.

        None: there is none, or there was a dts instead of a wrong pts, and now there is no dts.
        """
        last_pts, last_dts = self._last
        if pts is not None and last_pts is not None:
            self._faults += pts <= last_pts
        if dts is not None and last_dts is not None:
            self._faults -= dts <= last_dts
        self._last = dts if pts is None else pts, pts if dts is None else dts
        self._by_dts = pts is None or (self._faults > 0 and (dts is not None or self._by_dts))
        return dts if self._by_dts else pts

    def next_s(self) -> float:
        """The time of a frame that has none."""
        return 0.0 if self.last_s is None else self.last_s + self._usual_s()

    def see(self, time_s: float) -> None:
        """Move on to the next frame's time."""
        if self.last_s is not None:
            rise_s = time_s - self.last_s
            if self._breaks(rise_s):
                # While it stands still, all frames are of one stretch.
                self.stretch += self._standing <= 2
                self.shift_s += self._usual_s() - rise_s
            elif not self._standing:
                self._rises_s.append(rise_s)
                self._longest_s = max(self._longest_s, rise_s)
        self.last_s = time_s

    def _breaks(self, rise_s: float) -> bool:
        stays = 0 <= rise_s <= 1.5 * self.tick_s and self._usual_s() >= STANDING_TICKS * self.tick_s
        self._standing = self._standing + 1 if stays else 0
        leaps = rise_s > PAUSE_S and rise_s > PAUSES * (self._longest_s or self._usual_s())
        again, self._leapt = self._leapt, leaps
        return rise_s < 0 or (leaps and not again) or self._standing > 1

    def _usual_s(self) -> float:
        """The spacing of frames in general; single pauses do not count."""
        return statistics.median(self._rises_s) if self._rises_s else 1 / (self.fps or FALLBACK_FPS)
