"""Only the part that the model sees is converted and resized: its pixels are those of the whole frame."""

from __future__ import annotations

import io
import itertools

import av
import numpy as np
import pytest
import torch
from av.video.frame import VideoFrame
from torch.nn import functional

from pipelines.frames.geometry import geometry
from pipelines.frames.resize import Resizer
from pipelines.media.colours import PIXEL_BY_PIXEL, RgbReader
from pipelines.media.frame_reader import FrameReader
from pipelines.media.medium import Orientation, Wanted
from pipelines.media.selection import Selected
from pipelines.models.spec import Preprocessing
from tests.support.pixels import Picture, natural

RESNET = Preprocessing(resize_px=256, crop_px=(224, 224))
WAYS = {
    "ResNet": RESNET,
    "bicubic": Preprocessing(resize_px=256, crop_px=(224, 224), interpolation="bicubic"),
    "enlarged": Preprocessing(resize_px=900, crop_px=(300, 300)),
    "own size": Preprocessing(resize_px=None, crop_px=(100, 100)),
}
SIZES = [(720, 1280), (1280, 720), (480, 640), (464, 848), (361, 643), (480, 854), (241, 966), (1080, 1920)]
ORIENTATIONS = [Orientation(*turns) for turns in itertools.product((False, True), repeat=3)]


def frame_of(pixels_hwc: Picture, pixel_format: str) -> VideoFrame:
    return VideoFrame.from_ndarray(pixels_hwc, format="rgb24").reformat(format=pixel_format)


@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("way", WAYS)
def test_the_part_alone_gives_the_pixels_of_the_whole(way: str, hw: tuple[int, int]) -> None:
    preprocessing, pixels = WAYS[way], natural(*hw)[0]
    whole = geometry(preprocessing, *hw)
    resized = functional.interpolate(
        torch.from_numpy(pixels).permute(2, 0, 1)[None],
        size=whole.resized_hw,
        mode=preprocessing.interpolation,
        antialias=True,
    )
    top, left, height, width = whole.crop_yxhw
    resize = Resizer(preprocessing, *hw)
    got = resize(pixels[resize.part.region])
    assert torch.equal(got, resized[0, :, top : top + height, left : left + width])


@pytest.mark.parametrize(
    ("hw", "part_hw"), [((720, 1280), (720, 768)), ((1280, 720), (768, 720)), ((361, 643), (361, 643))]
)
def test_what_is_not_needed_is_left_out(hw: tuple[int, int], part_hw: tuple[int, int]) -> None:
    """A height of 361 becomes 256 at steps of 361 alone, and its width 455 at steps of 643."""
    assert Resizer(RESNET, *hw).part.geometry.source_hw == part_hw


def test_floats_are_resized_as_a_whole() -> None:
    clips = Preprocessing(resize_px=(128, 171), crop_px=(112, 112), antialias=False)
    assert Resizer(clips, 720, 1280).part.geometry.source_hw == (720, 1280)


@pytest.mark.parametrize("colorspace", [1, 5, 2])
@pytest.mark.parametrize(
    "pixel_format", sorted({*PIXEL_BY_PIXEL, "yuv420p10le", "nv12", "gray", "rgb24", "yuv411p"})
)
def test_a_part_has_the_colours_that_it_has_on_the_frame(pixel_format: str, colorspace: int) -> None:
    frame = frame_of(natural(360, 640)[0], pixel_format)
    frame.colorspace = colorspace
    for top, left, height, width in [
        (0, 128, 360, 384),
        (2, 4, 122, 86),
        (1, 3, 121, 85),
        (120, 0, 240, 640),
    ]:
        part = RgbReader((top, left, height, width))
        for _ in range(2):
            got = part(frame).copy()
            whole = RgbReader((0, 0, 360, 640))(frame)
            assert np.array_equal(got, whole[top : top + height, left : left + width])


def test_a_part_of_an_interlaced_frame_keeps_the_colours_of_its_fields() -> None:
    film = io.BytesIO()
    with av.open(film, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 640, 368, "yuv420p"
        stream.options = {"x264-params": "interlaced=1"}
        for picture in natural(368, 640, count=2):
            container.mux(stream.encode(frame_of(picture, "yuv420p")))
        container.mux(stream.encode())
    film.seek(0)
    frame = next(av.open(film, "r").decode(video=0))
    assert frame.interlaced_frame
    whole = RgbReader((0, 0, 368, 640))(frame)
    assert np.array_equal(RgbReader((2, 4, 122, 86))(frame), whole[2:124, 4:90])


@pytest.mark.parametrize("hw", [(481, 856), (405, 720), (405, 721), (404, 721)])
@pytest.mark.parametrize("pixel_format", sorted(PIXEL_BY_PIXEL))
def test_a_part_of_a_frame_of_odd_sides_keeps_its_colours(pixel_format: str, hw: tuple[int, int]) -> None:
    frame = frame_of(natural(*hw)[0], pixel_format)
    whole = RgbReader((0, 0, *hw))(frame)
    for top, left, height, width in [(0, 130, 404, 400), (90, 248, 224, 224), (2, 2, 40, 50)]:
        got = RgbReader((top, left, height, width))(frame)
        assert np.array_equal(got, whole[top : top + height, left : left + width])


def test_frames_that_change_their_format_are_read_on() -> None:
    part = RgbReader((0, 128, 360, 384))
    for pixel_format in ("yuv420p", "yuvj420p", "yuv444p", "yuv420p"):
        frame = frame_of(natural(360, 640)[0], pixel_format)
        assert np.array_equal(part(frame), RgbReader((0, 0, 360, 640))(frame)[:, 128:512])


@pytest.mark.parametrize("orientation", ORIENTATIONS, ids=str)
@pytest.mark.parametrize("hw", [(360, 640), (640, 360), (361, 643)])
def test_turned_frames_give_the_pixels_of_upright_ones(orientation: Orientation, hw: tuple[int, int]) -> None:
    height, width = orientation.size(hw[1], hw[0])[::-1]
    picked = Selected(0, 0.0, frame_of(natural(*hw)[0], "yuv420p"), True)
    alone, kept = (
        FrameReader(orientation, Wanted(prepare=RESNET, keep_pixels=keep), (height, width))(picked).frame
        for keep in (False, True)
    )
    assert alone.pixels_hwc is None
    assert kept.pixels_hwc is not None
    assert kept.pixels_hwc.shape == (height, width, 3)
    assert alone.levels is not None
    assert kept.levels is not None
    assert torch.equal(alone.levels, kept.levels)


@pytest.mark.parametrize(
    ("size_hw", "resize_px", "keep", "most", "frames"),
    [
        ((720, 1280), 224, False, 16, 16),
        ((720, 1280), 520, False, 16, 5),
        ((720, 1280), 520, False, 3, 3),
        ((720, 1280), 224, True, 16, 12),
        ((4320, 7680), 224, True, 16, 1),
    ],
)
def test_a_chunk_is_a_block_of_memory_that_is_used_again(
    size_hw: tuple[int, int], resize_px: int, keep: bool, most: int, frames: int
) -> None:
    wanted = Wanted(prepare=Preprocessing(resize_px=resize_px), keep_pixels=keep)
    assert FrameReader(Orientation(), wanted, size_hw).chunk_length(most) == frames
    assert FrameReader(Orientation(), Wanted(), size_hw).chunk_length(most) == most
