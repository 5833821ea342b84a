"""How long the frames of animated pictures are shown: what browsers make of delays that are too short."""

from __future__ import annotations

import struct
import zlib

from pipelines.media.identity.moving import GIF_EXTENSION, gif_blocks, png_chunks

# A frame whose file says so, or less, is shown for so long.
LEAST_MS, DEFAULT_MS = 10, 100
GIF_CONTROL = b"\x21\xf9\x04"
PNG_CONTROL_BYTES = 26


def shown_ms(delay_ms: float) -> float:
    """How long browsers show a frame whose file says `delay_ms`."""
    return delay_ms if delay_ms > LEAST_MS else DEFAULT_MS


def with_shown_delays(encoded: bytes, moving: str) -> bytes:
    """A GIF (`gif`) or PNG (`apng`) whose delays are those that browsers show; others as they are."""
    changes = {"gif": _gif_changes, "apng": _png_changes}.get(moving, lambda _: {})(encoded)
    if not changes:
        return encoded
    changed = bytearray(encoded)
    for place, new in changes.items():
        changed[place : place + len(new)] = new
    return bytes(changed)


def _gif_changes(encoded: bytes) -> dict[int, bytes]:
    """What to write where: delays of graphic control extensions, in hundredths of a second."""
    controls = [
        place
        for kind, place in gif_blocks(encoded)
        if kind == GIF_EXTENSION and encoded.startswith(GIF_CONTROL, place) and place + 6 <= len(encoded)
    ]
    return {
        place + 4: struct.pack("<H", DEFAULT_MS // 10)
        for place in controls
        if 10 * struct.unpack_from("<H", encoded, place + 4)[0] <= LEAST_MS
    }


def _png_changes(encoded: bytes) -> dict[int, bytes]:
    """The same of frame control chunks: a fraction of a second each, and the chunk's checksum after it."""
    changes = {}
    for kind, place, end in png_chunks(encoded):
        if kind != b"fcTL" or end - place != PNG_CONTROL_BYTES or end + 4 > len(encoded):
            continue
        numerator, denominator = struct.unpack_from(">HH", encoded, place + 20)
        if 1000 * numerator <= LEAST_MS * (denominator or 100):
            content = (
                encoded[place : place + 20] + struct.pack(">HH", DEFAULT_MS, 1000) + encoded[place + 24 : end]
            )
            changes[place] = content + struct.pack(">I", zlib.crc32(kind + content))
    return changes
