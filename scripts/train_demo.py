"""Makes the embedded demo model: draws clips of shapes, encodes them, and trains on what a decoder gives back.

    python scripts/train_demo.py                     train, write the weights to assets/, print the IoU
    python scripts/train_demo.py --evaluate-only     the IoU of the weights in assets/, on fresh clips
    python scripts/train_demo.py --draw clip.mp4 --seed 7 [--seconds 5] [--truth clip.npz]

Same machine and versions, same weights: everything is seeded. About four minutes on two cores.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from model_inference import DEMO_LABELS, DEMO_WEIGHTS, DemoSegmenter, Model, demo_spec  # noqa: E402
from shapes import FRAMES_PER_S, HEIGHT_PX, WIDTH_PX, decode, draw_clip  # noqa: E402

CLIP_CRF = 26
CLIPS, FRAMES_PER_CLIP, FRAME_STEP = 300, 6, 25
BATCH, STEPS, PEAK_RATE = 8, 700, 4e-3
# Seeds 0 and up train; these are far beyond them.
EVALUATION_SEEDS = range(900_001, 900_009)


def prepare(frames: list[np.ndarray]) -> Tensor:  # type: ignore[type-arg]
    """Decoded frames `(H, W, 3)` resized as `demo_spec` says, uint8 `(N, 3, h, w)`."""
    short = demo_spec().preprocessing.resize_px
    assert isinstance(short, int)
    size = [short, short * WIDTH_PX // HEIGHT_PX]
    pixels = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).float()
    resized = nn.functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def normalize(pixels: Tensor) -> Tensor:
    """uint8 `(N, 3, h, w)` → what the model expects, float32."""
    facts = demo_spec().preprocessing
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (facts.mean, facts.std))
    return ((pixels.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def training_data() -> tuple[Tensor, Tensor]:
    """Frames uint8 `(N, 3, h, w)` and class ids uint8 `(N, h, w)`, both at the model's size."""
    pixels, ids = [], []
    for seed in range(CLIPS):
        clip = io.BytesIO()
        indices = range(0, FRAMES_PER_CLIP * FRAME_STEP, FRAME_STEP)
        masks = draw_clip(seed, indices, clip, crf=20 + seed % 12)
        clip.seek(0)
        pixels.append(prepare(list(decode(clip))))
        truth = torch.from_numpy(masks)[:, None]
        ids.append(nn.functional.interpolate(truth, size=pixels[-1].shape[-2:], mode="nearest-exact")[:, 0])
    return torch.cat(pixels), torch.cat(ids)


def augment(pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Flips of the whole batch, contrast and brightness of each frame."""
    for axis in (-1, -2):
        if torch.rand(()) < 0.5:
            pixels, ids = pixels.flip(axis), ids.flip(axis)
    gain = 0.8 + 0.4 * torch.rand(len(pixels), 1, 1, 1)
    lift = 0.3 * (torch.rand(len(pixels), 1, 1, 1) - 0.5)
    return normalize(pixels) * gain + lift, ids.long()


def train(network: nn.Module, pixels: Tensor, ids: Tensor) -> None:
    """AdamW on cross-entropy, one cycle of the learning rate.

    Background counts little at first: it is the most of every frame, and while it rules the loss the network
    is slow to learn what tells the shapes apart. Equal weights at the end make the borders exact.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=STEPS, pct_start=0.1)
    weights = torch.ones(len(DEMO_LABELS))
    began = time.perf_counter()
    for step in range(STEPS):
        weights[0] = 0.2 if step < 0.6 * STEPS else 1.0
        chosen = torch.randint(len(pixels), (BATCH,))
        batch, truth = augment(pixels[chosen], ids[chosen])
        loss = nn.functional.cross_entropy(network(batch), truth, weights)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}, {time.perf_counter() - began:.0f} s", flush=True)


def clip_iou(model: Model, seed: int) -> list[float]:
    """IoU of each class over a fresh five-second clip, every fifth frame, at the clip's own size."""
    clip = io.BytesIO()
    masks = draw_clip(seed, range(0, 5 * FRAMES_PER_S, 5), clip, CLIP_CRF)
    clip.seek(0)
    frames = list(decode(clip))
    found = []
    for start in range(0, len(frames), 10):
        logits = model(normalize(prepare(frames[start : start + 10])))
        small = logits.argmax(1, keepdim=True).to(torch.uint8)
        found.append(nn.functional.interpolate(small, size=(HEIGHT_PX, WIDTH_PX), mode="nearest-exact")[:, 0])
    ids, truth = torch.cat(found).numpy(), masks
    return [
        float(((ids == k) & (truth == k)).sum() / ((ids == k) | (truth == k)).sum())
        for k in range(len(DEMO_LABELS))
    ]


def evaluate() -> None:
    """Print the IoU per class and clip, and the mean of all."""
    model = Model(demo_spec(), "cpu")
    scores = np.array([clip_iou(model, seed) for seed in EVALUATION_SEEDS])
    for seed, row in zip(EVALUATION_SEEDS, scores, strict=True):
        print(f"seed {seed}: mean {row.mean():.4f}, " + ", ".join(f"{value:.3f}" for value in row))
    for label, value in zip(DEMO_LABELS, scores.mean(0), strict=True):
        print(f"{label}: {value:.4f}")
    print(f"mean IoU {scores.mean():.4f}, worst clip {scores.mean(1).min():.4f}")


def make_weights() -> None:
    """Draw, train and write the weights, as float16."""
    torch.manual_seed(0)
    network = DemoSegmenter(classes=len(DEMO_LABELS))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    began = time.perf_counter()
    pixels, ids = training_data()
    print(f"{len(pixels)} frames drawn in {time.perf_counter() - began:.0f} s", flush=True)
    train(network, pixels, ids)
    halves = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in network.state_dict().items()
    }
    save_file(halves, DEMO_WEIGHTS)
    print(f"{DEMO_WEIGHTS}: {DEMO_WEIGHTS.stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demo model, or draw a clip with its truth.")
    parser.add_argument("--draw", type=Path, metavar="FILE.mp4", help="draw a clip instead of training")
    parser.add_argument("--seed", type=int, default=2027, help="of the clip (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=5.0, help="length of the clip (default: %(default)s)"
    )
    parser.add_argument("--truth", type=Path, metavar="FILE.npz", help="write its masks (uint8, N×H×W) too")
    parser.add_argument("--evaluate-only", action="store_true", help="measure the weights in assets/")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.draw:
        frame_count = max(1, round(arguments.seconds * FRAMES_PER_S))
        masks = draw_clip(arguments.seed, range(frame_count), arguments.draw, CLIP_CRF)
        if arguments.truth:
            np.savez_compressed(arguments.truth, masks=masks)
        return
    if not arguments.evaluate_only:
        make_weights()
    evaluate()


if __name__ == "__main__":
    main()
