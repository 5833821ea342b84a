"""Writes drawn frames as H.264 and reads them back. Knows nothing of what is on them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, TypeAlias, TypeVar

import av
import numpy as np
import numpy.typing as npt

WIDTH_PX, HEIGHT_PX, FRAMES_PER_S = 640, 360, 30

T = TypeVar("T")
Pixels = npt.NDArray[np.uint8]
# A frame uint8 RGB `(H, W, 3)`, and what is true of it.
Drawn: TypeAlias = tuple[Pixels, T]


def encode(drawn: Iterable[Drawn[T]], crf: int = 26) -> tuple[bytes, list[T]]:
    """Drawn frames as MP4, and what is true of each: H.264 with B-frames, 4:2:0, BT.601 without saying so.

    A frame is drawn when its turn comes.
    """
    clip, truths = io.BytesIO(), []
    with av.open(clip, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": "veryfast", "bf": "2", "g": "60", "threads": "1"}
        stream = container.add_stream("libx264", rate=FRAMES_PER_S, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        for pixels, truth in drawn:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
            truths.append(truth)
        container.mux(stream.encode())
    return clip.getvalue(), truths


def decode(source: Path | IO[bytes]) -> Iterator[Pixels]:
    """The frames of a clip in presentation order, uint8 RGB `(H, W, 3)`."""
    with av.open(source, "r") as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
