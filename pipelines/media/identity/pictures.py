"""Which picture a file is, if it is one: by magic numbers, and by brands."""

from __future__ import annotations

import struct

from pipelines.media.identity.moving import JPEG_START, PNG_START, moving_format
from pipelines.protocol.errors import UnsupportedMedia

# First bytes of a file → Pillow's name of the format.
MAGIC = {
    JPEG_START: "JPEG",
    PNG_START: "PNG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
}
# Lengths of a BMP's second header: text may start with "BM" too.
BMP_HEADS = (12, 16, 40, 52, 56, 64, 108, 124)
AVIF_BRANDS = {b"avif", b"avis"}
# Of ISO/IEC 23008-12: any codec, HEVC, AVC, VVC and the like.
HEIF_BRANDS = {
    *(b"mif1", b"mif2", b"miaf", b"msf1", b"heif", b"1pic", b"unif"),
    *(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"),
    *(b"avci", b"avcs", b"vvic", b"vvis", b"evbi", b"evbs", b"jpeg", b"jpgs", b"j2ki", b"j2is"),
}
ANY_CODEC = {b"mif1", b"mif2", b"miaf", b"msf1", b"heif", b"1pic", b"unif"}
MOST_BRANDS_BYTES = 1024


def image_format(encoded: bytes) -> str | None:
    """Pillow's name of a picture's format; None if it is none that is served. Videos that begin
    like one are none.

    Raises:
        UnsupportedMedia: an HEIF picture whose codec is not AV1.
    """
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return None if moving_format(encoded) else "WEBP"
    if encoded[4:8] == b"ftyp":
        return _by_brands(encoded)
    if encoded[:2] == b"BM" and len(encoded) >= 18 and struct.unpack_from("<I", encoded, 14)[0] in BMP_HEADS:
        return None if moving_format(encoded) else "BMP"
    name = next((name for magic, name in MAGIC.items() if encoded.startswith(magic)), None)
    return None if name and moving_format(encoded) else name


def is_avif_sequence(encoded: bytes) -> bool:
    """Whether a file is a clip of AV1 pictures (ISO/IEC 23000-22 calls it an image sequence)."""
    major, compatible = _brands(encoded)
    hints_at_none = major not in AVIF_BRANDS | HEIF_BRANDS or major == b"msf1"
    return major == b"avis" or (b"avis" in compatible and hints_at_none and b"moov" in encoded)


def _by_brands(encoded: bytes) -> str | None:
    """The major brand decides what a file mainly is, if it tells; else the compatible ones do."""
    major, compatible = _brands(encoded)
    if is_avif_sequence(encoded):
        return None
    if major in AVIF_BRANDS or (compatible & AVIF_BRANDS and major not in HEIF_BRANDS - ANY_CODEC):
        return "AVIF"
    if major in HEIF_BRANDS or (compatible & HEIF_BRANDS and b"moov" not in encoded):
        raise UnsupportedMedia(
            f"HEIF images are not supported (brand {major.decode('latin-1')!r})",
            hint="convert it to JPEG, PNG or AVIF; iPhones take JPEG if Camera > Formats is Most Compatible",
        )
    return None


def _brands(encoded: bytes) -> tuple[bytes, set[bytes]]:
    """The major and the compatible brands of ISO/IEC 14496-12's `ftyp` box; none if the file has none."""
    if encoded[4:8] != b"ftyp":
        return b"", set()
    # A length of 0 or 1 does not tell how long the box is.
    length = struct.unpack_from(">I", encoded)[0]
    head = encoded[8 : min(length, MOST_BRANDS_BYTES) if length > 1 else MOST_BRANDS_BYTES]
    return head[:4], {head[place : place + 4] for place in range(8, len(head), 4)}
