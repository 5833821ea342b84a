"""Writers of picture files that Pillow does not write: every tag and every way to compose frames."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Levels = npt.NDArray[Any]


def encode(pixels_hwc: Levels, form: str, **settings: Any) -> bytes:
    """A picture by Pillow."""
    sink = io.BytesIO()
    Image.fromarray(pixels_hwc).save(sink, form, **settings)
    return sink.getvalue()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of a TIFF: levels `(H, W, C)`, and tags (number → 16-bit values) beside those that they give."""

    levels: Levels
    photometric: int = 1
    bits: int = 8
    planar: bool = False
    deflate: bool = False
    tags: Mapping[int, Sequence[int]] = field(default_factory=dict)


def tiff(*pages: Page, order: str = "<", big: bool = False) -> bytes:
    """A TIFF or BigTIFF of these pages; `order` is that of `struct`."""
    pointer = "Q" if big else "I"
    magic = b"II" if order == "<" else b"MM"
    data = bytearray(
        magic + struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, 0) if big else (42, 0)))
    )
    link = len(data) - struct.calcsize("=" + pointer)
    for page in pages:
        directory = _directory(data, page, order, pointer)
        data[link : link + len(struct.pack("=" + pointer, 0))] = struct.pack(order + pointer, len(data))
        data += directory
        link = len(data) - struct.calcsize("=" + pointer)
    return bytes(data)


def _directory(data: bytearray, page: Page, order: str, pointer: str) -> bytes:
    """The directory of a page, whose pixels and long values are appended to `data`."""
    height, width, samples = page.levels.shape
    planes = [page.levels] if not page.planar else [page.levels[..., i] for i in range(samples)]
    strips = [_packed(plane.reshape(height, -1), page.bits, order) for plane in planes]
    strips = [zlib.compress(strip) for strip in strips] if page.deflate else strips
    starts = [len(data) + sum(map(len, strips[:number])) for number in range(len(strips))]
    data += b"".join(strips)
    tags: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [page.bits] * samples,
        259: [8 if page.deflate else 1],
        262: [page.photometric],
        273: starts,
        277: [samples],
        278: [height],
        279: [len(strip) for strip in strips],
        284: [2 if page.planar else 1],
        **page.tags,
    }
    entries = b""
    for tag, values in sorted(tags.items()):
        kind, letter = (4, "I") if tag in (273, 279) else (3, "H")
        value = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(value) > struct.calcsize("=" + pointer):
            data += value
            value = struct.pack(order + pointer, len(data) - len(value))
        head = struct.pack(f"{order}HH{pointer}", tag, kind, len(values))
        entries += head + value.ljust(struct.calcsize("=" + pointer), b"\0")
    count = struct.pack(order + ("Q" if pointer == "Q" else "H"), len(tags))
    return count + entries + struct.pack(order + pointer, 0)


def _packed(rows: Levels, bits: int, order: str) -> bytes:
    if bits in (8, 16):
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    ones = rows[..., None].astype(np.int64) >> np.arange(bits - 1, -1, -1) & 1
    return np.packbits(ones.astype(np.uint8).reshape(len(rows), -1), axis=1).tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """A frame of an animation: a part of the canvas.

    Attributes:
        pixels: GIF: numbers of colours `(h, w)`. PNG: uint8 RGBA `(h, w, 4)`.
        place: its left and top.
        disposal: what is done after it: 0 keep, 1 clear its part, 2 as it was before. blend: whether it is
            drawn over what is there, or (PNG only) replaces it.
        clear: GIF: the colour that is transparent; -1: none.
        delay: GIF: hundredths of a second. PNG: a numerator over `per_s`.
    """

    pixels: npt.NDArray[np.uint8]
    place: tuple[int, int] = (0, 0)
    disposal: int = 0
    blend: bool = True
    clear: int = -1
    delay: int = 10
    per_s: int = 100


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def animated_png(
    frames: Sequence[Drawing], size: tuple[int, int], default: npt.NDArray[np.uint8] | None = None
) -> bytes:
    """An animated PNG (RGBA) of this width and height; `default` is a picture that is none of its frames."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 6, 0, 0, 0))
    parts = [b"\x89PNG\r\n\x1a\n", head, chunk(b"acTL", struct.pack(">II", len(frames), 0))]
    if default is not None:
        parts.append(chunk(b"IDAT", _scanlines(default)))
    numbers = itertools.count()
    for frame in frames:
        height, width = frame.pixels.shape[:2]
        control = struct.pack(">IIIII", next(numbers), width, height, *frame.place)
        control += struct.pack(">HHBB", frame.delay, frame.per_s, frame.disposal, frame.blend)
        parts.append(chunk(b"fcTL", control))
        if frame is frames[0] and default is None:
            parts.append(chunk(b"IDAT", _scanlines(frame.pixels)))
        else:
            parts.append(chunk(b"fdAT", struct.pack(">I", next(numbers)) + _scanlines(frame.pixels)))
    return b"".join([*parts, chunk(b"IEND", b"")])


def _scanlines(pixels_hwc: npt.NDArray[np.uint8]) -> bytes:
    return zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels_hwc))


def animated_gif(
    frames: Sequence[Drawing], size: tuple[int, int], palette: npt.NDArray[np.uint8], *, ended: bool = True
) -> bytes:
    """An animated GIF of this width and height; `palette` is uint8 `(256, 3)`."""
    data = b"GIF89a" + struct.pack("<HHBBB", *size, 0xF7, 0, 0) + palette.tobytes()
    for frame in frames:
        height, width = frame.pixels.shape
        flags = (frame.disposal + 1) << 2 | (frame.clear >= 0)
        data += b"\x21\xf9\4" + struct.pack("<BHBB", flags, frame.delay, max(frame.clear, 0), 0)
        data += b"," + struct.pack("<HHHHB", *frame.place, width, height, 0)
        coded = _lzw(frame.pixels.ravel().tolist())
        blocks = [coded[place : place + 255] for place in range(0, len(coded), 255)]
        data += b"\x08" + b"".join(bytes([len(block)]) + block for block in blocks) + b"\0"
    return data + b";" * ended


def _lzw(values: Sequence[int]) -> bytes:
    """Codes of 9 bits each: the table is cleared before they would grow."""
    clear, end = 256, 257
    codes = [code for place in range(0, len(values), 250) for code in (clear, *values[place : place + 250])]
    number = sum(code << 9 * place for place, code in enumerate([*codes, end]))
    return number.to_bytes(9 * (len(codes) + 1) // 8 + 1, "little")


def shown(frames: Sequence[Drawing], size: tuple[int, int], palette: Levels | None = None) -> list[Levels]:
    """What a viewer shows of each frame, float64 RGBA `(H, W, 4)`, by the rules of GIF89a and of PNG."""
    canvas, pictures = np.zeros((size[1], size[0], 4)), []
    for frame in frames:
        before, pixels = canvas.copy(), frame.pixels.astype(np.float64)
        if palette is not None:
            pixels = np.dstack([palette[frame.pixels], 255.0 * (frame.pixels != frame.clear)])
        (left, top), (height, width) = frame.place, pixels.shape[:2]
        part = np.s_[top : top + height, left : left + width]
        canvas[part] = _over(pixels, canvas[part]) if frame.blend else pixels
        pictures.append(canvas.copy())
        if frame.disposal == 2 and frame is not frames[0]:
            canvas = before
        elif frame.disposal:
            canvas[part] = 0
    return pictures


def _over(front: Levels, back: Levels) -> Levels:
    """Porter and Duff's "over" for colours that are not premultiplied."""
    front_alpha, back_alpha = front[..., 3:] / 255, back[..., 3:] / 255
    alpha = front_alpha + back_alpha * (1 - front_alpha)
    colours = front[..., :3] * front_alpha + back[..., :3] * back_alpha * (1 - front_alpha)
    return np.dstack([colours / np.maximum(alpha, 1e-9), 255 * alpha])
