"""Test media, generated: clips by PyAV and images by Pillow, with content that tells frames and sides apart.

Every picture carries its number in its top row (`read_number`), so that a test can say which frame it holds.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, MediaInfo
from pipelines.protocol.options import Options

Picture = npt.NDArray[np.uint8]
TICKS_PER_S = 90_000
MATRICES = {
    "rgb": 0,
    "bt709": 1,
    "unspecified": 2,
    "fcc": 4,
    "bt601": 6,
    "smpte240m": 7,
    "ycgco": 8,
    "bt2020": 9,
}
NUMBER_BITS = 8
# FFmpeg would write the wall clock and its own version otherwise; the bytes should be the same on every run.
BITEXACT = {"fflags": "+bitexact"}


def info_of(data: bytes, limits: Limits | None = None) -> MediaInfo:
    """What a medium says of itself when it is opened."""
    with open_media(data, options=Options(), limits=limits or Limits(), device="cpu") as medium:
        return medium.info


def picture(number: int = 0, width: int = 64, height: int = 48) -> Picture:
    """One picture `(height, width, 3)`: a colour ramp, a red square that moves with `number`, `number`."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0] = 64 + 96 * columns // width
    pixels[..., 1] = 64 + 128 * rows // height
    pixels[..., 2] = 160 - 64 * columns // width
    side = max(2, height // 4)
    left = (number * 4) % max(1, width - side)
    pixels[height // 2 : height // 2 + side, left : left + side] = (220, 30, 30)
    cell = width // NUMBER_BITS
    for bit in range(NUMBER_BITS):
        pixels[: height // 6, bit * cell : (bit + 1) * cell] = 230 if number >> bit & 1 else 25
    return pixels


def read_number(pixels_hwc: Any) -> int:
    """The number that `picture` drew, read back from decoded pixels of any codec."""
    pixels = np.asarray(pixels_hwc)
    height, width = pixels.shape[:2]
    cell = width // NUMBER_BITS
    middle = [pixels[height // 12, bit * cell + cell // 2].mean() for bit in range(NUMBER_BITS)]
    return sum(1 << bit for bit, level in enumerate(middle) if level > 127)


def clip(
    *,
    frames: int = 12,
    width: int = 64,
    height: int = 48,
    rate: int = 10,
    codec: str = "libx264",
    container: str = "mp4",
    pix_fmt: str = "yuv420p",
    pts: Sequence[float] | None = None,
    start_s: float = 0.0,
    bframes: int = 0,
    gop: int = 12,
    rotation: int = 0,
    hflip: bool = False,
    matrix: str | None = None,
    full_range: bool | None = None,
    pictures: Sequence[npt.NDArray[Any]] | None = None,
    picture_format: str = "rgb24",
    audio: bool = False,
    options: Mapping[str, str] | None = None,
    mux_options: Mapping[str, str] | None = None,
) -> bytes:
    """An encoded clip of `picture(0)`, `picture(1)`, … or of `pictures`.

    Args:
        codec, container, pix_fmt: FFmpeg's names (`libvpx-vp9`, `webm`, `matroska`, `mpegts`, `h264`, …).
        pts: presentation times in seconds, one a frame; evenly at `rate` without it. `start_s` is added.
            AVI, raw streams, MPEG-2 and MPEG-4 part 2 round them to frames of `rate`.
        rotation: degrees counter-clockwise that a player turns the stored picture by.
        matrix: a key of MATRICES, tagged in the stream; None leaves it untagged.
        picture_format: FFmpeg's pixel format of `pictures`; the same as `pix_fmt` encodes them untouched.
        options: for the encoder. mux_options: for the container (`movflags`, …).
    """
    images = list(pictures) if pictures is not None else [picture(i, width, height) for i in range(frames)]
    times = pts if pts is not None else [i / rate for i in range(len(images))]
    # FFmpeg writes a MP4 with its index in front by reading the file again, so it needs a real one.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options={**BITEXACT, **(mux_options or {})}) as target:
            stream = _add_video(target, codec, rate, _encoder_options(codec, options))
            stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
            context = stream.codec_context
            context.gop_size, context.max_b_frames = gop, bframes
            _tag_colours(context, matrix, full_range)
            if rotation or hflip:
                stream.set_display_rotation(rotation, hflip=hflip)
            voice: Any = target.add_stream("aac", rate=16_000) if audio else None
            for image, time_s in zip(images, times, strict=True):
                frame = _yuv_frame(image, picture_format, pix_fmt, matrix, full_range)
                _mux_frame(target, stream, frame, time_s + start_s)
            target.mux(stream.encode(None))
            if voice is not None:
                _mux_tone(target, voice, seconds=len(images) / rate)
        return Path(file.name).read_bytes()


def _add_video(target: Any, codec: str, rate: int, options: dict[str, str]) -> Any:
    """A video stream by one thread, in ticks as fine as container and codec allow."""
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise
    stream = target.add_stream(codec, rate=rate, options=options)
    constant_rate = target.format.name in ("avi", "h264", "hevc") or codec in ("mpeg4", "mpeg2video")
    stream.codec_context.time_base = Fraction(1, rate if constant_rate else TICKS_PER_S)
    stream.codec_context.thread_count = 1
    return stream


def _mux_frame(target: Any, stream: Any, frame: av.VideoFrame, time_s: float) -> None:
    time_base = stream.codec_context.time_base
    frame.pts, frame.time_base = round(time_s / time_base), time_base
    target.mux(stream.encode(frame))


def _encoder_options(codec: str, options: Mapping[str, str] | None) -> dict[str, str]:
    """Quick encoders: the tests are about decoding."""
    quick = {
        "libx264": {"preset": "ultrafast", "crf": "12"},
        "libx265": {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none:pools=1"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "15", "b": "0"},
        "libvpx": {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "2M"},
        "libsvtav1": {"preset": "13", "crf": "20", "svtav1-params": "lp=1"},
        "mpeg4": {"qscale": "2", "flags": "+qscale", "global_quality": "236"},
    }
    return {**quick.get(codec, {}), **(options or {})}


def _tag_colours(context: Any, matrix: str | None, full_range: bool | None) -> None:
    if matrix is not None:
        context.colorspace = MATRICES[matrix]
    if full_range is not None:
        context.color_range = 2 if full_range else 1


def _yuv_frame(
    image: npt.NDArray[Any], source: str, target: str, matrix: str | None, full_range: bool | None
) -> av.VideoFrame:
    """A picture as the encoder wants it, converted by the matrix and range that the stream is tagged with."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=source)
    if source != target:
        # PyAV numbers the matrices as swscale does: 1 is BT.709, 5 is BT.601.
        number = {"bt709": 1, "smpte240m": 7, "fcc": 4}.get(matrix or "", 5)
        frame = frame.reformat(format=target, dst_colorspace=number, dst_color_range=2 if full_range else 1)
    _tag_colours(frame, matrix, full_range)
    return frame


def _mux_tone(target: Any, stream: Any, *, seconds: float) -> None:
    rate, size = 16_000, 1024
    for start in range(0, int(seconds * rate), size):
        wave = 0.2 * np.sin(np.arange(start, start + size, dtype=np.float32) * 0.17)
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts = rate, start
        target.mux(stream.encode(frame))
    target.mux(stream.encode(None))


ImageKind = Literal["jpeg", "png", "webp", "bmp", "tiff", "gif"]


def image(
    kind: ImageKind = "jpeg",
    width: int = 64,
    height: int = 48,
    mode: str = "RGB",
    *,
    orientation: int = 1,
    frames: int = 1,
) -> bytes:
    """An encoded `picture(0)`; `orientation` is EXIF's, `frames` > 1 makes an animation (GIF, WebP, PNG)."""
    pictures = [as_mode(picture(number, width, height), mode) for number in range(frames)]
    settings: dict[str, Any] = {"quality": 95} if kind in ("jpeg", "webp") else {}
    if orientation != 1:
        exif = Image.Exif()
        exif[0x0112] = orientation
        settings["exif"] = exif
    if frames > 1:
        settings |= {"save_all": True, "append_images": pictures[1:], "duration": 100}
    sink = io.BytesIO()
    pictures[0].save(sink, format=kind, **settings)
    return sink.getvalue()


def png_of_claimed_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of any size."""
    data = bytearray(image("png"))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def as_mode(pixels: Picture, mode: str) -> Image.Image:
    """The pixels as a Pillow image of `mode`; `I;16` spreads the grey levels over 16 bits."""
    if mode == "I;16":
        grey = np.asarray(Image.fromarray(pixels).convert("L"), np.uint16)
        return Image.fromarray(grey * 257)
    return Image.fromarray(pixels).convert(mode)


def audio_only(container: str = "mp4", *, cover: bool = False) -> bytes:
    """A tone without a video stream; with `cover`, a picture is attached to it, as music players do (MP4)."""
    sink = io.BytesIO()
    with av.open(sink, "w", format=container, options=BITEXACT) as target:
        voice: Any = target.add_stream("aac", rate=16_000)
        art: Any = None
        if cover:
            art = target.add_stream("mjpeg", rate=1)
            art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
            art.disposition = av.stream.Disposition.attached_pic
        _mux_tone(target, voice, seconds=0.5)
        if art is not None:
            packet = av.Packet(image())
            packet.stream, packet.pts, packet.dts = art, 0, 0
            target.mux(packet)
    return sink.getvalue()


def truncated(media: bytes, part: float = 0.6) -> bytes:
    """The first `part` of the bytes, as a broken-off upload leaves them."""
    return media[: int(len(media) * part)]


def mutated(media: bytes, seed: int, flips: int = 12) -> bytes:
    """The bytes with `flips` of them replaced, the same ones for the same seed."""
    random = np.random.default_rng(seed)
    pixels = np.frombuffer(media, np.uint8).copy()
    pixels[random.integers(0, len(pixels), flips)] = random.integers(0, 256, flips, dtype=np.uint8)
    return pixels.tobytes()
