"""Pictures with Pillow, as clips of one frame. Knows no video, no DALI."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from pipelines.frames.batch import FrameBatch
from pipelines.media.animations import is_animated, open_animation, whole_frames
from pipelines.media.bounds.apart import PROCESSES
from pipelines.media.bounds.mp4 import index_bytes
from pipelines.media.bounds.pictures import APART_BYTES, Cost, check_chunks, cost, without_metadata
from pipelines.media.damage.pictures import FAULTS, load_picture, open_picture
from pipelines.media.identity.moving import JPEG_LS, jpeg_head
from pipelines.media.identity.tiffs import BITS, PHOTOMETRIC, WHITE_IS_ZERO, MainPage, describe, main_page
from pipelines.media.medium import WHOLE_FRAMES, Header, Leave, Limits, MediaInfo, Medium, Orientation, Wanted
from pipelines.media.selection import Selected, columns, refuse_damaged, select
from pipelines.protocol.errors import InvalidMedia, TooLarge, TrividError, UnsupportedMedia
from pipelines.protocol.options import Options

# Held while a TIFF is opened for libtiff. Others that are opened meanwhile are read by libtiff too: right.
LIBTIFF = threading.Lock()
ORIENTATION_TAG = 0x0112
# By EXIF's numbers, 1 to 8.
ORIENTATIONS = {
    1: Orientation(),
    2: Orientation(flip_x=True),
    3: Orientation(flip_x=True, flip_y=True),
    4: Orientation(flip_y=True),
    5: Orientation(transpose=True),
    6: Orientation(transpose=True, flip_x=True),
    7: Orientation(transpose=True, flip_x=True, flip_y=True),
    8: Orientation(transpose=True, flip_y=True),
}


def open_image(
    encoded: bytes,
    name: str,
    *,
    options: Options,
    limits: Limits,
    leave: Leave,
    wanted: Wanted = WHOLE_FRAMES,
) -> Medium:
    """A picture as one frame at 0 s, or the clip of an animated one: upright by its EXIF, without alpha.

    `name` is Pillow's of its format.

    Raises:
        InvalidMedia, UnsupportedMedia, TooLarge: as the docstring of `pipelines.protocol.errors` says.
        DeadlineExceeded, Overloaded: from `leave`.
    """
    encoded = _readable(encoded, name)
    page = main_page(encoded) if name == "TIFF" else MainPage()
    whole = whole_frames(encoded) if name == "WEBP" else encoded
    image, is_whole = _open(whole, name, page, limits), whole is encoded
    with contextlib.ExitStack() as opened:
        opened.callback(image.close)
        spent, moves = cost(image, encoded), is_animated(image, is_whole=is_whole)
        leave.admit(_header(image, spent, moves=moves))
        leave.check(limits.max_decode_s)
        if not moves:
            return _open_still(image, encoded, page, spent, options=options, limits=limits, leave=leave)
        medium = open_animation(
            image,
            _describe(image),
            _read_pixels,
            is_whole=is_whole,
            options=options,
            limits=limits,
            leave=leave,
            wanted=wanted,
        )
        opened.pop_all()
        return medium


def _header(image: Image.Image, spent: Cost, *, moves: bool) -> Header:
    return Header(
        kind="video" if moves else "image",
        width_px=image.width,
        height_px=image.height,
        decode_bytes=spent.memory_bytes,
    )


def _open_still(
    image: Image.Image,
    encoded: bytes,
    page: MainPage,
    spent: Cost,
    *,
    options: Options,
    limits: Limits,
    leave: Leave,
) -> Medium:
    """The picture, decoded at once."""
    info = _describe(image)
    with _blamed(image):
        if spent.apart:
            name = "JPEG" if image.format == "MPO" else str(image.format)
            loaded, damaged = _load_apart(encoded, name, page.number, spent, limits, leave)
        else:
            loaded, damaged = load_picture(image, encoded)
        pixels_hwc = _upright(loaded, image)
    where = f", its page {page.number + 1} of {page.count}" if page.count > 1 else ""
    return Medium(
        info=info,
        decoder="pillow",
        decoder_reason=f"the medium is an image ({info.codec}{where})",
        batches=_one_frame(pixels_hwc, options, limits, damaged=damaged),
    )


def _readable(encoded: bytes, name: str) -> bytes:
    """The file as Pillow reads it at a bounded cost. Raises InvalidMedia if there is no such form."""
    if name == "AVIF":
        index_bytes(encoded)
        # Pillow looks at the major brand only.
        return encoded[:8] + b"avif" + encoded[12:]
    if name == "PNG":
        check_chunks(encoded)
    return without_metadata(encoded)


@contextlib.contextmanager
def _by_libtiff() -> Iterator[None]:
    """Pillow's own reader makes wrong pixels of planes, and of chroma at half the size."""
    with LIBTIFF:
        TiffImagePlugin.READ_LIBTIFF = True
        try:
            yield
        finally:
            TiffImagePlugin.READ_LIBTIFF = False


def _open(encoded: bytes, name: str, page: MainPage, limits: Limits) -> Image.Image:
    """Read only the header, and refuse what it says is too large."""
    # Pillow warns of odd metadata and of large pictures. Our own limit makes the latter an error.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        with _by_libtiff() if page.needs_libtiff else contextlib.nullcontext():
            image = open_picture(encoded, name)
            if page.number:
                image.seek(page.number)
        limits.check_size(*image.size)
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the {name} image is too large: {error}", hint="scale it down") from None
    except UnidentifiedImageError:
        raise _unreadable(encoded, name, page.number) from None
    except FAULTS as error:
        if "nsupported" in str(error):
            raise UnsupportedMedia(
                f"the {name} image cannot be read: {error}", hint="save it as JPEG or PNG"
            ) from None
        raise InvalidMedia(
            f"the header of the {name} image is broken: {error}", hint="check the upload"
        ) from None
    return image


def _unreadable(encoded: bytes, name: str, page: int) -> TrividError:
    """Why Pillow cannot read a picture, as its header tells."""
    head = jpeg_head(encoded, 0) if name == "JPEG" else None
    if head is not None:
        bits, _, _, components = head.size
        process = "as JPEG-LS" if head.frame == JPEG_LS else f"by process {head.frame - 0xC0} of T.81"
        return UnsupportedMedia(
            f"the JPEG image has {components} components of {bits} bits, coded {process}",
            hint="save it as a baseline or progressive JPEG of 8 bits, or as PNG",
        )
    if name == "TIFF":
        kind = describe(encoded, page)
        return UnsupportedMedia(f"the TIFF image has {kind}", hint="save it as RGB or grey with 8 bits")
    return InvalidMedia(f"starts like a {name} image, but cannot be read as one", hint="check the upload")


def _orientation(image: Image.Image) -> Orientation:
    """EXIF's orientation; upright if there is none or the metadata are broken."""
    try:
        value = image.getexif().get(ORIENTATION_TAG)
    except FAULTS:
        return Orientation()
    return ORIENTATIONS.get(value, Orientation()) if isinstance(value, int) else Orientation()


def _load_apart(
    encoded: bytes, name: str, page: int, spent: Cost, limits: Limits, leave: Leave
) -> tuple[Image.Image, bool]:
    """What `load_picture` gives, from another process, since its header does not bound what it takes."""
    return PROCESSES.decode(
        encoded,
        name,
        page,
        memory_bytes=spent.memory_bytes + APART_BYTES,
        max_decode_s=limits.max_decode_s,
        leave=leave,
    )


def _describe(image: Image.Image) -> MediaInfo:
    orientation = _orientation(image)
    width_px, height_px = orientation.size(*image.size)
    name = str(image.format).lower()
    return MediaInfo(
        kind="image",
        container=name,
        codec=name,
        pixel_format=image.mode,
        width_px=width_px,
        height_px=height_px,
        rotation_deg=orientation.rotation_deg,
        mirrored=orientation.mirrored,
    )


def _read_pixels(image: Image.Image, number: int) -> npt.NDArray[np.uint8]:
    """Decode a frame of an animation → what `_upright` gives."""
    with _blamed(image):
        image.seek(number)
        image.load()
        return _upright(image, image)


def _upright(loaded: Image.Image, image: Image.Image) -> npt.NDArray[np.uint8]:
    """uint8 RGB `(H, W, 3)`, contiguous and writable, of a picture that was `loaded` of `image`."""
    return _orientation(image).apply(np.asarray(_to_rgb(loaded, getattr(image, "tag_v2", {})))).copy()


@contextlib.contextmanager
def _blamed(image: Image.Image) -> Iterator[None]:
    """What goes wrong while a picture is decoded is a fault of it."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise TooLarge(f"the image is too large: {error}", hint="scale it down") from None
    except MemoryError:
        raise TooLarge("there is no memory for the image", hint="scale it down") from None
    except FAULTS as error:
        raise InvalidMedia(
            f"the {image.format} image cannot be decoded: {error}", hint="check the upload"
        ) from None


def _to_rgb(image: Image.Image, tags: Mapping[int, Any]) -> Image.Image:
    """An image of any mode as RGB; 16-bit grey is scaled, since Pillow's own conversion would clip it.

    Args:
        tags: of a TIFF.
    """
    if image.mode == "F":
        raise UnsupportedMedia("pixels are floating-point numbers", hint="save it with 8 or 16 bits")
    if not image.mode.startswith("I"):
        # Pillow would copy an image that is RGB already.
        return image if image.mode == "RGB" else image.convert("RGB")
    levels = np.asarray(image)
    white = 0xFFF if tags.get(BITS) == (12,) else 0xFFFF
    if levels.min(initial=0) < 0 or levels.max(initial=0) > white:
        raise UnsupportedMedia("grey levels exceed 16 bits", hint="save it with 8 or 16 bits")
    scaled = levels.astype(np.uint32)
    if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        np.subtract(white, scaled, out=scaled)
    scaled *= 255
    scaled += white // 2
    scaled //= white
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def _one_frame(
    pixels_hwc: npt.NDArray[np.uint8], options: Options, limits: Limits, *, damaged: bool
) -> Generator[FrameBatch, None, None]:
    for picked in select([Selected(0, 0.0, pixels_hwc, damaged=damaged)], options, limits):
        refuse_damaged(picked, options)
        height_px, width_px, _ = picked.frame.shape
        yield FrameBatch(kept_nhwc=picked.frame[None], size_hw=(height_px, width_px), **columns([picked]))
