"""Which frames of real files are answered: rates by definition, key frames, stretches, all combined."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, Wanted
from pipelines.protocol.errors import InvalidMedia, TrividError
from pipelines.protocol.options import Options
from tests.support.media import clip, image, mutated, read_number, truncated

VP9: dict[str, Any] = {"codec": "libvpx-vp9", "container": "webm"}


def read(data: bytes, options: Options, *, repeat_frames: bool = False) -> tuple[list[int], list[float]]:
    """Numbers and times of the frames that are answered; their pixels are those of that number."""
    index, times, shown = [], [], []
    with open_media(
        data,
        options=options,
        limits=Limits(chunk_frames=5),
        device="cpu",
        wanted=Wanted(repeat_frames=repeat_frames),
    ) as medium:
        for chunk in medium.chunks():
            index += chunk.frame_index.tolist()
            times += chunk.pts_s.tolist()
            shown += [read_number(frame) for frame in np.asarray(chunk.pixels_nhwc)]
    offset = shown[0] - index[0] if index else 0
    assert [number - offset for number in shown] == index
    return index, times


def decoded(data: bytes) -> tuple[list[float], list[bool], float]:
    """Times of all frames, which are key frames, and the length of a tick, by PyAV alone."""
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        assert stream.time_base is not None
        times = [float(frame.pts * stream.time_base) for frame in frames if frame.pts is not None]
        return times, [frame.key_frame for frame in frames], float(stream.time_base)


def by_definition(times_s: Sequence[float], fps: float, tick_s: float) -> list[int]:
    """The frame shown at each k/fps from the first on, until the last one's time plus its own length."""
    own_s = times_s[-1] - times_s[-2]
    # A sum of times that are rounded to ticks.
    last_s = times_s[-1] + own_s - min(tick_s, own_s / 4)
    shown, slot = [], 0
    while times_s[0] + slot / fps < last_s - tick_s / 2:
        shown.append(
            max(
                number
                for number, time_s in enumerate(times_s)
                if time_s <= times_s[0] + slot / fps + tick_s / 2 + 1e-9
            )
        )
        slot += 1
    return shown


UNEVEN = [0, 0.1, 0.15, 0.5, 1.2, 1.25, 1.3, 2.0]
CLIPS: dict[str, tuple[dict[str, Any], float]] = {
    "constant rate": ({"frames": 24, "rate": 25}, 15),
    "whole number of frames": ({"frames": 24, "rate": 30}, 15),
    "uneven times": ({"pts": UNEVEN, "frames": 8}, 4),
    "uneven times in Matroska": ({"pts": UNEVEN, "frames": 8, "container": "matroska"}, 3),
    "B frames": ({"frames": 24, "bframes": 3, "rate": 24}, 10),
    "a start that is not zero": ({"frames": 20, "start_s": 2.5, "rate": 30, "container": "matroska"}, 8),
    "a broadcast": ({"frames": 20, "start_s": 1.4, "rate": 25, "container": "mpegts", "bframes": 2}, 7),
    "an edit list": ({"start_s": -0.5, "mux_options": {"avoid_negative_ts": "disabled"}}, 4),
    "VP9": ({**VP9, "frames": 24, "rate": 30}, 15),
    "milliseconds": ({**VP9, "frames": 30, "rate": 30}, 2),
    "a higher rate": ({"frames": 8}, 25),
}


@pytest.mark.parametrize("repeat", [False, True])
@pytest.mark.parametrize("name", CLIPS)
def test_a_rate_takes_the_frame_that_is_shown(name: str, repeat: bool) -> None:
    arguments, fps = CLIPS[name]
    data = clip(**arguments)
    times, _, tick_s = decoded(data)
    expected = by_definition(times, fps, tick_s)
    if not repeat:
        expected = list(dict.fromkeys(expected))
    index, given = read(data, Options(fps=fps), repeat_frames=repeat)
    assert index == expected
    assert given == pytest.approx([times[number] for number in expected], abs=tick_s)


KEYED: dict[str, dict[str, Any]] = {
    "H.264": {"gop": 5},
    "B frames": {"gop": 6, "bframes": 2},
    "Matroska": {"gop": 5, "bframes": 2, "container": "matroska"},
    "HEVC": {"codec": "libx265", "options": {"x265-params": "log-level=none:keyint=6:min-keyint=6:pools=1"}},
    "VP9": {**VP9, "gop": 7},
    "AV1": {"codec": "libsvtav1", "container": "webm", "gop": 6},
    "uneven times": {"gop": 3, "pts": UNEVEN, "frames": 8},
    "a start that is not zero": {"gop": 4, "start_s": 2.5},
    "an edit list": {"gop": 4, "start_s": -0.5, "mux_options": {"avoid_negative_ts": "disabled"}},
    "a broadcast": {"gop": 5, "container": "mpegts", "bframes": 2},
    "fragments": {"gop": 4, "mux_options": {"movflags": "frag_keyframe+empty_moov"}},
    "all are": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "MPEG-4 in AVI": {"codec": "mpeg4", "container": "avi", "gop": 5},
}


@pytest.mark.parametrize("name", KEYED)
def test_key_frames_alone(name: str) -> None:
    """The decoder's own flags, and the numbers of the frames in the whole medium."""
    data = clip(**{"frames": 23, **KEYED[name]})
    times, keys, tick_s = decoded(data)
    expected = [number for number, key in enumerate(keys) if key]
    assert len(expected) > 1
    index, given = read(data, Options(keyframes_only=True))
    assert index == expected
    if len(times) == len(keys):
        assert given == pytest.approx([times[number] for number in expected], abs=tick_s)
    assert read(data, Options(keyframes_only=True, stride=2, max_frames=2))[0] == expected[::2][:2]


@pytest.mark.parametrize("arguments", [{"gop": 6, "bframes": 2}, {**VP9, "gop": 6}], ids=["H.264", "VP9"])
def test_what_is_no_key_frame_is_not_even_decoded(arguments: dict[str, Any]) -> None:
    """Damaged packets between them do no harm then."""
    data = bytearray(clip(frames=40, **arguments))
    with av.open(io.BytesIO(bytes(data)), "r") as container:
        packets: list[Any] = [one for one in container.demux(video=0) if one.size]
        damaged = [bytes(one) for one in packets[20:40] if not one.is_keyframe]
    for payload in damaged:
        place = bytes(data).index(payload)
        data[place + 4 : place + len(payload)] = bytes(len(payload) - 4)
    index, _ = read(bytes(data), Options(keyframes_only=True))
    assert index == list(range(0, 40, 6))
    with pytest.raises((InvalidMedia, AssertionError)):
        read(bytes(data), Options())


@pytest.mark.parametrize("name", ["sintel_h264_720p.mp4", "dog_h264_464p.mp4", "nasa_h264_two_streams.mp4"])
def test_real_media(shared_media: Path, name: str) -> None:
    data = (shared_media / name).read_bytes()
    times, keys, tick_s = decoded(data)
    for options, expected in (
        (Options(fps=7), by_definition(times, 7, tick_s)),
        (Options(keyframes_only=True), np.flatnonzero(keys).tolist()),
    ):
        with open_media(data, options=options, limits=Limits(), device="cpu") as medium:
            chunks = list(medium.chunks())
        assert [int(one) for chunk in chunks for one in chunk.frame_index] == expected
        given = [float(one) for chunk in chunks for one in chunk.pts_s]
        assert given == pytest.approx([times[number] for number in expected], abs=tick_s)


COMBINED: list[tuple[dict[str, Any], list[int]]] = [
    # Times are 0, 0.1, … 2.2; a rate of 5 takes every second frame.
    ({"fps": 5}, list(range(0, 23, 2))),
    ({"fps": 5, "start_s": 0.3}, list(range(3, 23, 2))),
    ({"fps": 5, "start_s": 0.25, "end_s": 1.0}, [3, 5, 7, 9]),
    ({"fps": 5, "end_s": 0.41}, [0, 2, 4]),
    ({"fps": 5, "end_s": 0.4}, [0, 2]),
    ({"fps": 5, "stride": 3}, [0, 6, 12, 18]),
    ({"fps": 5, "max_frames": 2}, [0, 2]),
    ({"fps": 5, "stride": 2, "start_s": 0.5, "max_frames": 3}, [5, 9, 13]),
    ({"fps": 4}, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]),
    ({"fps": 100}, list(range(23))),
    ({"fps": 0.001}, [0]),
    ({"keyframes_only": True, "start_s": 0.5}, [6, 12, 18]),
    ({"keyframes_only": True, "end_s": 1.2}, [0, 6]),
    ({"keyframes_only": True, "start_s": 0.5, "stride": 2}, [6, 18]),
]


@pytest.mark.parametrize(("options", "expected"), COMBINED, ids=lambda value: str(value))
def test_options_combine(options: dict[str, Any], expected: list[int]) -> None:
    data = clip(frames=23, gop=6, bframes=2)
    index, times = read(data, Options(**options))
    assert index == expected
    assert times == pytest.approx([number / 10 for number in expected])


def test_stride_counts_slots_where_frames_repeat() -> None:
    data = clip(frames=5)
    assert read(data, Options(fps=20), repeat_frames=True)[0] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert read(data, Options(fps=20, stride=3), repeat_frames=True)[0] == [0, 1, 3, 4]
    assert read(data, Options(fps=20, end_s=0.25), repeat_frames=True)[0] == [0, 0, 1, 1, 2]


@pytest.mark.parametrize("options", [{"fps": 15}, {"fps": 0.1}, {"keyframes_only": True}])
@pytest.mark.parametrize("repeat", [False, True])
def test_an_image_is_one_frame(options: dict[str, Any], repeat: bool) -> None:
    assert read(image(), Options(**options), repeat_frames=repeat) == ([0], [0.0])


def test_good_frames_come_before_the_error() -> None:
    """The file breaks off; the frame that was held back is answered first."""
    data = truncated(clip(mux_options={"movflags": "faststart"}), 0.9)

    def until_error(fps: float) -> list[int]:
        given: list[int] = []
        with open_media(
            data, options=Options(fps=fps), limits=Limits(chunk_frames=1), device="cpu"
        ) as medium:
            chunks = medium.chunks()
            while True:
                try:
                    given += next(chunks).frame_index.tolist()
                except InvalidMedia:
                    return given

    whole = until_error(0)
    assert len(whole) > 5
    assert until_error(10) == whole
    assert until_error(5) == whole[::2]


DAMAGED: dict[str, bytes] = {
    "mp4": clip(gop=4, bframes=2),
    "mkv": clip(gop=4, container="matroska"),
    "webm": clip(**VP9, gop=4),
    "ts": clip(gop=4, container="mpegts"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("options", [{"keyframes_only": True}, {"fps": 25.0, "max_frames": 50}], ids=str)
def test_damaged_media_give_frames_or_typed_errors(options: dict[str, Any], name: str) -> None:
    """Numbers of frames never fall, and an error is one of ours."""
    for seed in range(25):
        data = mutated(DAMAGED[name], seed, flips=1 + seed % 15)
        index: list[int] = []
        with (
            contextlib.suppress(TrividError),
            open_media(
                data,
                options=Options(**options),
                limits=Limits(max_pixels=1 << 20),
                device="cpu",
                wanted=Wanted(repeat_frames=True),
            ) as medium,
        ):
            for chunk in medium.chunks():
                index += chunk.frame_index.tolist()
        assert index == sorted(index)
