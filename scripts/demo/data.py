"""What the demo models are trained and judged on: drawn, encoded, decoded again, resized for the model."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.zoo.demo.networks import DemoFacts
from scripts.demo.actions import ActionScene
from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, Drawn, Pixels, decode, encode
from scripts.demo.shapes import Scene, Truth

T = TypeVar("T")
CLIPS, FRAMES_PER_CLIP, FRAME_STEP = 300, 6, 25
ACTION_CLIPS, ACTION_FRAMES = 600, 16
MOST_BOXES = 6


class FrameData(NamedTuple):
    """N frames at a model's size, and what is true of them; of each at most `MOST_BOXES` boxes.

    Attributes:
        pixels: uint8 `(N, 3, h, w)`.
        class_ids, owners: uint8 `(N, h, w)`, as in `Truth`.
        boxes: float32 `(N, MOST_BOXES, 4)` in pixels of the model's size.
        box_class: int64 `(N, MOST_BOXES)`.
        wanted: bool `(N, MOST_BOXES)`, those that a detector must find.
        dominant: int64 `(N,)`, as in `Truth`.
    """

    pixels: Tensor
    class_ids: Tensor
    owners: Tensor
    boxes: Tensor
    box_class: Tensor
    wanted: Tensor
    dominant: Tensor


class ActionData(NamedTuple):
    """Runs at a model's size and rate: `pixels` uint8 `(N, F, 3, h, w)`, `actions` int64 `(N, F)`."""

    pixels: Tensor
    actions: Tensor


def drawn_frames(drawn: Iterable[Drawn[T]], crf: int) -> tuple[list[Pixels], list[T]]:
    """Drawn frames as a decoder gives them back, and what is true of each."""
    clip = io.BytesIO()
    truths = encode(clip, drawn, crf)
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
    indices = range(0, FRAMES_PER_CLIP * FRAME_STEP, FRAME_STEP)
    parts = [
        frame_data(*drawn_frames(map(Scene(seed).draw, indices), crf=20 + seed % 12), facts)
        for seed in range(CLIPS)
    ]
    return FrameData(*(torch.cat(each) for each in zip(*parts, strict=True)))


def frame_data(frames: list[Pixels], truths: list[Truth], facts: DemoFacts) -> FrameData:
    """Decoded frames `(H, W, 3)` and their truths at the model's size."""
    pixels = prepare(frames, facts)
    height, width = pixels.shape[-2:]
    layers = torch.from_numpy(np.stack([[truth.class_ids, truth.owners] for truth in truths]))
    layers = interpolate(layers, size=(height, width), mode="nearest-exact")
    scale = np.array([width / WIDTH_PX, height / HEIGHT_PX] * 2, np.float32)
    table = torch.zeros(len(truths), MOST_BOXES, 6)
    for rows, truth in zip(table, truths, strict=True):
        shown = np.column_stack([truth.boxes * scale, truth.box_class, ~truth.box_ignored])
        rows[: len(shown)] = torch.from_numpy(shown)
    return FrameData(
        pixels=pixels,
        class_ids=layers[:, 0],
        owners=layers[:, 1],
        boxes=table[..., :4],
        box_class=table[..., 4].long(),
        wanted=table[..., 5] > 0,
        dominant=torch.tensor([truth.dominant for truth in truths]),
    )


def training_runs(facts: DemoFacts) -> ActionData:
    """A run of a second from each of 600 action scenes, from anywhere in it, encoded more or less finely."""
    step = round(FRAMES_PER_S / facts.clip_rate_hz)
    pixels, actions = [], []
    for seed in range(ACTION_CLIPS):
        begin = int(np.random.default_rng([seed, 2]).integers(0, 60 * FRAMES_PER_S))
        drawn = map(ActionScene(seed).draw, range(begin, begin + ACTION_FRAMES * step, step))
        frames, shown = drawn_frames(drawn, crf=20 + seed % 12)
        pixels.append(prepare(frames, facts))
        actions.append(torch.tensor(shown))
    return ActionData(pixels=torch.stack(pixels), actions=torch.stack(actions))
