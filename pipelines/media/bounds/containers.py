"""What FFmpeg would keep of a container other than MP4, by its bytes: keys of metadata, programs, tracks.

FFmpeg compares each key with all before it, and decodes a picture of each video track when it opens a file.
All counts are taken in one pass, and never lower than what FFmpeg will find.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipelines.protocol.errors import InvalidMedia

MOST_KEYS = 5_000
# A real stream repeats the same table of programs.
MOST_PROGRAM_TABLES = 200
MOST_PAGES = 1_000_000
MOST_PACKED_TRACKS = 40

EBML, SIMPLE_TAG, CHAPTER_ID = b"\x1a\x45\xdf\xa3", b"\x67\xc8", b"\x73\xc4"
# All but their last byte, of names of codecs for pictures in Matroska.
MATROSKA_CODEC = re.compile(rb"V_(?:AV|DIR|FF|MJ|MPEG|MS/|PRO|QUI|REAL|SNOW|THE|UNC|VP)")
ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
ASF_STREAM = bytes.fromhex("c0ef19bc4d5bcf11a8fd00805f5c442b")
ASF_KEYS = re.compile(
    b"|".join(
        re.escape(bytes.fromhex(one))
        for one in (
            "40a4d0d207e3d21197f000a0c95ea850",
            "eacbf8c5af5b48778467aa8c44fa4cca",
            "941c23449894d149a1411d134e457054",
        )
    )
)
FLV_SCRIPT = 18
AMF_SIZES = {0: 8, 1: 1, 5: 0, 6: 0, 7: 2, 11: 10, 13: 0}
AMF_STRING, AMF_OBJECT, AMF_MAP, AMF_ARRAY = 2, 3, 8, 10
OGG_PAGE = b"OggS\0"
OGG_COMMENTS = re.compile(rb"\x03vorbis|OpusTags|\x81theora|OVP80\x02.|\x80kate...|\x03speex", re.DOTALL)
NUT, NUT_INFO, NUT_STREAM = (
    b"nut/multimedia container\0",
    b"NI\xab\x68\xb5\x96\xba\x78",
    b"NS\x11\x40\x5b\xf2\xf9\xdb",
)
NUT_KEY_BYTES = 5
# Of MPEG-TS (ISO/IEC 13818-1): packets of the table of programs; packets in which a PES begins.
TS_PROGRAMS = re.compile(rb"\x47(?=[\x00\x20\x40\x60]\x00[\x10-\x3f](.{184}))", re.DOTALL)
TS_PLAIN = re.compile(rb"\x47([\x40-\x7f].)[\x10-\x1f]\x00\x00\x01[\xbc-\xff]", re.DOTALL)
TS_ADAPTED = re.compile(rb"\x47(?=([\x40-\x7f].)[\x30-\x3f](.))", re.DOTALL)
PES_START = b"\0\0\1"
CUES, CUE, CUE_TIME = b"\x1c\x53\xbb\x6b", 0xBB, 0xB3
MOST_CUES, MOST_MOVES = 300_000, 500_000_000


def video_tracks(encoded: bytes) -> int:
    """The most video tracks that a file may have. Raises InvalidMedia if it is a bomb of metadata."""
    if encoded.startswith(EBML):
        by_chance = len(encoded) >> 15
        _bound("tags", encoded.count(SIMPLE_TAG), MOST_KEYS + by_chance)
        _bound("chapters", encoded.count(CHAPTER_ID), 4 * MOST_KEYS + by_chance)
        _check_cues(encoded)
        return len(MATROSKA_CODEC.findall(encoded))
    if encoded.startswith(b"FLV"):
        _bound("keys of metadata", _flv_keys(encoded))
        return 1
    if encoded.startswith(ASF):
        counts = (encoded[found.end() + 8 : found.end() + 10] for found in ASF_KEYS.finditer(encoded))
        _bound("keys of metadata", sum(int.from_bytes(count, "little") for count in counts))
        return encoded.count(ASF_STREAM)
    if encoded[:4] in (b"RIFF", b"ON2 "):
        _bound("keys of metadata", _riff_keys(encoded))
        return encoded.count(b"vids") + encoded.count(b"iavs")
    if encoded.startswith(b"OggS"):
        _bound("comments", _ogg_comments(encoded))
        return encoded.count(b"OggS\0\2")
    if encoded.startswith(NUT):
        _bound("keys of metadata", _nut_keys(encoded))
        return encoded.count(NUT_STREAM)
    # In a compressed index they cannot be counted.
    boxes = encoded.count(b"trak") + MOST_PACKED_TRACKS * (b"cmov" in encoded)
    return boxes if encoded[4:8] == b"ftyp" else max(boxes, _transport_tracks(encoded))


def _bound(what: str, count: int, most: int = MOST_KEYS) -> None:
    if count > most:
        raise InvalidMedia(
            f"the file has {count} {what} or more; at most {most} are read",
            hint="write it anew without them: ffmpeg -i FILE -map_metadata -1 -map_chapters -1 -c copy NEW",
        )


def _check_cues(encoded: bytes) -> None:
    """FFmpeg sorts the cues of a Matroska by insertion: those out of order move all that follow."""
    place, cues, moves, latest = -1, 0, 0, -1
    while (place := encoded.find(CUES, place + 1)) >= 0:
        size, at = _ebml_number(encoded, place + 4)
        end = min(len(encoded), at + size)
        while at < end:
            kind, (size, at) = encoded[at], _ebml_number(encoded, at + 1)
            if kind == CUE:
                cues += 1
                time = _cue_time(encoded, at, min(end, at + size))
                moves += cues if time < latest else 0
                latest = max(latest, time)
                _bound("cues", cues, MOST_CUES)
                _bound("moves to sort its cues", moves, MOST_MOVES)
            at += size


def _cue_time(encoded: bytes, place: int, end: int) -> int:
    while place < end:
        kind, (size, place) = encoded[place], _ebml_number(encoded, place + 1)
        if kind == CUE_TIME:
            return int.from_bytes(encoded[place : min(end, place + min(size, 8))], "big")
        place += size
    return 0


def _ebml_number(encoded: bytes, place: int) -> tuple[int, int]:
    """A length of EBML, and where it ends; nothing is too long for a broken one."""
    if place >= len(encoded) or not encoded[place]:
        return len(encoded), place + 1
    size = 9 - encoded[place].bit_length()
    return int.from_bytes(encoded[place : place + size], "big") & ((1 << 7 * size) - 1), place + size


def _transport_tracks(encoded: bytes) -> int:
    """Streams of an MPEG-TS, of any kind."""
    tables = len({found[1] for found in TS_PROGRAMS.finditer(encoded)})
    _bound("tables of programs", tables, MOST_PROGRAM_TABLES)
    tracks = {found[1] for found in TS_PLAIN.finditer(encoded)}
    for found in TS_ADAPTED.finditer(encoded):
        if encoded.startswith(PES_START, found.end() + 4 + found[2][0]):
            tracks.add(found[1])
    return len({int.from_bytes(one, "big") & 0x1FFF for one in tracks})


def _flv_keys(encoded: bytes) -> int:
    """Keys in the scripts of an FLV, as far as its tags follow one another."""
    keys, place = 0, 13
    while place + 11 <= len(encoded) and keys <= MOST_KEYS:
        size = int.from_bytes(encoded[place + 1 : place + 4], "big")
        if encoded[place] & 0x1F == FLV_SCRIPT:
            for _ in _amf_keys(encoded, place + 11, min(len(encoded), place + 11 + size)):
                keys += 1
                if keys > MOST_KEYS:
                    break
        place += size + 15
    return keys


def _amf_keys(encoded: bytes, place: int, end: int) -> Iterator[int]:
    """Where the keys of values in AMF 0 begin, nested ones too."""
    # Of the arrays that are open: how many values are left; -1: pairs of a key and a value, up to an end.
    left: list[int] = []
    while place < end:
        if left and left[-1] == 0:
            left.pop()
            continue
        if left and left[-1] < 0:
            size = int.from_bytes(encoded[place : place + 2], "big")
            if size == 0:
                left.pop()
                place += 3
                continue
            yield place
            place += 2 + size
        elif left:
            left[-1] -= 1
        kind, place = encoded[place] if place < end else 5, place + 1
        if kind == AMF_STRING:
            place += 2 + int.from_bytes(encoded[place : place + 2], "big")
        elif kind in (AMF_OBJECT, AMF_MAP):
            place += 4 * (kind == AMF_MAP)
            left.append(-1)
        elif kind == AMF_ARRAY:
            left.append(int.from_bytes(encoded[place : place + 4], "big"))
            place += 4
        elif kind in AMF_SIZES:
            place += AMF_SIZES[kind]
        else:
            return


def _riff_keys(encoded: bytes) -> int:
    """Chunks in all lists of information of an AVI."""
    keys, place = 0, -1
    while (place := encoded.find(b"INFO", place + 1)) >= 0:
        if encoded[place - 8 : place - 4] != b"LIST":
            continue
        end = min(len(encoded), place + int.from_bytes(encoded[place - 4 : place], "little"))
        at = place + 4
        while at + 8 <= end:
            keys += 1
            if keys > MOST_KEYS:
                return keys
            size = int.from_bytes(encoded[at + 4 : at + 8], "little")
            at += 8 + size + size % 2
    return keys


def _ogg_comments(encoded: bytes) -> int:
    """Comments in all streams of an Ogg, by what their lists claim and have bytes for."""
    streams: dict[bytes, list[bytes]] = {}
    place, pages = encoded.find(OGG_PAGE), 0
    while place >= 0 and place + 27 <= len(encoded):
        pages += 1
        _bound("pages", pages, MOST_PAGES)
        table = encoded[place + 27 : place + 27 + encoded[place + 26]]
        start = place + 27 + len(table)
        end = start + sum(table)
        streams.setdefault(encoded[place + 14 : place + 18], []).append(encoded[start:end])
        place = end if encoded.startswith(OGG_PAGE, end) else encoded.find(OGG_PAGE, place + 1)
    keys = 0
    for pages_of_one in streams.values():
        content = b"".join(pages_of_one)
        for found in OGG_COMMENTS.finditer(content):
            at = found.end() + 4 + int.from_bytes(content[found.end() : found.end() + 4], "little")
            count = int.from_bytes(content[at : at + 4], "little")
            keys += min(count, max(0, len(content) - at) // 6)
    return keys


def _nut_keys(encoded: bytes) -> int:
    """As many keys as fit into the packets of information of a NUT."""
    size, place = 0, -1
    while (place := encoded.find(NUT_INFO, place + 1)) >= 0:
        length, at = 0, place + len(NUT_INFO)
        for byte in encoded[at : at + 8]:
            length = length << 7 | byte & 0x7F
            if byte < 0x80:
                break
        size += min(length, len(encoded) - at)
    return size // NUT_KEY_BYTES
