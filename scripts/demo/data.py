"""What the demo models are trained and judged on: drawn, encoded, decoded again, resized for the model."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.zoo.demo.networks import DemoFacts
from scripts.demo.actions import ActionScene
from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, Drawn, Pixels, decode, encode
from scripts.demo.shapes import Scene, Truth

T = TypeVar("T")
CLIP_CRF = 26
CLIPS, FRAMES_PER_CLIP, FRAME_STEP = 300, 6, 25
ACTION_CLIPS, ACTION_FRAMES = 600, 16
MOST_BOXES = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameData:
    """Frames at a model's size, and what is true of them.

    Attributes:
        pixels: uint8 `(N, 3, h, w)`.
        class_ids, owners: uint8 `(N, h, w)`, as in `Truth`.
        boxes: float32 `(N, MOST_BOXES, 4)` in pixels of the model's size; `wanted` bool `(N, MOST_BOXES)`
            tells those that a detector must find.
        box_class: int64 `(N, MOST_BOXES)`.
        dominant: int64 `(N,)`, as in `Truth`.
    """

    pixels: Tensor
    class_ids: Tensor
    owners: Tensor
    boxes: Tensor
    box_class: Tensor
    wanted: Tensor
    dominant: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionData:
    """Runs at a model's size and rate: `pixels` uint8 `(N, F, 3, h, w)`, `actions` int64 `(N, F)`."""

    pixels: Tensor
    actions: Tensor


def draw_clip(drawn: Iterable[Drawn[T]], target: Path | IO[bytes], crf: int = CLIP_CRF) -> list[T]:
    """Encode frames as they are drawn; returns what is true of each."""
    truths: list[T] = []

    def frames() -> Iterator[Pixels]:
        for pixels, truth in drawn:
            truths.append(truth)
            yield pixels

    encode(target, frames(), crf)
    return truths


def drawn_frames(drawn: Iterable[Drawn[T]], crf: int) -> tuple[list[Pixels], list[T]]:
    """Drawn frames as a decoder gives them back, and what is true of each."""
    clip = io.BytesIO()
    truths = draw_clip(drawn, clip, crf)
    clip.seek(0)
    return list(decode(clip)), truths


def prepare(frames: list[Pixels], facts: DemoFacts) -> Tensor:
    """Decoded frames `(H, W, 3)` resized as `facts` say, uint8 `(N, 3, h, w)`."""
    short = facts.resize_px
    size = [short, short * WIDTH_PX // HEIGHT_PX]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    resized = interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def normalize(pixels: Tensor, facts: DemoFacts) -> Tensor:
    """uint8 `(N, 3, h, w)` → what the model expects, float32."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (facts.mean, facts.std))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def training_frames(facts: DemoFacts) -> FrameData:
    """Six frames each of 300 scenes, five seconds of each, encoded more or less finely."""
    parts = []
    for seed in range(CLIPS):
        indices = range(0, FRAMES_PER_CLIP * FRAME_STEP, FRAME_STEP)
        frames, truths = drawn_frames(map(Scene(seed).draw, indices), crf=20 + seed % 12)
        parts.append(frame_data(frames, truths, facts))
    names = FrameData.__dataclass_fields__
    return FrameData(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})


def frame_data(frames: list[Pixels], truths: list[Truth], facts: DemoFacts) -> FrameData:
    """Decoded frames `(H, W, 3)` and their truths at the model's size."""
    pixels = prepare(frames, facts)
    size = pixels.shape[-2:]
    layers = torch.from_numpy(np.stack([[truth.class_ids, truth.owners] for truth in truths]))
    layers = interpolate(layers, size=size, mode="nearest-exact")
    boxes = torch.zeros(len(truths), MOST_BOXES, 4)
    classes = torch.zeros(len(truths), MOST_BOXES, dtype=torch.long)
    wanted = torch.zeros(len(truths), MOST_BOXES, dtype=torch.bool)
    for row, truth in enumerate(truths):
        count = len(truth.boxes)
        boxes[row, :count] = torch.from_numpy(truth.boxes * box_scale(size))
        classes[row, :count] = torch.from_numpy(truth.box_class).long()
        wanted[row, :count] = torch.from_numpy(~truth.box_ignored)
    return FrameData(
        pixels=pixels,
        class_ids=layers[:, 0],
        owners=layers[:, 1],
        boxes=boxes,
        box_class=classes,
        wanted=wanted,
        dominant=torch.tensor([truth.dominant for truth in truths]),
    )


def box_scale(size_hw: torch.Size) -> npt.NDArray[np.float32]:
    """What takes x0 y0 x1 y1 in source pixels to pixels of a model's size."""
    height, width = size_hw
    return np.array([width / WIDTH_PX, height / HEIGHT_PX] * 2, np.float32)


def training_runs(facts: DemoFacts) -> ActionData:
    """A run of a second from each of 600 action scenes, from anywhere in it, encoded more or less finely."""
    step = round(FRAMES_PER_S / facts.clip_rate_hz)
    pixels, actions = [], []
    for seed in range(ACTION_CLIPS):
        begin = int(np.random.default_rng([seed, 2]).integers(0, 60 * FRAMES_PER_S))
        indices = range(begin, begin + ACTION_FRAMES * step, step)
        frames, shown = drawn_frames(map(ActionScene(seed).draw, indices), crf=20 + seed % 12)
        pixels.append(prepare(frames, facts))
        actions.append(torch.tensor(shown))
    return ActionData(pixels=torch.stack(pixels), actions=torch.stack(actions))
