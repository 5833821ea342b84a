"""Media that cannot be served: a typed error with a way out, after all good frames, and quickly."""

from __future__ import annotations

import base64
import struct
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.frames.batch import FrameBatch
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.protocol.errors import InvalidMedia, TooLarge, TrividError, UnsupportedMedia
from pipelines.protocol.options import Options
from tests.support import media
from tests.support.media import (
    audio_only,
    clip,
    image,
    info_of,
    mutated,
    png_of_claimed_size,
    read_number,
    truncated,
)

FASTSTART: dict[str, Any] = {"mux_options": {"movflags": "faststart"}}
VP9: dict[str, Any] = {"codec": "libvpx-vp9", "container": "webm"}


def read_until_error(
    data: bytes, options: Options | None = None, limits: Limits | None = None
) -> tuple[list[FrameBatch], TrividError | None]:
    """The chunks that came, and the error that ended them."""
    chunks: list[FrameBatch] = []
    try:
        with open_media(
            data, options=options or Options(), limits=limits or Limits(), device="cpu"
        ) as medium:
            for chunk in medium.chunks():
                chunks.append(chunk)
    except TrividError as error:
        return chunks, error
    return chunks, None


def lossless(**arguments: Any) -> bytes:
    return clip(codec="ffv1", container="matroska", pix_fmt="yuv444p", frames=2, **arguments)


def bmp_of_claimed_size(width: int, height: int) -> bytes:
    data = bytearray(image("bmp"))
    data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


BAD: dict[str, tuple[bytes, type[TrividError], str]] = {
    "nothing": (b"", InvalidMedia, "empty"),
    "text": (b"these are no pictures " * 20, InvalidMedia, "looks like text"),
    "base64": (base64.b64encode(clip()), InvalidMedia, "looks like base64 text: it starts b'AAAA"),
    "a data URI": (b"data:image/png;base64," + base64.b64encode(image("png")), InvalidMedia, "base64 text"),
    "zeros": (bytes(5000), InvalidMedia, "all 5000 bytes"),
    "JPEG's first bytes": (b"\xff\xd8\xff\xe0", InvalidMedia, "JPEG"),
    "PNG's first bytes": (b"\x89PNG\r\n\x1a\n" + bytes(50), InvalidMedia, "PNG"),
    "a PNG without pixels": (image("png")[:60], InvalidMedia, "PNG image cannot be decoded"),
    "half a WebP": (truncated(image("webp"), 0.5), InvalidMedia, "WEBP"),
    "HEIF": (b"\x00\x00\x00\x18ftypheic" + bytes(40), UnsupportedMedia, "HEIF"),
    "MP4 without its index": (truncated(clip(), 0.5), InvalidMedia, "not a readable image or video"),
    "MP4 with half its index": (truncated(clip(), 0.9), InvalidMedia, "no stream"),
    "sound": (audio_only(), UnsupportedMedia, "no video stream (streams: audio)"),
    "sound with a cover": (audio_only(cover=True), UnsupportedMedia, "(streams: audio, video)"),
    "WAV": (b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(40), UnsupportedMedia, "WAV recording"),
    "an unknown codec": (clip().replace(b"avc1", b"zzzz"), UnsupportedMedia, "codec is unknown"),
    "YCgCo": (lossless(matrix="ycgco"), UnsupportedMedia, "matrix 8"),
    "luma and chroma marked RGB": (lossless(matrix="rgb"), UnsupportedMedia, "matrix 0"),
    "turned by 45 degrees": (clip(rotation=45), UnsupportedMedia, "45"),
    "a PNG of 3.6 gigapixels": (png_of_claimed_size(60_000, 60_000), TooLarge, "limit"),
    "a PNG of 80 megapixels": (png_of_claimed_size(10_000, 8_000), TooLarge, "10000x8000"),
    "a BMP of 100 megapixels": (bmp_of_claimed_size(10_000, 10_000), TooLarge, "10000x10000"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_media_are_refused_at_once(name: str) -> None:
    data, kind, text = BAD[name]
    with pytest.raises(kind) as caught:
        open_media(data, options=Options(), limits=Limits(), device="cpu")
    assert type(caught.value) is kind
    assert text in str(caught.value)
    assert caught.value.hint


PLAYLISTS = {
    "HLS": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:2\n#EXTINF:1.2,\n{path}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile {path}\n",
    "SDP": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "DASH": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1"><BaseURL>{path}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_playlists_open_no_file_and_no_host(name: str, tmp_path: Path) -> None:
    """FFmpeg would read the server's own files for the sender, or wait for a network."""
    path = tmp_path / "secret.ts"
    path.write_bytes(clip(container="mpegts"))
    with pytest.raises((InvalidMedia, UnsupportedMedia)):
        info_of(PLAYLISTS[name].format(path=path).encode())


TRUNCATED: list[tuple[dict[str, Any], float, int]] = [
    (FASTSTART, 0.5, 3),
    (FASTSTART, 0.9, 10),
    (FASTSTART | {"audio": True}, 0.8, 9),
    (FASTSTART | {"bframes": 2}, 0.9, 6),
    ({"mux_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 4}, 0.9, 10),
    ({"container": "matroska"}, 0.5, 4),
    ({"container": "matroska", "bframes": 2}, 0.9, 6),
    (VP9, 0.9, 8),
    ({"codec": "mpeg4", "container": "avi"}, 0.9, 8),
    ({"codec": "mjpeg", "pix_fmt": "yuvj420p", **FASTSTART}, 0.6, 4),
]


@pytest.mark.parametrize(("arguments", "part", "at_least"), TRUNCATED, ids=lambda value: str(value))
def test_a_file_that_breaks_off_gives_its_good_frames_first(
    arguments: dict[str, Any], part: float, at_least: int
) -> None:
    """Whatever comes has its own time; then the error names the last frame."""
    chunks, error = read_until_error(truncated(clip(**arguments), part), limits=Limits(chunk_frames=4))
    index = [int(one) for chunk in chunks for one in chunk.frame_index]
    shown = [round(float(one) * 10) for chunk in chunks for one in chunk.pts_s - chunks[0].pts_s[0]]
    numbers = [read_number(frame) for chunk in chunks for frame in np.asarray(chunk.pixels_nhwc)]
    assert index == list(range(len(index)))
    assert numbers == shown
    assert at_least <= len(index) < 12
    assert isinstance(error, InvalidMedia)
    assert f"after frame {index[-1]} at {chunks[-1].pts_s[-1]:.3f} s" in str(error)


def test_a_damaged_packet_costs_only_its_frame() -> None:
    data = bytearray(clip(codec="mjpeg", pix_fmt="yuvj420p", **FASTSTART))
    starts = [place for place in range(len(data)) if data[place : place + 3] == b"\xff\xd8\xff"]
    data[starts[6] : starts[7]] = bytes(starts[7] - starts[6])
    chunks, error = read_until_error(bytes(data))
    numbers = [read_number(frame) for chunk in chunks for frame in np.asarray(chunk.pixels_nhwc)]
    assert numbers == [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]
    assert isinstance(error, InvalidMedia)
    assert "cannot be decoded after frame 5" in str(error)


def test_a_broadcast_may_begin_between_key_frames() -> None:
    data = clip(container="mpegts", frames=24, gop=8, options={"bf": "0", "x264-params": "scenecut=0"})
    chunks, error = read_until_error(data[len(data) // 188 // 4 * 188 :])
    numbers = [read_number(frame) for chunk in chunks for frame in np.asarray(chunk.pixels_nhwc)]
    assert error is None
    assert numbers == list(range(numbers[0], 24))
    assert numbers[0] in (8, 16)


def test_frames_that_change_their_size_end_the_medium() -> None:
    first, second = clip(container="h264", frames=5), clip(container="h264", width=96, height=80)
    chunks, error = read_until_error(first + second)
    assert sum(map(len, chunks)) == 5
    assert isinstance(error, UnsupportedMedia)
    assert "from 64x48 to 96x80 pixels at 0.200 s" in str(error)


LIMITS: list[tuple[bytes, Options, Limits, int, str]] = [
    (clip(), Options(), Limits(max_frames=5, chunk_frames=2), 5, "more than 5 frames"),
    (clip(), Options(stride=2), Limits(max_frames=5), 5, "stream endpoint"),
    (clip(), Options(max_frames=9), Limits(max_frames=5), 5, "more than 5 frames"),
    (clip(), Options(), Limits(max_pixels=64 * 48 - 1), 0, "64x48"),
    (clip(), Options(), Limits(max_media_bytes=100), 0, "limit of 100"),
    (image(), Options(), Limits(max_pixels=1000), 0, "64x48"),
    (image(), Options(), Limits(max_media_bytes=100), 0, "limit of 100"),
]


@pytest.mark.parametrize(("data", "options", "limits", "frames", "text"), LIMITS)
def test_limits(data: bytes, options: Options, limits: Limits, frames: int, text: str) -> None:
    chunks, error = read_until_error(data, options, limits)
    assert sum(map(len, chunks)) == frames
    assert isinstance(error, TooLarge)
    assert text in str(error)
    assert error.hint


def test_decoder_threads_never_wait_for_the_interpreter() -> None:
    """An import of torchvision has FFmpeg log to Python again; closing a decoder waits for its threads."""
    data = mutated(clip(frames=30), seed=1)
    read_until_error(data)
    level = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        with av.logging.Capture(False) as told:
            read_until_error(data)
    finally:
        av.logging.set_level(level)
    assert told == []


def test_a_header_that_lies_of_its_size() -> None:
    """The container says 64x48; VP8's own key frames say more, within FFmpeg's guard and beyond it."""
    data = clip(codec="libvpx", container="webm", frames=3)
    for width, kind in ((96, TooLarge), (16_000, TrividError)):
        lying = data.replace(b"\x9d\x01\x2a\x40\x00\x30\x00", b"\x9d\x01\x2a" + struct.pack("<HH", width, 48))
        assert lying != data
        with pytest.raises(kind):
            info_of(lying, Limits(max_pixels=64 * 48))


def test_nvdec_is_demanded_without_a_gpu() -> None:
    for data, text in ((clip(), "device is cpu"), (image(), "does not decode images")):
        with pytest.raises(UnsupportedMedia, match=text):
            open_media(data, options=Options(decoder="nvdec"), limits=Limits(), device="cpu")


MUTATED: dict[str, bytes] = {
    "mp4": clip(bframes=2, audio=True, **FASTSTART),
    "mkv": clip(container="matroska"),
    "webm": clip(**VP9),
    "ts": clip(container="mpegts"),
    "avi": clip(container="avi", codec="mpeg4"),
    "hevc": clip(codec="libx265"),
    "jpeg": image("jpeg", orientation=6),
    "png": image("png"),
    "gif": image("gif", frames=2),
    "webp": image("webp", frames=2),
    "tiff": image("tiff", orientation=3),
}


@pytest.mark.parametrize("name", MUTATED)
def test_mutated_media_give_frames_or_typed_errors(name: str) -> None:
    """Anything else than a TrividError, a warning included, fails here; so would a crash or a hang."""
    limits = Limits(max_pixels=1 << 20)
    for seed in range(30):
        data = mutated(MUTATED[name], seed, flips=1 + seed % 20)
        # Damage in the head meets other code than damage in the pictures.
        head = mutated(MUTATED[name][:300], seed, flips=4) + MUTATED[name][300:]
        for broken in (data, head):
            chunks, error = read_until_error(broken, limits=limits)
            assert error is None or error.message
            assert all(chunk.pixels_nhwc.shape[3] == 3 for chunk in chunks)


def test_a_stream_that_appears_on_the_way_does_no_harm() -> None:
    """Here damage makes a second stream of packets, at which PyAV's demuxer ends with IndexError."""
    chunks, error = read_until_error(mutated(clip(container="mpegts", frames=40), 187))
    assert sum(map(len, chunks)) > 20
    assert error is None or isinstance(error, InvalidMedia)


def test_media_helpers_are_deterministic() -> None:
    assert mutated(b"abcdef" * 10, 3) == mutated(b"abcdef" * 10, 3)
    assert media.picture(5).tobytes() == media.picture(5).tobytes()
    assert read_number(media.picture(173)) == 173


def test_a_table_of_more_samples_than_bytes_is_refused_before_it_is_read() -> None:
    clip = media.clip(frames=4)
    place = clip.index(b"stsz") + 8
    for size, count in ((1000, 80_000_000), (0, 80_000_000)):
        lie = clip[:place] + struct.pack(">II", size, count) + clip[place + 8 :]
        with pytest.raises(InvalidMedia, match=r"claims 8000000[04] samples"):
            info_of(lie)
