"""Scores of coarse pixels at the size of the pixels, as a whole or in bands. Knows no network."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

# Rows of a band: 2.5 MB for 21 classes and 924 columns.
BAND_ROWS = 32


def enlarged(scores_nkhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Scores `(N, K, h, w)` → `(N, K, H, W)`, bilinear between the centres of pixels."""
    return functional.interpolate(scores_nkhw, size=size_hw, mode="bilinear", align_corners=False)


def bands(scores_nkhw: Tensor, size_hw: tuple[int, int]) -> Iterator[Tensor]:
    """The same from top to bottom in bands `(N, K, rows, W)`; on a GPU, which gains nothing by bands, in one.

    Use each before you ask for the next.
    """
    if scores_nkhw.is_cuda:
        yield enlarged(scores_nkhw, size_hw)
        return
    rows, columns = size_hw
    wide = enlarged(scores_nkhw, (scores_nkhw.shape[-2], columns))
    weights, first, last = _down(scores_nkhw.shape[-2], rows)
    for top in range(0, rows, BAND_ROWS):
        bottom = min(top + BAND_ROWS, rows)
        seen = slice(first[top], last[bottom - 1] + 1)
        yield weights[top:bottom, seen] @ wide[:, :, seen]


def _down(coarse: int, fine: int) -> tuple[Tensor, list[int], list[int]]:
    """The weight of each coarse row in each fine one, `(fine, coarse)`; the first and last that have any."""
    place = ((torch.arange(fine) + 0.5) * (coarse / fine) - 0.5).clamp_min(0)
    first = place.long()
    last = (first + 1).clamp_max(coarse - 1)
    weights = torch.zeros(fine, coarse)
    row = torch.arange(fine)
    weights[row, last] = place - first
    weights[row, first] += 1 - (place - first)
    return weights, first.tolist(), last.tolist()
