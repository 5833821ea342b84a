"""Kinds of files that are not served, each by its name, so that an upload by mistake is explained.

Only what no served container begins with is told here, before FFmpeg looks for containers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from pipelines.protocol.errors import InvalidMedia, TrividError, UnsupportedMedia

PICTURE = "convert it to JPEG or PNG"
RAW = "develop it to JPEG or PNG; a camera's raw file has no colours of its own"
ARCHIVE = "unpack it, and send each file on its own"
BYTES = "send the bytes of a picture or video"


class Other(NamedTuple):
    """A kind of file: a pattern of its first bytes, its name, and the way out."""

    begins: bytes
    name: str
    hint: str


# Patterns of regular expressions, matched at a file's first byte.
PICTURES = (
    Other(rb"\x00\x00\x00\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "a JPEG 2000 picture", PICTURE),
    Other(rb"\x00\x00\x00\x0cJXL \r\n\x87\n|\xff\x0a", "a JPEG XL picture", PICTURE),
    Other(rb"\x00\x00\x00\x0cJXS |\xff\x10\xff\x50", "a JPEG XS picture", PICTURE),
    Other(rb"II\xbc\x01|WMPHOTO", "a JPEG XR picture", PICTURE),
    Other(rb"\x00\x00\x01\x00[\x01-\x20]\x00.{2}[\x00-\x20]\x00[\x00\x01]\x00", "an ICO picture", PICTURE),
    Other(rb"\x00\x00\x02\x00[\x01-\x20]\x00.{2}[\x00-\x20]\x00", "a cursor (CUR)", PICTURE),
    Other(rb"icns", "an ICNS picture", PICTURE),
    Other(rb"P[1-6]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s|P7\nWIDTH|P[fF]\n\d", "a PNM picture", PICTURE),
    Other(rb"8BP[SB]\x00", "a Photoshop picture", PICTURE),
    Other(rb"gimp xcf", "a GIMP picture", PICTURE),
    Other(rb"qoif", "a QOI picture", PICTURE),
    Other(rb"v/1\x01", "an OpenEXR picture", PICTURE),
    Other(rb"#\?(?:RADIANCE|RGBE)", "a Radiance HDR picture", PICTURE),
    Other(rb"DDS |\xabKTX ", "a texture (DDS, KTX)", PICTURE),
    Other(rb"BPG\xfb", "a BPG picture", PICTURE),
    Other(rb"FLIF", "a FLIF picture", PICTURE),
    Other(rb"SIMPLE  =", "a FITS picture", PICTURE),
    Other(rb"SDPX|XPDS", "a DPX picture", PICTURE),
    Other(rb"\x0a[\x00-\x05]\x01[\x01\x02\x04\x08]", "a PCX picture", PICTURE),
    Other(rb"\x59\xa6\x6a\x95", "a Sun raster picture", PICTURE),
    Other(rb"\x01\xda[\x00\x01][\x01\x02]", "an SGI picture", PICTURE),
    Other(rb"\xd7\xcd\xc6\x9a|\x01\x00\x00\x00.{36} EMF", "a Windows metafile", PICTURE),
    Other(rb"AT&TFORM", "a DjVu document", PICTURE),
    Other(
        rb"IIU\x00|IIR[OS]|MMOR|II\x1a\x00\x00\x00HEAP|II\*\x00.{4}CR|FUJIFILMCCD-RAW|FOVb|\x00MRM|ARRI"
        rb"|.{4}ftypcrx ",
        "a camera's raw file",
        RAW,
    ),
    Other(rb".{128}DICM", "a DICOM file", PICTURE),
)
DOCUMENTS = (
    Other(rb"\s*%PDF-", "a PDF document", "convert its pages to JPEG or PNG"),
    Other(rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript document", "convert its pages to JPEG or PNG"),
    Other(rb"PK\x03\x04|PK\x05\x06|PK\x07\x08", "a ZIP archive (or a document or model within one)", ARCHIVE),
    Other(rb"\x1f\x8b", "a gzip archive", ARCHIVE),
    Other(
        rb"BZh[1-9]1AY|\xfd7zXZ\x00|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!\x1a\x07", "an archive", ARCHIVE
    ),
    Other(rb".{257}ustar", "a tar archive", ARCHIVE),
    Other(
        rb"\x00\x05\x16[\x00\x07]\x00\x02\x00\x00", "macOS's notes on a file (its name starts with ._)", BYTES
    ),
    Other(rb"\x93NUMPY", "a NumPy array", "encode it as PNG"),
    Other(rb"\x89HDF\r\n\x1a\n|CDF[\x01\x02\x05]", "an HDF5 or NetCDF file", BYTES),
    Other(rb"\x80[\x02-\x05][}\]()c\x8a\x8c\x95]", "a pickled Python object", BYTES),
    Other(rb"SQLite format 3\x00", "a database", BYTES),
    Other(rb"\x7fELF|MZ.{58}", "a program", BYTES),
    Other(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a document of Microsoft Office", BYTES),
)
AUDIO = (
    Other(rb"RIFF.{4}WAVE|RF64.{4}WAVE", "a WAV recording", "send a video; sound has no frames"),
    Other(rb"fLaC|ID3[\x02-\x04]|FORM.{4}AIF[FC]|#!AMR|MThd", "sound", "send a video; sound has no frames"),
)
PLAYLISTS = (
    Other(rb"#EXTM3U", "a playlist (HLS, M3U)", "send what it lists, as one file"),
    Other(rb"ffconcat ", "a list of files for FFmpeg", "send what it lists, as one file"),
    Other(rb"v=0\r?\n", "a description of a session (SDP)", "send the video's own bytes"),
    Other(rb"\[playlist\]", "a playlist (PLS)", "send what it lists, as one file"),
)
WRAPPED = (
    Other(rb"HTTP/[\d.]+ \d", "an HTTP answer with its headers", "send its body alone"),
    Other(
        rb"--[^\r\n]+\r?\n(?i:Content-Disposition):", "a form of a web page", "send the file's bytes alone"
    ),
)
VIDEOS = (
    Other(rb"YUV4MPEG2 ", "raw video (Y4M)", "encode it, as H.264 in MP4 or FFV1 in Matroska"),
    Other(rb"\.RMF|\.ra\xfd", "RealMedia", "convert it to MP4"),
    Other(rb"[FC]WS[\x01-\x32]", "a Flash film", "convert it to MP4"),
)
# Text: a byte order mark and blanks may come first.
TEXTS = (
    Other(rb"<!doctype html|<html|<head|<body", "an HTML page", "an address may have given an error page"),
    Other(rb"<svg|<(?:\?xml|!--|!doctype svg).{0,2000}?<svg", "an SVG picture", "render it to PNG"),
    Other(rb"<MPD|<\?xml.{0,2000}?<MPD", "a playlist (DASH)", "send what it lists, as one file"),
    Other(rb"<\?xml|<[a-z]+[ >]", "XML", BYTES),
    Other(rb"version https://git-lfs", "a pointer of Git LFS", "fetch the file itself: git lfs pull"),
    Other(rb"\{\\rtf", "a document (RTF)", BYTES),
    Other(rb"[\[{]\s*[\"\]}\[{\d-]", "JSON", BYTES),
    Other(
        rb"[a-z][a-z0-9+.-]*://\S+\s*\Z", "an address", "the server fetches nothing: send the file's bytes"
    ),
    Other(rb"(?:[/~.]|[a-z]:\\)\S{1,2000}\s?\Z", "a path", "send the bytes of the file, not its name"),
)
BLANKS = re.compile(rb"(?:\xef\xbb\xbf)?\s{0,1000}")
TGA_END = b"TRUEVISION-XFILE.\0"
ALL_ZEROS = re.compile(rb"\x00*\Z")
# Patterns see only so much of a file. No name of an address or path fills it.
HEAD_BYTES = 4096
# Enough to tell text from other bytes.
TEXT_BYTES = 512
CONTROLS = bytes({*range(32)} - {*b"\t\n\f\r\x1b"})


def _compile(kinds: tuple[Other, ...], flags: int) -> tuple[tuple[Callable[..., object], Other], ...]:
    return tuple((re.compile(one.begins, flags | re.DOTALL).match, one) for one in kinds)


BINARY_KINDS = _compile(PICTURES + DOCUMENTS + AUDIO + PLAYLISTS + WRAPPED + VIDEOS, 0)
TEXT_KINDS = _compile(TEXTS, re.IGNORECASE)


def refusal(encoded: bytes) -> TrividError | None:
    """The error that names what a file is, if it is of a kind that is not served; else None."""
    for matches, other in BINARY_KINDS:
        if matches(encoded, 0, HEAD_BYTES):
            return UnsupportedMedia(f"the medium is {other.name}, which is not served", hint=other.hint)
    if encoded.endswith(TGA_END):
        return UnsupportedMedia("the medium is a TGA picture, which is not served", hint=PICTURE)
    start = BLANKS.match(encoded).end()  # type: ignore[union-attr]
    for matches, other in TEXT_KINDS if _is_text(encoded[:TEXT_BYTES]) else ():
        if matches(encoded, start, HEAD_BYTES):
            kind = InvalidMedia if other.hint == BYTES else UnsupportedMedia
            return kind(f"the medium looks like {other.name}: it starts {encoded[:16]!r}", hint=other.hint)
    if _is_text(encoded[:TEXT_BYTES]):
        return InvalidMedia(f"the medium looks like text: it starts {encoded[:16]!r}", hint=BYTES)
    if ALL_ZEROS.match(encoded):
        return InvalidMedia(
            f"all {len(encoded)} bytes of the medium are 0", hint="the file was not written or not fetched"
        )
    return None


def _is_text(head: bytes) -> bool:
    """Whether bytes are text: UTF-16 with its mark, or UTF-8 without control characters."""
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    if head.translate(None, CONTROLS) != head:
        return False
    # A character may be cut at the end.
    return head.decode("utf-8", "ignore").encode()[: len(head) - 3] == head[: len(head) - 3]
