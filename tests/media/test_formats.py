"""What a file is: by its content as a whole, by brands and tags, and by name where it is not served."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.protocol.errors import InvalidMedia, TrividError, UnsupportedMedia
from pipelines.protocol.options import Options
from tests.support.media import clip, image, picture, read_number
from tests.support.pictures import Levels, Page, encode, tiff

RANDOM = np.random.default_rng(9)
JPEGS = [encode(picture(number), "JPEG", quality=95) for number in range(4)]
PREVIEW = encode(picture(9, 32, 24), "JPEG", quality=95)


def read(data: bytes) -> tuple[str, str, Levels]:
    """Kind and decoder's reason of a medium, and its frames `(N, H, W, 3)`."""
    with open_media(data, options=Options(), limits=Limits(), device="cpu") as medium:
        frames = [np.asarray(one.pixels_nhwc, np.int64) for one in medium.chunks()]
    return medium.info.kind, medium.decoder_reason, np.concatenate(frames)


def numbers_of(data: bytes) -> tuple[str, list[int]]:
    kind, _, frames = read(data)
    return kind, [read_number(frame) for frame in frames]


def error_of(data: bytes) -> TrividError:
    with pytest.raises(TrividError) as caught:
        read(data)
    assert caught.value.hint
    return caught.value


def with_segment(jpeg: bytes, code: int, content: bytes) -> bytes:
    return jpeg[:2] + struct.pack(">BBH", 0xFF, code, len(content) + 2) + content + jpeg[2:]


def with_thumbnail(jpeg: bytes) -> bytes:
    return with_segment(jpeg, 0xE1, b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + PREVIEW)


def multipart(jpegs: Sequence[bytes]) -> bytes:
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return b"".join(head % len(jpeg) + jpeg + b"\r\n" for jpeg in jpegs)


@pytest.mark.parametrize(
    "data",
    [
        b"".join(JPEGS),
        b"".join(map(with_thumbnail, JPEGS)),
        b"".join(jpeg[:-2] for jpeg in JPEGS),
        b"".join(jpeg + bytes(37) for jpeg in JPEGS),
        b"".join(b"\r\n" + jpeg for jpeg in JPEGS)[2:],
        multipart(JPEGS),
        b"\r\n" + multipart(JPEGS),
        *(b"".join(encode(picture(number), form) for number in range(4)) for form in ("PNG", "BMP", "WEBP")),
    ],
    ids=[
        *("plain", "thumbnails", "without ends", "padded", "lines", "multipart", "blank first"),
        *("PNG", "BMP", "WebP"),
    ],
)
def test_pictures_in_a_row_are_a_video(data: bytes) -> None:
    assert numbers_of(data) == ("video", [0, 1, 2, 3])


def test_a_row_of_two_is_a_video() -> None:
    assert numbers_of(JPEGS[1] + JPEGS[2]) == ("video", [1, 2])


def mpo() -> bytes:
    sink = io.BytesIO()
    views = [Image.fromarray(picture(number)) for number in (0, 1)]
    views[0].save(sink, "MPO", save_all=True, append_images=views[1:], quality=95)
    return sink.getvalue()


DIRECTORY = b"http://ns.adobe.com/xap/1.0/\0<rdf:Description><Container:Directory/></rdf:Description>"


@pytest.mark.parametrize(
    "data",
    [
        with_thumbnail(JPEGS[0]),
        JPEGS[0] + clip(frames=3),
        JPEGS[0] + b"any other bytes" * 9,
        JPEGS[0] + PREVIEW,
        JPEGS[0] + PREVIEW + encode(picture(8, 16, 12), "JPEG"),
        JPEGS[0] + b"\0\0\1\x0aImage_Data" + JPEGS[1] + b"SEFH\0\0\0\0SEFT",
        with_segment(JPEGS[0], 0xE1, DIRECTORY) + JPEGS[1],
        mpo(),
        encode(picture(), "PNG") + clip(frames=3),
        b"BM\0\0\0\0" + encode(picture(), "BMP")[6:],
    ],
    ids=[
        "thumbnail",
        "motion photo",
        "bytes",
        "preview",
        "previews",
        "Samsung",
        "Google",
        "MPO",
        "PNG",
        "BMP",
    ],
)
def test_a_picture_with_more_after_it_stays_one_picture(data: bytes) -> None:
    assert numbers_of(data) == ("image", [0])


def with_brands(data: bytes, major: bytes, *compatible: bytes) -> bytes:
    """An ISO file with other brands in a `ftyp` box of the same length."""
    (length,) = struct.unpack_from(">I", data)
    brands = major + bytes(4) + b"".join(compatible)
    assert len(brands) <= length - 8
    return data[:8] + brands.ljust(length - 8, b"\0") + data[length:]


@pytest.mark.parametrize(
    ("major", "compatible", "kind"),
    [
        (b"avif", b"mif1", "image"),
        (b"mif1", b"avif", "image"),
        (b"miaf", b"avif", "image"),
        (b"MA1B", b"avif", "image"),
        (b"heic", b"mif1", ""),
        (b"mif1", b"heic", ""),
        (b"msf1", b"hevc", ""),
        (b"MiHE", b"heic", ""),
    ],
)
def test_brands_are_read(major: bytes, compatible: bytes, kind: str) -> None:
    data = with_brands(encode(picture(3), "AVIF", quality=95), major, compatible)
    if kind:
        assert numbers_of(data) == (kind, [3])
    else:
        assert "HEIF" in error_of(data).message


def test_the_major_brand_says_whether_avif_moves() -> None:
    pictures = [Image.fromarray(picture(number)) for number in range(3)]
    sink = io.BytesIO()
    pictures[0].save(sink, "AVIF", save_all=True, append_images=pictures[1:], quality=95)
    for major, expected in ((b"avis", ("video", [0, 1, 2])), (b"avif", ("image", [0]))):
        assert numbers_of(with_brands(sink.getvalue(), major, b"avif", b"avis", b"msf1")) == expected


def test_a_tiff_gives_its_first_page_that_is_no_copy() -> None:
    pages = [Page(levels=picture(number), photometric=2) for number in range(3)]
    thumbnail = Page(levels=picture(7, 16, 12), photometric=2, tags={254: [1]})
    old_thumbnail = Page(levels=picture(7, 16, 12), photometric=2, tags={255: [2]})
    mask = Page(levels=picture(8)[..., :1] > 99, photometric=4, bits=1, tags={254: [4]})
    for first, place in (([], 1), ([thumbnail], 2), ([old_thumbnail, mask], 3)):
        for big in (False, True):
            kind, reason, frames = read(tiff(*first, *pages, big=big))
            assert (kind, [read_number(frame) for frame in frames]) == ("image", [0])
            assert f"its page {place} of {3 + len(first)}" in reason


@pytest.mark.parametrize(
    "pages",
    [
        [Page(levels=picture(), photometric=2, tags={50706: [1, 4, 0, 0]})],
        [Page(levels=picture(), photometric=2, tags={254: [1]})],
        [Page(levels=picture()[..., :1], photometric=32803)],
        [
            Page(levels=picture(7, 16, 12), tags={254: [1]}, photometric=2),
            Page(levels=picture(), photometric=34892),
        ],
    ],
    ids=["DNG", "only previews", "mosaic", "linear"],
)
def test_raw_files_of_cameras_are_named(pages: Sequence[Page]) -> None:
    assert "camera's raw file" in error_of(tiff(*pages)).message


def levels_of(samples: int, bits: int) -> Levels:
    return RANDOM.integers(0, 1 << bits, (6, 10, samples))


# Photometric interpretation, samples, bits.
SERVED = (
    *((photometric, 1, bits) for photometric in (0, 1) for bits in (1, 2, 4, 8)),
    *((2, 3, 8), (5, 4, 8), (2, 3, 16), (5, 4, 16), (1, 1, 16)),
)
LITTLE_ENDIAN = ((0, 1, 16), (1, 1, 12))


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize(("order", "big"), [("<", False), (">", False), ("<", True)])
def test_tags_of_a_tiff_are_read(order: str, big: bool, planar: bool, deflate: bool) -> None:
    for photometric, samples, bits in SERVED + LITTLE_ENDIAN * (order == "<"):
        levels = levels_of(samples, bits)
        page = Page(levels=levels, photometric=photometric, bits=bits, planar=planar, deflate=deflate)
        expected = levels * 255 / ((1 << bits) - 1)
        if photometric == 5:
            expected = (255 - expected[..., :3]) * (255 - expected[..., 3:]) / 255
        elif photometric == 0:
            expected = 255 - expected
        difference = np.abs(read(tiff(page, order=order, big=big))[2][0] - expected).max()
        assert difference <= 2, (photometric, bits)


def test_chroma_of_a_tiff_has_half_the_size_if_nothing_else_is_said() -> None:
    """Four levels of luma, then one of each chroma (TIFF 6.0, section 21)."""
    luma = RANDOM.integers(60, 200, (2, 3, 4))
    chroma = RANDOM.integers(100, 156, (2, 3, 2))
    stored = np.concatenate([luma, chroma], axis=-1).astype(np.uint8).tobytes()
    data = tiff(Page(levels=np.zeros((4, 6, 3), np.uint8), photometric=6))
    frame = read(data[:8] + stored + data[8 + len(stored) :])[2][0]
    y = luma.reshape(2, 3, 2, 2).swapaxes(1, 2).reshape(4, 6)
    blue, red = np.moveaxis(chroma.repeat(2, 0).repeat(2, 1) - 128, -1, 0)
    expected = np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], -1)
    assert np.abs(frame - expected.clip(0, 255)).max() < 1


@pytest.mark.parametrize(
    ("page", "reason"),
    [
        (Page(levels=levels_of(1, 16), bits=16, tags={339: [3]}), "floating-point"),
        (Page(levels=levels_of(1, 8), tags={339: [2]}), "signed"),
        (Page(levels=levels_of(3, 8), photometric=9), "ICC Lab"),
        (Page(levels=levels_of(3, 16), photometric=8, bits=16), "photometric interpretation 8"),
        (Page(levels=levels_of(8, 8), tags={338: [0] * 7}), "8+8+8+8+8+8+8+8 bits"),
        (Page(levels=levels_of(1, 8), tags={258: [32]}), "32 bits"),
    ],
)
def test_a_tiff_that_cannot_be_read_right_is_refused(page: Page, reason: str) -> None:
    error = error_of(tiff(page))
    assert isinstance(error, UnsupportedMedia)
    assert reason in error.message
    assert "big-endian" in error_of(tiff(page, order=">", big=True)).message


def test_other_jpegs_and_bmps_are_named() -> None:
    start = JPEGS[0].index(b"\xff\xc0")
    for frame, bits, reason in ((0xC1, 12, "12 bits"), (0xF7, 8, "JPEG-LS")):
        head = struct.pack(">BBHB", 0xFF, frame, 17, bits)
        error = error_of(JPEGS[0][:start] + head + JPEGS[0][start + 5 :])
        assert isinstance(error, UnsupportedMedia)
        assert reason in error.message
    bmp = bytearray(image("bmp"))
    bmp[30:34] = struct.pack("<I", 5)
    assert isinstance(error_of(bytes(bmp)), UnsupportedMedia)


def zipped() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("clip.mp4", b"")
    return sink.getvalue()


FORM = b"------WebKitFormBoundary\r\nContent-Disposition: form-data; name=media\r\n\r\n" + JPEGS[0]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\n<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML page"),
        (b'{"error": "no such file"}', "JSON"),
        (b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'<?xml version="1.0"?><MPD type="static"/>', "DASH"),
        (b"#EXTM3U\n#EXT-X-VERSION:3\nseg0.ts\n", "playlist"),
        (b"ffconcat version 1.0\nfile a.mp4\n", "list of files"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
        (b"https://example.com/clip.mp4\n", "address"),
        (b"/data/clips/a.mp4", "path"),
        (b"The quick brown fox.", "text"),
        ("Schöne Grüße, dies ist ein Text.".encode(), "text"),
        (b"BMW is a maker of cars", "text"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + JPEGS[0], "HTTP answer"),
        (FORM, "form"),
        (zipped(), "ZIP"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "PDF"),
        (b"\x1f\x8b\x08" + bytes(40), "gzip"),
        (bytes(999), "all 999 bytes"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIF"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (b"P6\n# made\n2 1\n255\n123456", "PNM"),
        (encode(picture(), "ICO"), "ICO"),
        (encode(picture(), "TGA"), "TGA"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "raw file"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + bytes(40), "raw file"),
        (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), "WAV"),
        (b"ID3\4\0" + bytes(40), "sound"),
        (b"\x93NUMPY\1\0" + bytes(40), "NumPy"),
        (b"YUV4MPEG2 W2 H2 F25:1\nFRAME\n123456", "Y4M"),
        (b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(40), "macOS"),
    ],
)
def test_what_was_sent_by_mistake_is_named(data: bytes, name: str) -> None:
    error = error_of(data)
    assert isinstance(error, (InvalidMedia, UnsupportedMedia))
    assert name in error.message
