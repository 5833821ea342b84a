"""Animated pictures are clips: all frames as a viewer shows them, with their times."""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from pipelines.frames.batch import FrameBatch
from pipelines.frames.resize import prepare_on_cpu
from pipelines.media.decode import open_media
from pipelines.media.identity.delays import with_shown_delays
from pipelines.media.medium import WHOLE_FRAMES, Header, Leave, Limits, Wanted
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import (
    DeadlineExceeded,
    InvalidMedia,
    Overloaded,
    TooLarge,
    TrividError,
    UnsupportedMedia,
)
from pipelines.protocol.options import Options
from tests.support.media import ImageKind, image, info_of, picture, read_number, truncated
from tests.support.pictures import Drawing, Levels, animated_gif, animated_png, chunk, shown

FORMS = ("GIF", "PNG", "WEBP", "AVIF")
RANDOM = np.random.default_rng(5)
SIZE = (24, 16)
PALETTE = RANDOM.integers(0, 256, (256, 3), dtype=np.uint8)


def read(
    data: bytes,
    limits: Limits | None = None,
    wanted: Wanted = WHOLE_FRAMES,
    leave: Leave | None = None,
    **options: Any,
) -> tuple[list[FrameBatch], TrividError | None]:
    """The chunks that came, and the error that ended them."""
    chunks: list[FrameBatch] = []
    try:
        with open_media(
            data,
            options=Options(**options),
            limits=limits or Limits(),
            device="cpu",
            wanted=wanted,
            leave=leave,
        ) as medium:
            for one in medium.chunks():
                chunks.append(one)
    except TrividError as error:
        return chunks, error
    return chunks, None


def rows(chunks: Sequence[FrameBatch]) -> list[tuple[int, float]]:
    return [
        (int(index), round(float(time_s), 3))
        for one in chunks
        for index, time_s in zip(one.frame_index, one.pts_s, strict=True)
    ]


def frames_of(data: bytes) -> Levels:
    """All frames `(N, H, W, 3)` of a medium without faults."""
    chunks, error = read(data)
    assert error is None
    return np.concatenate([np.asarray(one.pixels_nhwc, np.int64) for one in chunks])


def animation(form: str, durations_ms: Sequence[int], **settings: Any) -> bytes:
    """An animation of `picture(0)`, `picture(1)`, …."""
    pictures = [Image.fromarray(picture(number)) for number in range(len(durations_ms))]
    sink = io.BytesIO()
    settings = {"save_all": True, "append_images": pictures[1:], "duration": list(durations_ms), **settings}
    pictures[0].save(sink, form, **settings)
    return sink.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_a_clip_of_all_frames_with_their_times(form: str) -> None:
    data = animation(form, [100, 200, 50, 300])
    assert rows(read(data)[0]) == [(0, 0.0), (1, 0.1), (2, 0.3), (3, 0.35)]
    assert [read_number(frame) for frame in frames_of(data)] == [0, 1, 2, 3]
    info = info_of(data)
    assert (info.kind, info.width_px, info.height_px) == ("video", 64, 48)


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP"])
def test_delays_are_those_of_browsers(form: str) -> None:
    data = animation(form, [0, 10, 20, 30, 40])
    assert rows(read(data)[0]) == [(0, 0.0), (1, 0.1), (2, 0.2), (3, 0.22), (4, 0.25)]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ({"fps": 5.0}, [0, 2, 4]),
        ({"stride": 2}, [0, 2, 4]),
        ({"start_s": 0.15, "end_s": 0.35}, [2, 3]),
        ({"max_frames": 2}, [0, 1]),
        ({"keyframes_only": True}, [0]),
    ],
)
@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_options_select_frames(kind: ImageKind, options: dict[str, Any], numbers: list[int]) -> None:
    chunks, error = read(image(kind, frames=6), **options)
    assert ([index for index, _ in rows(chunks)], error) == (numbers, None)


def drawings(kind: str) -> list[Drawing]:
    """Frames of any part of the canvas, with all ways to compose them."""
    frames = []
    for number in range(12):
        left, top = (0, 0) if number == 0 else (int(RANDOM.integers(0, 20)), int(RANDOM.integers(0, 12)))
        width = 24 if number == 0 else int(RANDOM.integers(1, 25 - left))
        height = 16 if number == 0 else int(RANDOM.integers(1, 17 - top))
        shape = (height, width) if kind == "gif" else (height, width, 4)
        frames.append(
            Drawing(
                pixels=RANDOM.integers(0, 6 if kind == "gif" else 256, shape, dtype=np.uint8),
                place=(left, top),
                disposal=number % 3,
                blend=kind == "gif" or number % 4 < 2,
                clear=number % 6,
            )
        )
    return frames


@pytest.mark.parametrize("default", [False, True])
@pytest.mark.parametrize("kind", ["gif", "png"])
def test_frames_are_composed_as_viewers_do(kind: str, default: bool) -> None:
    frames = drawings(kind)
    other = RANDOM.integers(0, 256, (16, 24, 4), dtype=np.uint8) if default else None
    palette = PALETTE if kind == "gif" else None
    data = animated_gif(frames, SIZE, PALETTE) if kind == "gif" else animated_png(frames, SIZE, other)
    for frame, expected in zip(frames_of(data), shown(frames, SIZE, palette), strict=True):
        # What is transparent has no colour, and what nearly is has none to be exact about.
        visible = expected[..., 3] > 64
        assert np.abs(frame - expected[..., :3])[visible].max(initial=0) <= 3


def test_a_default_picture_that_is_no_frame_is_left_out() -> None:
    black = np.zeros((16, 24, 4), np.uint8)
    white = Drawing(pixels=np.full((16, 24, 4), 255, np.uint8))
    for count in (1, 2):
        frames = frames_of(animated_png([white] * count, SIZE, default=black))
        assert (len(frames), int(frames.min())) == (count, 255)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_frames_before_a_cut_come_first(kind: ImageKind) -> None:
    chunks, error = read(truncated(image(kind, frames=6), 0.7))
    numbers = [read_number(frame) for one in chunks for frame in np.asarray(one.pixels_nhwc)]
    assert len(numbers) >= 2
    assert numbers == list(range(len(numbers)))
    assert isinstance(error, InvalidMedia)
    assert "after frame" in error.message


def test_any_cut_is_an_error_with_a_type() -> None:
    for data in (animated_gif(drawings("gif")[:3], SIZE, PALETTE), animated_png(drawings("png")[:2], SIZE)):
        for length in range(len(data) - 120, len(data), 7):
            read(data[:length])


def test_missing_end_marks_cost_no_frame() -> None:
    frames = drawings("png")
    assert len(frames_of(animated_png(frames, SIZE)[:-12])) == len(frames)
    frames = drawings("gif")
    assert len(frames_of(animated_gif(frames, SIZE, PALETTE, ended=False))) == len(frames)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_limits_hold(kind: ImageKind) -> None:
    data = image(kind, frames=5)
    chunks, error = read(data, Limits(max_frames=4, chunk_frames=2))
    assert [len(one) for one in chunks] == [2, 2]
    assert isinstance(error, TooLarge)
    assert isinstance(read(data, Limits(max_pixels=64 * 48 - 1))[1], TooLarge)
    assert isinstance(read(data, Limits(max_pixels=9))[1], TooLarge)
    with pytest.raises(UnsupportedMedia, match="NVDEC"):
        open_media(data, options=Options(decoder="nvdec"), limits=Limits(), device="cpu")


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_frames_are_prepared_and_repeated_like_those_of_videos(kind: ImageKind) -> None:
    prepare = Preprocessing(resize_px=32)
    wanted = Wanted(prepare=prepare, repeat_frames=True)
    (chunk,), error = read(image(kind, frames=2), wanted=wanted, fps=20.0)
    assert (chunk.frame_index.tolist(), error) == ([0, 0, 1, 1], None)
    expected = prepare_on_cpu(np.asarray(chunk.pixels_nhwc), prepare)
    assert np.abs(np.asarray(chunk.model_nchw) - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize("place", ["end", "middle"])
@pytest.mark.parametrize("kind", [b"acTL", b"fcTL"])
def test_a_short_or_long_control_chunk_is_an_error_with_a_type_or_none(kind: bytes, place: str) -> None:
    whole = animated_png(drawings("png")[:2], SIZE)
    start = whole.index(kind) - 4
    length = int.from_bytes(whole[start : start + 4])
    for size in range(length + 9):
        content = whole[start + 8 : start + 8 + min(size, length)].ljust(size, b"\0")
        head = whole[:start] + chunk(kind, content)
        _, error = read(head + (whole[start + 12 + length :] if place == "middle" else b""))
        assert error is not None or (place == "middle" and size >= length)


def test_only_delays_change() -> None:
    """Of a chunk that is too short, nothing is written over what follows it."""
    frames = [replace(one, delay=0) for one in drawings("png")[:2]]
    short = chunk(b"fcTL", bytes(24)) + chunk(b"tEXt", b"a" * 20)
    data = animated_png(frames, SIZE)
    start = data.index(b"IDAT") - 4
    changed = with_shown_delays(data[:start] + short + data[start:], "apng")
    assert (
        changed == with_shown_delays(data[:start], "apng") + short + with_shown_delays(data, "apng")[start:]
    )


@pytest.mark.parametrize("options", [{"start_s": 1e6}, {"stride": 1000}, {"fps": 0.001}])
def test_frames_that_are_left_out_take_their_time_too(options: dict[str, Any]) -> None:
    sink = io.BytesIO()
    large = [Image.new("RGB", (2048, 2048), colour) for colour in ("red", "blue")]
    large[0].save(sink, "WEBP", save_all=True, append_images=large[1:], duration=100, method=0)
    frames = sink.getvalue()[sink.getvalue().index(b"ANMF") :]
    data = sink.getvalue() + frames * 30
    data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    _, error = read(data, leave=Leave(deadline_s=time.monotonic() + 0.2), **options)
    assert isinstance(error, DeadlineExceeded)


def test_only_the_time_of_decoding_counts() -> None:
    data = animation("WEBP", [100] * 2)
    limits = Limits(max_decode_s=0.4, chunk_frames=1)
    with open_media(data, options=Options(), limits=limits, device="cpu") as medium:
        for _ in medium.chunks():
            time.sleep(0.5)


@pytest.mark.parametrize("kind", ["gif", "png", "webp"])
def test_an_animation_is_admitted_as_the_clip_it_is(kind: ImageKind) -> None:
    headers: list[Header] = []
    read(image(kind, frames=3), leave=Leave(admit=headers.append))
    assert {one.kind for one in headers} == {"video"}
    assert (headers[-1].width_px, headers[-1].height_px) == (64, 48)


@pytest.mark.parametrize("frames", [1, 3])
def test_a_picture_that_is_not_let_in_is_closed(frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str | None] = []
    close = ImageFile.ImageFile.close

    def note(one: ImageFile.ImageFile) -> None:
        closed.append(one.format)
        close(one)

    monkeypatch.setattr(ImageFile.ImageFile, "close", note)

    def refuse(_: Header) -> None:
        raise Overloaded("full", hint="later")

    assert isinstance(read(image("webp", frames=frames), leave=Leave(admit=refuse))[1], Overloaded)
    assert closed == ["WEBP"]


@pytest.mark.parametrize("fault", [EOFError("no more"), KeyError("duration"), None])
def test_a_frame_that_cannot_be_reached_ends_the_clip(
    fault: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What Pillow's reader may raise as it goes to a frame; and a frame without a duration."""
    data = animation("WEBP", [200] * 3)
    reach = WebPImageFile.seek

    def seek(one: WebPImageFile, number: int) -> None:
        if fault is not None and number == 2:
            raise fault
        reach(one, number)

    load = WebPImageFile.load
    monkeypatch.setattr(WebPImageFile, "seek", seek)
    if fault is None:
        monkeypatch.setattr(WebPImageFile, "load", lambda one: (load(one), one.info.pop("duration", 0))[0])
        assert rows(read(data)[0]) == [(0, 0.0), (1, 0.1), (2, 0.2)]
        return
    chunks, error = read(data)
    assert (rows(chunks), type(error)) == ([(0, 0.0), (1, 0.2)], InvalidMedia)
