"""Frames that nobody needs are not decoded, and the answer is the same to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from pipelines.media import video
from pipelines.media.decode import open_media
from pipelines.media.medium import Leave, Limits, Wanted
from pipelines.media.packets import check_range, read_index
from pipelines.media.video import Video
from pipelines.protocol.errors import DeadlineExceeded, TrividError
from pipelines.protocol.options import Options
from tests.support import media

FRAMES = 120
OPTIONS = [
    {"stride": 3},
    {"stride": 5, "max_frames": 9},
    {"stride": 3, "start_s": 1.05, "end_s": 3.5},
    {"fps": 6.0},
    {"fps": 7.0, "stride": 2},
    {"fps": 0.3, "start_s": 1.0},
    {"fps": 4.0, "end_s": 2.0},
]
# The limit of the server, below what the first of them select.
MOST = 28


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the frames that decoders gave."""
    numbers: list[int] = []
    timed = Video._timed

    def noted(video: Video, frame: Any) -> Any:
        found = timed(video, frame)
        numbers.append(found.frame_index)
        return found

    monkeypatch.setattr(Video, "_timed", noted)
    return numbers


def read(data: bytes, options: Options, *, repeat: bool = False) -> tuple[list[Any], str]:
    """Number, time and pixels of all frames, and the code of the error behind them."""
    frames: list[Any] = []
    code = ""
    wanted = Wanted(repeat_frames=repeat)
    try:
        with open_media(
            data, options=options, limits=Limits(max_frames=MOST), device="cpu", wanted=wanted
        ) as medium:
            for chunk in medium.chunks():
                frames += zip(chunk.frame_index, chunk.pts_s, np.asarray(chunk.pixels_nhwc), strict=True)
    except TrividError as error:
        code = error.code
    return frames, code


def both_ways(
    monkeypatch: pytest.MonkeyPatch,
    decoded: list[int],
    data: bytes,
    options: Options,
    *,
    repeat: bool = False,
) -> tuple[int, int, str]:
    """How many frames are decoded with all of them, and without those not needed; the error's code."""
    with monkeypatch.context() as patch:
        patch.setattr(video, "SKIPPING", ())
        plain, plain_code = read(data, options, repeat=repeat)
        everything = len(decoded)
    decoded.clear()
    found, code = read(data, options, repeat=repeat)
    assert code == plain_code
    assert [one[:2] for one in found] == [one[:2] for one in plain]
    for one, other in zip(found, plain, strict=True):
        np.testing.assert_array_equal(one[2], other[2])
    fewer = len(decoded)
    decoded.clear()
    return everything, fewer, code


@pytest.fixture(scope="module")
def clips() -> dict[str, bytes]:
    shape: dict[str, Any] = {"frames": FRAMES, "width": 128, "height": 96, "rate": 24}
    return {
        "b-pyramid": media.clip(
            **shape, bframes=3, gop=48, options={"x264-params": "b-pyramid=normal:b-adapt=0"}
        ),
        "b-frames": media.clip(**shape, bframes=2, options={"x264-params": "b-pyramid=none:b-adapt=0"}),
        "open groups": media.clip(**shape, bframes=3, options={"x264-params": "open-gop=1:b-adapt=0"}),
        "interlaced": media.clip(**shape, bframes=3, options={"x264-params": "interlaced=1:b-adapt=0"}),
        "many references": media.clip(
            **shape, bframes=3, options={"x264-params": "ref=6:b-adapt=0:weightb=1"}
        ),
        "matroska": media.clip(
            **shape, bframes=3, container="matroska", options={"x264-params": "b-adapt=0"}
        ),
        "variable rate": media.clip(
            **shape,
            bframes=3,
            pts=list(np.cumsum(np.tile([0.02, 0.05, 0.09], FRAMES // 3))),
            options={"x264-params": "b-adapt=0"},
        ),
    }


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(
    "name",
    ["b-pyramid", "b-frames", "open groups", "interlaced", "many references", "matroska", "variable rate"],
)
def test_answers_are_the_same_and_fewer_frames_are_decoded(
    clips: dict[str, bytes], name: str, options: Any, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    everything, fewer, code = both_ways(monkeypatch, decoded, clips[name], Options(**options))
    assert fewer < everything
    assert code == ("too_large" if options in (OPTIONS[0], OPTIONS[3]) else "")


def test_actions_get_their_repeats(monkeypatch: pytest.MonkeyPatch, decoded: list[int]) -> None:
    data = media.clip(
        frames=30, bframes=3, pts=[0.1 * number + (3.0 if number > 20 else 0.0) for number in range(30)]
    )
    for fps in (2.0, 3.0):
        both_ways(monkeypatch, decoded, data, Options(fps=fps, max_frames=12), repeat=True)


@pytest.mark.parametrize("part", [0.4, 0.7, 0.95])
def test_damaged_media_give_the_same_up_to_the_damage(
    clips: dict[str, bytes], part: float, monkeypatch: pytest.MonkeyPatch, decoded: list[int]
) -> None:
    data = media.truncated(clips["matroska"], part)
    assert both_ways(monkeypatch, decoded, data, Options(stride=4))[2] == "invalid_media"


def test_packets_are_read_only_in_time() -> None:
    data, late = media.clip(), Leave(deadline_s=0.0)
    with pytest.raises(DeadlineExceeded):
        read_index(data, Limits(), late)
    with pytest.raises(DeadlineExceeded):
        check_range(data, Limits(), late, Options(start_s=1e6))
    leave, options = Leave(), Options(start_s=1e6)
    with open_media(data, options=options, limits=Limits(), device="cpu", leave=leave) as medium:
        leave.deadline_s = 0.0
        with pytest.raises(DeadlineExceeded):
            next(medium.batches)
