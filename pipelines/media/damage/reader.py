"""Packets → decoded frames, as many as there are: what is broken is noted, and the rest is read on.

Knows no options and no times in seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, cast

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipelines.media.containers import read_packets
from pipelines.media.damage.marks import Judged, Marks
from pipelines.media.damage.matroska import Elements

# A recording of a broadcast may begin between key frames, and lacks packets; elsewhere that is damage.
BROADCASTS = {"mpegts", "mpeg", "mpegvideo", "h264", "hevc", "vvc", "m4v", "flv"}
MATROSKA = "matroska,webm"
# FFmpeg gives pictures whose references are missing only if asked to, and marks them.
MARKED_IF_GIVEN = ("hevc",)
# FFmpeg tells of damage in these only by an error instead of the picture.
TOLD_AS_ERRORS = ("mjpeg",)
# How the settings of H.264 (ISO/IEC 14496-15: avcC, hvcC) begin where units are not found by start codes.
LENGTHS_BEFORE_UNITS = b"\1"
# Each error of a decoder that is emptied costs a packet, of which it holds one a thread.
MOST_ERRORS = 64


class PacketReader:
    """One pass over a stream of a container, whose file is `encoded`.

    Args:
        enters: called with each packet; whether it is decoded.
        progress: in words, how far the frames have come.

    Attributes:
        fault: in words, what could not be read, once `frames` has ended; empty: nothing.
        cut: whether the last packet is cut off.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        encoded: bytes,
        *,
        enters: Callable[[Any], bool],
        progress: Callable[[], str],
    ) -> None:
        self._container, self._stream = container, stream
        self._codec = stream.codec.canonical_name
        self._enters, self._progress = enters, progress
        self._is_broadcast = container.format.name in BROADCASTS
        self._marks = Marks()
        self._tolerant: VideoCodecContext | None = None
        self._elements = Elements(encoded) if container.format.name == MATROSKA else None
        self._begun = self.cut = False
        self._errors = 0
        self._first_error = self._end = ""
        context = stream.codec_context
        self._options = context.options
        if self._codec in MARKED_IF_GIVEN:
            context.flags |= int(av.codec.context.Flags.output_corrupt)
        if self._codec in TOLD_AS_ERRORS:
            context.options = {**self._options, "err_detect": "explode"}

    @property
    def fault(self) -> str:
        if self._errors > 1:
            return f"{self._errors} packets cannot be decoded, the first {self._first_error}"
        if self._errors:
            return f"cannot be decoded {self._first_error}"
        if self._elements is not None and self._elements.broken_at >= 0 and not self._end:
            return f"packets are damaged or missing from byte {self._elements.broken_at} of the file on"
        return self._end

    def frames(self) -> Iterator[Judged]:
        """All frames in presentation order, and whether each is damaged."""
        try:
            for packet in read_packets(self._container, self._stream):
                if self._enters(packet) and not self._is_cut(packet):
                    self._marks.feed(packet, breaks_after=self._breaks_after(packet))
                    yield from self._decode(packet)
        except av.FFmpegError as error:
            self._end = f"cannot be read {self._progress()}: {error.strerror}"
        for _ in range(MOST_ERRORS):
            try:
                yield from self._marks.take(self._shown(self._stream.decode(None)))
                break
            except av.EOFError:
                break
            except av.FFmpegError as error:
                self._note(error)
        yield from self._marks.rest()

    def _is_cut(self, packet: Any) -> bool:
        """Note that a packet is cut off; whether a decoder would refuse it and lose frames before it."""
        if not packet.is_corrupt:
            return False
        self.cut |= not self._is_broadcast
        extradata = self._stream.codec_context.extradata or b""
        return self._codec in ("h264", "hevc") and extradata[:1] == LENGTHS_BEFORE_UNITS

    def _breaks_after(self, packet: Any) -> int | None:
        """After how many packets damage begins that the container shows; None: it shows none."""
        if self._elements is not None and packet.pos is not None:
            if self._elements.breaks_before(packet.pos):
                return -1
            if self._elements.breaks_after():
                return 0
        if not packet.is_corrupt:
            return None
        # A packet of MPEG-TS is complete when the next begins, and gets the mark of the next.
        return 1 if self._container.format.name == "mpegts" else 0

    def _decode(self, packet: Any) -> Iterator[Judged]:
        try:
            yield from self._marks.take(self._shown(self._stream.decode(packet)))
        except av.FFmpegError as error:
            if self._codec in TOLD_AS_ERRORS and (frames := self._decode_again(packet)):
                yield from self._marks.take(frames, certain=True)
            elif self._begun or not self._is_broadcast:
                self._note(error)

    def _decode_again(self, packet: Any) -> list[VideoFrame]:
        """What a decoder that tolerates errors makes of a packet that depends on no other."""
        if self._tolerant is None:
            self._tolerant = cast(VideoCodecContext, av.CodecContext.create(self._stream.codec.name, "r"))
            self._tolerant.options = self._options
            self._tolerant.extradata = self._stream.codec_context.extradata
        try:
            return self._tolerant.decode(packet)
        except av.FFmpegError:
            return []

    def _shown(self, frames: list[VideoFrame]) -> list[VideoFrame]:
        """Without those before the first whose references are all there."""
        if not self._begun and self._codec in MARKED_IF_GIVEN:
            frames = [frame for frame in frames if not frame.is_corrupt]
        self._begun |= bool(frames)
        return frames

    def _note(self, error: av.FFmpegError) -> None:
        self._marks.fail()
        if not self._is_broadcast:
            self._first_error = self._first_error or f"{self._progress()}: {error.strerror}"
            self._errors += 1
