"""Write docs/codecs.md: which codecs and pixel formats are decoded, found by encoding and decoding each.

NVDEC's column is what its route decides by the medium only; a GPU's own decoders are asked there.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable

import av
import numpy as np
import numpy.typing as npt

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.media.nvdec import kind_refusal
from pipelines.media.video import Video
from pipelines.protocol.errors import TrividError
from pipelines.protocol.options import Options
from scripts.reference import fill, table, write_or_check
from tests.support.media import clip

LAYOUTS = ("420", "422", "444")
FRAMES, PATCH_PX = 5, 32
# Of high quality: the picture should come back.
QUALITY = {"mpeg4": {}, "mjpeg": {"flags": "+qscale", "global_quality": "236"}}
# Means of patches after coding; a wrong matrix or range is off by 15 and more.
NEAR_LEVELS = 6
NO_ENCODER = "no encoder to make one"
DEEP = {"H.264": "libx264", "HEVC": "libx265", "VP9": "libvpx-vp9", "AV1": "libsvtav1"}
# A codec at a depth: FFmpeg's encoder of it, and its pixel format for a chroma layout.
ROWS = {
    f"{codec}, {bits} bits": (encoder, f"yuv{{}}p{suffix}")
    for codec, encoder in DEEP.items()
    for bits, suffix in ((8, ""), (10, "10le"))
} | {"MPEG-4 part 2": ("mpeg4", "yuv{}p"), "Motion JPEG": ("mjpeg", "yuvj{}p")}


def picture() -> npt.NDArray[np.uint8]:
    """Patches of colour `(H, W, 3)`, no two alike."""
    patches = np.random.default_rng(5).integers(20, 236, (3, 4, 3), dtype=np.uint8)
    return patches.repeat(PATCH_PX, 0).repeat(PATCH_PX, 1)


def encoded(encoder: str, pixel_format: str) -> bytes | None:
    """A short clip of the picture in Matroska; None where this FFmpeg has no encoder that makes one."""
    formats = av.codec.Codec(encoder, "w").video_formats or []
    if pixel_format not in [one.name for one in formats]:
        return None
    return clip(
        codec=encoder,
        container="matroska",
        pix_fmt=pixel_format,
        width=4 * PATCH_PX,
        height=3 * PATCH_PX,
        full_range=pixel_format.startswith("yuvj") or None,
        pictures=[picture()] * FRAMES,
        options=QUALITY.get(encoder, {"crf": "8"}),
    )


def on_cpu(media: bytes) -> str:
    """`cpu` where all frames come with their colours, else what is wrong."""
    with open_media(media, options=Options(decoder="cpu"), limits=Limits(), device="cpu") as medium:
        frames = np.concatenate([np.asarray(chunk.pixels_nhwc) for chunk in medium.chunks()])
    if len(frames) != FRAMES:
        return f"{len(frames)} frames of {FRAMES}"
    middle = np.s_[..., PATCH_PX // 2 :: PATCH_PX, PATCH_PX // 2 :: PATCH_PX, :]
    apart = np.abs(frames[middle].astype(int) - picture()[middle]).max()
    return "cpu" if apart <= NEAR_LEVELS else f"colours are off by {apart} of 255"


def on_gpu(media: bytes) -> str:
    with contextlib.closing(Video(media, Limits())) as video:
        reason = kind_refusal(video.info)
    return f"cpu: {reason}" if reason else "nvdec if the GPU decodes it"


def cell(device: Callable[[bytes], str], media: bytes | None) -> str:
    """What a device makes of a clip, or its error."""
    try:
        return NO_ENCODER if media is None else device(media)
    except TrividError as error:
        return f"{error.code}: {error.message}"


def document() -> str:
    """The whole file."""
    rows = [
        (title, [encoded(encoder, pixel_format.format(layout)) for layout in LAYOUTS])
        for title, (encoder, pixel_format) in ROWS.items()
    ]
    tables = {}
    for name, device in (("cpu", on_cpu), ("gpu", on_gpu)):
        cells = [[title, *(cell(device, clip) for clip in clips)] for title, clips in rows]
        tables[name] = table(("codec", "4:2:0", "4:2:2", "4:4:4"), cells)
    return fill("codecs.md", no_encoder=NO_ENCODER, version=av.__version__, **tables)


if __name__ == "__main__":
    sys.exit(write_or_check("codecs.md", document()))
