"""Clips of frames as torchvision's `VideoClips` cuts them, from all frames of a medium. Knows no answers."""

from __future__ import annotations

import math
import re

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import models
from torchvision.datasets.video_utils import VideoClips

from pipelines.frames.batch import to_numpy
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits, Wanted
from pipelines.protocol.options import Options
from scripts.parity.measures import Measure, Row
from scripts.parity.media import Material, decode
from scripts.parity.subject import Subject
from tests.support.media import info_of
from tests.support.pixels import to_nchw

# Rates that torchvision's video weights were trained with, and one above those of most videos.
RATES = (7.5, 15.0, 30.0)


def clips_by_hand(
    subject: Subject, material: Material, select: Options
) -> tuple[list[Tensor], npt.NDArray[np.int64]]:
    """Whole clips, one after the other, of the frames up to `select.max_frames` resampled ones.

    Returns:
        Of each of C clips pixels `(1, 3, T, h, w)`; and the numbers of its frames, `(C, T)`.
    """
    clip = subject.spec.clip
    assert clip is not None
    frames = decode(material, Options())
    index = _resampled(material, len(frames), _torchvision_rate(subject))
    if select.max_frames:
        index = index[: select.max_frames]
    length = select.clip_length or clip.length
    rows = index[: len(index) // length * length].reshape(-1, length)
    shown = to_nchw(to_numpy(frames.pixels_nhwc))
    pixels = [subject.transform(shown[row])[None] for row in rows]
    return pixels, frames.frame_index[rows]


def compare_frames(material: Material) -> Row:
    """Which frames make clips, at each of RATES: the server's against those of torchvision's."""
    count = len(decode(material, Options()))
    measures, surplus = [], []
    for wanted in RATES:
        theirs, ours = _resampled(material, count, wanted), _served_index(material, wanted)
        other = int((ours[: len(theirs)] != theirs).sum()) if len(ours) >= len(theirs) else count
        measures.append(Measure(name=f"other frames at {wanted:g}/s", value=other, bar=0, digits=0))
        surplus.append(len(ours) - len(theirs))
    last = Measure(name="frames after torchvision's last", value=max(surplus), bar=1, digits=0)
    return Row(model=material.name, media=1, frames=count, measures=(*measures, last))


def _torchvision_rate(subject: Subject) -> float:
    """The frame rate that the weights' documentation names."""
    text = models.get_model_weights(subject.spec.name).DEFAULT.meta["_docs"]
    found = re.search(r"frame_rate=([\d.]+)", text)
    assert found is not None
    return float(found[1])


def _resampled(material: Material, frames: int, wanted: float) -> npt.NDArray[np.int64]:
    """Numbers of the frames that `VideoClips` takes of so many at the container's rate, for another rate."""
    rate = info_of(material.load()).fps
    assert rate is not None
    index = VideoClips._resample_video_idx(math.floor(frames * wanted / rate), rate, wanted)
    return torch.arange(frames)[index].numpy()


def _served_index(material: Material, wanted: float) -> npt.NDArray[np.int64]:
    """Numbers of the frames that the server takes of a video at a rate, for clips."""
    options, repeating = Options(fps=wanted), Wanted(repeat_frames=True)
    data = material.load()
    with open_media(data, options=options, limits=Limits(), device="cpu", wanted=repeating) as medium:
        return np.concatenate([one.frame_index for one in medium.chunks()])
