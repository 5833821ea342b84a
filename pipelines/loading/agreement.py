"""Whether two answers of one network to the same pixels agree, and the test pixels. Knows no media."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.models.outputs import BoxOutput, LogitOutput, Output, named_tensors

SAME_IOU = 0.9
SURE_SCORE = 0.5
SAME_COSINE = 0.99
# How far the numbers of a network of one column may differ, as a share of their spread.
SAME_NUMBER = 0.05
# A winner that leads by less than this share of its row's spread is a tie, which rounding may decide.
TIE = 0.01
LEAST_SPREAD = 1e-3
# How far the picture moves from one frame of an example clip to the next.
SPEED_PX = 3


def example_pixels(shapes: Iterable[tuple[int, ...]]) -> Iterator[Tensor]:
    """Batches `(N, 3, h, w)` or `(N, 3, T, h, w)` of seeded pictures with structure of all sizes, normalized.

    White noise would not resemble what models see. In clips the pictures move to the right.
    """
    generator = torch.Generator().manual_seed(0)
    for shape in shapes:
        pixels = torch.zeros(shape[0], 3, *shape[-2:])
        for cells in (2, 5, 12, 30):
            grain = torch.randn(shape[0], 3, cells, cells, generator=generator)
            pixels += functional.interpolate(grain, size=shape[-2:], mode="bilinear")
        pixels = pixels / pixels.std()
        if len(shape) == 5:
            pixels = torch.stack([pixels.roll(SPEED_PX * step, dims=-1) for step in range(shape[2])], dim=2)
        yield pixels


def deviation(before: Any, after: Any) -> float:
    """The largest difference between two answers of a network's layers, as a share of the tensor's spread.

    The spread is the largest number minus the smallest, but at least `LEAST_SPREAD` of the largest absolute
    one, since rounding errors grow with it. Rows of `after` that `before` does not have are ignored.
    """
    shares = [0.0]
    for (_, one), (_, other) in zip(named_tensors(before), named_tensors(after), strict=True):
        rows = other[: len(one)]
        if rows.shape != one.shape:
            return float("inf")
        known, found = one.float(), rows.float()
        spread = torch.maximum(known.amax() - known.amin(), LEAST_SPREAD * known.abs().amax())
        worst = (known - found).abs().amax()
        shares.append(float(worst / spread) if worst > 0 else float(worst))
    return max(shares, key=lambda share: (math.isnan(share), share))


def agreeing(plain: Sequence[Output], other: Sequence[Output]) -> float:
    """The share of the winners, or sure boxes, in `plain` that `other` has too."""
    same = total = 0
    for before, after in zip(plain, other, strict=True):
        if isinstance(before, LogitOutput) and isinstance(after, LogitOutput):
            same_rows = _same_vectors if before.vectors else _same_winners
            hits = same_rows(before.logits, after.logits)
        else:
            assert isinstance(before, BoxOutput)
            assert isinstance(after, BoxOutput)
            hits = _same_boxes(before, after)
        same, total = same + int(hits.sum()), total + hits.numel()
    return same / total if total else 1.0


def _same_vectors(before: Tensor, after: Tensor) -> Tensor:
    """For each row, whether it has nearly the same direction."""
    return functional.cosine_similarity(before, after, dim=1) > SAME_COSINE


def _same_winners(before: Tensor, after: Tensor) -> Tensor:
    """For each row that is not a tie, whether the winner is the same; of one column, nearly the number."""
    if not before.is_floating_point():
        return before == after
    if before.shape[1] < 2:
        spread = (before.amax() - before.amin()).clamp_min(LEAST_SPREAD)
        return (before - after).abs() < SAME_NUMBER * spread
    best = before.topk(2, dim=1).values
    spread = before.amax(dim=1) - before.amin(dim=1)
    clear = best[:, 0] - best[:, 1] > TIE * spread
    return (before.argmax(dim=1) == after.argmax(dim=1))[clear]


def _same_boxes(before: BoxOutput, after: BoxOutput) -> Tensor:
    """For each sure box, whether the other answer has one of its class in its place."""
    from torchvision.ops import box_iou

    hits = [torch.empty(0, dtype=torch.bool)]
    for one, two in zip(before.frames, after.frames, strict=True):
        sure = one["scores"] > SURE_SCORE
        boxes, labels = one["boxes"][sure].float(), one["labels"][sure]
        if len(two["boxes"]) == 0:
            hits.append(torch.zeros(len(boxes), dtype=torch.bool))
            continue
        close = box_iou(boxes, two["boxes"].float()) > SAME_IOU
        hits.append((close & (labels[:, None] == two["labels"][None])).any(dim=1).cpu())
    return torch.cat(hits)
