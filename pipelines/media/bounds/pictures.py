"""What decoding a picture costs, by its header. Decodes nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image

from pipelines.media.identity.moving import count_pairs
from pipelines.protocol.errors import InvalidMedia, TooLarge

# A decoder passes all pixels once for each scan of a JPEG: about 1e9 a second.
MOST_WORK_PX = 1_000_000_000
SCAN, SCAN_PAIR = b"\xff\xda", 0xDAFF
# With its length, by which every decoder checks it.
WHOLE_SCAN = re.compile(rb"\xff\xda\0[\x08-\x0e]")
# A frame of a JPEG with samples of up to 16 bits: its height, width and components.
JPEG_FRAME = re.compile(
    rb"\xff[\xc0-\xc3\xc5-\xcf\xf7]\0[\x0b\x0e\x11\x14][\x02-\x10](..)(..)[\1-\4]", re.DOTALL
)
# Pillow holds most pixels in four bytes; with the copies that make RGB arrays of them.
PIXEL_BYTES = 18
# In a JPEG of several scans, the coefficients of all blocks.
COEFFICIENT_BYTES = 6
APART_BYTES = 256 << 20
# Before its first scan, a JPEG holds little but metadata.
MOST_METADATA_BYTES = 1 << 20
METADATA_MARKERS = (*range(0xE1, 0xEE), 0xEF, 0xFE)
PNG_HEAD_BYTES, MOST_CHUNKS = 8, 10_000
PLAIN_TIFFS = ("raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What decoding a picture takes.

    Attributes:
        memory_bytes: at the most, until its pixels are RGB.
        apart: why it is decoded in a process of its own; empty: it is not.
    """

    memory_bytes: int
    apart: str = ""


def cost(image: Image.Image, encoded: bytes) -> Cost:
    """What an image of which only the header is read will take."""
    pixels = image.width * image.height
    memory_bytes = PIXEL_BYTES * pixels
    if image.format in ("JPEG", "MPO"):
        scans = count_pairs(encoded, SCAN_PAIR)
        memory_bytes += COEFFICIENT_BYTES * pixels if scans > 1 else 0
        work_px = scans * pixels
        return Cost(
            memory_bytes=memory_bytes, apart=f"it has {scans} scans" if work_px > MOST_WORK_PX else ""
        )
    if image.format == "TIFF" and (form := str(image.info.get("compression", "raw"))) not in PLAIN_TIFFS:
        return Cost(memory_bytes=memory_bytes, apart=f"TIFF may hold any {form} data")
    return Cost(
        memory_bytes=memory_bytes, apart="its header bounds nothing" if image.format == "AVIF" else ""
    )


def check_scans(encoded: bytes) -> None:
    """Raise TooLarge if a JPEG frame in a video has more scans than can be decoded in a bounded time."""
    frames = JPEG_FRAME.finditer(encoded)
    for found, after in itertools.pairwise([*frames, None]):
        assert found is not None
        end = len(encoded) if after is None else after.start()
        height_px, width_px = (int.from_bytes(found[number], "big") for number in (1, 2))
        scans = len(WHOLE_SCAN.findall(encoded, found.end(), end))
        if scans > 1 and scans * height_px * width_px > MOST_WORK_PX:
            raise TooLarge(
                f"a JPEG frame of {width_px}x{height_px} pixels has {scans} scans",
                hint="write it anew with plain JPEG frames: ffmpeg -i FILE -c:v mjpeg NEW",
            )


def check_chunks(encoded: bytes) -> None:
    """Raise InvalidMedia if a PNG has so many chunks that Pillow, which looks at each, takes seconds."""
    most, place = MOST_CHUNKS + len(encoded) // 1024, PNG_HEAD_BYTES
    for _ in range(most):
        if place + 8 > len(encoded) or encoded[place + 4 : place + 8] == b"IEND":
            return
        place += 12 + int.from_bytes(encoded[place : place + 4], "big")
    raise InvalidMedia(f"the PNG image has over {most} chunks in {len(encoded)} bytes", hint="save it anew")


def without_metadata(encoded: bytes) -> bytes:
    """A JPEG as it is, or, if it has over MOST_METADATA_BYTES of metadata, with the first EXIF only.

    Pillow joins segments one by one, in quadratic time; none but the orientation is of use here.

    Raises:
        InvalidMedia: it begins with so many bytes of other things.
    """
    if not encoded.startswith(b"\xff\xd8") or encoded.find(SCAN, 0, MOST_METADATA_BYTES) >= 0:
        return encoded
    kept, place, exif = [encoded[:2]], 2, False
    for marker, start, end in _segments(encoded):
        is_exif = marker == 0xE1 and encoded[start + 4 : start + 10] == b"Exif\0\0"
        if marker not in METADATA_MARKERS or (is_exif and not exif):
            kept.append(encoded[start:end])
        exif |= is_exif
        place = end
    if sum(map(len, kept)) > MOST_METADATA_BYTES:
        raise InvalidMedia(
            f"the JPEG image begins with {place} bytes of tables, over {MOST_METADATA_BYTES}",
            hint="save it anew",
        )
    return b"".join([*kept, encoded[place:]])


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, begin and end of the segments of a JPEG before its first scan."""
    place = 2
    while place + 4 <= len(encoded) and encoded[place] == 0xFF and encoded[place + 1] not in (0xDA, 0xFF):
        end = place + 2 + int.from_bytes(encoded[place + 2 : place + 4], "big")
        yield encoded[place + 1], place, end
        place = end
