"""Times that fall, leap or stand still: where a stretch begins, and that no frame is lost there."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
import pytest

from pipelines.frames.batch import FrameBatch
from pipelines.media.clock import PAUSE_S, Clock
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, Wanted
from pipelines.media.nvdec import count_frames
from pipelines.media.video import Video
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options
from tests.support.media import clip, image, read_number

CLUSTER = b"\x1f\x43\xb6\x75"
HOUR_S = 3600.0


def at_rate(count: int, fps: float = 10, start_s: float = 0) -> list[float]:
    return [start_s + number / fps for number in range(count)]


def seen(times_s: Sequence[float], *, tick_s: float = 0.001, fps: float | None = 10) -> Clock:
    """A clock after these times, of which each is played after the one before."""
    clock, played_s = Clock(tick_s=tick_s, fps=fps), -np.inf
    for time_s in times_s:
        clock.see(time_s)
        assert time_s + clock.shift_s >= played_s
        played_s = time_s + clock.shift_s
    return clock


BREAKS: dict[str, tuple[list[float], int]] = {
    "none": (at_rate(30), 0),
    "joined": (at_rate(20) * 3, 2),
    "joined after two frames": ([0, 0.1, 0, 0.1, 0, 0.1], 2),
    "reset": (at_rate(9, start_s=HOUR_S) + at_rate(9), 1),
    "leaps by an hour": (at_rate(9) + at_rate(9, start_s=HOUR_S), 1),
    "leaps after one frame": ([0, *at_rate(9, start_s=HOUR_S)], 1),
    "a long still": ([*at_rate(9), 0.8 + PAUSE_S, *at_rate(9, start_s=1 + PAUSE_S)], 0),
    "too long a still": ([*at_rate(9), 0.8 + PAUSE_S + 1, *at_rate(9, start_s=2 + PAUSE_S)], 1),
    "stills of any length": ([0, 0.1, 40, 40.1, 430, 430.1, 4000], 0),
    "a frame a minute, and a pause": ([*at_rate(9, 1 / 60), 1000], 0),
    "a frame a minute, and a leap": ([*at_rate(9, 1 / 60), 480 + 601], 1),
    "too long a still after others": ([0, 0.1, 40, 40.1, 441], 1),
    "a frame a minute": (at_rate(20, 1 / 60), 0),
    "a frame an hour, which nobody knows": (at_rate(20, 1 / HOUR_S), 1),
    "pairs of equal times": ([time_s for time_s in at_rate(9) for _ in range(2)], 0),
    "stands still": ([*at_rate(9), *[0.8] * 50], 1),
    "nearly stands still": ([*at_rate(9), *at_rate(50, 1000, start_s=0.801)], 1),
    "stands still, and goes on": ([*at_rate(9), *[0.8] * 50, *at_rate(9, start_s=0.9)], 1),
}


@pytest.mark.parametrize("name", BREAKS)
def test_where_a_clock_breaks(name: str) -> None:
    times_s, breaks = BREAKS[name]
    assert seen(times_s).stretch == breaks


def test_a_claimed_rate_is_believed() -> None:
    """An hour between frames is no leap then, and a thousand frames a second stand for no still clock."""
    assert seen(at_rate(20, 1 / HOUR_S), fps=1 / HOUR_S).stretch == 0
    assert seen(at_rate(20, 1000), fps=1000).stretch == 0
    assert seen([number // 5 / 1000 for number in range(50)], fps=5000).stretch == 0


@pytest.mark.parametrize("name", ["joined", "reset", "leaps by an hour", "stands still"])
def test_frames_are_played_at_the_usual_rate_over_breaks(name: str) -> None:
    times_s, _ = BREAKS[name]
    clock = seen(times_s)
    # The second of the frames that share a time shows nothing wrong yet.
    frames = len(times_s) - ("stand" in name)
    assert times_s[-1] + clock.shift_s - times_s[0] == pytest.approx((frames - 1) / 10)


def test_a_burst_after_a_pause_lasts_no_longer_than_its_frames() -> None:
    """Live captures stamp late frames with the time of their arrival."""
    clock = seen([*at_rate(20), 60, *at_rate(30, 1000, start_s=60.001), 60.1, 60.2])
    assert 60.2 + clock.shift_s < 70


def test_times_of_decoding_count_where_those_of_presentation_are_wrong() -> None:
    clock = Clock(tick_s=1, fps=1)
    pairs = [(0, 0), (3, 1), (2, 2), (None, 3), (1, 4), (5, None), (6, 6)]
    assert [clock.best_ticks(*pair) for pair in pairs] == [0, 3, 2, 3, 4, None, 6]
    # Once both have fallen, or where there are no others, pts count.
    clock = Clock(tick_s=1, fps=1)
    assert [clock.best_ticks(*pair) for pair in [(0, 0), (5, 5), (0, 0), (1, None)]] == [0, 5, 0, 1]
    clock = Clock(tick_s=1, fps=1)
    assert [clock.best_ticks(pts, None) for pts in (0, 5, 0, 1)] == [0, 5, 0, 1]


def transport_stream(**more: Any) -> bytes:
    return clip(**{"container": "mpegts", "frames": 20, "gop": 10, **more})


def clusters(matroska: bytes) -> bytes:
    return matroska[matroska.index(CLUSTER) :]


LIVE: dict[str, Any] = {"container": "matroska", "frames": 20, "gop": 10, "mux_options": {"live": "1"}}
LEAP = at_rate(20) + at_rate(20, start_s=HOUR_S)
# Media of twice 20 frames, 10 a second. Numbers of those that were made apart begin anew.
BROKEN: dict[str, Callable[[], bytes]] = {
    "TS": lambda: transport_stream() * 2,
    "TS with B frames": lambda: transport_stream(bframes=2) * 2,
    "TS that leaps": lambda: transport_stream() + transport_stream(start_s=HOUR_S),
    "TS that is reset": lambda: transport_stream(start_s=HOUR_S) + transport_stream(),
    "MPEG-2": lambda: transport_stream(codec="mpeg2video", rate=25, pts=at_rate(20, 25)) * 2,
    "FLV": lambda: clip(container="flv", frames=20) + clip(container="flv", frames=20)[13:],
    "Matroska": lambda: clip(**LIVE) + clusters(clip(**LIVE)),
    "Matroska with B frames": lambda: clip(**LIVE, bframes=2) + clusters(clip(**LIVE, bframes=2)),
    "Matroska that leaps": lambda: clip(container="matroska", frames=40, pts=LEAP, gop=10),
    "MP4 that leaps": lambda: clip(frames=40, pts=LEAP, gop=10),
    "MP4 with B frames that leaps": lambda: clip(frames=40, pts=LEAP, gop=10, bframes=2),
    "VP9 that leaps": lambda: clip(codec="libvpx-vp9", container="webm", frames=40, pts=LEAP, gop=10),
}


def read(data: bytes, *, repeat: bool = False, **options: Any) -> FrameBatch:
    """All chunks as one."""
    with open_media(
        data,
        options=Options(**options),
        limits=Limits(max_frames=1000),
        device="cpu",
        wanted=Wanted(repeat_frames=repeat),
    ) as medium:
        chunks = list(medium.chunks())
    joined = {
        name: np.concatenate([np.asarray(getattr(chunk, name)) for chunk in chunks])
        for name in ("kept_nhwc", "pts_s", "frame_index", "stretch", "damaged", "played_s")
    }
    return FrameBatch(size_hw=chunks[0].size_hw, **joined)


@pytest.mark.parametrize("name", BROKEN)
def test_no_frame_is_lost_over_a_break(name: str) -> None:
    data = BROKEN[name]()
    fps = 25 if name == "MPEG-2" else 10
    whole = read(data)
    assert whole.frame_index.tolist() == list(range(40))
    assert whole.stretch.tolist() == [0] * 20 + [1] * 20
    np.testing.assert_allclose(whole.played_s - whole.played_s[0], at_rate(40, fps), atol=0.002)
    shown = [read_number(frame) for frame in np.asarray(whole.kept_nhwc)]
    assert shown in (list(range(40)), [*range(20)] * 2)
    for repeat in (False, True):
        every_second = read(data, fps=fps / 2, repeat=repeat)
        assert every_second.frame_index.tolist() == list(range(0, 40, 2))
        assert every_second.stretch.tolist() == [0] * 10 + [1] * 10
        assert [read_number(one) for one in np.asarray(every_second.kept_nhwc)] == shown[::2]
    assert read(data, fps=2 * fps, repeat=True).frame_index.tolist() == [n // 2 for n in range(80)]
    few = read(data, stride=5, fps=fps)
    assert few.frame_index.tolist() == list(range(0, 40, 5))
    np.testing.assert_allclose(few.played_s, whole.played_s[::5])


def test_a_clock_that_wraps_goes_on() -> None:
    """FFmpeg knows that 33 bits have run over."""
    data = transport_stream(start_s=2**33 / 90_000 - 2) + transport_stream()
    whole = read(data)
    assert not whole.stretch.any()
    np.testing.assert_allclose(np.diff(whole.pts_s), 0.1, atol=0.001)
    assert read(data, fps=5).frame_index.tolist() == list(range(0, 40, 2))


@pytest.mark.parametrize(("frames", "count"), [(3, 6), (1, 6)])
def test_short_recordings_are_joined(frames: int, count: int) -> None:
    """Of single frames it shows with the third that they are no pair."""
    whole = read(transport_stream(frames=frames) * count)
    assert whole.stretch[-1] == (count - 1 if frames > 1 else 1)
    rate = read(transport_stream(frames=frames) * count, fps=25)
    assert len(rate.frame_index) == frames * count - (frames == 1)


@pytest.mark.parametrize("name", ["TS", "Matroska with B frames", "MP4 that leaps", "VP9 that leaps"])
def test_key_frames_are_told_with_their_stretch(name: str) -> None:
    keys = read(BROKEN[name](), keyframes_only=True)
    assert keys.frame_index.tolist() == [0, 10, 20, 30]
    assert keys.stretch.tolist() == [0, 0, 1, 1]


def test_a_clock_that_hardly_moves_loses_no_frame() -> None:
    """As FFmpeg's muxers write times that fall: each a tick after the last."""
    data = clip(frames=40, pts=at_rate(20) + [1.9 + number / 90_000 for number in range(1, 21)])
    assert len(read(data, fps=5).frame_index) == 20
    assert read(data).stretch.tolist() == [0] * 21 + [1] * 19


@pytest.mark.parametrize("container", ["mp4", "matroska", "mpegts", "avi", "h264"])
def test_what_b_frames_reorder_is_no_break(container: str) -> None:
    whole = read(clip(frames=30, bframes=3, container=container))
    assert not whole.stretch.any()
    assert (np.diff(whole.pts_s) > 0).all()
    np.testing.assert_array_equal(whole.played_s, whole.pts_s)


def presented_as_decoded(container: str) -> bytes:
    """B frames whose times are those of decoding, as some muxers write them."""
    sink = io.BytesIO()
    with (
        av.open(io.BytesIO(clip(frames=30, bframes=3)), "r") as source,
        av.open(sink, "w", format=container) as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(video=0)):
            if packet.size:
                packet.stream, packet.time_base = stream, Fraction(1, 1000)
                packet.pts = packet.dts = 100 * number
                target.mux(packet)
    return sink.getvalue()


@pytest.mark.parametrize(("container", "falls"), [("mov", 0), ("matroska", 1)])
def test_times_in_file_order_are_no_break(container: str, falls: int) -> None:
    """A fall shows that they are, and from then on the times of decoding count."""
    data = presented_as_decoded(container)
    whole = read(data)
    assert (np.diff(whole.pts_s) < 0).sum() == whole.stretch[-1] == falls
    assert not (np.diff(whole.pts_s) < 0)[2:].any()
    assert read(data, stride=3).frame_index.tolist() == list(range(0, len(whole), 3))


@pytest.mark.parametrize("name", ["Matroska", "Matroska with B frames"])
def test_times_that_fall_stay_on_the_cpu(name: str) -> None:
    video = Video(BROKEN[name](), Limits())
    assert count_frames(video) in ("times fall", "frames share their time")
    video.close()


RANGES: list[tuple[str, dict[str, float], list[int]]] = [
    # Twice 0 to 1.9 s: the frames within, up to the first at end_s or later.
    ("falls", {"start_s": 1.5}, [*range(15, 20), *range(35, 40)]),
    ("falls", {"start_s": 0.5, "end_s": 1}, list(range(5, 10))),
    ("falls", {"end_s": 0.5}, list(range(5))),
    ("falls", {"start_s": 1.5, "end_s": 9}, [*range(15, 20), *range(35, 40)]),
    ("falls", {"start_s": 1.5, "fps": 5}, [15, 17, 19, 35, 37, 39]),
    # 0 to 1.9 s and an hour later.
    ("leaps", {"start_s": 100}, list(range(20, 40))),
    ("leaps", {"start_s": HOUR_S + 0.5, "end_s": HOUR_S + 1}, list(range(25, 30))),
    ("leaps", {"start_s": 1.5, "end_s": HOUR_S + 0.5, "fps": 5}, [15, 17, 19, 20, 22, 24]),
    ("leaps", {"end_s": 100}, list(range(20))),
    # An hour later first, then 0 to 1.9 s.
    ("is reset", {"end_s": 0.5}, list(range(20, 25))),
    ("is reset", {"start_s": 0.5, "end_s": 1, "fps": 5}, [25, 27, 29]),
    ("is reset", {"start_s": 0.5}, [*range(20), *range(25, 40)]),
]


@pytest.fixture(scope="module")
def ranged() -> dict[str, bytes]:
    now, later = clip(**LIVE), clip(**LIVE, start_s=HOUR_S)
    return {
        "falls": now + clusters(now),
        "leaps": now + clusters(later),
        "is reset": later + clusters(now),
    }


@pytest.mark.parametrize(("name", "options", "expected"), RANGES, ids=str)
def test_a_range_is_of_the_mediums_own_times(
    ranged: dict[str, bytes], name: str, options: dict[str, Any], expected: list[int]
) -> None:
    assert read(ranged[name], **options).frame_index.tolist() == expected


OUTSIDE: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "after": (clip(), {"start_s": 9.5}, r"within start_s=9\.5 .its frames lie from 0\.000 s to 1\.100 s"),
    "after, key frames": (clip(), {"start_s": 9.5, "keyframes_only": True}, "from 0.000 s to 1.100 s"),
    "after, few": (clip(), {"start_s": 1.15, "stride": 9}, "from 0.000 s to 1.100 s"),
    "after, AVI": (clip(container="avi"), {"start_s": 9, "fps": 1}, "from 0.000 s to 1.100 s"),
    "after, without times": (clip(container="h264", rate=25), {"start_s": 9}, "from 0.000 s to 0.440 s"),
    "before": (transport_stream(start_s=5), {"end_s": 4}, r"end_s=4 .its frames lie from 5\.000 s to 6\.9"),
    "before, few": (clip(start_s=5), {"end_s": 4, "stride": 9}, "from 5.000 s to 6.100 s"),
    "between": (clip(pts=[0, 1, 2], frames=3), {"start_s": 1.2, "end_s": 1.8}, "from 0.000 s to 2.000 s"),
    "in a leap": (clip(pts=LEAP, frames=40), {"start_s": 9, "end_s": 99}, "from 0.000 s to 3601.900 s"),
    "an image": (image(), {"start_s": 1}, "from 0.000 s to 0.000 s"),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_range_without_frames_says_where_they_are(name: str) -> None:
    data, options, message = OUTSIDE[name]
    with pytest.raises(InvalidOptions, match=message):
        read(data, **options)


def test_a_range_without_frames_does_not_decode_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers: list[int] = []
    timed = Video._timed

    def noted(video: Video, frame: Any) -> Any:
        found = timed(video, frame)
        numbers.append(found.frame_index)
        return found

    monkeypatch.setattr(Video, "_timed", noted)
    ranges: list[dict[str, Any]] = [{"end_s": 4}, {"start_s": 40}, {"start_s": 5.01, "end_s": 5.02}]
    for options in ranges:
        numbers.clear()
        with pytest.raises(InvalidOptions, match="no frame of the medium"):
            read(clip(container="mpegts", frames=90, start_s=5), **options)
        assert len(numbers) < 45
