"""Whole media that mutations begin with, small: every container and form of picture that is served."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import av

from scripts import ROOT
from tests.support import media

DATA = ROOT.parent / "shared" / "data"
# Larger ones would take most of the time, and damage would miss their headers.
LARGEST_BYTES = 400_000
# FFmpeg's names: a container, an encoder, and the facts that set a clip apart.
CLIPS: tuple[tuple[str, str, Mapping[str, object]], ...] = (
    ("mp4", "libx264", {}),
    ("mp4", "libx264", {"bframes": 2, "rotation": 90, "audio": True, "pts": [0, 0.1, 0.35, 0.4, 1.0, 1.1]}),
    ("mp4", "libx264", {"mux_options": {"movflags": "frag_keyframe+empty_moov"}, "gop": 3}),
    ("mp4", "libx264", {"mux_options": {"movflags": "faststart"}}),
    ("mp4", "libx265", {}),
    ("mp4", "libsvtav1", {}),
    ("mp4", "mpeg4", {}),
    ("mov", "libx264", {"audio": True}),
    ("mov", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("matroska", "libx264", {}),
    ("matroska", "libvpx-vp9", {}),
    ("webm", "libvpx", {}),
    ("webm", "libvpx-vp9", {}),
    ("mpegts", "libx264", {}),
    ("mpegts", "mpeg2video", {}),
    ("mpeg", "mpeg2video", {}),
    ("avi", "mpeg4", {}),
    ("avi", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("flv", "libx264", {}),
    ("h264", "libx264", {}),
    ("hevc", "libx265", {}),
    ("mjpeg", "mjpeg", {"pix_fmt": "yuvj420p"}),
    ("ogg", "libtheora", {}),
)
PICTURES: tuple[tuple[str, Mapping[str, object]], ...] = (
    *((kind, {}) for kind in ("jpeg", "png", "webp", "bmp", "tiff", "gif", "avif")),
    *((kind, {"frames": 3}) for kind in ("gif", "webp", "png", "tiff", "avif")),
    *(("png", {"mode": mode}) for mode in ("L", "P", "RGBA", "I;16", "1")),
    *(("jpeg", {"mode": mode}) for mode in ("L", "CMYK")),
    *(("tiff", {"mode": mode}) for mode in ("L", "CMYK", "I;16", "1")),
    ("jpeg", {"orientation": 6}),
)


@functools.cache
def seeds() -> dict[str, bytes]:
    """The media by name. Those that this FFmpeg or Pillow cannot write are left out."""
    found: dict[str, bytes] = {}
    for place, (container, codec, facts) in enumerate(CLIPS):
        try:
            options = {"frames": 6, **facts}
            found[f"clip{place}.{container}.{codec}"] = media.clip(
                container=container,
                codec=codec,
                **options,  # type: ignore[arg-type]
            )
        except (av.FFmpegError, ValueError, TypeError, KeyError):
            continue
    for place, (kind, facts) in enumerate(PICTURES):
        try:
            found[f"picture{place}.{kind}"] = media.image(kind, **facts)  # type: ignore[arg-type]
        except (OSError, ValueError, KeyError):
            continue
    found["tone.mp4"] = media.audio_only(cover=True)
    paths = sorted(DATA.rglob("*")) if DATA.is_dir() else []
    kinds = (".jpg", ".png", ".mp4", ".mkv", ".webm")
    for path in paths:
        if path.suffix in kinds and path.stat().st_size <= LARGEST_BYTES:
            found[path.name] = path.read_bytes()
    return found
