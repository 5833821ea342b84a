"""NVDEC's route: what is sent there and what is not; its graph, tried on DALI's CPU decoder."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.frames.batch import FrameBatch
from pipelines.frames.preprocess import Preprocessor
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, Wanted
from pipelines.media.nvdec import (
    DecodeCaps,
    count_frames,
    kind_refusal,
    open_nvdec,
    query_caps,
    size_refusal,
)
from pipelines.media.video import Video
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import InvalidMedia, TooLarge
from pipelines.protocol.options import Options
from tests.support.media import clip, info_of, read_number

VP9: dict[str, Any] = {"codec": "libvpx-vp9", "container": "webm", "width": 96, "height": 64}
SMALL = Preprocessing(resize_px=48, crop_px=(40, 40))
BOX = Preprocessing(
    resize_px=(72, 80), fit="letterbox", pad_value=114, channels="BGR", antialias=False, round_pixels=False
)


def test_the_struct_has_nvidias_layout() -> None:
    """Offsets of CUVIDDECODECAPS in cuviddec.h."""
    assert ctypes.sizeof(DecodeCaps) == 88
    offsets = {"is_supported": 24, "output_formats": 26, "max_width": 28, "min_width": 40, "reserved3": 48}
    assert {name: getattr(DecodeCaps, name).offset for name in offsets} == offsets


@pytest.mark.parametrize(
    ("size", "refused"),
    [
        ((1280, 720), ""),
        ((4096, 2304), ""),
        ((4098, 100), "outside"),
        ((32, 720), "outside"),
        ((4096, 4096), "macroblocks"),
    ],
)
def test_sizes_beyond_the_decoder(size: tuple[int, int], refused: str) -> None:
    caps = DecodeCaps(max_width=4096, max_height=4096, min_width=48, min_height=16, max_macroblocks=36864)
    answer = size_refusal(caps, *size)
    assert refused in answer
    assert bool(answer) == bool(refused)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, ""),
        ({"pixel_format": "yuvj420p", "matrix": "bt601"}, ""),
        ({"container": "mpegts"}, "container"),
        ({"codec": "mpeg4"}, "codec mpeg4"),
        ({"pixel_format": "yuv420p10le"}, "yuv420p10le"),
        ({"pixel_format": "yuv444p"}, "yuv444p"),
        ({"matrix": "bt709"}, "bt709"),
        ({"rotation_deg": 90}, "90 degrees"),
        ({"mirrored": True}, "mirrored"),
    ],
)
def test_kinds_that_stay_on_the_cpu(changes: dict[str, Any], refused: str) -> None:
    answer = kind_refusal(dataclasses.replace(info_of(clip()), **changes))
    assert refused in answer
    assert bool(answer) == bool(refused)


@pytest.mark.parametrize(
    "arguments",
    [
        {"bframes": 2},
        {"pts": [0, 0.1, 0.15, 0.5, 1.2], "frames": 5},
        {"container": "matroska", "bframes": 2},
        VP9,
    ],
    ids=str,
)
def test_times_without_decoding_are_those_of_the_decoder(arguments: dict[str, Any]) -> None:
    data = clip(**arguments)
    with open_media(data, options=Options(), limits=Limits(), device="cpu") as medium:
        decoded = [float(one) for chunk in medium.chunks() for one in chunk.pts_s]
    video = Video(data, Limits())
    index = count_frames(video)
    assert not isinstance(index, str)
    assert [one.pts_s for one in index.frames()] == decoded
    video.close()


def test_stretches_without_decoding_are_those_of_the_decoder() -> None:
    times_s = [number / 10 + (3600 if number > 11 else 0) for number in range(23)]
    data = clip(frames=23, pts=times_s, **VP9)
    for options in (Options(), Options(fps=5), Options(start_s=0.7, stride=3)):
        with open_media(data, options=options, limits=Limits(chunk_frames=5), device="cpu") as medium:
            expected = list(medium.chunks())
        chunks = run_on_cpu(data, options, Limits(chunk_frames=5))
        for name in ("frame_index", "stretch", "played_s"):
            ours, theirs = (
                np.concatenate([getattr(chunk, name) for chunk in some]) for some in (chunks, expected)
            )
            np.testing.assert_array_equal(ours, theirs)
        assert chunks[-1].stretch[-1] == 1


UNCOUNTED: dict[str, tuple[bytes, str]] = {
    "edit list": (clip(start_s=-0.5, mux_options={"avoid_negative_ts": "disabled"}), "edit list"),
    "cut off": (clip(mux_options={"movflags": "faststart"})[:-400], "ends early"),
    "cut off Matroska": (clip(container="matroska")[:-400], "ends early"),
    "no times": (clip(container="avi"), "without presentation times"),
}


@pytest.mark.parametrize("name", UNCOUNTED)
def test_frames_that_dali_would_count_otherwise(name: str) -> None:
    data, reason = UNCOUNTED[name]
    video = Video(data, Limits())
    assert reason in str(count_frames(video))
    video.close()


def test_several_streams_stay_on_the_cpu(shared_media: Path) -> None:
    video = Video((shared_media / "nasa_h264_two_streams.mp4").read_bytes(), Limits())
    assert count_frames(video) == "there are several video streams"
    video.close()


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_the_library_says_so() -> None:
    assert "decoding library" in str(query_caps(4, "cuda"))


def run_on_cpu(
    data: bytes,
    options: Options,
    limits: Limits,
    prepare: Preprocessing | None = None,
    *,
    repeat_frames: bool = False,
) -> list[FrameBatch]:
    """The NVDEC graph with DALI's own VP9 decoder in NVDEC's place."""
    video = Video(data, limits)
    index = count_frames(video)
    assert not isinstance(index, str)
    with open_nvdec(
        video,
        index,
        options=options,
        device="cpu",
        wanted=Wanted(prepare=prepare, repeat_frames=repeat_frames),
        dali_device="cpu",
    ) as medium:
        return list(medium.chunks())


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({}, [5, 5, 5, 5, 3]),
        ({"start_s": 0.55, "end_s": 1.9, "stride": 3}, [2, 1, 2]),
        ({"stride": 9}, [1, 1, 1]),
        ({"max_frames": 7}, [5, 2]),
        ({"keyframes_only": True, "start_s": 1.25}, []),
        ({"fps": 4, "start_s": 0.2}, [2, 2, 2, 2, 1]),
        ({"keyframes_only": True}, [1, 1]),
    ],
)
@pytest.mark.parametrize("prepare", [SMALL, BOX], ids=["crop", "letterbox"])
def test_the_graph_gives_the_selected_frames(
    prepare: Preprocessing, options: dict[str, Any], lengths: list[int]
) -> None:
    data, limits, wanted = clip(frames=23, **VP9), Limits(chunk_frames=5), Options(**options)
    chunks = run_on_cpu(data, wanted, limits, prepare)
    assert [len(chunk) for chunk in chunks] == lengths
    with open_media(data, options=wanted, limits=limits, device="cpu") as medium:
        expected = list(medium.chunks())
    for name in ("frame_index", "pts_s"):
        ours, theirs = (
            [one for chunk in some for one in getattr(chunk, name)] for some in (chunks, expected)
        )
        assert ours == pytest.approx(theirs)
    prepared = Preprocessor(prepare, device="cpu", max_frames=8)
    for chunk in chunks:
        shown = [read_number(frame) for frame in np.asarray(chunk.pixels_nhwc)]
        assert shown == chunk.frame_index.tolist()
        model_nchw: Any = chunk.model_nchw
        assert torch.equal(model_nchw, prepared(chunk.pixels_nhwc))


def test_the_graph_repeats_frames_where_the_rate_asks() -> None:
    """Rows may be more than the frames of a run; a chunk stays as short as ever."""
    data, wanted = clip(frames=7, **VP9), Options(fps=25)
    chunks = run_on_cpu(data, wanted, Limits(chunk_frames=4), SMALL, repeat_frames=True)
    assert max(map(len, chunks)) <= 4
    with open_media(
        data, options=wanted, limits=Limits(), device="cpu", wanted=Wanted(repeat_frames=True)
    ) as medium:
        expected = [int(one) for chunk in medium.chunks() for one in chunk.frame_index]
    assert [int(one) for chunk in chunks for one in chunk.frame_index] == expected
    assert len(expected) == 18
    prepared = Preprocessor(SMALL, device="cpu", max_frames=8)
    for chunk in chunks:
        shown = [read_number(frame) for frame in np.asarray(chunk.pixels_nhwc)]
        assert shown == chunk.frame_index.tolist()
        assert torch.equal(torch.as_tensor(chunk.model_nchw), prepared(chunk.pixels_nhwc))


def test_the_graph_leaves_out_the_models_pixels() -> None:
    (chunk,) = run_on_cpu(clip(**VP9), Options(), Limits())
    assert chunk.model_nchw is None


def test_chunks_stay_what_they_were() -> None:
    """Kept tensors are not overwritten by later runs."""
    chunks = run_on_cpu(clip(frames=20, **VP9), Options(), Limits(chunk_frames=4))
    numbers = [read_number(frame) for chunk in chunks for frame in np.asarray(chunk.pixels_nhwc)]
    assert numbers == list(range(20))


def test_the_servers_limit_is_seen_before_decoding() -> None:
    with pytest.raises(TooLarge, match="more than 5 frames"):
        run_on_cpu(clip(**VP9), Options(), Limits(max_frames=5))


@pytest.mark.parametrize("spoil", ["times", "bytes"])
def test_other_frames_than_the_containers_are_an_error(spoil: str) -> None:
    video = Video(clip(**VP9), Limits())
    index = count_frames(video)
    assert not isinstance(index, str)
    if spoil == "times":
        index = dataclasses.replace(index, ticks=[*index.ticks, index.ticks[-1] + 100])
    else:
        video.encoded = video.encoded[:600] + bytes(len(video.encoded) - 600)
    with (
        open_nvdec(
            video, index, options=Options(), device="cpu", wanted=Wanted(), dali_device="cpu"
        ) as medium,
        pytest.raises(InvalidMedia, match="NVDEC"),
    ):
        list(medium.chunks())
