"""Video with PyAV (FFmpeg) on the CPU: bytes → frames with the medium's own times, upright, RGB.

Frames are streamed: memory holds one chunk and the few frames that the decoder keeps. No claim of a header is
believed: not the size, not the number of frames, not that the file is complete. There is no seeking. Frames
are numbered from the medium's first, so frames before `start_s` are decoded and dropped. Two kinds of frames
are not decoded: with `keyframes_only` the others, if the packets tell the numbers; and in H.264, frames that
neither the options nor other frames need. Interlaced frames and anamorphic pixels are given as stored, and so
are the transfer curves of HDR media.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
import math
import struct
from collections.abc import Generator, Iterator
from typing import Any

import av
from av.video.frame import VideoFrame

from pipelines.frames.batch import FrameBatch
from pipelines.machine.threads import Threads, cores
from pipelines.media.bounds.mp4 import index_bytes
from pipelines.media.clock import Clock
from pipelines.media.colours import MATRICES, TRANSFERS, has_matrix, is_full_range, is_rgb
from pipelines.media.containers import declared_bytes, open_container, pick_stream
from pipelines.media.damage.reader import PacketReader
from pipelines.media.frame_reader import FrameReader
from pipelines.media.medium import Header, Leave, Limits, MediaInfo, Medium, Orientation, Wanted
from pipelines.media.packets import (
    CODECS,
    CONTAINERS,
    PacketIndex,
    Plan,
    check_range,
    claimed_fps,
    read_index,
)
from pipelines.media.selection import Selected, leaves_out, refuse_damaged, select
from pipelines.protocol.errors import InvalidMedia, UnsupportedMedia
from pipelines.protocol.options import Options

# Codecs whose decoders can be told to skip pictures that no other picture needs.
SKIPPING = ("h264",)
LAST_ENTRIES = 1000


class Video:
    """An opened video. Its first frame is decoded, so that `info` describes the real pixels.

    Raises:
        InvalidMedia: unreadable, or without a single frame. UnsupportedMedia: no video stream, a container or
            codec that is not served. TooLarge: too many pixels.
    """

    def __init__(self, encoded: bytes, limits: Limits, leave: Leave | None = None) -> None:
        self.encoded = encoded
        self.limits = limits
        self._leave = leave or Leave()
        self._leave.admit(Header(kind="video", decode_bytes=index_bytes(encoded)))
        self.container = open_container(encoded, limits, self._leave)
        self._count = 0
        self._last_s: float | None = None
        self._key_ticks: set[int] = set()
        self._index: PacketIndex | None = None
        # What limits the packets that are decoded: only key frames, or those of the plan and those they need.
        self._keys_only = False
        self._plan: Plan | None = None
        try:
            self.stream = pick_stream(self.container)
            self._tick_s = float(self.stream.time_base or 0)
            self._clock = Clock(tick_s=self._tick_s, fps=claimed_fps(self.stream))
            self._prepare_decoder()
            self._frames = self._read()
            first = next(self._frames, None)
            if first is None:
                raise InvalidMedia("the video stream has no frames", hint="check the upload")
            self._admit(first.frame.width, first.frame.height)
            self.orientation, self._rotation_deg = _orientation(first.frame), first.frame.rotation
            self.info = self._describe(first.frame)
            self._first_s = first.pts_s
            self._check(first.frame)
        except BaseException:
            self.container.close()
            raise
        self._frames = itertools.chain([first], self._frames)

    @property
    def codec(self) -> str:
        """The codec's name, not that of the FFmpeg decoder that reads it (`av1`, not `libdav1d`)."""
        return self.stream.codec.canonical_name

    def medium(self, options: Options, reason: str, wanted: Wanted) -> Medium:
        """The selected frames in chunks; `reason` says why this decoder reads them."""
        return Medium(
            info=self.info,
            decoder="pyav",
            decoder_reason=reason,
            batches=self._batches(options, wanted),
            release=self.close,
        )

    def close(self) -> None:
        self._frames = iter(())
        self.container.close()

    def _admit(self, width_px: int, height_px: int) -> None:
        self.limits.check_size(width_px, height_px)
        self._leave.admit(Header(kind="video", width_px=width_px, height_px=height_px))

    def read_index(self) -> PacketIndex | str:
        """All frames by the packets; in words why those are not frames."""
        return read_index(self.encoded, self.limits, self._leave)

    def _wanted_index(self) -> PacketIndex | None:
        """The frames' numbers by their times, if the packets tell them, so that not all need be decoded."""
        if self.codec not in CODECS or self.container.format.name not in CONTAINERS or self.is_cut_off():
            return None
        index = self.read_index()
        return None if isinstance(index, str) else index

    def _prepare_decoder(self) -> None:
        context = self.stream.codec_context
        self._admit(context.width, context.height)
        context.thread_type = "AUTO"
        context.thread_count = Threads.of(cores()).decode
        # Twice, since FFmpeg counts the padding of coded blocks too. Each frame is checked exactly later.
        context.options = {"max_pixels": str(2 * self.limits.max_pixels)}

    def _read(self) -> Iterator[Selected[VideoFrame]]:
        """Frames in presentation order; InvalidMedia after the last of them, if any are missing."""
        # Not an attribute: with each other's methods, both would live until Python's garbage collector runs.
        reader = PacketReader(
            self.container, self.stream, self.encoded, enters=self._enters, progress=self._progress
        )
        for frame, damaged in reader.frames():
            yield dataclasses.replace(self._timed(frame), damaged=damaged)
        if reader.cut or self._ends_early():
            claim = f"; it claims {self.stream.frames} frames" if self.stream.frames else ""
            raise InvalidMedia(
                f"the file ends early {self._progress()}{claim}", hint="upload the complete file"
            )
        if reader.fault:
            raise InvalidMedia(
                reader.fault,
                hint="the file is damaged there; set max_frames or end_s to stop before it",
            )

    def _enters(self, packet: Any) -> bool:
        """Whether a packet is decoded. Raises DeadlineExceeded, TooLarge if it is too late for that."""
        self._leave.check(self.limits.max_decode_s)
        if packet.is_keyframe and packet.pts is not None:
            self._key_ticks.add(packet.pts)
        if self._plan is not None:
            needed = packet.pts in self._plan.ticks
            # The decoder itself knows which pictures no other picture needs.
            self.stream.codec_context.skip_frame = "DEFAULT" if needed else "NONREF"
        return packet.is_keyframe or not self._keys_only

    def _timed(self, frame: VideoFrame) -> Selected[VideoFrame]:
        """The frame with its number and its time, as ffprobe's best effort: pts, else dts, else one frame
        after the last. Key frames are those that the container marks, or without times the decoder."""
        self._leave.restart()
        clock, ticks = self._clock, self._clock.best_ticks(frame.pts, frame.dts)
        if ticks is None or self.stream.time_base is None:
            pts_s = clock.next_s()
        else:
            pts_s = float(ticks * self.stream.time_base)
        clock.see(pts_s)
        is_key = frame.key_frame if frame.pts is None else frame.pts in self._key_ticks
        number = self._count
        if self._index is not None and ticks is not None:
            number = bisect.bisect_left(self._index.ticks, ticks)
        # Each time is needed once; in a long video of key frames they would fill the memory.
        if frame.pts is not None:
            self._key_ticks.discard(frame.pts)
        self._count, self._last_s = number + 1, pts_s
        return Selected(number, pts_s, frame, bool(is_key), stretch=clock.stretch, shift_s=clock.shift_s)

    def _progress(self) -> str:
        if not self._count:
            return "before its first frame"
        return f"after frame {self._count - 1} at {self._last_s:.3f} s"

    def is_cut_off(self) -> bool:
        """Whether the container's index, or its outermost length, reaches beyond the bytes at hand."""
        return self._index_is_longer() or declared_bytes(self.encoded) > len(self.encoded)

    def _index_is_longer(self) -> bool:
        # The index is in time order, so the frames that a cut removes are its last ones.
        last = self.stream.index_entries[-LAST_ENTRIES:]
        return any(entry.pos + entry.size > len(self.encoded) for entry in last)

    def _ends_early(self) -> bool:
        """Whether frames are missing, once all have been read: a wrong length alone costs nothing."""
        if self._index_is_longer():
            return True
        if declared_bytes(self.encoded) <= len(self.encoded):
            return False
        if self.container.format.name == "gif":  # whose length is that of its blocks
            return True
        if self.stream.frames:
            return self._count < self.stream.frames
        if self._last_s is None:
            return True
        return self._last_s < (self.info.duration_s or math.inf) - 1.5 / (self.info.fps or math.inf)

    def _describe(self, frame: VideoFrame) -> MediaInfo:
        width_px, height_px = self.orientation.size(frame.width, frame.height)
        stream, span = self.stream, self.container.duration
        duration_s = span / av.time_base if span is not None else None
        if stream.duration is not None and stream.time_base is not None:
            duration_s = float(stream.duration * stream.time_base)
        return MediaInfo(
            kind="video",
            container=self.container.format.name,
            codec=self.codec,
            pixel_format=frame.format.name,
            width_px=width_px,
            height_px=height_px,
            rotation_deg=self.orientation.rotation_deg,
            mirrored=self.orientation.mirrored,
            matrix="rgb" if is_rgb(frame) else MATRICES.get(frame.colorspace, str(frame.colorspace)),
            colour_range="full" if is_full_range(frame) else "limited",
            transfer=TRANSFERS.get(frame.color_trc, str(frame.color_trc)),
            fps=claimed_fps(self.stream),
            duration_s=duration_s,
        )

    def _check(self, frame: VideoFrame) -> None:
        """Raise if the frame is too large, has changed its size or rotation, or has unknown colours."""
        self.limits.check_size(frame.width, frame.height)
        size = self.orientation.size(frame.width, frame.height)
        if frame.rotation != self._rotation_deg:
            raise UnsupportedMedia(
                f"the rotation changes from {self._rotation_deg} to {frame.rotation} degrees "
                f"at {self._last_s:.3f} s",
                hint="split the medium there",
            )
        if size != (self.info.width_px, self.info.height_px):
            raise UnsupportedMedia(
                f"frames change from {self.info.width_px}x{self.info.height_px} to {size[0]}x{size[1]} "
                f"pixels at {self._last_s:.3f} s",
                hint="split the medium where its size changes",
            )
        if has_matrix(frame) and frame.colorspace not in MATRICES:
            raise UnsupportedMedia(
                f"colours are coded by matrix {frame.colorspace} of H.273",
                hint=f"supported: {', '.join(sorted(set(MATRICES.values())))}",
            )

    def _batches(self, options: Options, wanted: Wanted) -> Generator[FrameBatch, None, None]:
        read = FrameReader(self.orientation, wanted, (self.info.height_px, self.info.width_px))
        for batch in read.batches(self._selected(options, wanted.repeat_frames), self.limits):
            yield batch
            self._leave.restart()

    def _selected(self, options: Options, repeat: bool) -> Iterator[Selected[VideoFrame]]:
        look_ahead = functools.partial(check_range, self.encoded, self.limits, self._leave, options)
        if options.start_s > self._first_s + (self.info.duration_s or math.inf):
            look_ahead()
        skips = leaves_out(options, claimed_fps(self.stream)) and self.codec in SKIPPING
        if options.keyframes_only or skips:
            self._index = self._wanted_index()
        if self._index is not None:
            self._keys_only = options.keyframes_only
            self._plan = Plan.of(self._index, options, self.limits, repeat=repeat)
            picked_frames = self._plan.pick(self._frames)
        else:
            picked_frames = select(
                self._frames,
                options,
                self.limits,
                tick_s=self._tick_s,
                repeat=repeat,
                look_ahead=look_ahead,
            )
        for picked in picked_frames:
            self._check(picked.frame)
            refuse_damaged(picked, options)
            yield picked


def _orientation(frame: VideoFrame) -> Orientation:
    """How to stand the frame upright, by its display matrix (ISO/IEC 14496-12, 8.2.2: abu, cdv, xyw).

    Call this for one frame only: PyAV ties a frame and its side data into a reference cycle. Memory would
    grow with every frame until Python's garbage collector runs.
    """
    matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return Orientation()
    a, b, _, c, d = struct.unpack_from("5i", bytes(matrix))
    if a and b:
        raise UnsupportedMedia(
            f"frames are rotated by {frame.rotation} degrees", hint="only multiples of 90 are supported"
        )
    if b or c:
        return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)
    return Orientation(flip_x=a < 0, flip_y=d < 0)
