"""Pixels → bytes of a picture or video: JPEG, PNG, H.264 in fragmented MP4. Knows no DALI and no model."""

from __future__ import annotations

import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, VideoReformatter
from PIL import Image

from pipelines.frames.batch import PixelArray, to_numpy
from pipelines.protocol.errors import InternalError, UnsupportedMedia
from pipelines.protocol.options import Overlay

JPEG_QUALITY = 90
# Class maps have flat areas: more compression is slower and hardly makes them smaller.
PNG_EFFORT = 1
TICKS_PER_S = 90_000
MAX_JPEG_SIDE_PX, MAX_H264_SIDE_PX = 65_500, 16_384
KEYFRAME_EVERY = 48
# x264 uses this to distribute bits; the frames keep their own times. Also the spacing where none is known.
NOMINAL_FPS = 30
# No seeking: every fragment is written as soon as it is complete. The last two flags keep the first frame's
# time, to the tick, if a video does not begin at 0.
MOVFLAGS = "frag_keyframe+empty_moov+default_base_moof+frag_discont+delay_moov"
X264 = {"preset": "veryfast", "crf": "23", "bf": "0", "threads": "2"}


def check_side(height_px: int, width_px: int, limit_px: int, form: str) -> None:
    """Raise UnsupportedMedia if a picture format cannot be that large."""
    if max(height_px, width_px) > limit_px:
        raise UnsupportedMedia(
            f"{form} cannot hold a picture of {width_px}x{height_px} px; a side has at most {limit_px}",
            hint="request another overlay, or scale the medium down",
        )


def jpeg(pixels_hwc: PixelArray, quality: int = JPEG_QUALITY) -> bytes:
    """A picture uint8 RGB `(H, W, 3)`, numpy or CUDA, as JPEG."""
    check_side(pixels_hwc.shape[0], pixels_hwc.shape[1], MAX_JPEG_SIDE_PX, "JPEG")
    target = io.BytesIO()
    Image.fromarray(to_numpy(pixels_hwc)).save(target, "JPEG", quality=quality)
    return target.getvalue()


def png(class_map_hw: npt.NDArray[np.uint8]) -> bytes:
    """A class map uint8 `(H, W)` as grey PNG: the grey level is the class."""
    target = io.BytesIO()
    Image.fromarray(class_map_hw).save(target, "PNG", compress_level=PNG_EFFORT)
    return target.getvalue()


class _Sink:
    """What the muxer writes to. It cannot seek, so what was written is final."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """All bytes since the last call."""
        data = b"".join(self._parts)
        self._parts.clear()
        return data


class Mp4Writer:
    """Frames → the bytes of one MP4, part by part; the parts, one after the other, are the file.

    H.264 4:2:0 in limited-range BT.709, tagged as such. An odd width or height is made even by repeating the
    last column or row, since 4:2:0 has no odd sizes. Times are kept to 1/90000 s. If they fall, the film
    goes on one spacing after the frame before; a time that comes again is moved on by a tick. The same frames
    in the same writes give the same bytes, whatever the number of cores.
    """

    def __init__(self, *, width_px: int, height_px: int) -> None:
        check_side(height_px, width_px, MAX_H264_SIDE_PX, "H.264")
        self._hw = (height_px, width_px)
        self._sink = _Sink()
        self._container = av.open(
            self._sink, mode="w", format="mp4", options={"movflags": MOVFLAGS, "fflags": "+bitexact"}
        )
        self._stream = self._add_stream(width_px + width_px % 2, height_px + height_px % 2)
        self._reformatter = VideoReformatter()
        self._last_tick = -1
        self._last_own: int | None = None
        self._spacing, self._shift = TICKS_PER_S // NOMINAL_FPS, 0
        self._closed = False

    def write(self, pixels_nhwc: PixelArray, pts_s: Iterable[float]) -> bytes:
        """Append N frames uint8 RGB `(N, H, W, 3)`, numpy or CUDA, and return the bytes that are ready.

        Raises:
            InternalError: the frames have another size, the writer is closed, or the encoder failed.
        """
        if self._closed or tuple(pixels_nhwc.shape[1:]) != (*self._hw, 3):
            state = "closed" if self._closed else f"one of frames {(*self._hw, 3)}"
            raise InternalError(f"the video is {state}, but was given {tuple(pixels_nhwc.shape)}")
        even = ((0, 0), (0, self._hw[0] % 2), (0, self._hw[1] % 2), (0, 0))
        try:
            for pixels, time_s in zip(np.pad(to_numpy(pixels_nhwc), even, mode="edge"), pts_s, strict=True):
                self._container.mux(self._stream.encode(self._frame(pixels, time_s)))
        except av.error.FFmpegError as error:
            raise InternalError(f"cannot encode H.264: {error}") from error
        return self._sink.take()

    def close(self) -> bytes:
        """The rest of the file; empty if it was closed before."""
        if self._closed:
            return b""
        self._closed = True
        try:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        except av.error.FFmpegError as error:
            raise InternalError(f"cannot finish the MP4: {error}") from error
        return self._sink.take()

    def _add_stream(self, width_px: int, height_px: int) -> Any:
        stream: Any = self._container.add_stream("libx264", rate=NOMINAL_FPS, options=X264)
        stream.width, stream.height, stream.pix_fmt = width_px, height_px, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = Fraction(1, TICKS_PER_S)
        context.gop_size = KEYFRAME_EVERY
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return stream

    def _frame(self, pixels_hwc: npt.NDArray[np.uint8], time_s: float) -> av.VideoFrame:
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_hwc), format="rgb24")
        # One thread: otherwise each frame would start a pool with a thread per core.
        frame = self._reformatter.reformat(
            rgb,
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            threads=1,
        )
        self._last_tick = self._tick(round(time_s * TICKS_PER_S))
        frame.pts, frame.time_base = self._last_tick, Fraction(1, TICKS_PER_S)
        return frame

    def _tick(self, own: int) -> int:
        """When a frame is shown whose own time is this."""
        rise = 0 if self._last_own is None else own - self._last_own
        self._last_own = own
        if rise > 0:
            self._spacing = rise
        elif rise < 0:
            self._shift = self._last_tick + self._spacing - own
        return max(own + self._shift, self._last_tick + 1)


class PictureWriter:
    """The pictures of one medium's answers in the requested form: JPEG, raw bytes, or parts of a video."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._film: Mp4Writer | None = None

    @property
    def wanted(self) -> bool:
        """Whether any pictures were asked for."""
        return self._overlay != "none"

    @property
    def is_film(self) -> bool:
        """Whether they are asked for as an overlay video."""
        return self._overlay == "mp4"

    def pictures(self, pixels_nhwc: PixelArray) -> list[bytes]:
        """Frames uint8 RGB `(N, H, W, 3)` as single pictures; empty if none, or a video, was asked for."""
        if self._overlay == "jpeg":
            return [jpeg(pixels) for pixels in to_numpy(pixels_nhwc)]
        return [pixels.tobytes() for pixels in to_numpy(pixels_nhwc)] if self._overlay == "raw" else []

    def film(self, pixels_nhwc: PixelArray, played_s: Iterable[float]) -> bytes:
        """The next part of the overlay video; empty if none, or single pictures, were asked for."""
        if self._overlay != "mp4":
            return b""
        if self._film is None:
            self._film = Mp4Writer(width_px=int(pixels_nhwc.shape[2]), height_px=int(pixels_nhwc.shape[1]))
        return self._film.write(pixels_nhwc, played_s)

    def close(self) -> bytes:
        """The rest of the overlay video."""
        return self._film.close() if self._film is not None else b""
