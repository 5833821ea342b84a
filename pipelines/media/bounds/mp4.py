"""What the index of an MP4 or MOV costs, by what its boxes claim (ISO/IEC 14496-12). Decodes nothing.

FFmpeg makes an entry of its index for each sample that a table or a fragment claims, once more for each edit
that shows it, and one of each fragment for each track. Most of it needs no byte in the file.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipelines.protocol.errors import InvalidMedia

# Of FFmpeg's index: a sample with its times, and what growing by reallocation leaves unused.
ENTRY_BYTES = 64
FREE_ENTRIES = 1_000_000
# The smallest real samples, with what tables say of them, take this many bytes on average.
SAMPLE_BYTES = 16
# FFmpeg compares each key of the metadata with all before it, and looks for each edit's start from the first
# sample on.
MOST_KEYS = 5_000
MOST_STEPS = 2_000_000_000
FREE_BOXES, BOX_BYTES = 100_000, 32
MOST_EDITS = 100_000
# FFmpeg itself reads no more tracks.
MOST_TRACKS = 1000
# Of longer tables it is assumed that each edit shows the whole track.
MOST_ROWS = 100_000
# Tables are no part of a description of samples.
MOST_HIDDEN = 1000
# Of a compressed index, in all, and for each byte of the file.
MOST_UNPACKED_BYTES, FREE_UNPACKED_BYTES, UNPACKED_RATIO = 64 << 20, 4 << 20, 16
DEEPEST = 12
SAMPLES_PER_ENTRY = 160
# What a fragment notes of each track.
PART_ENTRIES = 4

# Boxes of boxes.
PARENTS = frozenset(
    b"moov hoov free trak mdia minf stbl udta meta edts dinf moof traf mvex ilst wave tref gmhd sinf schi "
    b"tapt iprp ipco mfra meco strk strd".split()
)
KINDS = (b"soun", b"vide")
TABLES = (b"stsz", b"stz2", b"stts", b"stss", b"elst", b"trun", b"sidx", b"iloc", b"iinf", b"keys", b"dref")


def index_bytes(encoded: bytes) -> int:
    """The memory for the index of an MP4 or MOV; 0 for another file. Raises InvalidMedia for a bomb."""
    return ENTRY_BYTES * Index(encoded).entries


@dataclass(slots=True)
class Track:
    """What the tables of one track say, as views of the file.

    Attributes:
        hidden_edits: those that a description of samples may hold.
        is_vague: whether it is left open which samples an edit shows.
    """

    samples: int = 0
    chunks: int = 0
    timescale: int = 1
    kinds: set[bytes] = field(default_factory=set)
    times: npt.NDArray[np.uint32] = field(default_factory=lambda: np.zeros((0, 2), np.uint32))
    keys: npt.NDArray[np.uint32] | None = None
    edits: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 2), np.int64))
    hidden_edits: int = 0
    is_vague: bool = False

    @property
    def edit_count(self) -> int:
        return max(len(self.edits), self.hidden_edits)

    @property
    def plain_entries(self) -> int:
        """How many entries of FFmpeg's index the tables make; of PCM, one stands for many samples."""
        is_pcm = b"soun" in self.kinds and b"vide" not in self.kinds
        if is_pcm and len(self.times) == 1 and self.times[0, 1] == 1:
            return self.chunks + self.samples // SAMPLES_PER_ENTRY
        return self.samples

    def shown_by_edits(self, movie_timescale: int) -> int:
        """Samples from the key frame before each edit to the one after it, of all edits."""
        if (
            self.is_vague
            or len(self.times) > MOST_ROWS
            or (self.keys is not None and len(self.keys) > MOST_ROWS)
        ):
            return self.edit_count * self.samples
        edits = self.edits[self.edits[:, 1] >= 0]
        if not len(edits) or not self.samples:
            return 0
        begin, duration = edits[:, 1].astype(float), edits[:, 0].astype(float)
        duration[duration == 0] = np.inf
        end = begin + duration * self.timescale / movie_timescale
        first, last = self._sample_at(begin), self._sample_at(end)
        if self.keys is not None:
            keys = np.sort(np.append(self.keys.astype(np.int64) - 1, [0, self.samples]))
            first = keys[np.clip(np.searchsorted(keys, first, "right") - 1, 0, None)]
            last = keys[np.clip(np.searchsorted(keys, last), 0, len(keys) - 1)]
        return int(np.clip(last - first + 1, 1, self.samples).sum())

    def _sample_at(self, times: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        counts, deltas = self.times[:, 0].astype(float), np.maximum(self.times[:, 1], 1).astype(float)
        if not len(counts):
            return np.asarray(np.minimum(times, self.samples), np.int64)
        starts = np.concatenate([[0], np.cumsum(counts * deltas)])
        run = np.clip(np.searchsorted(starts, times, "right") - 1, 0, len(counts) - 1)
        before = np.concatenate([[0], np.cumsum(counts)])[run]
        found = np.minimum(before + (times - starts[run]) / deltas[run], self.samples)
        return np.asarray(found, np.int64)


class Index:
    """Reads the boxes of a file, and adds up what they claim. Raises InvalidMedia as soon as it is too much.

    Attributes:
        entries: of FFmpeg's index.
    """

    def __init__(self, encoded: bytes) -> None:
        self.entries = 0
        self._size_bytes = len(encoded)
        self._boxes = self._keys = self._fragments = self._others = 0
        self._hidden = self._edits = self._unpacked_bytes = 0
        self._timescale = 1
        self._tracks: list[Track] = []
        self._most = max(FREE_ENTRIES, len(encoded) // SAMPLE_BYTES)
        self._walk(encoded, 0, len(encoded), 0)
        self._check()
        samples = self._others + sum(track.plain_entries for track in self._tracks)
        self._bound("samples", samples, self._most)
        self._bound("samples by edits", edits := self._edited_samples(), self._most)
        self._bound("tracks of fragments", parts := self._parts(), self._most // PART_ENTRIES)
        self.entries = samples + edits + PART_ENTRIES * parts

    def _bound(self, what: str, claimed: int, most: int) -> None:
        if claimed > most:
            raise InvalidMedia(
                f"the file claims {claimed} {what}, and has {self._size_bytes} bytes; at most {most} are "
                "read for so many",
                hint="check that the file is complete, or write it anew: ffmpeg -i FILE -c copy NEW.mp4",
            )

    def _edited_samples(self) -> int:
        steps = sum(track.edit_count * track.samples for track in self._tracks)
        self._bound("steps through edits", steps, MOST_STEPS)
        return sum(track.shown_by_edits(self._timescale) for track in self._tracks)

    def _parts(self) -> int:
        return max(1, len(self._tracks)) * self._fragments

    def _check(self) -> None:
        self._bound("boxes", self._boxes, max(FREE_BOXES, self._size_bytes // BOX_BYTES))
        self._bound("keys of metadata", self._keys, MOST_KEYS)
        self._bound("samples", self._others, self._most)

    def _walk(self, encoded: bytes, start: int, stop: int, depth: int, *, unpacked: bool = False) -> None:
        self._bound("levels of boxes", depth, DEEPEST)
        for kind, place, end in boxes(encoded, start, stop):
            self._boxes += 1
            if self._boxes % 1024 == 0:
                self._check()
            if kind == b"trak":
                self._tracks.append(Track())
                self._bound("tracks", len(self._tracks), MOST_TRACKS)
            if kind == b"moof":
                self._fragments += 1
            if kind == b"cmov":
                self._bound("compressed indexes within each other", 1 + unpacked, 1)
                inner = self._unpack(encoded, place, end)
                self._walk(inner, 0, len(inner), depth + 1, unpacked=True)
            elif kind == b"stsd":
                self._scan(encoded, place, end)
            elif kind in PARENTS:
                at = _first_of_meta(encoded, place, end) if kind == b"meta" else place
                self._walk(encoded, at, end, depth + 1, unpacked=unpacked)
            else:
                self._read(kind, memoryview(encoded)[place:end])

    def _scan(self, encoded: bytes, start: int, stop: int) -> None:
        """Boxes within descriptions of samples; how much comes before them depends on the codec."""
        for kind in TABLES:
            place = start
            while (place := encoded.find(kind, place, stop) + 4) > 3:
                self._hidden += 1
                self._bound("tables in descriptions of samples", self._hidden, MOST_HIDDEN)
                self._read(kind, memoryview(encoded)[place:stop], is_hidden=True)

    def _unpack(self, encoded: bytes, start: int, stop: int) -> bytes:
        """The boxes of a compressed `moov`: after `dcom`, as FFmpeg reads it."""
        if encoded[start + 16 : min(start + 20, stop)] != b"cmvd":
            return b""
        claimed = int.from_bytes(encoded[start + 20 : start + 24], "big")
        self._unpacked_bytes += claimed
        most = min(MOST_UNPACKED_BYTES, max(FREE_UNPACKED_BYTES, UNPACKED_RATIO * self._size_bytes))
        self._bound("bytes in its compressed index", self._unpacked_bytes, most)
        try:
            return zlib.decompressobj().decompress(memoryview(encoded)[start + 24 : stop], claimed or 1)
        except zlib.error:
            return b""

    def _read(self, kind: bytes, content: memoryview, *, is_hidden: bool = False) -> None:
        """Note what a table says; one that is cut off says nothing."""
        if len(content) < 8:
            return
        # Most tables begin with version and flags, and the count of their rows.
        _, count, size_count = struct.unpack_from(">3I", bytes(content[:12]).ljust(12, b"\0"))
        track = self._tracks[-1] if self._tracks else Track()
        if kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, size_count)
        elif kind in (b"stco", b"co64"):
            track.chunks = max(track.chunks, count)
        elif kind in (b"stts", b"stss") and is_hidden:
            track.is_vague = True
        elif kind == b"stts":
            track.times = _rows(content[8:], count, 2)
        elif kind == b"stss":
            track.keys = _rows(content[8:], count, 1)[:, 0]
        elif kind == b"elst":
            self._note_edits(track, content, count, is_hidden=is_hidden)
        elif kind == b"hdlr" and (named := bytes(content[8:12])) in KINDS:
            track.kinds.add(named)
        elif kind in (b"mdhd", b"mvhd"):
            at = 20 if content[0] == 1 else 12
            timescale = int.from_bytes(content[at : at + 4], "big") or 1
            if kind == b"mvhd":
                self._timescale = timescale
            else:
                track.timescale = timescale
        else:
            self._count(kind, content, count)

    def _note_edits(self, track: Track, content: memoryview, claimed: int, *, is_hidden: bool) -> None:
        edits = _edit_rows(content[8:], claimed, is_wide=content[0] == 1)
        if is_hidden:
            track.hidden_edits, track.is_vague = max(track.hidden_edits, len(edits)), True
            return
        self._edits += len(edits)
        self._bound("edits", self._edits, MOST_EDITS)
        track.edits = np.stack([edits["duration"].astype(np.int64), edits["time"].astype(np.int64)], 1)

    def _count(self, kind: bytes, content: memoryview, count: int) -> None:
        if kind == b"trun":
            self._others += count
        elif kind == b"sidx":
            at = 30 if content[0] else 22
            self._fragments += 1 + int.from_bytes(content[at : at + 2], "big")
        elif kind == b"dref":
            self._bound("data references", min(count, len(content) // 12), MOST_KEYS)
        elif kind == b"keys":
            self._keys += min(count, len(content) // 8)
        elif kind == b"iinf":
            self._others += count if content[0] else count >> 16
        elif kind == b"iloc":
            items = content[6:10] if content[0] >= 2 else content[6:8]
            self._others += int.from_bytes(items, "big")


def boxes(encoded: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """The kinds of the boxes in a part of a file, and where their contents begin and end."""
    while stop - start >= 8:
        length, kind = struct.unpack_from(">I4s", encoded, start)
        head = 8
        if length == 1 and stop - start >= 16:
            length, head = struct.unpack_from(">Q", encoded, start + 8)[0], 16
        end = stop if length == 0 else min(stop, start + length)
        if end < start + head:
            return
        yield kind, start + head, end
        start = end


def _first_of_meta(encoded: bytes, start: int, stop: int) -> int:
    """Where `hdlr` begins, else `start`. FFmpeg looks for it at each fourth byte: MOV and MP4 differ in
    what comes before it.
    """
    if stop - start < 8:
        return start
    names = np.frombuffer(encoded, ">u4", (stop - start) // 4, start)
    found = np.flatnonzero(names[1:] == int.from_bytes(b"hdlr", "big"))
    return start + 4 * int(found[0]) if len(found) else start


def _rows(content: memoryview, claimed: int, columns: int) -> npt.NDArray[np.uint32]:
    """The rows of a table that the file has bytes for."""
    rows = min(claimed, len(content) // (4 * columns))
    return np.frombuffer(content[: 4 * columns * rows], ">u4").reshape(rows, columns)


def _edit_rows(content: memoryview, claimed: int, *, is_wide: bool) -> npt.NDArray[np.void]:
    """Duration and media time of each edit; a time of -1 is an empty one."""
    size = ("u8", "i8") if is_wide else ("u4", "i4")
    form = np.dtype([("duration", f">{size[0]}"), ("time", f">{size[1]}"), ("rate", ">u4")])
    return np.frombuffer(content[: min(claimed, len(content) // form.itemsize) * form.itemsize], form)
