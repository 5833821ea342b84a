"""The rule of rates, on times alone: torchvision's frames, repeats, and what it holds back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction

import pytest
import torch
from torchvision.datasets.video_utils import VideoClips

from pipelines.media.medium import Limits
from pipelines.media.selection import MAX_REPEATS, Selected, select
from pipelines.protocol.errors import InvalidOptions, TooLarge
from pipelines.protocol.options import Options

RATES = [(30, 15), (25, 15), (24, 15), (30000 / 1001, 15), (30, 7.5), (60, 7), (50, 12.5), (24, 23.976)]


def at(times_s: Sequence[float]) -> list[Selected[int]]:
    """Frames of these times, each its own number."""
    return [Selected(number, time_s, number) for number, time_s in enumerate(times_s)]


def chosen(
    times_s: Sequence[float], options: Options, *, tick_s: float = 0, repeat: bool = False
) -> list[int]:
    return [one.frame for one in select(at(times_s), options, Limits(), tick_s=tick_s, repeat=repeat)]


@pytest.mark.parametrize("ticks_per_s", [0, 90_000, 12_800, 1000])
@pytest.mark.parametrize(("rate", "fps"), RATES)
def test_constant_rates_are_resampled_as_torchvision_does(rate: float, fps: float, ticks_per_s: int) -> None:
    frames = 400
    times = [number / rate for number in range(frames)]
    if ticks_per_s:
        times = [round(time_s * ticks_per_s) / ticks_per_s for time_s in times]
    ours = chosen(times, Options(fps=fps), tick_s=1 / ticks_per_s if ticks_per_s else 0)
    picked = VideoClips._resample_video_idx(int(frames * fps / rate), rate, fps)
    theirs = torch.arange(frames)[picked].tolist()
    # torchvision leaves a last slot out that is not full.
    assert len(ours) - len(theirs) in (0, 1)
    # Whole milliseconds cannot tell a frame 0.07 ms behind its slot from one on it.
    apart = [slot for slot, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]]
    assert not apart or ticks_per_s == 1000
    assert all(times[ours[slot]] - slot / fps < 0.5 / ticks_per_s for slot in apart)


@pytest.mark.parametrize(("ticks_per_s", "rate"), [(1000, 30), (1000, 24), (30, 30), (60, 30), (90_000, 25)])
def test_a_rate_takes_no_slot_behind_the_end(ticks_per_s: int, rate: float) -> None:
    frames = round(rate)
    times = [round(number / rate * ticks_per_s) / ticks_per_s for number in range(frames)]
    for fps in (1, 2, 10):
        assert len(chosen(times, Options(fps=fps), tick_s=1 / ticks_per_s)) == fps
    assert chosen(times, Options(fps=rate), tick_s=1 / ticks_per_s) == list(range(frames))


def test_ticks_are_exact() -> None:
    """An hour into a medium of 1/90000 s, a frame on its slot is still taken for it."""
    start = Fraction(90_000 * 3600)
    times = [float((start + 3003 * number) / 90_000) for number in range(3000)]
    assert chosen(times, Options(fps=30_000 / 1001), tick_s=1 / 90_000) == list(range(3000))


def test_a_frame_alone_in_its_stretch_is_answered_once() -> None:
    for repeat in (False, True):
        assert chosen([0, 1, 2], Options(fps=30, start_s=2), repeat=repeat) == [2]
        assert chosen([7], Options(fps=30), repeat=repeat) == [0]
    # Its own length is known where another frame follows, even outside of the stretch.
    assert chosen([0, 1, 2], Options(fps=4, start_s=1, end_s=2), repeat=True) == [1] * 4


def test_frames_that_share_a_time_give_the_last_of_them() -> None:
    assert chosen([0, 0, 1, 1, 2, 3], Options(fps=1)) == [1, 3, 4, 5]


def test_a_lie_about_time_repeats_no_frame_for_ever() -> None:
    index = chosen([0, 0.1, 1e9, 1e9 + 0.1], Options(fps=30), repeat=True)
    assert index.count(1) == MAX_REPEATS
    assert index.count(2) == 3


def test_one_frame_is_held_back_and_no_more() -> None:
    pulled: list[int] = []

    def frames() -> Iterator[Selected[int]]:
        for one in at([number / 30 for number in range(100)]):
            pulled.append(one.frame)
            yield one

    picked = select(frames(), Options(fps=15), Limits())
    assert [next(picked).frame for _ in range(4)] == [0, 2, 4, 6]
    assert pulled[-1] == 7
    assert next(select(frames(), Options(fps=15, end_s=0.01), Limits())).frame == 0
    assert pulled[-1] == 1


def test_limits_count_what_is_answered() -> None:
    times = [number / 10 for number in range(20)]
    assert len(list(select(at(times), Options(fps=5), Limits(max_frames=10)))) == 10
    with pytest.raises(TooLarge, match="more than 9 frames"):
        list(select(at(times), Options(fps=5), Limits(max_frames=9)))
    with pytest.raises(TooLarge, match="more than 30 frames"):
        list(select(at(times), Options(fps=100), Limits(max_frames=30), repeat=True))


def test_a_rate_and_key_frames_exclude_each_other() -> None:
    with pytest.raises(InvalidOptions, match=r"fps.*keyframes_only"):
        Options(fps=5, keyframes_only=True)
