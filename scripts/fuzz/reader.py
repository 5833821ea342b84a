"""Opens a medium and reads all of it, as the server does. Knows no damage and no processes."""

from __future__ import annotations

from collections.abc import Iterator

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.protocol.options import Options

# Of what a decoder holds: frames of 4:2:0 that others refer to, and copies on the way to RGB.
DECODER_FRAMES, COPIES = 20, 4


def read_medium(encoded: bytes) -> Iterator[int]:
    """How many bytes its pixels need, by its header and by each chunk of its frames."""
    limits = Limits()
    with open_media(encoded, options=Options(), limits=limits, device="cpu") as medium:
        info = medium.info
        yield _needed(info.width_px, info.height_px, limits, moves=info.kind == "video")
        for batch in medium.chunks():
            yield _needed(batch.width_px, batch.height_px, limits, moves=info.kind == "video")


def _needed(width_px: int, height_px: int, limits: Limits, *, moves: bool) -> int:
    frame_px = width_px * height_px
    frames = limits.chunk_length(width_px, height_px) if moves else 1
    return COPIES * 3 * frames * frame_px + (DECODER_FRAMES * frame_px * 3 // 2 if moves else 0)
