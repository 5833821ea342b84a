"""What numbers look like: boxes in 0..1 or in pixels, corners or centres, scores or logits. Knows no heads.

The bounds lie between what was measured of trained networks and of wrong readings of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

# 99 of 100 coordinates are below: in 0..1 this, and in pixels at least this share of the shorter side.
MOST_OF_UNIT, LEAST_OF_PIXELS = 1.6, 0.3
# Offsets to a grid's cells are below this.
MOST_OF_OFFSETS = 10.0
# Shares of boxes whose last two numbers are not below the first two: at least of corners, at most of centres.
MOST_CORNERS, FEW_CORNERS = 0.95, 0.5
# From so many boxes on their order can be told.
ENOUGH_BOXES = 20
# Of a background's column: its mean, and the share of rows in which it is the best.
BACKGROUND_MEAN, BACKGROUND_ROWS = 0.8, 0.95
# Rounding, also of int8.
NEAR = 0.02
MOST_NUMBERS = 1 << 22


def q99(numbers: Tensor) -> float:
    """The 99th percentile of the absolute values; 0 of none."""
    some = numbers.float().abs().flatten()[:MOST_NUMBERS]
    if not len(some):
        return 0.0
    rank = max(1, round(0.99 * len(some)))
    return float(some.kthvalue(rank).values)


def in_unit(boxes: Tensor) -> bool:
    return q99(boxes) <= MOST_OF_UNIT


def in_pixels(boxes: Tensor, size_hw: tuple[int, int]) -> bool:
    return q99(boxes) >= max(LEAST_OF_PIXELS * min(size_hw), 2 * MOST_OF_UNIT)


def are_scores(numbers: Tensor) -> bool:
    """All in 0..1."""
    return not numbers.numel() or bool((numbers.min() >= -NEAR) & (numbers.max() <= 1 + NEAR))


def are_whole(numbers: Tensor) -> bool:
    """All are whole numbers, not negative."""
    return bool(((numbers >= 0) & (numbers == numbers.round())).all())


def corner_share(boxes: Tensor) -> float:
    """The share of boxes `(…, 4)` whose last two numbers are not below the first two."""
    ordered = (boxes[..., 2] >= boxes[..., 0]) & (boxes[..., 3] >= boxes[..., 1])
    return float(ordered.float().mean()) if ordered.numel() else 1.0


def negative_share(sides: Tensor) -> float:
    """The share of numbers below 0."""
    return float((sides < -NEAR).float().mean()) if sides.numel() else 0.0


def sum_to_one(scores: Tensor) -> bool:
    """Whether each row `(…, K)` is a softmax's."""
    return are_scores(scores) and bool(((scores.sum(dim=-1) - 1).abs() < NEAR).all())


def background(scores: Tensor, column: int) -> bool:
    """Whether one column of a softmax's rows `(A, K)` is the background's, or of no object."""
    best = scores.argmax(dim=1) == column % scores.shape[1]
    return bool(scores[:, column].mean() > BACKGROUND_MEAN and best.float().mean() > BACKGROUND_ROWS)


def probabilities(scores: Tensor) -> Tensor:
    """Rows `(A, K)` as a softmax's, whether it was applied already or not."""
    return scores if sum_to_one(scores) else torch.softmax(scores, dim=1)
