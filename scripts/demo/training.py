"""Trains the demo models on clips that are drawn, encoded, decoded again, and resized for the model.

Writes nothing; the caller seeds torch.
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.zoo.demo import networks
from pipelines.zoo.demo.networks import DEMO_FACTS, DemoFacts, DemoTask, build_demo
from scripts.demo.actions import CLEAR_SHARE, MOVES_LEFT, MOVES_RIGHT, ActionScene
from scripts.demo.clips import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, Drawn, Pixels, T, decode, encode
from scripts.demo.shapes import Scene, Truth

CLIPS, FRAMES_PER_CLIP, FRAME_STEP = 300, 6, 25
ACTION_CLIPS, ACTION_FRAMES = 600, 16
MOST_BOXES = 6
BATCH, ACTION_BATCH = 8, 16
STEPS: dict[DemoTask, int] = {"segmentation": 700, "classification": 1200, "detection": 1600, "action": 1200}
PEAK_RATE = 4e-3
# How far the colours of half the frames are turned, so that shape has to count besides colour.
HUE_TURN_RAD = math.radians(40)


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
    clip, truths = encode(drawn, crf)
    return list(decode(io.BytesIO(clip))), truths


def prepare(frames: list[Pixels], facts: DemoFacts) -> Tensor:
    """Decoded frames `(H, W, 3)` resized as `facts` say, uint8 `(N, 3, h, w)`."""
    short = facts.resize_px
    size = [short, short * WIDTH_PX // HEIGHT_PX]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    resized = functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
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
    layers = functional.interpolate(layers, size=(height, width), mode="nearest-exact")
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


def train(task: DemoTask) -> nn.Module:
    """Draw what the task needs and train its network on it: AdamW, one cycle of the learning rate."""
    network, facts, steps = build_demo(task), DEMO_FACTS[task], STEPS[task]
    began = time.perf_counter()
    if task == "action":
        data: ActionData | FrameData = training_runs(facts)
    else:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        data = training_frames(facts)
    print(f"{task}: drawn in {time.perf_counter() - began:.0f} s", flush=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for step in range(steps):
        loss = LOSSES[task](network, data, step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.perf_counter() - began:.0f} s", flush=True)
    return network.eval()


def segmentation_loss(network: networks.DemoSegmenter, frames: FrameData, step: int) -> Tensor:
    """Cross-entropy per pixel.

    Background counts little at first: it is the most of every frame, and while it rules the loss the network
    is slow to learn what tells the shapes apart. Equal weights at the end make the borders exact.
    """
    facts = DEMO_FACTS["segmentation"]
    weights = torch.ones(len(facts.labels))
    weights[0] = 0.2 if step < 0.6 * STEPS["segmentation"] else 1.0
    batch = draw_batch(frames, torch.arange(len(frames.pixels)))
    logits = network(relight(normalize(batch.pixels, facts)))
    return functional.cross_entropy(logits, batch.class_ids.long(), weights)


def classification_loss(network: networks.DemoClassifier, frames: FrameData, _step: int) -> Tensor:
    """Cross-entropy of the class of the frame, and of the classes' shares of each cell, from the masks."""
    facts = DEMO_FACTS["classification"]
    batch = draw_batch(frames, torch.nonzero(frames.dominant >= 0)[:, 0])
    cells = network.cells(relight(normalize(turn_hues(batch.pixels), facts)))
    one_hot = functional.one_hot(batch.class_ids.long(), len(facts.labels) + 1).permute(0, 3, 1, 2).float()
    shares = functional.interpolate(one_hot, size=cells.shape[-2:], mode="area")
    whole = functional.cross_entropy(network.pooled(cells), batch.dominant)
    return functional.cross_entropy(cells, shares) + 0.2 * whole


def detection_loss(network: networks.DemoDetector, frames: FrameData, _step: int) -> Tensor:
    """Quality focal loss of the scores and GIoU loss of the boxes, in the cells whose middle shows a shape.

    A shape that is ignored asks nothing of its cells.
    """
    batch = draw_batch(frames, torch.arange(len(frames.pixels)))
    logits, boxes = network.maps(relight(normalize(turn_hues(batch.pixels), DEMO_FACTS["detection"])))
    owner = batch.owners[:, :: network.STRIDE_PX, :: network.STRIDE_PX].long()
    shape, row = (owner - 1).clamp(min=0), torch.arange(BATCH)[:, None, None]
    positive = (owner > 0) & batch.wanted[row, shape]
    counted = positive | (owner == 0)
    return box_losses(
        logits.permute(0, 2, 3, 1)[counted],
        boxes.permute(0, 2, 3, 1)[positive],
        torch.where(positive, batch.box_class[row, shape], 0)[counted],
        batch.boxes[row, shape][positive],
    )


def box_losses(logits: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor) -> Tensor:
    """Of C cells, P of them positive: logits `(C, K - 1)`, labels `(C,)`, else 0; both boxes `(P, 4)`."""
    from torchvision.ops import generalized_box_iou_loss

    place = 1 - generalized_box_iou_loss(boxes, true_boxes)
    # GIoU is at most IoU, and equal to it where one box holds the other: near enough as the aim of a score.
    quality = torch.zeros_like(logits)
    positive = torch.nonzero(labels)[:, 0]
    quality[positive, labels[positive] - 1] = place.detach().clamp(min=0)
    focus = (logits.sigmoid() - quality).abs().square().detach()
    scores: Tensor = functional.binary_cross_entropy_with_logits(logits, quality, focus, reduction="sum")
    loss: Tensor = (scores + 2 * (1 - place).sum()) / max(1, len(positive))
    return loss


def action_loss(network: networks.DemoActionNet, runs: ActionData, _step: int) -> Tensor:
    """Cross-entropy of the action that most frames of a clip show; clips without one are passed over."""
    facts = DEMO_FACTS["action"]
    rows = torch.randint(len(runs.pixels), (2 * ACTION_BATCH,))
    begins = torch.randint(runs.pixels.shape[1] - facts.clip_frames + 1, (2 * ACTION_BATCH, 1))
    moments = begins + torch.arange(facts.clip_frames)
    counts = functional.one_hot(runs.actions[rows[:, None], moments], len(facts.labels)).sum(1)
    clear = torch.nonzero(counts.amax(1) >= CLEAR_SHARE * facts.clip_frames)[:ACTION_BATCH, 0]
    clips, actions = mirror(runs.pixels[rows[clear, None], moments[clear]], counts[clear].argmax(1))
    pixels = torch.stack([normalize(clip, facts) for clip in clips]).transpose(1, 2)
    return functional.cross_entropy(network(relight(pixels)), actions)


# What a network gives on a batch of the data, at a step.
LOSSES: dict[DemoTask, Callable[[Any, Any, int], Tensor]] = {
    "segmentation": segmentation_loss,
    "classification": classification_loss,
    "detection": detection_loss,
    "action": action_loss,
}


def draw_batch(frames: FrameData, rows: Tensor) -> FrameData:
    """Any of these rows; the whole batch is mirrored, in half the cases, along each axis."""
    chosen = rows[torch.randint(len(rows), (BATCH,))]
    batch = FrameData(*(each[chosen] for each in frames))
    for axis, low, high in ((-1, 0, 2), (-2, 1, 3)):
        if torch.rand(()) < 0.5:
            batch.boxes[..., [low, high]] = batch.pixels.shape[axis] - batch.boxes[..., [high, low]]
            pixels, class_ids, owners = (each.flip(axis) for each in batch[:3])
            batch = batch._replace(pixels=pixels, class_ids=class_ids, owners=owners)
    return batch


def mirror(clips: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
    """The whole batch `(N, T, 3, h, w)` mirrored along each axis in half the cases, its actions too."""
    if torch.rand(()) < 0.5:
        clips = clips.flip(-1)
        swapped = torch.where(actions == MOVES_LEFT, MOVES_RIGHT, MOVES_LEFT)
        actions = torch.where((actions == MOVES_LEFT) | (actions == MOVES_RIGHT), swapped, actions)
    return (clips.flip(-2) if torch.rand(()) < 0.5 else clips), actions


def relight(pixels: Tensor) -> Tensor:
    """Contrast and brightness of each frame or clip, along the first axis, changed a little."""
    shape = (len(pixels), *[1] * (pixels.ndim - 1))
    gain = 0.8 + 0.4 * torch.rand(shape)
    lift = 0.3 * (torch.rand(shape) - 0.5)
    return pixels * gain + lift


def turn_hues(pixels: Tensor) -> Tensor:
    """The colours of every other frame, uint8 `(N, 3, h, w)`, turned around grey by an angle of its own."""
    angles = HUE_TURN_RAD * (2 * torch.rand((len(pixels) + 1) // 2, 1, 1) - 1)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
    # Rodrigues' formula around (1, 1, 1).
    turn = angles.cos() * torch.eye(3) + (1 - angles.cos()) / 3 + angles.sin() * cross
    turned = pixels.clone()
    mixed = torch.einsum("ncd,ndhw->nchw", turn, pixels[::2].float())
    turned[::2] = mixed.round().clamp(0, 255).to(torch.uint8)
    return turned
