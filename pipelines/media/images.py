"""Images with Pillow, as clips of one frame. Knows no video, no DALI, no torch."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Generator

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from pipelines.frames.batch import FrameBatch
from pipelines.media.medium import Limits, MediaInfo, Medium, Orientation
from pipelines.media.selection import Selected, select
from pipelines.protocol.errors import InvalidMedia, TooLarge, UnsupportedMedia
from pipelines.protocol.options import Options

# First bytes of a file → Pillow's name of the format. In WebP and AVIF a length comes before the name.
MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"BM": "BMP",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
}
AVIF_BRANDS = (b"avif", b"avis")
ORIENTATION_TAG = 0x0112
# By EXIF's numbers, 1 to 8.
ORIENTATIONS = {
    1: Orientation(),
    2: Orientation(flip_x=True),
    3: Orientation(flip_x=True, flip_y=True),
    4: Orientation(flip_y=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, flip_x=True),
    7: Orientation(transpose=True, flip_x=True, flip_y=True),
    8: Orientation(transpose=True, flip_y=True),
}
# What Pillow's readers are known to raise for files that are cut off or damaged.
FAULTS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
)


def image_format(encoded: bytes) -> str | None:
    """Pillow's name of an image's format, by its first bytes; None if that format is not served."""
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WEBP"
    if encoded[4:8] == b"ftyp" and encoded[8:12] in AVIF_BRANDS:
        return "AVIF"
    return next((name for magic, name in MAGIC.items() if encoded.startswith(magic)), None)


def open_image(encoded: bytes, *, options: Options, limits: Limits) -> Medium:
    """The image, or the first of an animation, as one frame at 0 s: upright by its EXIF, without alpha.

    Raises:
        InvalidMedia, UnsupportedMedia, TooLarge: as the docstring of `pipelines.protocol.errors` says.
    """
    with _open(encoded, limits) as image:
        info = _describe(image)
        pixels_hwc = _read_pixels(image)
    return Medium(
        info=info,
        decoder="pillow",
        decoder_reason=f"the medium is an image ({info.codec})",
        batches=_one_frame(pixels_hwc, options, limits),
    )


def _open(encoded: bytes, limits: Limits) -> Image.Image:
    """Read only the header, and refuse what it says is too large."""
    # Pillow warns of odd metadata and of large pictures. Our own limit makes the latter an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    name = str(image_format(encoded))
    try:
        image = Image.open(io.BytesIO(encoded), formats=(name,))
        limits.check_size(*image.size)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the {name} image is too large: {error}", hint="scale it down") from None
    except UnidentifiedImageError:
        raise InvalidMedia(
            f"starts like a {name} image, but cannot be read as one", hint="check the upload"
        ) from None
    except FAULTS as error:
        raise InvalidMedia(
            f"the header of the {name} image is broken: {error}", hint="check the upload"
        ) from None
    return image


def _orientation(image: Image.Image) -> Orientation:
    """EXIF's orientation; upright if there is none or the metadata are broken."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
    except FAULTS:
        return Orientation()
    return ORIENTATIONS.get(value, Orientation()) if isinstance(value, int) else Orientation()


def _describe(image: Image.Image) -> MediaInfo:
    orientation = _orientation(image)
    width_px, height_px = orientation.size(*image.size)
    name = str(image.format).lower()
    return MediaInfo(
        kind="image",
        container=name,
        codec=name,
        pixel_format=image.mode,
        width_px=width_px,
        height_px=height_px,
        rotation_deg=orientation.rotation_deg,
        mirrored=orientation.mirrored,
    )


def _read_pixels(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Decode → uint8 RGB `(H, W, 3)`, upright, contiguous and writable."""
    try:
        image.load()
        return _orientation(image).apply(np.asarray(_to_rgb(image))).copy()
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the image is too large: {error}", hint="scale it down") from None
    except FAULTS as error:
        raise InvalidMedia(
            f"the {image.format} image cannot be decoded: {error}", hint="check the upload"
        ) from None


def _to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB; 16-bit grey is scaled, since Pillow's own conversion would clip it."""
    if image.mode == "F":
        raise UnsupportedMedia("pixels are floating-point numbers", hint="save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        # Pillow would copy an image that is RGB already.
        return image if image.mode == "RGB" else image.convert("RGB")
    levels = np.asarray(image).astype(np.int64)
    if levels.min(initial=0) < 0 or levels.max(initial=0) > 0xFFFF:
        raise UnsupportedMedia("grey levels exceed 16 bits", hint="save it with 8 or 16 bits")
    return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")


def _one_frame(
    pixels_hwc: npt.NDArray[np.uint8], options: Options, limits: Limits
) -> Generator[FrameBatch, None, None]:
    for picked in select([Selected(0, 0.0, pixels_hwc)], options, limits):
        yield FrameBatch.of(
            picked.frame[None],
            pts_s=np.array([picked.pts_s]),
            frame_index=np.array([picked.frame_index], np.int64),
        )
