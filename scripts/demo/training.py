"""Trains the demo models on what `data` draws. Writes nothing; the caller seeds torch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pipelines.zoo.demo.networks import (
    DEMO_FACTS,
    DemoActionNet,
    DemoClassifier,
    DemoDetector,
    DemoSegmenter,
    DemoTask,
    build_demo,
)
from scripts.demo.actions import CLEAR_SHARE, MOVES_LEFT, MOVES_RIGHT
from scripts.demo.data import ActionData, FrameData, normalize, training_frames, training_runs

BATCH, ACTION_BATCH = 8, 16
STEPS: dict[DemoTask, int] = {"segmentation": 700, "classification": 1200, "detection": 1600, "action": 1200}
PEAK_RATE = 4e-3
# How far the colours of half the frames are turned, so that shape has to count besides colour.
HUE_TURN_RAD = math.radians(40)

Loss = Callable[[int], Tensor]


def train(task: DemoTask) -> nn.Module:
    """Draw what the task needs and train its network on it, about as long as `STEPS` says."""
    network = build_demo(task)
    began = time.perf_counter()
    loss: Loss
    if isinstance(network, DemoActionNet):
        loss = action_loss(network, training_runs(DEMO_FACTS[task]))
    else:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        frames = training_frames(DEMO_FACTS[task])
        if isinstance(network, DemoSegmenter):
            loss = segmentation_loss(network, frames)
        elif isinstance(network, DemoClassifier):
            loss = classification_loss(network, frames)
        else:
            assert isinstance(network, DemoDetector)
            loss = detection_loss(network, frames)
    print(f"{task}: drawn in {time.perf_counter() - began:.0f} s", flush=True)
    fit(network, loss, STEPS[task])
    return network.eval()


def fit(network: nn.Module, loss_of_step: Loss, steps: int) -> None:
    """AdamW, one cycle of the learning rate."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=steps, pct_start=0.1)
    began = time.perf_counter()
    for step in range(steps):
        loss = loss_of_step(step)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.perf_counter() - began:.0f} s", flush=True)


def segmentation_loss(network: DemoSegmenter, frames: FrameData) -> Loss:
    """Cross-entropy per pixel.

    Background counts little at first: it is the most of every frame, and while it rules the loss the network
    is slow to learn what tells the shapes apart. Equal weights at the end make the borders exact.
    """
    facts = DEMO_FACTS["segmentation"]
    weights = torch.ones(len(facts.labels))

    def loss(step: int) -> Tensor:
        weights[0] = 0.2 if step < 0.6 * STEPS["segmentation"] else 1.0
        chosen = torch.randint(len(frames.pixels), (BATCH,))
        pixels, ids, _ = flip(frames.pixels[chosen], frames.class_ids[chosen], frames.boxes[chosen])
        return nn.functional.cross_entropy(network(relight(normalize(pixels, facts))), ids.long(), weights)

    return loss


def classification_loss(network: DemoClassifier, frames: FrameData) -> Loss:
    """Cross-entropy of the class of the frame, and of the classes' shares of each cell, from the masks."""
    facts = DEMO_FACTS["classification"]
    decided = torch.nonzero(frames.dominant >= 0)[:, 0]

    def loss(step: int) -> Tensor:
        chosen = decided[torch.randint(len(decided), (BATCH,))]
        pixels, ids, _ = flip(frames.pixels[chosen], frames.class_ids[chosen], frames.boxes[chosen])
        cells = network.cells(relight(normalize(turn_hues(pixels), facts)))
        one_hot = nn.functional.one_hot(ids.long(), len(facts.labels) + 1).permute(0, 3, 1, 2).float()
        shares = nn.functional.interpolate(one_hot, size=cells.shape[-2:], mode="area")
        whole = nn.functional.cross_entropy(network.pooled(cells), frames.dominant[chosen])
        return nn.functional.cross_entropy(cells, shares) + 0.2 * whole

    return loss


def detection_loss(network: DemoDetector, frames: FrameData) -> Loss:
    """Quality focal loss of the scores and GIoU loss of the boxes, in the cells whose middle shows a shape.

    A shape that is ignored asks nothing of its cells.
    """
    facts = DEMO_FACTS["detection"]

    def loss(step: int) -> Tensor:
        chosen = torch.randint(len(frames.pixels), (BATCH,))
        pixels, owners, true_boxes = flip(frames.pixels[chosen], frames.owners[chosen], frames.boxes[chosen])
        logits, boxes = network.maps(relight(normalize(turn_hues(pixels), facts)))
        owner = owners[:, :: network.STRIDE_PX, :: network.STRIDE_PX].long()
        shape = (owner - 1).clamp(min=0)
        row = torch.arange(BATCH)[:, None, None]
        shown = owner > 0
        positive = shown & frames.wanted[chosen][row, shape]
        labels = frames.box_class[chosen][row, shape]
        return box_losses(
            logits.permute(0, 2, 3, 1)[positive | ~shown],
            boxes.permute(0, 2, 3, 1)[positive],
            torch.where(positive, labels, 0)[positive | ~shown],
            true_boxes[row, shape][positive],
        )

    return loss


def box_losses(logits: Tensor, boxes: Tensor, labels: Tensor, true_boxes: Tensor) -> Tensor:
    """Of C cells, P of them positive: logits `(C, K - 1)`, labels `(C,)`, else 0; both boxes `(P, 4)`."""
    from torchvision.ops import generalized_box_iou_loss

    place = 1 - generalized_box_iou_loss(boxes, true_boxes)
    # GIoU is at most IoU, and equal to it where one box holds the other: near enough as the aim of a score.
    quality = torch.zeros_like(logits)
    positive = torch.nonzero(labels)[:, 0]
    quality[positive, labels[positive] - 1] = place.detach().clamp(min=0)
    focus = (logits.sigmoid() - quality).abs().square().detach()
    scores: Tensor = nn.functional.binary_cross_entropy_with_logits(logits, quality, focus, reduction="sum")
    loss: Tensor = (scores + 2 * (1 - place).sum()) / max(1, len(positive))
    return loss


def action_loss(network: DemoActionNet, runs: ActionData) -> Loss:
    """Cross-entropy of the action that most frames of a clip show; clips without one are passed over."""
    facts = DEMO_FACTS["action"]
    starts = runs.pixels.shape[1] - facts.clip_frames + 1

    def loss(step: int) -> Tensor:
        rows = torch.randint(len(runs.pixels), (2 * ACTION_BATCH,))
        moments = torch.randint(starts, (2 * ACTION_BATCH, 1)) + torch.arange(facts.clip_frames)
        counts = nn.functional.one_hot(runs.actions[rows[:, None], moments], len(facts.labels)).sum(1)
        clear = torch.nonzero(counts.amax(1) >= CLEAR_SHARE * facts.clip_frames)[:ACTION_BATCH, 0]
        clips, actions = mirror(runs.pixels[rows[clear, None], moments[clear]], counts[clear].argmax(1))
        batch, count = clips.shape[:2]
        frames_nchw = normalize(clips.flatten(0, 1), facts)
        pixels = frames_nchw.reshape(batch, count, *frames_nchw.shape[1:]).permute(0, 2, 1, 3, 4)
        return nn.functional.cross_entropy(network(relight(pixels)), actions)

    return loss


def flip(pixels: Tensor, ids: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The whole batch mirrored, in half the cases, along each axis; boxes x0 y0 x1 y1 `(N, D, 4)`."""
    for axis, low, high in ((-1, 0, 2), (-2, 1, 3)):
        if torch.rand(()) < 0.5:
            pixels, ids = pixels.flip(axis), ids.flip(axis)
            boxes = boxes.clone()
            boxes[..., [low, high]] = pixels.shape[axis] - boxes[..., [high, low]]
    return pixels, ids, boxes


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
