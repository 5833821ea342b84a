"""Pictures on the CPU: pixel formats, colours by matrix and range, uprightness, images of every kind."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageOps

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.protocol.errors import UnsupportedMedia
from pipelines.protocol.options import Options
from tests.support import media
from tests.support.media import clip, image, info_of, picture, read_number

Pixels = npt.NDArray[Any]


def pixels_of(data: bytes) -> npt.NDArray[np.int64]:
    """All frames `(N, H, W, 3)`, as numbers that can be subtracted."""
    with open_media(data, options=Options(), limits=Limits(), device="cpu") as medium:
        return np.concatenate([np.asarray(chunk.pixels_nhwc, np.int64) for chunk in medium.chunks()])


@pytest.mark.parametrize(
    ("codec", "pix_fmt"),
    [
        ("libx264", "yuv422p"),
        ("libx264", "yuv444p"),
        ("libx264", "yuv420p10le"),
        ("libx264", "yuv422p10le"),
        ("libx264rgb", "rgb24"),
        ("libx265", "yuv420p10le"),
        ("libx265", "yuv444p12le"),
        ("libvpx-vp9", "yuv444p"),
        ("libvpx-vp9", "yuva420p"),
        ("libsvtav1", "yuv420p10le"),
        ("mjpeg", "yuvj444p"),
        ("ffv1", "gbrp10le"),
        ("ffv1", "bgra"),
        ("ffv1", "yuv410p"),
        ("prores_ks", "yuva444p10le"),
        ("ffv1", "rgb48le"),
    ],
)
def test_pixel_formats(codec: str, pix_fmt: str) -> None:
    data = clip(codec=codec, pix_fmt=pix_fmt, container="matroska", frames=3)
    for number, frame in enumerate(pixels_of(data)):
        assert read_number(frame) == number
        assert np.abs(frame - picture(number)).mean() < 8


def test_grey_is_spread_where_its_range_is_limited() -> None:
    grey = np.tile(np.array([16, 126, 235, 255], np.uint8).repeat(16), (48, 1))
    for full_range, expected in ((None, [16, 126, 235, 255]), (False, [0, 128, 255, 255])):
        data = clip(
            codec="ffv1",
            container="matroska",
            pix_fmt="gray",
            pictures=[grey],
            picture_format="gray",
            full_range=full_range,
        )
        assert pixels_of(data)[0, 10, 8::16, 0].tolist() == expected


# Weights of red and blue in luma, from the tables of ITU-T H.273.
WEIGHTS = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114), "bt2020": (0.2627, 0.0593), "fcc": (0.3, 0.11)}
WEIGHTS |= {"smpte240m": (0.212, 0.087), "unspecified": (0.299, 0.114)}


def rgb_by_definition(yuv_hwc: Pixels, matrix: str, *, full_range: bool, bits: int = 8) -> Pixels:
    """H.273's own formulas, in floating point."""
    red, blue = WEIGHTS[matrix]
    y, u, v = np.moveaxis(yuv_hwc.astype(np.float64), -1, 0)
    unit, full = 2 ** (bits - 8), 2**bits - 1
    low, span, chroma_span = (0, full, full) if full_range else (16 * unit, 219 * unit, 224 * unit)
    y, u, v = (y - low) / span, (u - 128 * unit) / chroma_span, (v - 128 * unit) / chroma_span
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    rgb: Pixels = np.clip(np.rint(255 * np.stack([r, g, b], -1)), 0, 255)
    return rgb


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", sorted(WEIGHTS))
@pytest.mark.parametrize(
    ("pix_fmt", "bits"),
    [
        ("yuv444p", 8),
        ("yuv420p", 8),
        ("yuv422p10le", 10),
        ("yuv444p16le", 16),
    ],
)
def test_colours_follow_matrix_and_range(matrix: str, full_range: bool, pix_fmt: str, bits: int) -> None:
    random = np.random.default_rng(7)
    # Flat patches, so that no filter of the chroma's blurs what is compared.
    patches = random.integers([40, 90, 90], [210, 166, 166], (3, 4, 3)) * 2 ** (bits - 8)
    yuv_hwc = patches.repeat(16, 0).repeat(16, 1).astype(np.uint8 if bits == 8 else np.uint16)
    planes = np.moveaxis(yuv_hwc, -1, 0)
    if pix_fmt == "yuv420p":
        stored = np.concatenate([planes[0].ravel(), planes[1, ::2, ::2].ravel(), planes[2, ::2, ::2].ravel()])
        stored = stored.reshape(72, 64)
    else:
        stored = yuv_hwc if bits == 16 else planes
    data = clip(
        codec="ffv1",
        container="matroska",
        pictures=[stored],
        picture_format=pix_fmt,
        pix_fmt=pix_fmt,
        matrix=matrix,
        full_range=full_range,
    )
    expected = rgb_by_definition(yuv_hwc, matrix, full_range=full_range, bits=bits)
    middle = np.s_[8::16, 8::16]
    assert np.abs(pixels_of(data)[0][middle] - expected[middle]).max() <= 3


@pytest.mark.parametrize("number", [8, 10, 11, 12, 13, 14])
def test_a_matrix_that_is_not_known_is_not_guessed(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of H.273: YCgCo, BT.2020 of constant luminance, and others by other formulas."""
    monkeypatch.setitem(media.MATRICES, "other", number)
    data = clip(codec="ffv1", container="matroska", pix_fmt="yuv444p", matrix="other", frames=1)
    with pytest.raises(UnsupportedMedia, match=f"matrix {number} of H.273"):
        pixels_of(data)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
def test_a_tagged_clip_keeps_its_colours(codec: str) -> None:
    """Encoded by a tagged matrix, decoded by it: the picture comes back."""
    for matrix in ("bt601", "bt709"):
        data = clip(codec=codec, container="matroska", pix_fmt="yuv444p", matrix=matrix, frames=1)
        assert np.abs(pixels_of(data)[0] - picture()).mean() < 3, matrix


@pytest.mark.parametrize("hflip", [False, True])
@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_frames_stand_upright(rotation: int, hflip: bool) -> None:
    """FFmpeg's matrix mirrors after turning; `ffmpeg` shows the same pictures (checked with 5.1)."""
    stored = pixels_of(clip(frames=1))[0]
    turned = np.rot90(stored, rotation // 90)
    expected = turned[:, ::-1] if hflip else turned
    data = clip(frames=1, rotation=rotation, hflip=hflip)
    assert np.array_equal(pixels_of(data)[0], expected)
    info = info_of(data)
    assert (info.height_px, info.width_px) == expected.shape[:2]
    assert info.mirrored == hflip
    if not hflip:
        assert info.rotation_deg == rotation


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_stand_upright_by_exif(orientation: int) -> None:
    data = image("png", orientation=orientation)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(pixels_of(data)[0], expected)
    info = info_of(data)
    assert (info.height_px, info.width_px) == expected.shape[:2]


@pytest.mark.parametrize(
    ("kind", "mode", "near"),
    [
        ("png", "RGB", 0),
        ("png", "RGBA", 0),
        ("png", "L", 0),
        ("png", "LA", 0),
        ("png", "P", 0),
        ("png", "1", 0),
        ("png", "I;16", 0),
        ("tiff", "I;16", 0),
        ("tiff", "CMYK", 0),
        ("bmp", "RGB", 0),
        ("gif", "L", 0),
        ("webp", "RGB", 6),
        ("jpeg", "RGB", 6),
        ("jpeg", "L", 6),
        ("jpeg", "CMYK", 6),
    ],
)
def test_images(kind: media.ImageKind, mode: str, near: float) -> None:
    data = image(kind, mode=mode)
    with open_media(data, options=Options(), limits=Limits(), device="cpu") as medium:
        (chunk,) = medium.chunks()
        assert (medium.decoder, medium.info.kind, medium.info.codec) == ("pillow", "image", kind)
    expected = media.as_mode(picture(), "L" if mode == "I;16" else mode).convert("RGB")
    assert np.abs(np.asarray(chunk.pixels_nhwc[0]).astype(int) - np.asarray(expected)).mean() <= near
    assert (chunk.frame_index.tolist(), chunk.pts_s.tolist()) == ([0], [0.0])
    assert np.asarray(chunk.pixels_nhwc).flags.writeable
