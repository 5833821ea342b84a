"""What the tags of a TIFF say: which of its pages is the main picture, and why its pixels are not served."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipelines.protocol.errors import InvalidMedia, UnsupportedMedia

# By their numbers in TIFF 6.0, TIFF/EP and DNG.
SUBFILE, OLD_SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
PLANAR, SAMPLE_FORMAT, DNG_VERSION = 284, 339, 50706
TAGS = {
    SUBFILE,
    OLD_SUBFILE,
    WIDTH,
    HEIGHT,
    BITS,
    COMPRESSION,
    PHOTOMETRIC,
    PLANAR,
    SAMPLE_FORMAT,
    DNG_VERSION,
}
# Numbers of a type → how `struct` reads one.
TYPES = {1: "B", 3: "H", 4: "I", 16: "Q"}
WHITE_IS_ZERO, YCBCR = 0, 6
REDUCED, MASK = 1, 4
RAW = {32803: "a colour filter's mosaic", 34892: "linear raw"}
PHOTOMETRICS = {
    4: "a mask",
    9: "ICC Lab",
    10: "ITU Lab",
    32844: "LogL",
    32845: "LogLuv",
    51177: "a depth map",
}
SAMPLES = {2: "signed integers", 3: "floating-point numbers", 5: "complex integers", 6: "complex numbers"}
MOST_PAGES = 10_000
MOST_VALUES = 16
EIGHT_BITS = "save it as RGB or grey with 8 bits"

Page = Mapping[int, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class MainPage:
    """The page that is answered, from 0, and how many the file has; whether only libtiff reads it right."""

    number: int = 0
    count: int = 1
    needs_libtiff: bool = False


def main_page(encoded: bytes) -> MainPage:
    """The first page that is not a smaller copy of another one, nor a mask.

    Raises:
        InvalidMedia: no page can be read. UnsupportedMedia: a camera's raw file, or pixels of a kind that is
            not served.
    """
    pages = list(_pages(encoded))
    if encoded.startswith(b"MM\0+"):
        raise UnsupportedMedia(
            "the image is a BigTIFF in big-endian order", hint="save it as a TIFF, or as PNG"
        )
    if not pages:
        raise InvalidMedia("the header of the TIFF image is broken: it has no page", hint="check the upload")
    whole = [number for number, page in enumerate(pages) if not _is_copy(page)]
    raw = next((RAW[kind] for page in pages if (kind := _first(page, PHOTOMETRIC)) in RAW), None)
    if raw or DNG_VERSION in pages[0] or not whole:
        raise UnsupportedMedia(
            f"the TIFF image is a camera's raw file ({raw or 'its pages are previews'})",
            hint="develop it to JPEG or PNG; a camera's raw file has no colours of its own",
        )
    if reason := _refusal(pages[whole[0]]):
        raise UnsupportedMedia(f"the TIFF image cannot be read: {reason}", hint=EIGHT_BITS)
    main = pages[whole[0]]
    needs_libtiff = _first(main, PLANAR, 1) == 2 or _first(main, PHOTOMETRIC) == YCBCR
    return MainPage(whole[0], len(pages), needs_libtiff)


def describe(encoded: bytes, number: int) -> str:
    """What a page's pixels are, in words."""
    page = list(_pages(encoded))[number]
    bits = "+".join(map(str, page.get(BITS, (1,))))
    return (
        f"photometric interpretation {_first(page, PHOTOMETRIC)}, {bits} bits, "
        f"compression {_first(page, COMPRESSION, 1)}"
    )


def _is_copy(page: Page) -> bool:
    return bool(_first(page, SUBFILE) & (REDUCED | MASK)) or _first(page, OLD_SUBFILE) == 2


def _refusal(page: Page) -> str:
    """Why Pillow has no pixels of a page, or wrong ones; empty if it may have them."""
    kind, bits = _first(page, PHOTOMETRIC), _first(page, BITS, 1)
    if kind in PHOTOMETRICS:
        return f"its pixels are {PHOTOMETRICS[kind]} (photometric interpretation {kind})"
    if (form := _first(page, SAMPLE_FORMAT, 1)) in SAMPLES:
        return f"its samples are {SAMPLES[form]}"
    if bits > 16:
        return f"its samples have {bits} bits"
    return ""


def _first(page: Page, tag: int, default: int = 0) -> int:
    return page.get(tag, (default,))[0]


def _pages(encoded: bytes) -> Iterator[Page]:
    """The tags of all pages, as far as they can be read; none is read twice."""
    order, big = "<" if encoded[:2] == b"II" else ">", 43 in encoded[2:4]
    head, entry, pointer = ("Q", "HHQ8s", "Q") if big else ("H", "HHI4s", "I")
    seen: set[int] = set()
    try:
        (place,) = struct.unpack_from(order + pointer, encoded, 8 if big else 4)
        while place and place not in seen and len(seen) < MOST_PAGES:
            seen.add(place)
            (count,) = struct.unpack_from(order + head, encoded, place)
            place += struct.calcsize(head)
            end = place + count * struct.calcsize("<" + entry)
            entries = struct.iter_unpack(order + entry, encoded[place:end])
            yield dict(_values(encoded, order, pointer, *one) for one in entries if one[0] in TAGS)
            (place,) = struct.unpack_from(order + pointer, encoded, end)
    except (struct.error, OverflowError, IndexError):
        return


def _values(
    encoded: bytes, order: str, pointer: str, tag: int, kind: int, count: int, value: bytes
) -> tuple[int, tuple[int, ...]]:
    """A tag and its first values, which stand in the entry itself or, if there are many, elsewhere."""
    letters = TYPES.get(kind, "B") * min(max(count, 1), MOST_VALUES)
    if struct.calcsize(f"={TYPES.get(kind, 'B')}") * count <= len(value):
        return tag, struct.unpack_from(f"{order}{letters}", value)
    (place,) = struct.unpack(order + pointer, value)
    return tag, struct.unpack_from(f"{order}{letters}", encoded, place)
