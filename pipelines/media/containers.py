"""Opening a container with FFmpeg, safely: no nested files, no hosts, no stream that cannot be decoded."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from typing import cast

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.stream import VideoStream

from pipelines.media.medium import Limits
from pipelines.protocol.errors import InvalidMedia, UnsupportedMedia

# The accepted containers. Playlists (HLS, DASH, concat, SDP) stay out: they make FFmpeg open files and hosts.
CONTAINERS = (
    "mov,matroska,webm,mpegts,mpeg,mpegvideo,avi,flv,asf,ogg,mxf,ivf,obu,h264,hevc,vvc,m4v,vc1,mjpeg,dv,nut"
)


def _quieten() -> None:
    """Keep FFmpeg off Python's logging: its decoder threads would wait for the GIL while we wait for them.

    At every opening, since others set it as they like: an import of torchvision does.
    """
    av.logging.restore_default_callback()
    av.logging.set_libav_level(av.logging.PANIC)


def open_container(encoded: bytes, limits: Limits) -> InputContainer:
    _quieten()
    check_sample_counts(encoded)
    settings = {
        "format_whitelist": CONTAINERS,
        "protocol_whitelist": "none",
        "max_pixels": str(2 * limits.max_pixels),
    }
    try:
        container = av.open(io.BytesIO(encoded), mode="r", options=settings, metadata_errors="replace")
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
    # With this flag, PyAV's default, FFmpeg invents times that differ from ffprobe's.
    container.flags &= ~int(cast(int, av.container.Flags.gen_pts.value))
    return container


def check_sample_counts(encoded: bytes) -> None:
    """Raise InvalidMedia if an MP4's table claims more samples than the file has bytes for.

    FFmpeg allocates an index of the claimed size before it looks for samples: 2.8 GB for a file of 1.6 kB.
    """
    if encoded[4:8] not in (b"ftyp", b"moov", b"moof", b"styp", b"wide", b"mdat", b"free", b"skip"):
        return
    for place, end in _tables(encoded, 0, len(encoded)):
        if end - place < 12:
            continue
        size, count = struct.unpack_from(">II", encoded, place + 4)
        size = 0 if encoded[place - 4 : place] == b"stz2" else size
        if max(size, 1) * count > len(encoded):
            raise InvalidMedia(
                f"the file claims {count} samples of {max(size, 1)} bytes or more, and has {len(encoded)} "
                "bytes",
                hint="check that the file is complete",
            )


def _tables(encoded: bytes, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where the contents of all sample size tables begin and end (ISO/IEC 14496-12, boxes `stsz`, `stz2`)."""
    while stop - start >= 8:
        length, kind = struct.unpack_from(">I4s", encoded, start)
        head = 8
        if length == 1 and stop - start >= 16:
            length, head = struct.unpack_from(">Q", encoded, start + 8)[0], 16
        end = stop if length == 0 else min(stop, start + length)
        if end < start + head:
            return
        if kind in (b"stsz", b"stz2"):
            yield start + head, end
        elif kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            yield from _tables(encoded, start + head, end)
        start = end


def pick_stream(container: InputContainer) -> VideoStream:
    """The first video stream that is not a cover picture."""
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not len(container.streams):
        raise InvalidMedia("the container holds no stream", hint="check that the file is complete")
    if not streams:
        kinds = ", ".join(sorted({one.type for one in container.streams}))
        raise UnsupportedMedia(f"the file has no video stream (streams: {kinds})", hint="send a video")
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
    """How long the file should be, by its outermost length field (RIFF, Matroska); 0 if it has none."""
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
