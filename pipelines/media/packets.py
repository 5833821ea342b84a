"""Times and key frames of a medium, from its packets, and which frames to answer. Decodes nothing."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fractions import Fraction

import av
from av.video.stream import VideoStream

from pipelines.media.clock import Clock
from pipelines.media.containers import open_container, pick_stream, read_packets
from pipelines.media.medium import Leave, Limits
from pipelines.media.selection import Frame, Selected, lies_within, outside, select
from pipelines.protocol.errors import TrividError
from pipelines.protocol.options import Options

# One packet is one frame for these codecs in these containers (FFmpeg's names).
CODECS = ("h264", "hevc", "vp9", "av1")
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2": "MP4", "matroska,webm": "Matroska"}
# In H.264 and HEVC at most so many frames before a frame in the file are shown after it.
MOST_REORDERED = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """All frames in presentation order.

    Attributes:
        ticks: their times in ticks, rising.
        key_ticks: times of the frames that the container marks as key frames.
        time_base: length of a tick in seconds.
        fps: the rate that the medium claims.
    """

    ticks: Sequence[int]
    key_ticks: frozenset[int]
    time_base: Fraction
    fps: float | None

    def frames(self) -> Iterator[Selected[None]]:
        """The frames without their pixels."""
        clock = Clock(tick_s=float(self.time_base), fps=self.fps)
        for number, ticks in enumerate(self.ticks):
            time_s = float(ticks * self.time_base)
            clock.see(time_s)
            yield Selected(
                number,
                time_s,
                None,
                ticks in self.key_ticks,
                stretch=clock.stretch,
                shift_s=clock.shift_s,
            )


def claimed_fps(stream: VideoStream) -> float | None:
    """The rate of frames that a container claims, or that FFmpeg guesses; a frame a tick is no guess."""
    guess = stream.guessed_rate
    if guess and stream.time_base and guess * stream.time_base >= 1:
        guess = None
    rate = stream.average_rate or guess
    return float(rate) if rate else None


def check_range(encoded: bytes, limits: Limits, leave: Leave, options: Options) -> None:
    """Decodes nothing.

    Raises:
        InvalidOptions: no packet lies between `start_s` and `end_s`.
        DeadlineExceeded, TooLarge: from `leave`, since the file is read to its end.
    """
    first_s, last_s = math.inf, -math.inf
    with open_container(encoded, limits) as container, contextlib.suppress(av.FFmpegError):
        stream = pick_stream(container)
        for packet in read_packets(container, stream):
            leave.check(limits.max_decode_s)
            ticks = packet.dts if packet.pts is None else packet.pts
            if ticks is None or lies_within(time_s := float(ticks * packet.time_base), options):
                return
            first_s, last_s = min(first_s, time_s), max(last_s, time_s)
    if first_s <= last_s:
        raise outside(options, first_s, last_s)


def read_index(encoded: bytes, limits: Limits, leave: Leave) -> PacketIndex | str:
    """The index of a medium, if it is of CODECS and CONTAINERS; else in words why packets are not frames.

    Raises:
        DeadlineExceeded, TooLarge: from `leave`, since the file is read to its end.
    """
    ticks: list[int] = []
    keys: set[int] = set()
    time_base = Fraction(0)
    with open_container(encoded, limits) as container:
        stream = pick_stream(container)
        try:
            for packet in read_packets(container, stream):
                leave.check(limits.max_decode_s)
                if packet.is_corrupt or packet.is_discard or packet.pts is None:
                    return "packets are damaged, hidden by an edit list or without presentation times"
                if not ticks and not packet.is_keyframe:
                    return "the first frame is not a key frame"
                time_base = packet.time_base
                ticks.append(packet.pts)
                if packet.is_keyframe:
                    keys.add(packet.pts)
        except av.FFmpegError as error:
            return f"the container cannot be read to its end: {error.strerror}"
        fps, reorders = claimed_fps(stream), stream.codec_context.has_b_frames
    if not ticks or min(ticks) < ticks[0]:
        return "there are frames before the first key frame"
    if len(set(ticks)) < len(ticks):
        return "frames share their time"
    if _falls(ticks, keys):
        return "times fall"
    if reorders and ticks == sorted(ticks):
        return "frames are reordered, and their times are not"
    return PacketIndex(ticks=sorted(ticks), key_ticks=frozenset(keys), time_base=time_base, fps=fps)


def _falls(ticks: Sequence[int], keys: Set[int]) -> bool:
    """Whether times in file order fall by more than the frames' reordering explains."""
    peaks = list(itertools.accumulate(ticks, max))
    floor = ticks[0]
    for place, one in enumerate(ticks):
        if one in keys and place:
            floor = peaks[place - 1]
        if one < max(floor, peaks[max(0, place - MOST_REORDERED - 1)]):
            return True
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which frames the options ask for, known before any is decoded.

    Attributes:
        ticks: their times in ticks.
        times: how often each frame is given, by its number.
        frames: what the index says of each, by its number.
        fault: the error that follows the last of them.
    """

    ticks: frozenset[int]
    times: Mapping[int, int]
    frames: Mapping[int, Selected[None]]
    fault: TrividError | None

    @classmethod
    def of(cls, index: PacketIndex, options: Options, limits: Limits, *, repeat: bool) -> Plan:
        """The plan of `selection.select` for all frames of an index."""
        times: Counter[int] = Counter()
        frames: dict[int, Selected[None]] = {}
        fault: TrividError | None = None
        tick_s = float(index.time_base)
        try:
            for one in select(index.frames(), options, limits, tick_s=tick_s, repeat=repeat):
                times[one.frame_index] += 1
                frames[one.frame_index] = one
        except TrividError as error:
            fault = error
        ticks = frozenset(index.ticks[number] for number in times)
        return cls(ticks=ticks, times=times, frames=frames, fault=fault)

    def pick(self, frames: Iterable[Selected[Frame]]) -> Iterator[Selected[Frame]]:
        """The planned ones of frames in presentation order; stops reading after the last of them."""
        left = sum(self.times.values())
        for one in frames if left else ():
            count = self.times.get(one.frame_index, 0)
            if count:
                known = self.frames[one.frame_index]
                one = dataclasses.replace(one, stretch=known.stretch, shift_s=known.shift_s)
            yield from itertools.repeat(one, count)
            left -= count
            if not left:
                break
        if self.fault is not None:
            raise self.fault
