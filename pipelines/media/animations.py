"""Animated WebP with Pillow: a clip of all frames, each as it is shown, with its time.

FFmpeg has no decoder for it. It composes the frames of other animated pictures right, and Pillow does not.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from PIL import Image

from pipelines.frames.batch import FrameBatch
from pipelines.media.frame_reader import FrameReader
from pipelines.media.identity.delays import shown_ms
from pipelines.media.medium import Leave, Limits, MediaInfo, Medium, Orientation, Wanted
from pipelines.media.selection import Selected, select
from pipelines.protocol.errors import InvalidMedia
from pipelines.protocol.options import Options

RIFF_HEAD_BYTES, CHUNK_HEAD_BYTES = 12, 8

ReadPixels = Callable[[Image.Image, int], npt.NDArray[np.uint8]]


def is_animated(image: Image.Image, *, is_whole: bool) -> bool:
    """Whether a picture that Pillow opened is a clip, maybe cut off. Reads no pixels."""
    return image.format == "WEBP" and (getattr(image, "is_animated", False) or not is_whole)


def whole_frames(encoded: bytes) -> bytes:
    """A WebP that is cut off after its first frame, up to its last whole one: libwebp takes only whole files.

    Other files come back as they are.
    """
    place, frames = RIFF_HEAD_BYTES, 0
    while place + CHUNK_HEAD_BYTES <= len(encoded):
        kind, length = struct.unpack_from("<4sI", encoded, place)
        end = place + CHUNK_HEAD_BYTES + length + length % 2
        if end > len(encoded):
            break
        place, frames = end, frames + (kind == b"ANMF")
    if not frames or place >= _declared(encoded):
        return encoded
    return encoded[:4] + struct.pack("<I", place - 8) + encoded[8:place]


def _declared(encoded: bytes) -> int:
    return int(struct.unpack_from("<I", encoded, 4)[0]) + 8


def open_animation(
    image: Image.Image,
    info: MediaInfo,
    read_pixels: ReadPixels,
    *,
    is_whole: bool,
    options: Options,
    limits: Limits,
    leave: Leave,
    wanted: Wanted,
) -> Medium:
    """The animation as a video from 0 s on, once; how often it repeats is ignored.

    Args:
        image: as Pillow opened it; it is closed with the medium.
        read_pixels: gives its n-th frame, upright, uint8 RGB `(H, W, 3)`; InvalidMedia if it is broken.
        is_whole: whether no frames are lost after those of `image`.
    """
    size_hw = (info.height_px, info.width_px)
    frames = _frames(image, read_pixels, limits, leave, is_whole=is_whole)
    picked = select(frames, options, limits, tick_s=0.001, repeat=wanted.repeat_frames)
    return Medium(
        info=replace(info, kind="video"),
        decoder="pillow",
        decoder_reason=f"the medium is an animated image ({info.codec})",
        batches=_in_time(FrameReader(Orientation(), wanted, size_hw).batches(picked, limits), leave),
        release=image.close,
    )


def _in_time(batches: Generator[FrameBatch, None, None], leave: Leave) -> Generator[FrameBatch, None, None]:
    """The same; the time until the next batch is asked for does not count."""
    for batch in batches:
        yield batch
        leave.restart()


def _frames(
    image: Image.Image, read_pixels: ReadPixels, limits: Limits, leave: Leave, *, is_whole: bool
) -> Iterator[Selected[VideoFrame]]:
    """All frames; InvalidMedia after the last good one. Only the first counts as a key frame.

    Also those that are left out are decoded, so `leave` is asked before each.
    """
    time_ms, number = 0.0, -1
    for number in range(getattr(image, "n_frames", 1)):
        leave.check(limits.max_decode_s)
        try:
            pixels_hwc = read_pixels(image, number)
        except InvalidMedia as error:
            place = f"after frame {number - 1}" if number else "before its first frame"
            raise InvalidMedia(f"{error.message}, {place}", hint=error.hint) from None
        leave.restart()
        yield Selected(number, time_ms / 1000, VideoFrame.from_ndarray(pixels_hwc, "rgb24"), number == 0)
        time_ms += shown_ms(image.info.get("duration", 0))
    if not is_whole:
        raise InvalidMedia(f"the file ends early after frame {number}", hint="upload the complete file")
