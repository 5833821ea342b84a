"""Scores of tiles → scores of the whole frame, each pixel from the tile whose middle is nearer. Knows no task."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pipelines.frames import FrameBatch, Geometry, View
from pipelines.postprocess import ClassScores, whole_frame


def join_views(
    scores: ClassScores, views: Sequence[View], frames: FrameBatch
) -> tuple[ClassScores, Geometry]:
    """Scores of V·N frames, view by view, as those of N frames, and how they lie on the frame."""
    if len(views) == 1:
        return scores, views[0].geometry
    source_hw = (frames.height_px, frames.width_px)
    first = views[0].geometry
    scales = [resized / side for resized, side in zip(first.resized_hw, first.source_hw, strict=True)]
    height, width = (max(1, round(side * scale)) for side, scale in zip(source_hw, scales, strict=True))
    shape = Geometry(source_hw=source_hw, resized_hw=(height, width), crop_yxhw=(0, 0, height, width))

    def join(values_nhw: Tensor | None) -> Tensor | None:
        if values_nhw is None:
            return None
        canvas = values_nhw.new_zeros((len(values_nhw) // len(views), height, width))
        parts = torch.split(values_nhw, len(canvas))
        for part, view in zip(parts, views, strict=True):
            _paste(canvas, whole_frame(part, view.geometry), view, views, scales)
        return canvas

    joined = dataclasses.replace(
        scores,
        class_map_nhw=join(scores.class_map_nhw),
        probability_nhw=join(scores.probability_nhw),
        confidence_nhw=join(scores.confidence_nhw),
    )
    return joined, shape


def _paste(canvas: Tensor, tile: Tensor, view: View, views: Sequence[View], scales: Sequence[float]) -> None:
    """Lay a tile on the canvas from the middle of what it shares with the tiles above and left of it."""
    window, cut = [], []
    for axis, scale in enumerate(scales):
        start_px = (view.top_px, view.left_px)[axis]
        length_px = view.geometry.source_hw[axis]
        before = [
            (other.top_px, other.left_px)[axis] + length_px
            for other in views
            if (other.top_px, other.left_px)[axis] < start_px
        ]
        shared_px = max(0, max(before, default=start_px) - start_px)
        start = min(round(start_px * scale), canvas.shape[axis + 1] - 1)
        skipped = round(shared_px / 2 * scale)
        stop = min(start + tile.shape[axis + 1], canvas.shape[axis + 1])
        window.append(slice(start + skipped, stop))
        cut.append(slice(skipped, stop - start))
    canvas[:, window[0], window[1]] = tile[:, cut[0], cut[1]]
