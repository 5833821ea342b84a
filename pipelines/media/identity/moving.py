"""Videos that begin like a picture: pictures in a row, animated GIF and PNG. Knows no decoder.

A picture with other bytes after it, or with smaller copies of itself, stays a picture.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

JPEG_START = b"\xff\xd8\xff"
JPEG_START_PAIR = 0xD8FF
JPEG_END = b"\xff\xd9"
PNG_START = b"\x89PNG\r\n\x1a\n"
GIF_STARTS = (b"GIF87a", b"GIF89a")
GIF_EXTENSION, GIF_PICTURE, GIF_CUT, GIF_CROWDED = 0x21, 0x2C, -1, -2
LEAST_BLOCKS, LEAST_BLOCK_BYTES = 100_000, 128
# A PNG's last chunk is always the same, with its checksum.
PNG_END_AND_START = b"IEND\xaeB`\x82" + PNG_START
NEXT_JPEG = re.compile(re.escape(JPEG_START))
# A part of a multipart stream, as cameras send it over HTTP (RFC 2046).
FIRST_PART = re.compile(
    rb"(?:\r?\n){0,4}--[^\r\n]{1,200}\r?\n(?:[\w-]{1,40}:[^\r\n]{0,400}\r?\n){0,20}\r?\n\xff\xd8\xff"
)
# Padding, a boundary with its headers, or a recorder's own header may stand between two frames.
MOST_BETWEEN_BYTES = 1024
MOST_SEGMENTS = 10_000
# Segments that announce what follows the picture: CIPA DC-007's index, and the directories of phones.
APPENDICES = re.compile(
    rb"MPF\0|http://ns\.adobe\.com/xap/1\.0/\0.*(?:Container:Directory|MicroVideo|MotionPhoto)", re.DOTALL
)
JPEG_LS = 0xF7
FRAMES = {*range(0xC0, 0xD0), JPEG_LS} - {0xC4, 0xC8, 0xCC}
SAMSUNG_TRAILER_END = b"SEFT"


@dataclass(frozen=True, slots=True)
class JpegHead:
    """What a JPEG says before its first scan.

    Attributes:
        frame: code of its start of frame (ITU-T T.81, table B.1), 0xC0 for baseline and so on; JPEG_LS.
        size: bits of a sample, height, width, components.
        scan: where the first scan begins.
        announces: whether it says that more follows the picture.
    """

    frame: int
    size: tuple[int, int, int, int]
    scan: int
    announces: bool


def moving_format(encoded: bytes) -> str | None:
    """FFmpeg's name of a format whose files begin like a picture, if this one is a video of it."""
    if encoded.startswith(JPEG_START):
        return "mjpeg" if _is_jpeg_row(encoded) else None
    if encoded.startswith(PNG_START):
        return "apng" if _is_animated_png(encoded) else "png_pipe" if PNG_END_AND_START in encoded else None
    if encoded.startswith(GIF_STARTS):
        return "gif" if _is_animated_gif(encoded) else None
    # A length of 0 is that of a writer that did not go back to fill it in.
    if (form := _form_with_length(encoded)) is not None:
        return form[1] if form[0] and _form_with_length(encoded[form[0] : form[0] + 12]) is not None else None
    part = FIRST_PART.match(encoded)
    return "mjpeg" if part and b"form-data" not in part[0] else None


def _form_with_length(encoded: bytes) -> tuple[int, str] | None:
    """How long a BMP or WebP says it is, and FFmpeg's name of a row of them; None if it is neither."""
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        length = struct.unpack_from("<I", encoded, 4)[0]
        return 8 + length + length % 2, "webp_pipe"
    if encoded[:2] == b"BM" and encoded[6:10] == bytes(4):
        return struct.unpack_from("<I", encoded, 2)[0], "bmp_pipe"
    return None


def moving_size(encoded: bytes, moving: str) -> tuple[int, int]:
    """Width and height of such a video, as its header says; zeros if it does not."""
    if moving == "gif" and len(encoded) >= 10:
        return struct.unpack_from("<HH", encoded, 6)
    if moving in ("apng", "png_pipe") and len(encoded) >= 24:
        return struct.unpack_from(">II", encoded, 16)
    head = jpeg_head(encoded, encoded.find(JPEG_START)) if moving == "mjpeg" else None
    return (head.size[2], head.size[1]) if head is not None else (0, 0)


def _is_animated_png(encoded: bytes) -> bool:
    """Whether there are several frames, or one that is not the default picture (PNG, 3rd edition, 11.3.6)."""
    frames = 0
    for kind, start, end in itertools.islice(png_chunks(encoded), MOST_SEGMENTS):
        if end + 4 > len(encoded):
            break
        if kind == b"acTL" and end - start >= 8:
            (frames,) = struct.unpack_from(">I", encoded, start)
        elif kind in (b"fcTL", b"IDAT"):
            return frames > 1 or (frames == 1 and kind == b"IDAT")
    return False


def png_chunks(encoded: bytes) -> Iterator[tuple[bytes, int, int]]:
    """The kinds of a PNG's chunks, and where their contents begin and end: 8 bytes before, a checksum of 4
    after them. The last may be cut off: it ends beyond the file.
    """
    end = len(PNG_START) - 4
    while (start := end + 12) <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, start - 8)
        end = start + length
        yield kind, start, end


def _is_animated_gif(encoded: bytes) -> bool:
    """Whether there is a second picture; also if blocks are so many that only FFmpeg walks them in time."""
    pictures = 0
    for kind, _ in gif_blocks(encoded):
        pictures += kind == GIF_PICTURE
        if pictures == 2 or kind == GIF_CROWDED:
            return True
    return False


def gif_blocks(encoded: bytes) -> Iterator[tuple[int, int]]:
    """The kinds of a GIF's blocks, and where they begin (GIF89a, §§15 to 27).

    The last may be GIF_CUT, with the place where the block that is cut off should go on; or GIF_CROWDED, if
    the blocks are far smaller than any encoder makes them.
    """
    place, left = 13, LEAST_BLOCKS + len(encoded) // LEAST_BLOCK_BYTES
    try:
        place += _palette_bytes(encoded[10])
        while place < len(encoded) and (kind := encoded[place]) in (GIF_EXTENSION, GIF_PICTURE):
            yield kind, place
            place += 2 if kind == GIF_EXTENSION else 11 + _palette_bytes(encoded[place + 9])
            while length := encoded[place]:
                place += 1 + length
                left -= 1
                if left < 0:
                    break
            place += 1
            left -= 1
            if left < 0:
                yield GIF_CROWDED, place
                return
    except IndexError:
        yield GIF_CUT, place + 1


def _palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _is_jpeg_row(encoded: bytes) -> bool:
    """Whether a JPEG follows another of its own size at once.

    A camera's picture may be followed by smaller previews of it, or by whatever it announces.
    """
    first = jpeg_head(encoded, 0)
    if first is None or first.announces or encoded.endswith(SAMSUNG_TRAILER_END):
        return False
    second = _next_jpeg(encoded, first.scan)
    if second is None:
        return False
    if second.size == first.size:
        return True
    third = _next_jpeg(encoded, second.scan)
    return third is not None and third.size == second.size


def _next_jpeg(encoded: bytes, scan: int) -> JpegHead | None:
    """The head of the JPEG that follows the one with this first scan; None if there is none close by."""
    # Within a scan, a byte of 0xFF is followed by 0 or by a marker, never by that of a start.
    found = NEXT_JPEG.search(encoded, scan) if count_pairs(encoded, JPEG_START_PAIR, scan) else None
    if found is None:
        return None
    end = encoded.rfind(JPEG_END, scan, found.start())
    # Some cameras leave out the end.
    is_close = end < 0 or found.start() - end <= MOST_BETWEEN_BYTES
    return jpeg_head(encoded, found.start()) if is_close else None


def count_pairs(encoded: bytes, pair: int, place: int = 0) -> int:
    """How often two bytes, as a little-endian number, stand from `place` on: far faster than a search."""
    numbers = (
        np.frombuffer(encoded, "<u2", (len(encoded) - first) // 2, first) for first in (place, place + 1)
    )
    return sum(np.count_nonzero(one == pair) for one in numbers)


def jpeg_head(encoded: bytes, start: int) -> JpegHead | None:
    """The head of the JPEG at `start`; None if it is broken."""
    place, frame, size, announces = start + 2, 0, None, False
    for _ in range(MOST_SEGMENTS):
        if place + 4 > len(encoded) or encoded[place] != 0xFF:
            return None
        code, length = encoded[place + 1], struct.unpack_from(">H", encoded, place + 2)[0]
        if code == 0xFF:
            place += 1
            continue
        if code == 0xDA:
            return None if size is None else JpegHead(frame, size, place, announces)
        if code in FRAMES and place + 10 <= len(encoded):
            frame, size = code, struct.unpack_from(">BHHB", encoded, place + 4)
        if code in (0xE1, 0xE2):
            announces |= APPENDICES.match(encoded, place + 4, place + 2 + length) is not None
        place += 2 + length
    return None
