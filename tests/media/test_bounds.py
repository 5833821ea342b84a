"""What a small file may claim: it is refused before FFmpeg or Pillow pays for it."""

from __future__ import annotations

import contextlib
import io
import struct
import time
import tracemalloc
import zlib

import pytest
from PIL import Image

from pipelines.media.bounds.mp4 import ENTRY_BYTES, index_bytes
from pipelines.media.bounds.pictures import MOST_METADATA_BYTES, check_chunks, cost, without_metadata
from pipelines.protocol.errors import InvalidMedia
from tests.support import media

CLAIM = 40_000_000


def _avif() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(media.picture()).save(sink, "AVIF")
    return sink.getvalue()


AVIF = _avif()


def box(kind: bytes, *content: bytes) -> bytes:
    inner = b"".join(content)
    return struct.pack(">I", len(inner) + 8) + kind + inner


def full(kind: bytes, *numbers: int, more: bytes = b"") -> bytes:
    return box(kind, struct.pack(f">{len(numbers) + 1}I", 0, *numbers), more)


def track(*tables: bytes) -> bytes:
    return box(b"trak", box(b"mdia", box(b"minf", box(b"stbl", *tables))))


def packed(content: bytes, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    movie = box(b"cmvd", struct.pack(">I", size), zlib.compress(content))
    return box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), movie))


def nested(levels: int) -> bytes:
    inner = LIE
    for _ in range(levels):
        inner = packed(inner)
    return inner


def boxed(levels: int) -> bytes:
    inner = LIE
    for _ in range(levels):
        inner = box(b"udta", inner)
    return inner


LIE = box(b"moov", track(full(b"stsz", 1, CLAIM)))
SHORT = (1, 0, 65536)
TIMES = full(b"stts", 1, 300, 1) + full(b"stsz", 1, 300)
FRAGMENT = box(b"moof", box(b"traf", full(b"trun", CLAIM)))


@pytest.mark.parametrize(
    ("encoded", "says"),
    [
        (LIE, "samples"),
        (box(b"abcd", b"x") + LIE, "samples"),
        (box(b"udta", LIE), "samples"),
        (LIE.replace(b"moov", b"free"), "samples"),
        (box(b"meta", full(b"hdlr", 0), LIE), "samples"),
        (box(b"moov", track(full(b"stsd", 1, more=bytes(86) + full(b"stsz", 1, CLAIM)))), "samples"),
        (box(b"moov", track(full(b"stsz", 1, 900_000)), track(full(b"stsz", 1, 900_000))), "samples"),
        (packed(LIE), "samples"),
        (packed(LIE, 1 << 31), "bytes in its compressed index"),
        (packed(bytes(3 << 20)) * 2, "bytes in its compressed index"),
        (nested(2), "compressed indexes within each other"),
        (nested(1200), "compressed indexes within each other"),
        (boxed(30), "levels of boxes"),
        (boxed(1200), "levels of boxes"),
        (box(b"moov", track() * 1001), "tracks"),
        (box(b"moov", track(box(b"stsd", b"stts" * 2000))), "tables in descriptions"),
        (box(b"moov", track(TIMES, full(b"elst", 101_000, more=bytes(12 * 101_000)))), "edits"),
        (
            box(b"moov", track(TIMES, box(b"stsd", b"stts" + bytes(8)), full(b"elst", 5000, *SHORT * 5000))),
            "samples by edits",
        ),
        # FFmpeg looks for the name at each fourth byte only.
        (box(b"meta", b"\0hdlr\0\0\0", full(b"hdlr", 0), LIE), "samples"),
        (FRAGMENT, "samples"),
        (FRAGMENT.replace(struct.pack(">I", CLAIM), struct.pack(">I", 90_000)) * 50, "samples"),
        (box(b"moov", track() * 900) + box(b"moof") * 2000, "tracks of fragments"),
        (box(b"moov", track(TIMES, full(b"elst", 9000, *(0, 0, 65536) * 9000))), "samples by edits"),
        (box(b"meta", full(b"hdlr", 0), full(b"keys", 9000, more=bytes(80_000))), "keys of metadata"),
        (box(b"moov", box(b"free") * 200_000), "boxes"),
        (
            full(b"meta", more=full(b"hdlr", 0) + box(b"iinf", b"\1\0\0\0", struct.pack(">I", CLAIM))),
            "samples",
        ),
    ],
)
def test_an_index_without_the_bytes_for_it_is_refused(encoded: bytes, says: str) -> None:
    with pytest.raises(InvalidMedia, match=f"claims .*{says}.* and has {len(encoded)} bytes") as refused:
        index_bytes(encoded)
    assert "ffmpeg" in refused.value.hint


@pytest.mark.parametrize("content", [b"stts", b"elst", b"hdlr", b"trak", bytes(4), b"\0\0\0\x08"])
@pytest.mark.parametrize("kind", [b"stsd", b"stts", b"stss", b"meta", b"moov", b"elst"])
def test_an_index_of_megabytes_is_read_in_linear_time(kind: bytes, content: bytes) -> None:
    rows = content * (1 << 20)
    table = box(kind, struct.pack(">2I", 0, 1 << 20), rows)
    began_s = time.process_time()
    with contextlib.suppress(InvalidMedia):
        index_bytes(box(b"moov", track(full(b"stsz", 1, 300), full(b"elst", 1, *SHORT), table)))
    assert time.process_time() - began_s < 10


def test_a_long_table_of_times_is_not_copied() -> None:
    table = box(b"stts", struct.pack(">2I", 0, 2 << 20), struct.pack(">2I", 1, 1) * (2 << 20))
    encoded = box(b"moov", track(full(b"stsz", 1, 300), table, full(b"elst", 1, *SHORT)))
    tracemalloc.start()
    try:
        assert index_bytes(encoded) == 600 * ENTRY_BYTES
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_real_files_cost_what_they_hold() -> None:
    assert index_bytes(media.clip(frames=12)) < 100 * ENTRY_BYTES
    assert index_bytes(media.image("png")) == 0
    # Edits that each show another part; a table of PCM, of which FFmpeg makes few entries.
    parts = [number for start in range(100) for number in (3, start * 3, 65536)]
    assert index_bytes(box(b"moov", track(TIMES, full(b"elst", 100, *parts)))) < 2000 * ENTRY_BYTES
    pcm = full(b"hdlr", 0, more=b"soun") + full(b"stts", 1, CLAIM, 1) + full(b"stsz", 4, CLAIM)
    assert index_bytes(box(b"moov", track(pcm))) < CLAIM


def test_a_png_of_a_crowd_of_chunks_is_refused() -> None:
    png = media.image("png")
    place = png.index(b"IDAT") - 4
    chunk = struct.pack(">I4sI", 0, b"prVt", zlib.crc32(b"prVt"))
    for good in (png[:place] + 5000 * chunk + png[place:], png + bytes(2_000_000)):
        check_chunks(good)
    with pytest.raises(InvalidMedia, match=r"over \d+ chunks"):
        check_chunks(png[:place] + 200_000 * chunk + png[place:])


def test_a_jpeg_keeps_its_pixels_and_turn_but_not_its_heap_of_metadata() -> None:
    plain = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30), "red").save(plain, "JPEG", exif=exif)
    encoded = plain.getvalue()
    end = encoded.index(b"\xff\xdb")
    heap = (b"\xff\xe1\xfd\xe8Exif\0\0" + bytes(64_992)) * 40
    slim = without_metadata(encoded[:end] + heap + encoded[end:])
    assert len(slim) <= len(encoded)
    assert without_metadata(encoded) == encoded
    info = media.info_of(encoded[:end] + heap + encoded[end:])
    assert (info.width_px, info.height_px, info.rotation_deg) == (30, 40, 270)
    with pytest.raises(InvalidMedia, match="bytes of tables"):
        without_metadata(encoded[:2] + (b"\xff\xdb\0\x43" + bytes(65)) * (MOST_METADATA_BYTES // 60))


def test_many_scans_of_many_pixels_and_avif_are_decoded_apart() -> None:
    def reason(encoded: bytes, size: tuple[int, int] = (64, 48)) -> str:
        image = Image.open(io.BytesIO(encoded))
        image._size = size
        return cost(image, encoded).apart

    jpeg = media.image("jpeg")
    assert reason(jpeg) == reason(media.image("png")) == ""
    assert reason(jpeg + b"\xff\xda\0\x0c" * 499, (8000, 8000)) == "it has 500 scans"
    assert reason(AVIF)
