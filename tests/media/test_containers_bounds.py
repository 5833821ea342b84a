"""Containers other than MP4 that claim or hold too much: refused, or answered, at a bounded cost."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from pipelines.media.bounds.containers import video_tracks
from pipelines.media.bounds.pictures import check_scans
from pipelines.media.containers import open_container
from pipelines.media.decode import open_media
from pipelines.media.medium import Leave, Limits
from pipelines.protocol.errors import DeadlineExceeded, InvalidMedia, TooLarge, TrividError
from pipelines.protocol.options import Options
from tests.support import media

MANY = 40_000


def element(kind: str, content: bytes) -> bytes:
    return bytes.fromhex(kind) + (len(content) | 1 << 56).to_bytes(8, "big") + content


def mkv(more: bytes) -> bytes:
    """A Matroska with an element before its first cluster."""
    encoded = media.clip(container="matroska", frames=3)
    segment, cluster = encoded.index(b"\x18\x53\x80\x67"), encoded.index(b"\x1f\x43\xb6\x75")
    open_length = b"\1" + b"\xff" * 7
    return encoded[: segment + 4] + open_length + encoded[segment + 12 : cluster] + more + encoded[cluster:]


def tags() -> bytes:
    pairs = (element("45a3", b"%06d" % one) + element("4487", b"v") for one in range(MANY))
    return mkv(element("1254c367", element("7373", b"".join(element("67c8", pair) for pair in pairs))))


def chapters() -> bytes:
    marks = (element("73c4", struct.pack(">I", MANY - one)) + element("91", b"\1") for one in range(MANY))
    return mkv(element("1043a770", element("45b9", b"".join(element("b6", mark) for mark in marks))))


def cues() -> bytes:
    times = (
        b"\xb3\x84" + struct.pack(">I", MANY - one) + b"\xb7\x86\xf7\x81\1\xf1\x81\1" for one in range(MANY)
    )
    return mkv(element("1c53bb6b", b"".join(b"\xbb\x8e" + one for one in times)))


def flv() -> bytes:
    encoded = media.clip(container="flv", codec="flv1", frames=3)
    keys = b"".join(b"\0\6%06d\0" % one + bytes(8) for one in range(MANY))
    script = b"\2\0\x0aonMetaData\x08\0\0\0\0" + keys + b"\0\0\x09"
    tag = b"\x12" + len(script).to_bytes(3, "big") + bytes(7) + script + struct.pack(">I", len(script) + 11)
    return encoded[:13] + tag + encoded[13:]


def asf() -> bytes:
    encoded = media.clip(container="asf", codec="msmpeg4v2", frames=3)
    keys = b"".join(struct.pack("<H", 12) + (b"%06d" % one) + bytes(6) + bytes(4) for one in range(MANY))
    head = bytes.fromhex("40a4d0d207e3d21197f000a0c95ea850")
    more = head + struct.pack("<QH", 26 + len(keys), MANY) + keys
    size = struct.unpack_from("<Q", encoded, 16)[0] + len(more)
    return encoded[:16] + struct.pack("<Q", size) + encoded[24:30] + more + encoded[30:]


def avi() -> bytes:
    encoded = media.clip(container="avi", codec="mpeg4", frames=3)
    end = 20 + struct.unpack_from("<I", encoded, 16)[0]
    info = b"INFO" + b"".join(struct.pack(">II", 0x41414141 + one, 1 << 25) + b"v\0" for one in range(MANY))
    return encoded[:end] + b"LIST" + struct.pack("<I", len(info)) + info + encoded[end:]


def ogg() -> bytes:
    """A page of comments; its checksum does not matter to the count."""
    words = b"".join(struct.pack("<I", 8) + b"K%05d=v" % one for one in range(MANY))
    packet = b"OVP80\2 " + struct.pack("<II", 0, MANY) + words
    parts = [packet[place : place + 255 * 255] for place in range(0, len(packet), 255 * 255)]
    head = b"OggS\0\0" + bytes(20)
    return b"".join(
        head
        + bytes([-(-len(part) // 255)])
        + b"\xff" * (len(part) // 255)
        + bytes([len(part) % 255])[: len(part) % 255]
        + part
        for part in parts
    )


def nut() -> bytes:
    info = b"NI\xab\x68\xb5\x96\xba\x78\x82\x80\x00" + bytes(MANY)
    return b"nut/multimedia container\0" + info


def programs() -> bytes:
    packets = (b"\x47\x40\0\x10\0\0\xb0\xb2" + bytes(4) + struct.pack(">I", one) * 44 for one in range(900))
    return b"".join(packet[:188] for packet in packets)


@pytest.mark.parametrize("make", [tags, chapters, cues, flv, asf, avi, ogg, nut, programs])
def test_a_heap_of_metadata_is_refused_before_it_is_sorted(make: Callable[[], bytes]) -> None:
    encoded = make()
    with pytest.raises(InvalidMedia, match=r"the file has \d+ .* or more; at most \d+ are read") as refused:
        video_tracks(encoded)
    assert "ffmpeg" in refused.value.hint


@pytest.mark.parametrize(
    ("container", "codec", "tracks"),
    [
        ("matroska", "libx264", 1),
        ("webm", "libvpx", 1),
        ("mp4", "libx264", 2),
        ("mpegts", "libx264", 2),
        ("flv", "flv1", 1),
        ("avi", "mpeg4", 1),
        ("asf", "msmpeg4v2", 1),
        ("ogg", "libvpx", 1),
        ("nut", "mpeg4", 1),
        ("mxf", "mpeg2video", 0),
        ("h264", "libx264", 0),
    ],
)
def test_ordinary_files_have_few_tracks(container: str, codec: str, tracks: int) -> None:
    encoded = media.clip(container=container, codec=codec, rate=25, frames=3, audio=tracks == 2)
    assert video_tracks(encoded) == tracks
    check_scans(encoded)


def test_a_crowd_of_tracks_is_not_decoded_when_it_is_opened() -> None:
    encoded = media.clip(width=2048, height=2048, frames=2)
    start = encoded.index(b"moov") - 4
    size = struct.unpack_from(">I", encoded, start)[0]
    place = encoded.index(b"trak", start) - 4
    length = struct.unpack_from(">I", encoded, place)[0]
    tracks = (
        encoded[place : place + 20] + struct.pack(">I", one + 1) + encoded[place + 24 : place + length]
        for one in range(30)
    )
    more = b"".join(tracks)
    moov = struct.pack(">I", size + len(more) - length) + encoded[start + 4 : place] + more
    crowd = encoded[:start] + moov + encoded[place + length :]
    assert video_tracks(crowd) == 30
    before = _reset_peak()
    assert media.info_of(crowd, Limits(max_pixels=2048 * 2048)).width_px == 2048
    assert _memory("VmHWM") - before < 150 << 20


@pytest.mark.parametrize("container", ["avi", "mov", "matroska", "mjpeg"])
def test_a_jpeg_frame_of_many_scans_in_a_video_is_refused(container: str) -> None:
    encoded = media.clip(
        container=container, codec="mjpeg", pix_fmt="yuvj420p", width=2048, height=2048, frames=2
    )
    place = encoded.index(b"\xff\xda")
    heavy = encoded[:place] + encoded[place : place + 14] * 300 + encoded[place:]
    with pytest.raises(TooLarge, match="2048x2048 pixels has 301 scans"), open_container(heavy, Limits()):
        pass


def test_reading_a_container_ends_when_it_takes_too_long() -> None:
    encoded = media.clip(container="mpegts", frames=3)
    with pytest.raises(DeadlineExceeded), open_container(encoded, Limits(), Leave(deadline_s=0)):
        pass
    with pytest.raises(TooLarge, match="no frame came"), open_container(encoded, Limits(max_decode_s=-1)):
        pass


def poked(encoded: bytes, after: bytes, offset: int, new: bytes) -> bytes:
    """The bytes with others at an offset from where a text stands."""
    place = encoded.index(after) + offset
    return encoded[:place] + new + encoded[place + len(new) :]


MPEG4: dict[str, Any] = {"codec": "mpeg4", "frames": 4, "rate": 25}
BILLION = struct.pack("<I", 10**9)
CLAIMS = {
    "avi_frames": lambda: poked(media.clip(container="avi", **MPEG4), b"strh", 40, BILLION),
    "avi_header_frames": lambda: poked(media.clip(container="avi", **MPEG4), b"avih", 24, BILLION),
    "avi_rate": lambda: poked(
        media.clip(container="avi", **MPEG4), b"strh", 28, struct.pack("<II", 1, 10**6)
    ),
    "avi_billion_rate": lambda: poked(
        media.clip(container="avi", **MPEG4), b"strh", 28, struct.pack("<II", 1, 10**9)
    ),
    "mkv_frame_of_1_us": lambda: poked(
        media.clip(container="matroska", **MPEG4), b"\x23\xe3\x83", 4, (1000).to_bytes(4, "big")
    ),
    "mkv_frame_of_1_ns": lambda: poked(
        media.clip(container="matroska", **MPEG4), b"\x23\xe3\x83", 4, (1).to_bytes(4, "big")
    ),
    "mp4_timescale": lambda: poked(media.clip(**MPEG4), b"mdhd", 16, struct.pack(">I", 10**9)),
    "mp4_times": lambda: poked(media.clip(**MPEG4), b"stts", 12, struct.pack(">II", 10**9, 1)),
    "mp4_samples": lambda: poked(media.clip(**MPEG4), b"stsz", 12, struct.pack(">I", 10**9)),
    "mp4_equal_samples": lambda: poked(media.clip(**MPEG4), b"stsz", 8, struct.pack(">II", 1, 10**9)),
    "mp4_chunks": lambda: poked(media.clip(**MPEG4), b"stsc", 12, struct.pack(">II", 1, 10**9)),
    "ivf_frames": lambda: poked(media.clip(container="ivf", codec="libvpx", frames=4), b"DKIF", 24, BILLION),
    "ivf_rate": lambda: poked(media.clip(container="ivf", codec="libvpx", frames=4), b"DKIF", 16, BILLION),
    "flv_duration": lambda: poked(
        media.clip(container="flv", codec="flv1", frames=4), b"duration", 9, struct.pack(">d", 1e9)
    ),
    "flv_rate": lambda: poked(
        media.clip(container="flv", codec="flv1", frames=4), b"framerate", 10, struct.pack(">d", 1e6)
    ),
}


def _memory(name: str) -> int:
    """VmHWM or VmRSS of this process, in bytes."""
    with open("/proc/self/status") as text:
        return next(int(line.split()[1]) for line in text if line.startswith(name)) << 10


def _reset_peak() -> int:
    """Forget the most memory that this process had; what it has now."""
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    return _memory("VmRSS")


@pytest.mark.parametrize("name", CLAIMS)
@pytest.mark.parametrize("options", [Options(), Options(fps=1.0, max_frames=10)], ids=["all", "fps"])
def test_claims_of_a_billion_cost_nothing(name: str, options: Options) -> None:
    encoded = CLAIMS[name]()
    before, began_s, frames = _reset_peak(), time.process_time(), 0
    with (
        contextlib.suppress(TrividError),
        open_media(encoded, options=options, limits=Limits(), device="cpu") as medium,
    ):
        frames = sum(map(len, medium.chunks()))
    assert frames <= 10
    assert _memory("VmHWM") - before < 64 << 20
    assert time.process_time() - began_s < 1
