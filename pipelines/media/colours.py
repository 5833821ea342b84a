"""Colours of decoded frames: matrix, range, RGB with swscale. What is unknown is refused, not guessed."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from pipelines.protocol.errors import UnsupportedMedia

# Matrices of ITU-T H.273 that swscale can convert with; untagged video counts as BT.601, as in FFmpeg.
MATRICES = {1: "bt709", 2: "unspecified", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020-ncl"}
TRANSFERS = {1: "bt709", 2: "unspecified", 6: "bt601", 8: "linear", 13: "srgb", 16: "pq", 18: "hlg"}
# In these formats swscale converts each pixel independently, so a part of a frame converts to the same pixels
# as the whole. (In others it blends the chroma of neighbours.)
PIXEL_BY_PIXEL = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p"}
LIMITED_RANGE, FULL_RANGE = 1, 2
# swscale leaves grey levels unchanged; limited ones (16 to 235) are stretched here.
FULL_FROM_LIMITED = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


def is_rgb(frame: VideoFrame) -> bool:
    return frame.format.is_rgb or frame.format.has_palette


def has_matrix(frame: VideoFrame) -> bool:
    """Whether the pixels are luma and chroma: grey and RGB need no matrix."""
    return not is_rgb(frame) and len(frame.format.components) > 2


def is_full_range(frame: VideoFrame) -> bool:
    if is_rgb(frame) or frame.format.name.startswith("yuvj"):
        return True
    if has_matrix(frame):
        return bool(frame.color_range == FULL_RANGE)
    return bool(frame.color_range != LIMITED_RANGE)


class RgbReader:
    """Decoded frames of one size → RGB of one part of each, in its stored orientation; for one thread.

    Args:
        part_yxhw: top, left, height and width of the part in stored pixels.
    """

    def __init__(self, part_yxhw: tuple[int, int, int, int]) -> None:
        self._part_yxhw = part_yxhw
        self._reformatter = VideoReformatter()
        self._crop: tuple[tuple[str, int, int], Graph] | None = None

    def __call__(self, frame: VideoFrame) -> npt.NDArray[np.uint8]:
        """uint8 RGB `(h, w, 3)`, a view that the next frame overwrites.

        Raises:
            UnsupportedMedia: swscale does not know the pixel format.
        """
        top, left, height, width = self._part_yxhw
        if (height, width) == (frame.height, frame.width):
            return _to_rgb(frame, self._reformatter)
        # swscale converts the fields of an interlaced frame separately, and places their chroma differently.
        # It converts frames of odd height in another way, which differs by up to 59 levels.
        apart = frame.format.name in PIXEL_BY_PIXEL and not frame.interlaced_frame and frame.height % 2 == 0
        if apart and not any(side % 2 for side in self._part_yxhw):
            return _to_rgb(self._cropped(frame), self._reformatter)
        return _to_rgb(frame, self._reformatter)[top : top + height, left : left + width]

    def _cropped(self, frame: VideoFrame) -> VideoFrame:
        """The part of the frame, in the frame's own memory."""
        kind = (frame.format.name, frame.width, frame.height)
        if self._crop is None or self._crop[0] != kind:
            self._crop = kind, self._make_crop(frame)
        graph = self._crop[1]
        graph.vpush(frame)
        return graph.vpull()

    def _make_crop(self, frame: VideoFrame) -> Graph:
        top, left, height, width = self._part_yxhw
        graph = Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1)
            ),
            graph.add("crop", f"w={width}:h={height}:x={left}:y={top}"),
            graph.add("buffersink"),
        ).configure()
        return graph


def _to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> npt.NDArray[np.uint8]:
    """uint8 RGB `(H, W, 3)` as stored, a view; swscale reads matrix and range from the frame."""
    try:
        rgb = reformatter.reformat(frame, format="rgb24", threads=1)
    except av.FFmpegError as error:
        raise UnsupportedMedia(
            f"pixels of format {frame.format.name} cannot be converted: {error.strerror}",
            hint="re-encode it as yuv420p",
        ) from None
    plane = rgb.planes[0]
    rows = np.frombuffer(plane, np.uint8).reshape(frame.height, plane.line_size)  # type: ignore[call-overload]
    pixels_hwc: npt.NDArray[np.uint8] = rows[:, : frame.width * 3].reshape(frame.height, frame.width, 3)
    if not has_matrix(frame) and not is_full_range(frame):
        pixels_hwc = FULL_FROM_LIMITED[pixels_hwc]
    return pixels_hwc
