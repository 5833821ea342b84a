"""Clips of frames as torchvision's `VideoClips` cuts them, from all frames of a medium. Knows no answers."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace

import av
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, Wanted
from pipelines.protocol.options import Options
from scripts.parity.media import Material, decode
from scripts.parity.subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clips:
    """C clips: pixels `(1, 3, T, h, w)` each, and the numbers of their first and last frames, `(C, 2)`."""

    pixels: list[Tensor]
    ends: npt.NDArray[np.int64]
    frames: int


def clips_by_hand(subject: Subject, material: Material, select: Options) -> Clips:
    """Whole clips, one behind the other, of the frames up to `select.max_frames` resampled ones."""
    clip = subject.spec.clip
    assert clip is not None
    frames = decode(material, Options())
    index = resampled(len(frames), claimed_rate(material), torchvision_rate(subject))
    if select.max_frames:
        index = index[: select.max_frames]
    length = select.clip_length or clip.length
    rows = index[: len(index) // length * length].reshape(-1, length)
    pixels = []
    for row in rows:
        shown = torch.from_numpy(np.asarray(frames.pixels_nhwc)[row]).permute(0, 3, 1, 2)
        pixels.append(subject.transform(shown)[None])
    numbers = frames.frame_index[rows]
    return Clips(pixels=pixels, ends=numbers[:, [0, -1]], frames=rows.size)


def torchvision_rate(subject: Subject) -> float:
    """The frame rate that the weights' documentation names."""
    import re

    from torchvision import models

    found = re.search(r"frame_rate=([\d.]+)", models.get_model_weights(subject.name).DEFAULT.meta["_docs"])
    assert found is not None
    return float(found[1])


def claimed_rate(material: Material) -> float:
    """Frames a second, as the container claims."""
    with av.open(io.BytesIO(material.load())) as file:
        rate = file.streams.video[0].average_rate
    assert rate is not None
    return float(rate)


def resampled(frames: int, rate: float, wanted: float) -> npt.NDArray[np.int64]:
    """Numbers of the frames that `VideoClips` takes of so many at a rate, to have them at another."""
    from torchvision.datasets.video_utils import VideoClips

    index = VideoClips._resample_video_idx(math.floor(frames * wanted / rate), rate, wanted)
    numbers = np.arange(frames)[index] if isinstance(index, slice) else index.numpy()
    return np.asarray(numbers, np.int64)


def served_index(material: Material, wanted: float) -> npt.NDArray[np.int64]:
    """Numbers of the frames that the server takes of a video at a rate, for clips."""
    options = replace(Options(), fps=wanted)
    with open_media(
        material.load(), options=options, limits=Limits(), device="cpu", wanted=Wanted(repeat_frames=True)
    ) as medium:
        return np.concatenate([one.frame_index for one in medium.chunks()])
