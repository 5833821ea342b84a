"""NVDEC itself, with a GPU: the CPU decoder's frames, and what is left to that."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.frames.batch import FrameBatch
from pipelines.frames.preprocess import Preprocessor
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, Wanted
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import UnsupportedMedia
from pipelines.protocol.options import Options
from tests.support.media import clip, read_number

SMALL = Preprocessing(resize_px=48, crop_px=(40, 40))
BOX = Preprocessing(
    resize_px=(72, 80), fit="letterbox", pad_value=114, channels="BGR", antialias=False, round_pixels=False
)
# Chroma is filtered otherwise than on the CPU, so edges differ; on the whole the pictures are the same.
NEAR = 3.0


def on_gpu(
    data: bytes, prepare: Preprocessing | None = None, **options: Any
) -> tuple[list[FrameBatch], str, str]:
    with open_media(
        data,
        options=Options(**options),
        limits=Limits(chunk_frames=5),
        device="cuda",
        wanted=Wanted(prepare=prepare),
    ) as medium:
        return list(medium.chunks()), medium.decoder, medium.decoder_reason


GPU_CLIPS: dict[str, dict[str, Any]] = {
    "H.264": {},
    "H.264 with B frames": {"bframes": 2},
    "H.264 in Matroska, times uneven": {"container": "matroska", "pts": [0.0, 0.1, 0.15, 0.5, 1.2]},
    "HEVC": {"codec": "libx265"},
    "VP9": {"codec": "libvpx-vp9", "container": "webm"},
}


@pytest.mark.gpu
@pytest.mark.parametrize("prepare", [SMALL, BOX], ids=["crop", "letterbox"])
@pytest.mark.parametrize("name", GPU_CLIPS)
def test_nvdec_gives_the_cpus_frames(name: str, prepare: Preprocessing) -> None:
    arguments = {"width": 320, "height": 240, **GPU_CLIPS[name]}
    data = clip(frames=len(arguments.get("pts", range(12))), **arguments)
    chunks, decoder, reason = on_gpu(data, prepare)
    assert decoder == "nvdec", reason
    with open_media(data, options=Options(), limits=Limits(chunk_frames=5), device="cpu") as medium:
        expected = list(medium.chunks())
    assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in expected]
    prepared = Preprocessor(prepare, device="cuda", max_frames=8)
    for ours, theirs in zip(chunks, expected, strict=True):
        pixels: Any = ours.pixels_nhwc
        model_nchw: Any = ours.model_nchw
        assert pixels.is_cuda
        assert ours.frame_index.tolist() == theirs.frame_index.tolist()
        assert ours.pts_s == pytest.approx(theirs.pts_s)
        frames = pixels.cpu().numpy()
        assert [read_number(frame) for frame in frames] == ours.frame_index.tolist()
        assert np.abs(frames.astype(int) - np.asarray(theirs.pixels_nhwc)).mean() < NEAR
        assert torch.equal(model_nchw, prepared(pixels))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"matrix": "bt709"}, "bt709"),
        ({"pix_fmt": "yuv420p10le"}, "yuv420p10le"),
        ({"rotation": 90}, "90 degrees"),
        ({"container": "mpegts"}, "container mpegts"),
        ({"width": 16, "height": 16}, "of this size"),
    ],
    ids=str,
)
def test_what_nvdec_would_get_wrong_goes_to_the_cpu(arguments: dict[str, Any], reason: str) -> None:
    data = clip(**{"width": 320, "height": 240, **arguments})
    chunks, decoder, stated = on_gpu(data)
    assert decoder == "pyav"
    assert reason in stated
    assert sum(map(len, chunks)) == 12
    with pytest.raises(UnsupportedMedia, match="NVDEC cannot decode"):
        on_gpu(data, decoder="nvdec")


@pytest.mark.gpu
def test_nvdec_can_be_demanded_and_declined() -> None:
    data = clip(width=320, height=240)
    assert on_gpu(data, decoder="nvdec")[1] == "nvdec"
    assert on_gpu(data, decoder="cpu")[1:] == ("pyav", "option decoder=cpu")


@pytest.mark.gpu
def test_nvdec_serves_several_streams_at_once() -> None:
    data = clip(frames=40, width=320, height=240)
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: on_gpu(data, SMALL), range(8)))
    for chunks, decoder, _ in results:
        numbers = [
            read_number(frame) for chunk in chunks for frame in torch.as_tensor(chunk.pixels_nhwc).cpu()
        ]
        assert (decoder, numbers) == ("nvdec", list(range(40)))


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"fps": 4}, {"keyframes_only": True}, {"fps": 4, "stride": 2}], ids=str)
def test_nvdec_selects_as_the_cpu_does(options: dict[str, Any]) -> None:
    data = clip(frames=23, width=320, height=240, gop=5, bframes=2)
    chunks, decoder, reason = on_gpu(data, **options)
    assert decoder == "nvdec", reason
    with open_media(data, options=Options(**options), limits=Limits(), device="cpu") as medium:
        expected = [int(one) for chunk in medium.chunks() for one in chunk.frame_index]
    assert [int(one) for chunk in chunks for one in chunk.frame_index] == expected
