"""Opening a container with FFmpeg, safely: no nested files, no hosts, no stream that cannot be decoded."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from pipelines.media.bounds.containers import video_tracks
from pipelines.media.bounds.pictures import check_scans
from pipelines.media.identity.delays import with_shown_delays
from pipelines.media.identity.moving import GIF_CUT, GIF_STARTS, gif_blocks, moving_format, moving_size
from pipelines.media.medium import Leave, Limits
from pipelines.protocol.errors import InvalidMedia, TooLarge, UnsupportedMedia

# The accepted containers. Playlists (HLS, DASH, concat, SDP) stay out: they make FFmpeg open files and hosts.
CONTAINERS = (
    "mov,matroska,webm,mpegts,mpeg,mpegvideo,avi,flv,asf,ogg,mxf,ivf,obu,h264,hevc,vvc,m4v,vc1,mjpeg,dv,nut"
)


# Of the processor. A real file takes a small part of a second, unless its first picture is huge.
MOST_OPENING_S = 10.0


class _Source(io.BytesIO):
    """A file as FFmpeg reads it, piece by piece; it can be stopped at each."""

    def __init__(self, encoded: bytes, check: Callable[[], None]) -> None:
        super().__init__(encoded)
        self.check = check

    def read(self, size: int | None = -1, /) -> bytes:
        self.check()
        return super().read(size)


def _opening(began_s: float, leave: Leave, limits: Limits) -> None:
    leave.check(limits.max_decode_s)
    if time.thread_time() > began_s + MOST_OPENING_S:
        raise TooLarge(
            f"opening the file takes over {MOST_OPENING_S:g} s of the processor's time",
            hint="write it anew, without its metadata: ffmpeg -i FILE -map_metadata -1 -c copy NEW",
        )


def _quieten() -> None:
    """Keep FFmpeg off Python's logging: its decoder threads would wait for the GIL while we wait for them.

    At every opening, since others set it as they like: an import of torchvision does.
    """
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)


def open_container(encoded: bytes, limits: Limits, leave: Leave | None = None) -> InputContainer:
    """Open a file whose index is checked (`bounds`).

    Raises:
        InvalidMedia, UnsupportedMedia: it cannot be opened. TooLarge, DeadlineExceeded: it takes too long;
            the reading of packets raises them too.
    """
    _quieten()
    # FFmpeg would take it for a picture.
    moving = moving_format(encoded)
    if moving is not None:
        limits.check_size(*moving_size(encoded, moving))
    check_scans(encoded)
    leave = leave or Leave()
    source = _Source(
        with_shown_delays(encoded, moving or ""), partial(_opening, time.thread_time(), leave, limits)
    )
    # When it opens a file, FFmpeg decodes a picture of each track.
    crowd = max(1, (1 if moving else video_tracks(encoded)) // 2)
    settings = {
        "format_whitelist": moving or CONTAINERS,
        "protocol_whitelist": "none",
        "max_pixels": str(2 * limits.max_pixels // crowd),
    }
    try:
        container = av.open(
            source,
            mode="r",
            format=moving,
            options=settings,
            metadata_errors="replace",
        )
    except av.error.ArgumentError:
        raise UnsupportedMedia(
            "this container format is not supported", hint="use MP4, MKV, WebM, MOV, AVI or MPEG-TS"
        ) from None
    except av.FFmpegError as error:
        raise InvalidMedia(
            f"not a readable image or video: {error.strerror}; {len(encoded)} bytes, starting "
            f"{encoded[:8]!r}",
            hint="send a whole MP4, MKV, WebM, MOV, AVI, MPEG-TS, JPEG, PNG or the like; an MP4 may have its "
            "index at the end",
        ) from None
    source.check = partial(leave.check, limits.max_decode_s)
    # With this flag, PyAV's default, FFmpeg invents times that differ from ffprobe's.
    container.flags &= ~int(cast(int, av.container.Flags.gen_pts.value))
    return container


def pick_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not len(container.streams):
        raise InvalidMedia("the container holds no stream", hint="check that the file is complete")
    if not streams:
        kinds = ", ".join(sorted({one.type for one in container.streams}))
        raise UnsupportedMedia(f"the file has no video stream (streams: {kinds})", hint="send a video")
    if "avis" in container.metadata.get("compatible_brands", ""):
        # The single pictures of an AVIF come first; they stand for its sequence, which is in a track.
        streams = [one for one in streams if one.frames > 1] or streams
    # Without a decoder in FFmpeg, PyAV sets no context, and most of the stream's attributes then crash.
    if streams[0].codec_context is None:
        raise UnsupportedMedia(
            f"its video codec is unknown ({container.format.name})", hint="re-encode it as H.264"
        )
    return streams[0]


def read_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """The stream's packets in file order, without the empty ones with which PyAV marks a flush.

    Raises:
        av.FFmpegError: the rest of the container cannot be read.
    """
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except IndexError:
        # PyAV 17 flushes every stream after the last packet, and fails on a stream that appeared midway.
        return


def declared_bytes(encoded: bytes) -> int:
    """How long the file should be, by its outermost length field (RIFF, Matroska) or the GIF block that
    is cut off; 0 if nothing tells.
    """
    if encoded.startswith(GIF_STARTS):
        return next((place for kind, place in gif_blocks(encoded) if kind == GIF_CUT), 0)
    if encoded[:4] == b"RIFF":
        return int(struct.unpack_from("<I", encoded, 4)[0]) + 8 if len(encoded) >= 8 else 0
    if encoded[:4] != b"\x1a\x45\xdf\xa3":
        return 0
    header_bytes, place = _ebml_length(encoded, 4)
    segment = place + (header_bytes or 0)
    if encoded[segment : segment + 4] != b"\x18\x53\x80\x67":
        return 0
    segment_bytes, place = _ebml_length(encoded, segment + 4)
    return 0 if segment_bytes is None else place + segment_bytes


def _ebml_length(encoded: bytes, place: int) -> tuple[int | None, int]:
    """A length of EBML (RFC 8794, §4) and where it ends; None if it is left open, as in live streams."""
    if place >= len(encoded) or not encoded[place]:
        return None, place
    size_bytes = 9 - encoded[place].bit_length()
    bits = 7 * size_bytes
    value = int.from_bytes(encoded[place : place + size_bytes], "big") & ((1 << bits) - 1)
    return None if value == (1 << bits) - 1 else value, place + size_bytes
