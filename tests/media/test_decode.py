"""Decoding on the CPU: every kind of medium gives its own frames, times, colours and uprightness."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest

from pipelines.frames.batch import FrameBatch
from pipelines.media.decode import open_media
from pipelines.media.medium import MAX_CHUNK_BYTES, Limits
from pipelines.media.selection import Selected, select
from pipelines.protocol.options import Options
from tests.support import media
from tests.support.media import clip, info_of, read_number

Pixels = npt.NDArray[Any]
VP9 = {"codec": "libvpx-vp9", "container": "webm"}
FULL = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}


def read(
    data: bytes, options: Options | None = None, limits: Limits | None = None, *, device: str = "cpu"
) -> list[FrameBatch]:
    with open_media(data, options=options or Options(), limits=limits or Limits(), device=device) as medium:
        return list(medium.chunks())


def columns(chunks: Sequence[FrameBatch]) -> tuple[list[int], list[float], list[int]]:
    """Numbers of the frames, their times, and the numbers that their pixels show."""
    index = [int(one) for chunk in chunks for one in chunk.frame_index]
    times = [round(float(one), 6) for chunk in chunks for one in chunk.pts_s]
    return index, times, [read_number(frame) for chunk in chunks for frame in np.asarray(chunk.pixels_nhwc)]


CONTAINERS: list[tuple[dict[str, Any], str]] = [
    ({}, "h264"),
    ({"container": "matroska"}, "h264"),
    ({"container": "mov"}, "h264"),
    ({"container": "mpegts"}, "h264"),
    ({"container": "avi"}, "h264"),
    ({"container": "flv"}, "h264"),
    ({"container": "h264"}, "h264"),
    ({"container": "hevc", "codec": "libx265"}, "hevc"),
    ({"mux_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 4}, "h264"),
    ({"mux_options": {"movflags": "faststart"}, "bframes": 2, "audio": True}, "h264"),
    (VP9, "vp9"),
    ({"codec": "libvpx", "container": "webm"}, "vp8"),
    ({"codec": "libsvtav1", "container": "webm"}, "av1"),
    ({"codec": "mpeg4", "container": "avi", "bframes": 2}, "mpeg4"),
    ({"codec": "mpeg2video", "container": "mpegts", "rate": 25}, "mpeg2video"),
    ({**FULL, "container": "avi"}, "mjpeg"),
]


@pytest.mark.parametrize(("arguments", "codec"), CONTAINERS, ids=lambda value: str(value))
def test_every_container_gives_all_frames_in_order(arguments: dict[str, Any], codec: str) -> None:
    data = clip(**arguments)
    index, times, numbers = columns(read(data))
    assert index == numbers == list(range(12))
    assert np.allclose(
        np.diff(times), 1 / 25 if "rate" in arguments or "pts" in arguments else times[1] - times[0]
    )
    info = info_of(data)
    assert (info.kind, info.codec, info.width_px, info.height_px) == ("video", codec, 64, 48)


TIMES: list[tuple[dict[str, Any], list[float]]] = [
    ({"pts": [0, 0.1, 0.15, 0.5, 1.2]}, [0, 0.1, 0.15, 0.5, 1.2]),
    ({"pts": [0, 0.04, 0.5, 0.54, 2.0], "bframes": 2, "container": "matroska"}, [0, 0.04, 0.5, 0.54, 2.0]),
    ({"pts": [0, 0.04, 0.5, 0.54, 2.0], **VP9}, [0, 0.04, 0.5, 0.54, 2.0]),
    ({"start_s": 2.5, "frames": 3}, [2.5, 2.6, 2.7]),
    ({"start_s": 1.4, "frames": 3, "container": "mpegts"}, [1.4, 1.5, 1.6]),
    ({"bframes": 2, "frames": 4, "container": "mpegts"}, [0.2, 0.3, 0.4, 0.5]),
    # AVI has no presentation times; ffprobe shows the packets' order, and the last two go on at its rate.
    ({"bframes": 2, "frames": 4, "container": "avi"}, [0.2, 0.3, 0.4, 0.5]),
    ({"frames": 3, "container": "h264"}, [0, 0.04, 0.08]),
]


@pytest.mark.parametrize(("arguments", "expected"), TIMES, ids=lambda value: str(value))
def test_times_are_the_mediums_own(arguments: dict[str, Any], expected: list[float]) -> None:
    arguments = {"frames": len(expected), **arguments}
    data = clip(**arguments)
    index, times, numbers = columns(read(data))
    assert index == numbers == list(range(len(expected)))
    assert times == pytest.approx(expected, abs=0.0006)


def test_an_edit_list_hides_frames() -> None:
    data = clip(start_s=-0.5, mux_options={"avoid_negative_ts": "disabled"})
    index, times, numbers = columns(read(data))
    assert index == list(range(7))
    assert times == pytest.approx([0.1 * number for number in range(7)])
    assert numbers == list(range(5, 12))


def test_negative_times_are_there_without_start_s() -> None:
    frames = [Selected(0, -0.5, "a"), Selected(1, 0.0, "b"), Selected(2, 0.5, "c")]
    for options, expected in ((Options(), "abc"), (Options(start_s=0.1), "c"), (Options(end_s=0.2), "ab")):
        assert "".join(one.frame for one in select(frames, options, Limits())) == expected


SELECTIONS: list[tuple[dict[str, Any], list[int]]] = [
    ({}, list(range(12))),
    ({"start_s": 0.3}, list(range(3, 12))),
    ({"start_s": 0.31}, list(range(4, 12))),
    ({"end_s": 0.3}, [0, 1, 2]),
    ({"start_s": 0.2, "end_s": 0.5}, [2, 3, 4]),
    ({"stride": 5}, [0, 5, 10]),
    ({"start_s": 0.1, "stride": 4}, [1, 5, 9]),
    ({"max_frames": 3}, [0, 1, 2]),
    ({"start_s": 0.2, "stride": 3, "max_frames": 2}, [2, 5]),
    ({"max_frames": 100}, list(range(12))),
]


@pytest.mark.parametrize(("options", "expected"), SELECTIONS, ids=lambda value: str(value))
def test_selection(options: dict[str, Any], expected: list[int]) -> None:
    index, times, numbers = columns(read(clip(bframes=2), Options(**options)))
    assert index == numbers == expected
    assert times == pytest.approx([number / 10 for number in expected])


@pytest.mark.parametrize(
    ("chunk_frames", "options", "lengths"),
    [
        (5, {}, [5, 5, 2]),
        (12, {}, [12]),
        (16, {}, [12]),
        (1, {"max_frames": 2}, [1, 1]),
        (4, {"stride": 2}, [4, 2]),
    ],
)
def test_chunks_are_bounded(chunk_frames: int, options: dict[str, Any], lengths: list[int]) -> None:
    chunks = read(clip(), Options(**options), Limits(chunk_frames=chunk_frames))
    assert [len(chunk) for chunk in chunks] == lengths


def test_chunks_of_large_frames_are_shorter() -> None:
    limits = Limits(chunk_frames=16)
    assert limits.chunk_length(1280, 720) == 16
    assert limits.chunk_length(7680, 4320) * 7680 * 4320 * 3 <= MAX_CHUNK_BYTES
    assert limits.chunk_length(60_000, 60_000) == 1


def test_options_may_end_before_the_servers_limit() -> None:
    assert columns(read(clip(), Options(max_frames=5), Limits(max_frames=5)))[0] == list(range(5))
    assert columns(read(clip(frames=5), limits=Limits(max_frames=5)))[0] == list(range(5))


def test_what_is_not_read_may_be_broken() -> None:
    """Decoding stops behind `end_s` or `max_frames`, before the place where the file ends early."""
    data = media.truncated(clip(mux_options={"movflags": "faststart"}), 0.9)
    for options in (Options(end_s=0.3), Options(max_frames=3)):
        assert columns(read(data, options))[0] == [0, 1, 2]


def test_a_medium_can_be_left_early() -> None:
    medium = open_media(clip(), options=Options(), limits=Limits(chunk_frames=2), device="cpu")
    first = next(medium.chunks())
    medium.close()
    assert list(medium.chunks()) == []
    medium.close()
    assert read_number(first.pixels_nhwc[1]) == 1


def test_media_are_decoded_side_by_side() -> None:
    clips = [clip(**arguments) for arguments, _ in CONTAINERS[:4]]
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda data: columns(read(data)), clips * 3))
    assert all(index == numbers == list(range(12)) for index, _, numbers in results)


@pytest.mark.parametrize(("decoder", "reason"), [("auto", "device is cpu"), ("cpu", "option decoder=cpu")])
def test_the_reason_is_stated(decoder: Any, reason: str) -> None:
    options = Options(decoder=decoder)
    with open_media(clip(), options=options, limits=Limits(), device="cpu") as medium:
        assert (medium.decoder, medium.decoder_reason) == ("pyav", reason)


def test_a_medium_says_what_its_first_frame_is() -> None:
    data = clip(matrix="bt709", full_range=False, rotation=90, rate=10)
    info = info_of(data)
    assert (info.matrix, info.colour_range, info.pixel_format) == ("bt709", "limited", "yuv420p")
    assert info.fps == 10
    assert info.duration_s == pytest.approx(1.2)
    assert info.container.startswith("mov,mp4")


@pytest.mark.parametrize(
    ("name", "frames", "size", "matrix"),
    [
        ("sintel_h264_720p.mp4", 23, (1280, 720), "unspecified"),
        ("dog_h264_464p.mp4", 96, (848, 464), "bt709"),
        ("nasa_h264_two_streams.mp4", 325, (320, 180), "bt709"),
        ("pattern_vp9_720p.webm", 30, (1280, 720), "unspecified"),
        ("pattern_h265_720p.mp4", 60, (1280, 720), "unspecified"),
        ("monkey_1920px.jpg", 1, (1280, 1920), "rgb"),
    ],
)
def test_real_media(shared_media: Path, name: str, frames: int, size: tuple[int, int], matrix: str) -> None:
    data = (shared_media / name).read_bytes()
    info = info_of(data)
    assert (info.width_px, info.height_px, info.matrix) == (*size, matrix)
    with open_media(data, options=Options(stride=7), limits=Limits(), device="cpu") as medium:
        chunks = list(medium.chunks())
    assert [int(one) for chunk in chunks for one in chunk.frame_index] == list(range(0, frames, 7))
    assert all((chunk.width_px, chunk.height_px) == size for chunk in chunks)
    if info.kind == "video":
        with av.open(io.BytesIO(data), "r") as container:
            packets: list[Any] = [packet for packet in container.demux(video=0) if packet.size]
            own = sorted(float(packet.pts * packet.time_base) for packet in packets)
        assert [float(one) for chunk in chunks for one in chunk.pts_s] == pytest.approx(own[::7])
