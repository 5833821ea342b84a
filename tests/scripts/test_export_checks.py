"""When answers of an exported file count as torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scripts.export.checks import compare


def boxes(*rows: tuple[float, float, int]) -> list[dict[str, Tensor]]:
    """One picture with boxes (corner, score, label)."""
    corners, scores, labels = zip(*rows, strict=True) if rows else ((), (), ())
    corner = torch.tensor(corners, dtype=torch.float32).reshape(-1, 1)
    return [
        {
            "boxes": corner + torch.tensor([0.0, 0, 10, 10]),
            "scores": torch.tensor(scores, dtype=torch.float32),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
    ]


@pytest.mark.parametrize(
    ("ours", "torchs", "good"),
    [
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0]]), True),
        (torch.tensor([[1.0, 2.0009]]), torch.tensor([[1.0, 2.0]]), True),
        (torch.tensor([[1.0, 2.002]]), torch.tensor([[1.0, 2.0]]), False),
        # Small logits have to agree in proportion.
        (torch.tensor([[1.1e-4, 2e-4]]), torch.tensor([[1e-4, 2e-4]]), False),
        (torch.tensor([[1.0001, 1.0]]), torch.tensor([[1.0, 1.0001]]), False),
        (torch.tensor([[torch.nan, 2.0]]), torch.tensor([[1.0, 2.0]]), False),
        (torch.tensor([[1.0, 2.0, 0.0]]), torch.tensor([[1.0, 2.0]]), False),
        (torch.zeros(1, 2), torch.zeros(1, 2), False),
        (boxes((0, 0.9, 1), (50, 0.8, 2)), boxes((0, 0.9, 1), (50, 0.8, 2)), True),
        (boxes((50, 0.8, 2), (0, 0.8, 1)), boxes((0, 0.8, 1), (50, 0.8, 2)), True),
        (boxes((0, 0.9, 2)), boxes((0, 0.9, 1)), False),
        (boxes((0, 0.9, 1)), boxes((0, 0.9, 1), (50, 0.8, 2)), False),
        (boxes((0, 0.9, 1), (50, 0.8, 2)), boxes((0, 0.9, 1)), False),
        (boxes((1, 0.9, 1)), boxes((0, 0.9, 1)), False),
        (boxes(), boxes(), True),
        (boxes((0, 0.9, 1)), boxes(), False),
        (boxes(), boxes((0, 0.9, 1)), False),
    ],
)
def test_what_agrees(ours: object, torchs: object, good: bool) -> None:
    assert compare(ours, torchs, torch.zeros(1, 3, 100, 100)).good is good
