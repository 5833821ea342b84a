"""What is there of a picture that is cut off or damaged, with Pillow. Knows no limits and no options."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

from PIL import Image

from pipelines.media.identity.moving import PNG_START, png_chunks

# The chunks without which a PNG is another picture, beside the critical ones.
PNG_CHUNKS = (b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT")
JPEG_END = b"\xff\xd9"
# More data of a scan, of which a scan that is complete takes no notice.
MORE_OF_A_SCAN = b"\x55" * 256
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
    RuntimeError,
    struct.error,
    zlib.error,
)


def open_picture(encoded: bytes, name: str) -> Image.Image:
    """The picture with only its header read; texts and profiles that Pillow refuses are left out."""
    try:
        return Image.open(io.BytesIO(encoded), formats=(name,))
    except FAULTS:
        mended = _mended(encoded, name)
        if mended is None:
            raise
        return Image.open(io.BytesIO(mended), formats=(name,))


def load_picture(image: Image.Image, encoded: bytes) -> tuple[Image.Image, bool]:
    """The picture decoded, and whether some of its pixels are missing; those are of one colour.

    Raises:
        FAULTS: nothing of it can be decoded.
    """
    try:
        image.load()
        return image, False
    except FAULTS as error:
        name = "JPEG" if image.format == "MPO" else str(image.format)
        fault = error
    mended = _mended(encoded, name)
    if mended is None:
        return _begun(image, fault), True
    again = Image.open(io.BytesIO(mended), formats=(name,))
    try:
        again.load()
    except FAULTS as error:
        return _begun(again, error), True
    if name != "JPEG":
        return again, False
    with Image.open(io.BytesIO(mended[:-2] + MORE_OF_A_SCAN + JPEG_END), formats=(name,)) as longer:
        if longer.tobytes() == again.tobytes():
            return again, False
    return _begun(again, fault), True


def _begun(image: Image.Image, fault: Exception) -> Image.Image:
    """The picture, with the pixels that its decoder made before it failed; the fault if there are none."""
    # What is left to decode; without it Pillow takes the pixels as they are.
    image.tile = []  # type: ignore[attr-defined]
    try:
        lowest_highest = image.convert("L").getextrema()
    except FAULTS:
        raise fault from None
    if lowest_highest[0] == lowest_highest[1]:
        raise fault
    return image


def _mended(encoded: bytes, name: str) -> bytes | None:
    """The same picture without what Pillow refuses, or with the end that it lacks; None: there is none."""
    if name == "JPEG":
        # Half a marker at the end would swallow the next one.
        return encoded.rstrip(b"\xff") + JPEG_END
    if name == "WEBP":
        return encoded[:4] + struct.pack("<I", len(encoded) - 8) + encoded[8:]
    if name == "PNG":
        return encoded[: len(PNG_START)] + b"".join(_needed_chunks(encoded))
    return None


def _needed_chunks(encoded: bytes) -> Iterator[bytes]:
    """The chunks that make the picture (PNG, 5.3: the first letter of a critical one is a capital)."""
    for kind, start, end in png_chunks(encoded):
        if kind in PNG_CHUNKS or kind[:1].isupper():
            yield encoded[start - 8 : end + 4]
