"""Media to measure with: one picture, clips and films of 720p H.264. Knows no model and no server.

A second is encoded once and repeated as it is, so that an hour costs no encoding. It is of a real film where
the sample lies beside the project, else moving noise with grain, which is as hard to decode.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from scripts import ROOT

Picture = npt.NDArray[np.uint8]
WIDTH_PX, HEIGHT_PX, RATE = 1280, 720, 24
SAMPLE = ROOT.parent / "shared" / "data" / "sintel_h264_720p.mp4"
# A medium's name → its frames, x264's rate factor (less is better; films have few bits, so that they pass a
# server's upload limit), and how many frames each picture is shown for: an hour is as small as a minute.
KINDS = {
    "image": (1, 0, 1),
    "short": (48, 23, 1),
    "clip": (240, 23, 1),
    "minute": (1440, 45, 10),
    "film": (14_400, 40, 1),
    "hour": (86_400, 45, 10),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Medium:
    """A file, how many frames it has, and in words what it shows."""

    path: Path
    frames: int
    about: str


def make_medium(kind: str, folder: Path) -> Medium:
    """A medium by its kind (a key of KINDS), made in the folder, or any file by its path."""
    if kind not in KINDS:
        path = Path(kind)
        if not path.is_file():
            raise SystemExit(f"error: no medium {kind!r}: a file, or one of {', '.join(KINDS)}")
        with av.open(kind) as video:
            frames = sum(1 for packet in video.demux(video=0) if packet.size)
        return Medium(path=path, frames=frames, about=f"{path.name}, {path.stat().st_size} bytes")
    frames, quality, held = KINDS[kind]
    path = folder / (f"{kind}.jpg" if kind == "image" else f"{kind}.mp4")
    if not path.exists():
        if kind == "image":
            Image.fromarray(next(film_second())).save(path, quality=90)
        else:
            group = folder / f"{kind}-group.mp4"
            _write_group(group, quality, held)
            _write_turns(path, group, frames // (RATE * held))
    source = "real film" if SAMPLE.is_file() else "moving noise"
    about = f"{source}, {WIDTH_PX}x{HEIGHT_PX}, {frames} frames, {path.stat().st_size / 1e6:.1f} MB"
    return Medium(path=path, frames=frames, about=about)


def film_second() -> Iterator[Picture]:
    """A second of film, frame by frame."""
    if not SAMPLE.is_file():
        yield from map(_noise, range(RATE))
        return
    with av.open(str(SAMPLE)) as source:
        frames = itertools.islice(source.decode(video=0), RATE)
        shown = [np.asarray(frame.to_ndarray(format="rgb24"), np.uint8) for frame in frames]
    yield from shown + shown[-1:] * (RATE - len(shown))  # the sample has one too few


def _noise(number: int) -> Picture:
    """Soft shapes that move, under grain that does not stand still."""
    shapes = np.random.default_rng(0).integers(0, 256, (HEIGHT_PX // 40, WIDTH_PX // 40, 3), np.uint8)
    large = np.asarray(Image.fromarray(shapes).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC))
    grain = np.random.default_rng(number + 1).normal(0, 6, (HEIGHT_PX, WIDTH_PX, 1))
    moved = np.roll(large, (2 * number, 5 * number), axis=(0, 1))
    noisy: Picture = np.clip(moved + grain, 0, 255).astype(np.uint8)
    return noisy


def _write_group(path: Path, quality: int, held: int) -> None:
    """The pictures, each for `held` frames, as one group of H.264 frames."""
    with av.open(str(path), "w") as target:
        options = {"preset": "medium", "crf": str(quality), "threads": "1"}
        stream: Any = target.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = WIDTH_PX, HEIGHT_PX, "yuv420p"
        stream.gop_size = RATE * held
        for pixels in film_second():
            for _ in range(held):
                target.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        target.mux(stream.encode(None))


def _write_turns(path: Path, group: Path, turns: int) -> None:
    """The same packets again and again."""
    listing = group.with_suffix(".ffconcat")
    listing.write_text("ffconcat version 1.0\n" + f"file {group.name}\n" * turns)
    with av.open(str(listing), options={"auto_convert": "0"}) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
