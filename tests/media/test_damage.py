"""Damage: what is there of a broken medium is answered, and what is damaged is marked."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from pipelines.media.containers import pick_stream
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.protocol.errors import InvalidMedia, TrividError
from pipelines.protocol.options import Options
from tests.support import media
from tests.support.media import clip, image, read_number

Read = tuple[list[float], list[bool], list[Any], TrividError | None]
B_FRAMES: dict[str, Any] = {
    "frames": 30,
    "bframes": 2,
    "gop": 10,
    "options": {"b": "400k", "x264-params": "b-pyramid=none"},
}


def read(data: bytes, **options: Any) -> Read:
    """Times, marks and pixels of all frames, and the error that ended them."""
    times: list[float] = []
    marks: list[bool] = []
    pixels: list[Any] = []
    try:
        with open_media(data, options=Options(**options), limits=Limits(), device="cpu") as medium:
            for chunk in medium.chunks():
                times += [round(float(one), 4) for one in chunk.pts_s]
                marks += chunk.damaged.tolist()
                pixels += list(np.asarray(chunk.pixels_nhwc).astype(np.int16))
    except TrividError as error:
        return times, marks, pixels, error
    return times, marks, pixels, None


def packets_of(data: bytes) -> list[tuple[int, int, bool, bytes]]:
    """Presentation and decoding time in ticks, key flag and bytes of a clip's packets."""
    with av.open(io.BytesIO(data), "r") as source:
        packets: list[Any] = [one for one in source.demux(pick_stream(source)) if one.size]
        return [(one.pts, one.dts, one.is_keyframe, bytes(one)) for one in packets]


def with_packets(data: bytes, change: Callable[[list[bytes]], None], container: str) -> bytes:
    """The clip with its packets' bytes changed; packets of no bytes are left out."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(target, "w", format=container) as sink:
        stream = pick_stream(source)
        copy: Any = sink.add_stream_from_template(stream)
        packets: list[Any] = [one for one in source.demux(stream) if one.size]
        contents = [bytes(one) for one in packets]
        change(contents)
        for old, content in zip(packets, contents, strict=True):
            if content:
                new: Any = av.Packet(content)
                new.pts, new.dts, new.time_base = old.pts, old.dts, old.time_base
                new.is_keyframe, new.stream = old.is_keyframe, copy
                sink.mux(new)
    return target.getvalue()


def spoil(number: int) -> Callable[[list[bytes]], None]:
    """Overwrite a part of a packet."""

    def change(contents: list[bytes]) -> None:
        old = contents[number]
        first, last = len(old) * 7 // 10, len(old) * 8 // 10
        contents[number] = old[:first] + bytes(last - first) + old[last:]

    return change


def unlike(good: Read, broken: Read) -> tuple[set[float], set[float]]:
    """Times of the frames whose pixels differ from those of the good medium; and of those that are marked."""
    own = dict(zip(good[0], good[2], strict=True))
    differ = {
        time
        for time, pixels in zip(broken[0], broken[2], strict=True)
        if np.abs(own[time] - pixels).mean() > 0.5
    }
    return differ, {time for time, mark in zip(broken[0], broken[1], strict=True) if mark}


GOOD: dict[str, dict[str, Any]] = {
    "open GOPs": {"container": "mpegts", **B_FRAMES, "options": {"x264-params": "open-gop=1:bframes=2"}},
    "open GOPs of HEVC": {
        "codec": "libx265",
        "container": "mpegts",
        "frames": 30,
        "gop": 10,
        "options": {"x265-params": "log-level=none:pools=1:open-gop=1:bframes=3:keyint=10"},
    },
    "intra refresh": {"frames": 30, "gop": 10, "options": {"x264-params": "intra-refresh=1:keyint=10"}},
    "MPEG-2 in a program stream": {"codec": "mpeg2video", "container": "mpeg", "rate": 25, "bframes": 2},
    "packed B pictures": {"codec": "mpeg4", "container": "avi", "bframes": 2},
    "raw H.264": {"container": "h264", **B_FRAMES},
    "Motion JPEG": {"codec": "mjpeg", "pix_fmt": "yuvj420p", "container": "avi"},
    "times far apart": {"frames": 5, "pts": [0, 0.04, 0.5, 0.54, 2.0], "bframes": 2, "container": "matroska"},
    "an edit list": {"start_s": -0.5, "mux_options": {"avoid_negative_ts": "disabled"}},
}


@pytest.mark.parametrize("name", GOOD)
def test_nothing_of_a_good_medium_is_marked(name: str) -> None:
    times, marks, _, error = read(clip(**GOOD[name]), damaged="error")
    assert times
    assert not any(marks)
    assert error is None


def test_nothing_of_good_real_media_is_marked(shared_media: Path) -> None:
    for name in ("sintel_h264_720p.mp4", "clips/asl_eat.mkv", "pattern_h265_720p.mp4"):
        _, marks, _, error = read((shared_media / name).read_bytes(), damaged="error", max_frames=60)
        assert (any(marks), error) == (False, None), name


def test_a_broadcast_that_begins_between_key_frames_is_not_damaged() -> None:
    for codec in ("libx264", "libx265"):
        data = clip(container="mpegts", frames=40, gop=8, codec=codec, options={"bf": "0"})
        times, marks, _, error = read(data[len(data) // 188 // 4 * 188 :])
        assert len(times) > 8
        assert not any(marks)
        assert error is None


def test_lost_packets_of_a_broadcast_mark_all_that_depends_on_them() -> None:
    data = clip(container="mpegts", **B_FRAMES)
    packets = [data[place : place + 188] for place in range(0, len(data), 188)]
    video = [number for number, one in enumerate(packets) if (one[1] & 0x1F) << 8 | one[2] == 0x100]
    good = read(data)
    for part in (0.3, 0.4, 0.5, 0.6):
        first = int(len(video) * part)
        lost = set(video[first : first + 2])
        broken = read(b"".join(one for number, one in enumerate(packets) if number not in lost))
        differ, marked = unlike(good, broken)
        assert differ <= marked
        assert len(marked) < 21
        assert broken[3] is None


SPOILT: list[tuple[dict[str, Any], str]] = [
    ({**B_FRAMES}, "mp4"),
    ({**B_FRAMES}, "matroska"),
    ({**B_FRAMES, "codec": "mpeg2video", "options": {"b": "900k"}}, "matroska"),
    ({**B_FRAMES, "codec": "mpeg4", "options": {"b": "900k"}}, "matroska"),
    ({"codec": "mpeg4", "frames": 30, "gop": 10, "options": {"b": "900k"}}, "avi"),
    ({"codec": "mjpeg", "pix_fmt": "yuvj420p", "frames": 30, "width": 160, "height": 96}, "avi"),
]


@pytest.mark.parametrize(("arguments", "container"), SPOILT, ids=lambda value: str(value))
def test_a_damaged_frame_marks_those_that_depend_on_it(arguments: dict[str, Any], container: str) -> None:
    """A picture that is shown before the damaged one depends on it too, if it was decoded after it."""
    data = clip(container=container, **arguments)
    good = read(data)
    packets = packets_of(data)
    spoilt = next(number for number in range(12, 30) if len(packets[number][3]) > 60 and number % 10 != 0)
    broken = read(with_packets(data, spoil(spoilt), container))
    differ, marked = unlike(good, broken)
    assert marked
    assert differ <= marked
    # The next key frame heals.
    assert max(marked) < 2.05 + good[0][0]


def test_hevc_without_its_references_is_marked() -> None:
    arguments: dict[str, Any] = {
        "frames": 30,
        "gop": 10,
        "options": {"x265-params": "log-level=none:keyint=10:bframes=0"},
    }
    data = clip(codec="libx265", container="matroska", **arguments)
    good = read(data)

    def drop(contents: list[bytes]) -> None:
        contents[13] = b""

    broken = read(with_packets(data, drop, "matroska"))
    differ, marked = unlike(good, broken)
    assert len(broken[0]) == 29
    assert differ <= marked == {1.4, 1.5, 1.6, 1.7, 1.8, 1.9}


def test_damaged_frames_may_be_refused() -> None:
    data = clip(container="avi", codec="mjpeg", pix_fmt="yuvj420p")
    broken = with_packets(data, spoil(5), "avi")
    times, marks, _, error = read(broken, damaged="error")
    assert (len(times), any(marks)) == (5, False)
    assert isinstance(error, InvalidMedia)
    assert "frame 5 at 0.500 s is damaged" in str(error)
    assert read(broken, damaged="error", max_frames=5)[3] is None
    # A frame that is not asked for does no harm.
    assert read(broken, damaged="error", stride=2)[3] is None


LENGTHS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "RIFF": (lambda data: data[:4] + struct.pack("<I", 3 * len(data)) + data[8:], "avi"),
    "RIFF of nothing": (lambda data: data[:4] + bytes(4) + data[8:], "avi"),
    "a list of AVI": (
        lambda data: data.replace(data[data.index(b"movi") - 4 :][:4], struct.pack("<I", 3 * len(data)), 1),
        "avi",
    ),
    "no index of AVI": (lambda data: data[: data.index(b"idx1")], "avi"),
    "a segment of Matroska": (
        lambda data: (
            data[: (at := data.index(b"\x18\x53\x80\x67") + 4)]
            + b"\x01"
            + (3 * len(data)).to_bytes(7, "big")
            + data[at + 8 :]
        ),
        "matroska",
    ),
    "data of MP4": (
        lambda data: (
            data[: (at := data.index(b"mdat") - 4)] + struct.pack(">I", 3 * len(data)) + data[at + 4 :]
        ),
        "mp4",
    ),
}


@pytest.mark.parametrize("name", LENGTHS)
def test_a_wrong_length_costs_nothing(name: str) -> None:
    change, container = LENGTHS[name]
    codec = "mpeg4" if container == "avi" else "libx264"
    data = change(clip(container=container, codec=codec, mux_options={"movflags": "faststart"}))
    _, marks, pixels, error = read(data)
    assert [read_number(one) for one in pixels] == list(range(12))
    assert not any(marks)
    assert error is None


def test_a_file_that_ends_within_its_first_frame_says_so() -> None:
    data = clip(frames=2, container="webm", codec="libvpx-vp9")
    _, marks, _, error = read(data[: len(data) // 2])
    assert isinstance(error, InvalidMedia)
    assert "ends early before its first frame" in error.message
    assert not marks


CUT = ("jpeg", "png", "gif", "bmp", "tiff")


@pytest.mark.parametrize("kind", CUT)
def test_a_cut_picture_has_the_rows_that_are_there(kind: Any) -> None:
    whole = image(kind, width=320, height=240)
    _, (mark,), (good,), _ = read(whole)
    assert not mark
    times, marks, (cut,), error = read(media.truncated(whole, 0.6))
    same = np.flatnonzero(np.abs(good - cut).mean(axis=(1, 2)) < 1)
    assert (times, marks, error) == ([0.0], [True], None)
    assert 24 < len(same) < 240
    times, _, _, error = read(media.truncated(whole, 0.6), damaged="error")
    assert not times
    assert isinstance(error, InvalidMedia)


def test_a_progressive_jpeg_has_all_rows_of_the_scans_that_are_there() -> None:
    sink = io.BytesIO()
    Image.fromarray(media.picture(0, 320, 240)).save(sink, "JPEG", progressive=True, quality=90)
    _, _, (good,), _ = read(sink.getvalue())
    _, marks, (cut,), _ = read(media.truncated(sink.getvalue(), 0.5))
    assert marks == [True]
    assert np.abs(good - cut).mean() < 12


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_with(chunks: bytes, *, at_end: bool = False) -> bytes:
    data = image("png")
    place = len(data) - 12 if at_end else 33
    return data[:place] + chunks + data[place:]


LONG = zlib.compress(bytes(5_000_000))
HARMLESS = {
    "a JPEG without its end": image("jpeg")[:-2],
    "a PNG without its end": image("png")[:-12],
    "a GIF without its end": image("gif")[:-1],
    "a WebP of another length": (webp := image("webp"))[:4] + struct.pack("<I", 3 * len(webp)) + webp[8:],
    "5 MB of text": png_with(chunk(b"zTXt", b"key\0\0" + LONG)),
    "5 MB of text at the end": png_with(chunk(b"iTXt", b"key\0\1\0\0\0" + LONG), at_end=True),
    "a profile of 5 MB": png_with(chunk(b"iCCP", b"key\0\0" + LONG)),
    "90 MB of texts": png_with(100 * chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(900_000)))),
    "a text of a wrong checksum": png_with(chunk(b"tEXt", b"key\0text")[:-1] + b"?"),
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_pixel_costs_none(name: str) -> None:
    _, marks, (pixels,), error = read(HARMLESS[name])
    assert read_number(pixels) == 0
    assert np.abs(pixels - media.picture()).mean() < 12
    assert (marks, error) == ([False], None)


def test_nvdec_is_not_asked_where_damage_matters() -> None:
    options = Options(damaged="error")
    with open_media(clip(), options=options, limits=Limits(), device="cuda") as medium:
        assert medium.decoder_reason == "option damaged=error, and NVDEC does not tell of damage"


def test_a_gap_in_matroska_is_told_and_marks_what_follows() -> None:
    """FFmpeg goes on at the next cluster; HEVC's decoder does not notice what it lacks."""
    settings: dict[str, Any] = {"x265-params": "log-level=none:keyint=10:bframes=0:min-keyint=10"}
    data = clip(
        codec="libx265",
        container="matroska",
        frames=40,
        options=settings,
        mux_options={"cluster_time_limit": "400"},
    )
    good = read(data)
    places = [data.index(content) for _, _, _, content in packets_of(data)]
    first, last = places[14] + 20, places[15] + 10
    broken = read(data[:first] + bytes(last - first) + data[last:])
    differ, marked = unlike(good, broken)
    assert 20 < len(broken[0]) < 40
    assert differ <= marked
    assert 1.4 in marked
    assert max(marked) < 2
    assert isinstance(broken[3], InvalidMedia)
    assert "packets are damaged or missing from byte" in str(broken[3])
    assert read(data)[3] is None
