"""Encoders, read back by other hands: Pillow, PyAV, and a plain reading of COCO's run lengths."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.protocol import rle
from pipelines.protocol.errors import InternalError
from pipelines.rendering import encode

NAMES = ("background", "cat", "dog", "Bär", "tree")
TICK_S = 1 / 90_000
Array = npt.NDArray[Any]


def pictures(count: int, height: int, width: int) -> Array:
    """Soft colours that move, so that neither 4:2:0 nor the quantizer takes much from them."""
    rows, columns, number = np.mgrid[0:height, 0:width, 0:count].astype(float)
    planes = [
        128 + 90 * np.sin(rows / 19 + number / 5),
        128 + 60 * np.cos(columns / 23 - number / 7),
        90 + 40 * np.sin((rows + columns) / 31),
    ]
    return np.ascontiguousarray(np.stack(planes, axis=-1).transpose(2, 0, 1, 3).astype(np.uint8))


def film(pixels: Array, times_s: Sequence[float] | Array, chunk: int = 16) -> list[bytes]:
    """The parts of a film that is written chunk by chunk."""
    writer = encode.Mp4Writer(width_px=pixels.shape[2], height_px=pixels.shape[1])
    starts = range(0, len(pixels), chunk)
    parts = [writer.write(pixels[at : at + chunk], times_s[at : at + chunk]) for at in starts]
    return [*parts, writer.close()]


def decoded(parts: Sequence[bytes]) -> list[av.VideoFrame]:
    with av.open(io.BytesIO(b"".join(parts)), mode="r") as source:
        return list(source.decode(video=0))


def test_jpeg_keeps_the_colours() -> None:
    pixels = pictures(1, 60, 81)[0]
    read = np.asarray(Image.open(io.BytesIO(encode.jpeg(pixels))))
    assert read.shape == pixels.shape
    assert np.abs(read.astype(int) - pixels).mean() < 2
    assert len(encode.jpeg(pixels, quality=30)) < len(encode.jpeg(pixels))


def test_png_is_the_class_map() -> None:
    class_map = np.random.default_rng(0).integers(0, 256, (37, 29), dtype=np.uint8)
    with Image.open(io.BytesIO(encode.png(class_map))) as read:
        assert read.mode == "L"
        np.testing.assert_array_equal(np.asarray(read), class_map)


@pytest.mark.parametrize("first_s", [0.0, 12.3456, 4000.5])
def test_a_film_keeps_its_frames_and_their_times(first_s: float) -> None:
    """Also where frames come at uneven times, and the film does not begin at 0."""
    pixels = pictures(100, 48, 64)
    times_s = first_s + np.arange(100) / 29.97
    times_s[50:] += 0.1234
    parts = film(pixels, times_s)
    frames = decoded(parts)
    np.testing.assert_allclose([float(frame.time or 0) for frame in frames], times_s, atol=TICK_S)
    assert sum(1 for part in parts if part) >= 3, "the first bytes come before the last frames"
    for at in (0, 57, 99):
        shown = frames[at].to_ndarray(format="rgb24").astype(int)
        assert np.abs(shown - pixels[at]).mean() < 4


def test_a_film_is_h264_in_bt709_and_says_so() -> None:
    parts = film(pictures(3, 32, 32), [0, 0.1, 0.2])
    with av.open(io.BytesIO(b"".join(parts))) as source:
        context = source.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
        tags = (context.colorspace, context.color_primaries, context.color_trc, context.color_range)
        assert [int(tag) for tag in tags] == [1, 1, 1, 1]


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 200, 40), (20, 30, 240), (255, 255, 255), (0, 0, 0)])
def test_colours_survive_the_film(colour: tuple[int, int, int]) -> None:
    pixels = np.empty((2, 32, 32, 3), np.uint8)
    pixels[:] = colour
    (first, _) = decoded(film(pixels, [0, 0.1]))
    shown = first.reformat(format="rgb24", src_colorspace="ITU709").to_ndarray().astype(int)
    assert np.abs(shown - colour).max() <= 4


@pytest.mark.parametrize(("height", "width"), [(33, 47), (32, 47), (33, 48), (1, 1)])
def test_odd_sizes_repeat_the_last_row_and_column(height: int, width: int) -> None:
    pixels = pictures(2, height, width)
    (first, _) = decoded(film(pixels, [0, 0.1]))
    assert (first.height, first.width) == (height + height % 2, width + width % 2)
    shown = first.to_ndarray(format="rgb24").astype(int)
    assert np.abs(shown[:height, :width] - pixels[0]).mean() < 5
    assert np.abs(shown[-1, :width] - pixels[0, -1]).mean() < 8


@pytest.mark.parametrize(
    ("times_s", "expected"),
    [
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
        ([1.0, 0.5], [1.0, 1.0 + 1 / 30]),
        ([1.0, 1.2, 1.3, 0.5, 0.6, 0.8, 0.0], [1.0, 1.2, 1.3, 1.4, 1.5, 1.7, 1.9]),
        ([1.0, 1.1, 1.1, 1.0, 1.1], [1.0, 1.1, 1.1, 1.2, 1.3]),
    ],
)
def test_a_film_goes_on_where_times_do_not(times_s: list[float], expected: list[float]) -> None:
    shown_s = [float(frame.time or 0) for frame in decoded(film(pictures(len(times_s), 16, 16), times_s))]
    assert shown_s == sorted(set(shown_s))
    np.testing.assert_allclose(shown_s, expected, atol=3 * TICK_S)


def test_a_closed_writer_and_other_sizes_are_refused() -> None:
    writer = encode.Mp4Writer(width_px=16, height_px=16)
    with pytest.raises(InternalError, match=r"\(1, 16, 18, 3\)"):
        writer.write(pictures(1, 16, 18), [0])
    whole = writer.write(pictures(1, 16, 16), [0]) + writer.close()
    assert len(decoded([whole])) == 1
    assert writer.close() == b""
    with pytest.raises(InternalError, match="closed"):
        writer.write(pictures(1, 16, 16), [1])


def test_a_film_without_frames_is_empty() -> None:
    assert encode.Mp4Writer(width_px=16, height_px=16).close() == b""


@pytest.mark.parametrize(("height", "width"), [(32, 32), (145, 63)])
def test_two_films_of_the_same_frames_are_the_same_bytes(height: int, width: int) -> None:
    """Also on another number of cores; the larger one is encoded by two threads."""
    pixels, cores = pictures(4, height, width), os.sched_getaffinity(0)
    one = film(pixels, [0, 1, 2, 3])
    try:
        os.sched_setaffinity(0, {min(cores)})
        other = film(pixels, [0, 1, 2, 3])
    finally:
        os.sched_setaffinity(0, cores)
    assert [len(part) for part in one] == [len(part) for part in other]
    differing = np.nonzero(np.frombuffer(b"".join(one), np.uint8) != np.frombuffer(b"".join(other), np.uint8))
    assert not differing[0].size, f"first at byte {differing[0][0]} of {sum(map(len, one))}"


def test_a_real_clip_is_rewritten_frame_by_frame(shared_media: Path) -> None:
    with av.open(str(shared_media / "sintel_h264_720p.mp4"), mode="r") as source:
        originals = list(source.decode(video=0))
    pixels = np.stack([frame.to_ndarray(format="rgb24") for frame in originals])
    times_s = [float(frame.time or 0) for frame in originals]
    frames = decoded(film(pixels, times_s, chunk=8))
    np.testing.assert_allclose([float(frame.time or 0) for frame in frames], times_s, atol=TICK_S)


def read_plainly(entry: dict[str, Any]) -> Array:
    """One entry as COCO's paper has it: down the columns, zeros first."""
    height, width = entry["size"]
    flat: list[bool] = []
    for place, count in enumerate(entry["counts"]):
        flat += [place % 2 == 1] * count
    assert len(flat) == height * width
    return np.array(flat).reshape(width, height).T


def class_maps() -> dict[str, Array]:
    random = np.random.default_rng(0)
    return {
        "blobs": np.kron(random.integers(0, 5, (4, 3)), np.ones((7, 9))).astype(np.uint8),
        "noise": random.integers(0, 5, (23, 31)).astype(np.uint8),
        "background": np.zeros((5, 6), np.uint8),
        "everywhere": np.full((5, 6), 3, np.uint8),
        "one pixel": np.array([[2]], np.uint8),
        "first and last": np.pad(np.zeros((3, 3), np.uint8), 1, constant_values=1),
        "strided": np.asfortranarray(random.integers(0, 3, (8, 9)).astype(np.uint8))[::2],
    }


@pytest.mark.parametrize("name", class_maps())
def test_run_lengths_are_cocos_and_come_back(name: str) -> None:
    class_map = class_maps()[name]
    text = rle.encode(class_map, NAMES)
    entries = json.loads(text)
    assert [entry["class_id"] for entry in entries] == [int(k) for k in np.unique(class_map) if k]
    for entry in entries:
        assert set(entry) == {"class_id", "class_name", "size", "counts"}
        assert entry["class_name"] == NAMES[entry["class_id"]]
        assert all(count > 0 for count in entry["counts"][1:])
        np.testing.assert_array_equal(read_plainly(entry), class_map == entry["class_id"])
    height, width = class_map.shape
    np.testing.assert_array_equal(rle.decode(text, (height, width)), class_map)


def test_run_lengths_start_with_those_that_are_not_of_the_class() -> None:
    entries = json.loads(rle.encode(np.array([[1, 0, 2], [1, 1, 2]], np.uint8), NAMES))
    assert entries == [
        {"class_id": 1, "class_name": "cat", "size": [2, 3], "counts": [0, 2, 1, 1, 2]},
        {"class_id": 2, "class_name": "dog", "size": [2, 3], "counts": [4, 2]},
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not hold run lengths"),
        (b"{}x", "not hold run lengths"),
        (b"[1]", "not hold run lengths"),
        (b'{"class_id": 1}', "not hold run lengths"),
        (b'[{"class_id": 1}]', "not hold run lengths"),
        (b'[{"class_id": 1, "counts": ["a"]}]', "not hold run lengths"),
        (b'[{"class_id": 1, "counts": [[1, 2]]}]', "not hold run lengths"),
        (b'[{"class_id": 1, "counts": [1, 2]}]', "do not fill a mask of 3x2 px"),
        (b'[{"class_id": 1, "counts": [7, -1]}]', "do not fill"),
        (b'[{"class_id": 1, "counts": [9223372036854775807, 9223372036854775807, 8]}]', "do not fill"),
        (b'[{"class_id": 300, "counts": [0, 6]}]', "classes 1 to 255, not 300"),
    ],
)
def test_bad_run_lengths_are_named(text: bytes, message: str) -> None:
    with pytest.raises(InternalError, match=message):
        rle.decode(text, (2, 3))
