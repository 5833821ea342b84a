"""Write docs/codecs.md: which codecs and pixel formats are decoded, found by encoding and decoding each.

NVDEC's column is what its route decides by the medium only; a GPU's own decoders are asked there.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.media.nvdec import kind_refusal
from pipelines.media.video import Video
from pipelines.protocol.errors import TrividError
from pipelines.protocol.options import Options
from scripts import ROOT
from scripts.reference import write_or_check

FILE = ROOT / "docs" / "codecs.md"
LAYOUTS = ("420", "422", "444")
FRAMES, PATCH_PX = 5, 32
# Quick encoders, of high quality: the picture should come back.
QUICK = {
    "libx264": {"preset": "ultrafast", "crf": "8"},
    "libx265": {"preset": "ultrafast", "crf": "8", "x265-params": "log-level=none:pools=1"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "8", "b": "0"},
    "libsvtav1": {"preset": "13", "crf": "10", "svtav1-params": "lp=1"},
    "mpeg4": {"flags": "+qscale", "global_quality": "236"},
    "mjpeg": {"flags": "+qscale", "global_quality": "236"},
}
# Means of patches after coding; a wrong matrix or range is off by 15 and more.
NEAR_LEVELS = 6
NO_ENCODER = "no encoder to make one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A codec at a depth, and FFmpeg's encoder of it."""

    title: str
    encoder: str
    pixel_format: str

    def name(self, layout: str) -> str:
        """FFmpeg's pixel format for a chroma layout."""
        return self.pixel_format.format(layout)


ROWS = (
    Row(title="H.264, 8 bits", encoder="libx264", pixel_format="yuv{}p"),
    Row(title="H.264, 10 bits", encoder="libx264", pixel_format="yuv{}p10le"),
    Row(title="HEVC, 8 bits", encoder="libx265", pixel_format="yuv{}p"),
    Row(title="HEVC, 10 bits", encoder="libx265", pixel_format="yuv{}p10le"),
    Row(title="VP9, 8 bits", encoder="libvpx-vp9", pixel_format="yuv{}p"),
    Row(title="VP9, 10 bits", encoder="libvpx-vp9", pixel_format="yuv{}p10le"),
    Row(title="AV1, 8 bits", encoder="libsvtav1", pixel_format="yuv{}p"),
    Row(title="AV1, 10 bits", encoder="libsvtav1", pixel_format="yuv{}p10le"),
    Row(title="MPEG-4 part 2", encoder="mpeg4", pixel_format="yuv{}p"),
    Row(title="Motion JPEG", encoder="mjpeg", pixel_format="yuvj{}p"),
)


def picture() -> npt.NDArray[np.uint8]:
    """Patches of colour `(H, W, 3)`, no two alike."""
    patches = np.random.default_rng(5).integers(20, 236, (3, 4, 3), dtype=np.uint8)
    return patches.repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)


def encoded(row: Row, pixel_format: str) -> bytes | None:
    """A short clip of the picture in Matroska; None where this FFmpeg has no encoder that makes one."""
    formats = av.codec.Codec(row.encoder, "w").video_formats or []
    if pixel_format not in [one.name for one in formats]:
        return None
    os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder prints its settings otherwise
    pixels, sink = picture(), io.BytesIO()
    with av.open(sink, "w", format="matroska") as target:
        stream: Any = target.add_stream(row.encoder, rate=10, options=QUICK[row.encoder])
        stream.height, stream.width = pixels.shape[:2]
        stream.pix_fmt, stream.codec_context.time_base = pixel_format, Fraction(1, 10)
        for number in range(FRAMES):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=pixel_format)
            frame.pts, frame.time_base = number, Fraction(1, 10)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    return sink.getvalue()


def on_cpu(media: bytes) -> str:
    """`cpu` where all frames come with their colours, else what is wrong."""
    try:
        with open_media(media, options=Options(decoder="cpu"), limits=Limits(), device="cpu") as medium:
            frames = np.concatenate([np.asarray(chunk.pixels_nhwc) for chunk in medium.chunks()])
    except TrividError as error:
        return f"{error.code}: {error.message}"
    if len(frames) != FRAMES:
        return f"{len(frames)} frames of {FRAMES}"
    middle = np.s_[..., PATCH_PX // 2 :: PATCH_PX, PATCH_PX // 2 :: PATCH_PX, :]
    apart = np.abs(frames[middle].astype(int) - picture()[middle]).max()
    return "cpu" if apart <= NEAR_LEVELS else f"colours are off by {apart} of 255"


def on_gpu(media: bytes) -> str:
    try:
        with contextlib.closing(Video(media, Limits())) as video:
            reason = kind_refusal(video.info)
    except TrividError as error:
        return f"{error.code}: {error.message}"
    return f"cpu: {reason}" if reason else "nvdec if the GPU decodes it"


def table(title: str, cells: dict[tuple[str, str], str]) -> str:
    head = ["| codec | 4:2:0 | 4:2:2 | 4:4:4 |", "| --- | --- | --- | --- |"]
    rows = [f"| {row.title} | {' | '.join(cells[row.title, layout] for layout in LAYOUTS)} |" for row in ROWS]
    return "\n".join([f"## {title}", "", *head, *rows])


def document() -> str:
    """The whole file."""
    cpu, gpu = {}, {}
    for row in ROWS:
        for layout in LAYOUTS:
            media = encoded(row, row.name(layout))
            cpu[row.title, layout] = NO_ENCODER if media is None else on_cpu(media)
            gpu[row.title, layout] = NO_ENCODER if media is None else on_gpu(media)
    intro = (
        "# Codecs\n\n"
        "Made by `python -m scripts.reference.codecs`, which encodes a clip of each kind and decodes it\n"
        "as the server does; the tests compare this file with a new run. `cpu` means that all frames come,\n"
        f'with the colours that were encoded. "{NO_ENCODER}" means that PyAV {av.__version__} cannot write\n'
        "such a clip, so that nothing is said of it here. What cannot be decoded is an error of a stated\n"
        "code, never another picture."
    )
    without = table("Without a GPU, and with `decoder=cpu`", cpu)
    route = table("With a GPU", gpu)
    note = (
        "A medium goes to NVDEC only where its frames and colours are those of the CPU decoder: MP4 or\n"
        "Matroska, BT.601 or untagged, upright, whole. Whether the GPU at hand has a decoder for it is\n"
        "asked of the driver; each answer says in `decoder` and `decoder_reason` what was used."
    )
    return f"{intro}\n\n{without}\n\n{route}\n\n{note}\n"


if __name__ == "__main__":
    sys.exit(write_or_check(FILE, document()))
