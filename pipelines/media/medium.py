"""Limits, MediaInfo and Medium: what all decoders share. Knows no decoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.frames.batch import FrameBatch
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import DeadlineExceeded, TooLarge

# Chunks of large frames hold fewer of them, so that a chunk's memory stays bounded too.
MAX_CHUNK_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the server accepts of one medium.

    Attributes:
        max_media_bytes: size of the encoded file.
        max_pixels: width times height of a frame.
        max_frames: most frames that are answered; with more the request is TooLarge. None: no limit.
        chunk_frames: most frames in one FrameBatch.
        max_decode_s: longest that decoding a picture, or a video from one frame to the next, may take.
    """

    max_media_bytes: int = 64 << 20
    max_pixels: int = 8192 * 8192
    max_frames: int | None = None
    chunk_frames: int = 16
    max_decode_s: float = 30.0

    def check_bytes(self, encoded: bytes) -> None:
        """Raise TooLarge if the encoded file is over the limit."""
        if len(encoded) > self.max_media_bytes:
            raise TooLarge(
                f"the medium has {len(encoded)} bytes, over the server's limit of {self.max_media_bytes}",
                hint="send a shorter or smaller one",
            )

    def check_size(self, width_px: int, height_px: int) -> None:
        """Raise TooLarge if a frame is over the limit."""
        if width_px * height_px > self.max_pixels:
            raise TooLarge(
                f"frames of {width_px}x{height_px} pixels are over the server's limit of "
                f"{self.max_pixels} pixels a frame",
                hint="scale the medium down",
            )

    def chunk_length(self, width_px: int, height_px: int) -> int:
        """Frames in a chunk: `chunk_frames`, or fewer if they would exceed MAX_CHUNK_BYTES of RGB."""
        return max(1, min(self.chunk_frames, MAX_CHUNK_BYTES // (width_px * height_px * 3)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a medium's header says, before anything is decoded.

    Attributes:
        width_px, height_px: of a frame; 0 while unknown.
        decode_bytes: memory that decoding takes, beyond that of a video's frames.
    """

    kind: Literal["image", "video"]
    width_px: int = 0
    height_px: int = 0
    decode_bytes: int = 0


def _let_in(_: Header) -> None:
    """Admit every medium."""


@dataclass(slots=True)
class Leave:
    """On what terms one medium is decoded, and how long it has been since the last frame.

    Attributes:
        deadline_s: until when, by `time.monotonic`.
        admit: called with what the header says, as soon as it says it and before it is paid for. It raises if
            there is no room. It may be called again with more.
    """

    deadline_s: float = float("inf")
    admit: Callable[[Header], None] = _let_in
    began_s: float = field(default_factory=time.monotonic)

    def restart(self) -> None:
        """Note that a frame came, or is asked for only now."""
        self.began_s = time.monotonic()

    def left_s(self, max_decode_s: float) -> float:
        """For how many seconds the next frame may still be decoded."""
        return min(self.began_s + max_decode_s, self.deadline_s) - time.monotonic()

    def check(self, max_decode_s: float) -> None:
        """Raise DeadlineExceeded if it is too late to decode more, TooLarge if no frame came for too long."""
        now_s = time.monotonic()
        if now_s > self.deadline_s:
            raise DeadlineExceeded(
                "deadline_ms passed while frames were decoded", hint="request less, or allow more time"
            )
        if now_s > self.began_s + max_decode_s:
            raise TooLarge(
                f"no frame came out of the medium for {max_decode_s:g} s, the server's limit",
                hint="re-encode it, or start the server with a larger --max-decode-s",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is made of a medium's frames.

    Attributes:
        prepare: the model's preprocessing, for which the frames are read.
        keep_pixels: whether the frames themselves are kept; without it `prepare` is needed.
        repeat_frames: with the option `fps`, a frame that is shown for longer is repeated as the rate asks
            (clip models know only one rate); else each comes once.
    """

    prepare: Preprocessing | None = None
    keep_pixels: bool = True
    repeat_frames: bool = False

    def __post_init__(self) -> None:
        if self.prepare is None and not self.keep_pixels:
            raise ValueError("frames must be kept, or prepared for a model")


WHOLE_FRAMES = Wanted()


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaInfo:
    """What a medium's headers say; about its pixels, what its first frame says.

    Attributes:
        container, codec, pixel_format: the names that FFmpeg or Pillow use.
        width_px, height_px: of the upright frame.
        rotation_deg: counter-clockwise turn that brings the stored picture upright: 0, 90, 180, 270.
        mirrored: whether it is mirrored too.
        matrix, colour_range, transfer: of the stored colours; frames keep their transfer (HDR is not mapped).
        fps, duration_s: as the container claims; None if it does not.
    """

    kind: Literal["image", "video"]
    container: str
    codec: str
    pixel_format: str
    width_px: int
    height_px: int
    rotation_deg: int = 0
    mirrored: bool = False
    matrix: str = "rgb"
    colour_range: str = "full"
    transfer: str = "unspecified"
    fps: float | None = None
    duration_s: float | None = None


class Orientation(NamedTuple):
    """How stored pixels are brought upright: first transposed, then mirrored."""

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """Its counter-clockwise turn; one that mirrors too counts as a left-to-right mirror."""
        if self.transpose:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y else 0

    @property
    def mirrored(self) -> bool:
        return sum(self) % 2 == 1

    def size(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Width and height of the upright picture."""
        return (height_px, width_px) if self.transpose else (width_px, height_px)

    def stored_yxhw(
        self, part_yxhw: tuple[int, int, int, int], upright_hw: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Where a part of the upright picture lies in the stored one: top, left, height and width."""
        (top, left, height, width), (whole_height, whole_width) = part_yxhw, upright_hw
        top = whole_height - top - height if self.flip_y else top
        left = whole_width - left - width if self.flip_x else left
        return (left, top, width, height) if self.transpose else (top, left, height, width)

    def apply(self, pixels_hwc: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """The upright picture, as a view."""
        upright = pixels_hwc.swapaxes(0, 1) if self.transpose else pixels_hwc
        return upright[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1]


@dataclass(slots=True, kw_only=True)
class Medium:
    """An opened medium. Its frames can be read once, in chunks, by the thread that also closes it."""

    info: MediaInfo
    decoder: str
    decoder_reason: str
    batches: Generator[FrameBatch, None, None]
    release: Callable[[], None] = field(default=lambda: None)

    def chunks(self) -> Iterator[FrameBatch]:
        """Frames in presentation order, at most `Limits.chunk_frames` at a time.

        Raises:
            InvalidMedia: the medium breaks off or the rest cannot be decoded. All good frames come first.
            UnsupportedMedia: its frames change size, or turn out to be of a kind that is not served.
            TooLarge: more frames are selected than `Limits.max_frames`, or a frame has too many pixels.
        """
        return self.batches

    def close(self) -> None:
        """Release the decoder; what was not read is lost."""
        self.batches.close()
        self.release()

    def __enter__(self) -> Medium:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
