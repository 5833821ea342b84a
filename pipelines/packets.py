"""Times and key frames of a whole medium, from its packets alone. Decodes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av

from pipelines.containers import open_container, pick_stream, read_packets
from pipelines.medium import Limits

# Where one packet is one frame: these codecs in these containers (FFmpeg's names).
CODECS = ("h264", "hevc", "vp9", "av1")
CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2": "MP4", "matroska,webm": "Matroska"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketIndex:
    """All frames in presentation order.

    Attributes:
        ticks: their times in ticks, rising.
        key_ticks: the times of those that the container marks as key frames.
        time_base: length of a tick in seconds.
    """

    ticks: Sequence[int]
    key_ticks: frozenset[int]
    time_base: Fraction

    @property
    def times_s(self) -> list[float]:
        """Their times in seconds."""
        return [float(ticks * self.time_base) for ticks in self.ticks]


def read_index(media: bytes, limits: Limits) -> PacketIndex | str:
    """The index of a medium of CODECS and CONTAINERS; in words where packets and decoded frames would differ."""
    ticks: list[int] = []
    keys: set[int] = set()
    time_base = Fraction(0)
    with open_container(media, limits) as container:
        stream = pick_stream(container)
        try:
            for packet in read_packets(container, stream):
                if packet.is_corrupt or packet.is_discard or packet.pts is None:
                    return "packets are damaged, hidden by an edit list or without presentation times"
                if not ticks and not packet.is_keyframe:
                    return "the first frame is no key frame"
                time_base = packet.time_base
                ticks.append(packet.pts)
                if packet.is_keyframe:
                    keys.add(packet.pts)
        except av.FFmpegError as error:
            return f"the container cannot be read through: {error.strerror}"
    if not ticks or min(ticks) < ticks[0]:
        return "there are frames before the first key frame"
    if len(set(ticks)) < len(ticks):
        return "frames share their time"
    return PacketIndex(ticks=sorted(ticks), key_ticks=frozenset(keys), time_base=time_base)
