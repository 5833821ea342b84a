"""Times and key frames of a medium, from its packets, and which frames to answer. Decodes nothing."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av

from pipelines.media.containers import open_container, pick_stream, read_packets
from pipelines.media.medium import Limits
from pipelines.media.selection import Frame, Selected, select
from pipelines.protocol.errors import TrividError
from pipelines.protocol.options import Options

# One packet is one frame for these codecs in these containers (FFmpeg's names).
CODECS = ("h264", "hevc", "vp9", "av1")
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2": "MP4", "matroska,webm": "Matroska"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """All frames in presentation order.

    Attributes:
        ticks: their times in ticks, rising.
        key_ticks: times of the frames that the container marks as key frames.
        time_base: length of a tick in seconds.
    """

    ticks: Sequence[int]
    key_ticks: frozenset[int]
    time_base: Fraction

    @property
    def times_s(self) -> list[float]:
        """Their times in seconds."""
        return [float(ticks * self.time_base) for ticks in self.ticks]


def read_index(encoded: bytes, limits: Limits) -> PacketIndex | str:
    """The index of a medium, if it is of CODECS and CONTAINERS; else in words why packets are not frames."""
    ticks: list[int] = []
    keys: set[int] = set()
    time_base = Fraction(0)
    with open_container(encoded, limits) as container:
        stream = pick_stream(container)
        try:
            for packet in read_packets(container, stream):
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
    if not ticks or min(ticks) < ticks[0]:
        return "there are frames before the first key frame"
    if len(set(ticks)) < len(ticks):
        return "frames share their time"
    return PacketIndex(ticks=sorted(ticks), key_ticks=frozenset(keys), time_base=time_base)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which frames the options ask for, known before any is decoded.

    Attributes:
        ticks: their times in ticks.
        times: how often each frame is given, by its number.
        fault: the error that follows the last of them.
    """

    ticks: frozenset[int]
    times: Mapping[int, int]
    fault: TrividError | None

    @classmethod
    def of(cls, index: PacketIndex, options: Options, limits: Limits, *, repeat: bool) -> Plan:
        """The plan of `selection.select` for all frames of an index."""
        frames = (
            Selected(number, time_s, None, ticks in index.key_ticks)
            for number, (ticks, time_s) in enumerate(zip(index.ticks, index.times_s, strict=True))
        )
        times: Counter[int] = Counter()
        fault: TrividError | None = None
        try:
            for one in select(frames, options, limits, tick_s=float(index.time_base), repeat=repeat):
                times[one.frame_index] += 1
        except TrividError as error:
            fault = error
        return cls(ticks=frozenset(index.ticks[number] for number in times), times=times, fault=fault)

    def pick(self, frames: Iterable[Selected[Frame]]) -> Iterator[Selected[Frame]]:
        """The planned ones of frames in presentation order; stops reading after the last of them."""
        left = sum(self.times.values())
        for one in frames if left else ():
            count = self.times.get(one.frame_index, 0)
            yield from itertools.repeat(one, count)
            left -= count
            if not left:
                break
        if self.fault is not None:
            raise self.fault
