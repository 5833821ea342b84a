"""Whole media → damaged ones, by a seeded generator. Knows what formats have in common: lengths and names."""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

Mutation = Callable[[random.Random, bytearray, Sequence[bytes]], bytearray]

# Values at which sums, products and signs go wrong.
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 80_000_000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
# Four letters are the name of a box, chunk or tag; its length stands before it, counts behind it.
NAMES = re.compile(rb"[A-Za-z][A-Za-z0-9 ]{3}")
# Boxes of MP4 that begin with flags and say how many entries they have; without flags, entries need no bytes.
COUNTED = re.compile(
    rb"trun|stsz|stz2|stts|ctts|elst|stco|co64|stsc|stss|sbgp|saiz|saio|sidx|tfra|dref|iloc|iinf"
)
MANY = (1000, 1 << 20, 10_000_000, 80_000_000, 0x7FFFFFFF, 0xFFFFFFFF)
# What is repeated ends there.
LARGEST_BYTES = 4 << 20
MOST_MUTATIONS = 3


def mutated(seed: int, number: int, media: Mapping[str, bytes]) -> tuple[str, bytes]:
    """A damaged medium: the name of what it was and what was done to it, and its bytes.

    The same for the same seed, number and media.
    """
    generator = random.Random(f"{seed}-{number}")
    name = generator.choice(sorted(media))
    data, others, done = bytearray(media[name]), [media[one] for one in sorted(media)], []
    for _ in range(generator.randint(1, MOST_MUTATIONS)):
        change = generator.choice(MUTATIONS)
        data = change(generator, data, others)[:LARGEST_BYTES] or bytearray(b"\0")
        done.append(change.__name__)
    if data[:4] == b"\x89PNG" and generator.random() < 0.5:
        data = _with_checksums(data)
    return f"{name} {'+'.join(done)}", bytes(data)


def flip(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    for _ in range(generator.choice((1, 1, 2, 8, 64))):
        data[_place(generator, data)] ^= 1 << generator.randrange(8)
    return data


def replace(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    for _ in range(generator.choice((1, 4, 16))):
        data[_place(generator, data)] = generator.choice((0, 1, 0x7F, 0x80, 0xFF, generator.randrange(256)))
    return data


def number(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    """A length, count or offset of two, four or eight bytes, somewhere."""
    return _write_number(generator, data, _place(generator, data))


def length(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    """The length before a name, or one of the counts after it."""
    names = [one.start() for one in NAMES.finditer(bytes(data[: 1 << 16]))]
    if not names:
        return data
    return _write_number(
        generator, data, max(0, generator.choice(names) + generator.choice((-4, 4, 8, 12, 16)))
    )


def count(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    """Far more entries in a box than it has bytes for."""
    boxes = [one.start() for one in COUNTED.finditer(bytes(data))]
    if not boxes:
        return data
    place = generator.choice(boxes)
    if generator.random() < 0.5:
        data[place + 4 : place + 8] = bytes(4)
    data[(at := place + generator.choice((8, 8, 12))) : at + 4] = struct.pack(">I", generator.choice(MANY))
    return data


def cut(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    return data[: _place(generator, data)]


def drop(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    """Without a part in the middle."""
    start = _place(generator, data)
    return data[:start] + data[start + generator.randint(1, max(1, len(data) // 4)) :]


def repeat(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    """A part of it many times, or all of it."""
    start = _place(generator, data)
    part = data[start : start + generator.choice((4, 64, 1024, len(data)))]
    return data[:start] + part * generator.choice((2, 8, 256)) + data[start:]


def splice(generator: random.Random, data: bytearray, others: Sequence[bytes]) -> bytearray:
    """The begin of it and the end of another one."""
    other = generator.choice(others)
    return data[: _place(generator, data)] + other[generator.randrange(len(other)) :]


def behind(generator: random.Random, data: bytearray, others: Sequence[bytes]) -> bytearray:
    """Another one after it."""
    return data + generator.choice(others)


def blank(generator: random.Random, data: bytearray, _others: Sequence[bytes]) -> bytearray:
    start = _place(generator, data)
    stop = min(len(data), start + generator.choice((4, 32, 512, 4096)))
    data[start:stop] = bytes([generator.choice((0, 0xFF))]) * (stop - start)
    return data


MUTATIONS: tuple[Mutation, ...] = (
    *(flip, replace, number, number, length, length, count),
    *(cut, drop, repeat, splice, behind, blank),
)


def _place(generator: random.Random, data: bytearray) -> int:
    """A place, half of the time among the first bytes, where headers are."""
    reach = min(len(data), generator.choice((64, 1024, len(data), len(data))))
    return generator.randrange(reach)


def _write_number(generator: random.Random, data: bytearray, place: int) -> bytearray:
    form = generator.choice((">I", ">I", "<I", ">H", "<H", ">Q"))
    value = generator.choice((*NUMBERS, len(data), generator.getrandbits(32)))
    packed = struct.pack(form, value % (1 << 8 * struct.calcsize(form)))
    data[place : place + len(packed)] = packed
    return data


def _with_checksums(data: bytearray) -> bytearray:
    """A PNG whose checksums are right again, so that what is wrong is read."""
    place = 8
    while place + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, place)
        stop = place + 8 + size
        if stop + 4 > len(data):
            break
        struct.pack_into(">I", data, stop, zlib.crc32(data[place + 4 : stop]))
        place = stop + 4
    return data
