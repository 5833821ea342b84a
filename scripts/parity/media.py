"""The media of a parity run: real ones where their folder is, generated ones anywhere. Knows no model."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image

from pipelines.frames.batch import FrameBatch, to_numpy
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.protocol.options import Options
from scripts import ROOT
from tests.support.media import as_mode, clip
from tests.support.pixels import Picture, natural

SHARED = ROOT.parent / "shared" / "data"
REAL = (
    *("baboon_1280px.jpg", "monkey_1920px.jpg", "sintel_h264_720p.mp4", "dog_h264_464p.mp4"),
    *("nasa_h264_two_streams.mp4", "pattern_vp9_720p.webm", "pattern_h265_720p.mp4"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """One medium; `load` gives its bytes, the same each time."""

    name: str
    kind: Literal["picture", "video"]
    load: Callable[[], bytes]
    missing: bool = False


@functools.cache
def materials() -> tuple[Material, ...]:
    """All media, the real ones first; a file that is not there is marked as missing."""
    loads = {name: (SHARED / name).read_bytes for name in REAL} | PICTURES | VIDEOS
    return tuple(
        Material(
            name=name,
            kind="picture" if name in PICTURES or name.endswith(".jpg") else "video",
            # An encoder's threads make other bytes each time, so these are kept.
            load=functools.cache(load),
            missing=name in REAL and not (SHARED / name).is_file(),
        )
        for name, load in loads.items()
    )


def present(*names: str) -> list[Material]:
    """The media of these names that are there, in this order; all without names."""
    known = {one.name: one for one in materials() if not one.missing}
    return [known[name] for name in names if name in known] if names else list(known.values())


def _png(picture: Image.Image) -> bytes:
    sink = io.BytesIO()
    picture.save(sink, "png", compress_level=1)
    return sink.getvalue()


def _picture(height_px: int, width_px: int, mode: str = "RGB") -> bytes:
    return _png(as_mode(natural(height_px, width_px)[0], mode))


def _alpha() -> bytes:
    """Transparent in one half: the colours under it are what counts, as with Pillow's `convert`."""
    alpha = np.where(np.arange(400) < 200, 40, 255).astype(np.uint8)
    rgba = np.dstack([natural(301, 400)[0], np.broadcast_to(alpha, (301, 400))])
    return _png(Image.fromarray(rgba))


def _uhd() -> bytes:
    """3840x2160: a quarter, mirrored into the other three."""
    quarter = natural(1080, 1920)[0]
    return _png(Image.fromarray(np.pad(quarter, ((0, 1080), (0, 1920), (0, 0)), mode="symmetric")))


def _panned(height_px: int, width_px: int, frames: int) -> list[Picture]:
    """A camera that pans over a picture, three pixels right and one down a frame."""
    scene = natural(height_px + frames, width_px + 3 * frames)[0]
    return [scene[i : i + height_px, 3 * i : 3 * i + width_px] for i in range(frames)]


def _ten_bits() -> bytes:
    pictures, fmt = _panned(180, 322, 60), "yuv420p10le"
    return clip(
        codec="libx265", container="matroska", pix_fmt=fmt, width=322, height=180, rate=25, pictures=pictures
    )


PICTURES: dict[str, Callable[[], bytes]] = {
    "odd 643x361": partial(_picture, 361, 643),
    "portrait 359x641": partial(_picture, 641, 359),
    "tiny 8x8": partial(_picture, 8, 8),
    "4K": _uhd,
    "grey": partial(_picture, 300, 401, "L"),
    "alpha": _alpha,
}
VIDEOS: dict[str, Callable[[], bytes]] = {
    "10 bits": _ten_bits,
    "portrait video": lambda: clip(
        width=180, height=320, rate=30, pictures=_panned(320, 180, 72), matrix="bt709"
    ),
    # Stored lying, shown upright: what a telephone films.
    "turned video": lambda: clip(width=256, height=144, rate=24, pictures=_panned(144, 256, 48), rotation=90),
}


@functools.lru_cache(maxsize=4)
def decode(material: Material, options: Options) -> FrameBatch:
    """The selected frames of a medium as the server's own decoder gives them, all at once."""
    with open_media(material.load(), options=options, limits=Limits(), device="cpu") as medium:
        parts = list(medium.chunks())
    return FrameBatch.of(
        np.concatenate([to_numpy(part.pixels_nhwc) for part in parts]),
        pts_s=np.concatenate([part.pts_s for part in parts]),
        frame_index=np.concatenate([part.frame_index for part in parts]),
    )
