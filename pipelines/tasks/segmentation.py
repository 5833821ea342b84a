"""Segmentation: logits (N, K, h, w) → class maps, pixel counts, masks and pictures of the source's size.

Without a class the winner of all K classes counts, and of several named ones, where one of them wins. With one
class (`class_name`, `class_id`), the pixels count where its probability is above `score_threshold`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_inference import ModelSpec
from pipelines import encode, rle
from pipelines.contract import Options
from pipelines.errors import InvalidOptions
from pipelines.frames import FrameBatch, Geometry
from pipelines.postprocess import ClassScores, Postprocessor, Rendered, RenderStyle
from pipelines.results import SEGMENTATION_COLUMNS, SegmentationAnswer

DEFAULT_CLASS_THRESHOLD = 0.5
OPTIONS = tuple(Options.__dataclass_fields__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which classes count, and above which probability: one alone, or the winner among all.

    `class_ids` are those that count where they win; empty for all.
    """

    class_id: int | None
    class_ids: tuple[int, ...]
    threshold: float

    @classmethod
    def of(cls, options: Options, labels: Sequence[str]) -> Decision:
        """The options' decision. Raises InvalidOptions at an unknown class, listing what there is."""
        chosen = _class_ids(options, labels)
        class_id = chosen[0] if len(chosen) == 1 else None
        default = 0.0 if class_id is None else DEFAULT_CLASS_THRESHOLD
        threshold = default if options.score_threshold < 0 else options.score_threshold
        return cls(class_id=class_id, class_ids=chosen, threshold=threshold)

    def read(self, logits_nkhw: Tensor) -> ClassScores:
        """Logits `(n, K, h, w)` → what postprocessing needs of them; runs on the engine's thread."""
        if self.class_id is not None:
            others = torch.logsumexp(logits_nkhw, dim=1)
            probability = torch.exp(logits_nkhw[:, self.class_id] - others)
            return ClassScores(probability_nhw=probability, class_id=self.class_id, threshold=self.threshold)
        best = logits_nkhw.max(dim=1)
        class_map = best.indices.to(torch.uint8)
        if self.threshold > 0:
            probability = torch.exp(best.values - torch.logsumexp(logits_nkhw, dim=1))
            class_map[probability <= self.threshold] = 0
        if self.class_ids:
            counts = torch.zeros(logits_nkhw.shape[1], dtype=torch.uint8, device=class_map.device)
            counts[list(self.class_ids)] = 1
            class_map *= counts[class_map.int()]
        return ClassScores(class_map_nhw=class_map)


def _class_ids(options: Options, labels: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the classes that the options name; empty if they name none."""
    known = f"this model knows: {', '.join(labels)}"
    # A label may hold a comma itself.
    names = [options.class_name] if options.class_name in labels else options.class_name.split(",")
    if options.class_name:
        for name in names:
            if name.strip() not in labels:
                raise InvalidOptions(f"unknown class_name {name.strip()!r}", hint=known)
        return tuple(dict.fromkeys(labels.index(name.strip()) for name in names))
    if options.class_id >= len(labels):
        raise InvalidOptions(
            f"class_id={options.class_id} is out of range 0 to {len(labels) - 1}", hint=known
        )
    return (options.class_id,) if options.class_id >= 0 else ()


class Segmentation:
    """One medium's job: made from its options, asked for an answer per chunk, in order."""

    columns = SEGMENTATION_COLUMNS
    options = OPTIONS

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self.labels = spec.labels
        self._options = options
        self._decision = Decision.of(options, spec.labels)
        self.read = self._decision.read
        self._style = None
        if options.overlay != "none":
            self._style = RenderStyle.of(options)
        self._writer: encode.Mp4Writer | None = None

    def answer(
        self,
        frames: FrameBatch,
        parts: Sequence[ClassScores],
        geometry: Geometry,
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> SegmentationAnswer:
        """The answer to one chunk from the outputs that `read` left of its batches."""
        scores = ClassScores.concatenate(parts)
        rendered = postprocessor(frames.pixels_nhwc, scores, geometry, self._style)
        return SegmentationAnswer(
            frame_index=frames.frame_index,
            pts_s=frames.pts_s,
            class_names=self.labels,
            class_pixels=rendered.class_pixels,
            height_px=frames.height_px,
            width_px=frames.width_px,
            mask=self._masks(rendered),
            overlay=self._overlays(rendered),
            video=self._video(frames, rendered, final=final),
            final=final,
        )

    def empty(self) -> SegmentationAnswer:
        """The answer to a medium of which the options select no frame."""
        return SegmentationAnswer(
            frame_index=np.empty(0, np.int64),
            pts_s=np.empty(0, np.float64),
            class_names=self.labels,
            class_pixels=np.empty((0, len(self.labels)), np.int64),
            height_px=0,
            width_px=0,
            final=True,
        )

    def _masks(self, rendered: Rendered) -> list[bytes]:
        maps = rendered.class_map_nhw
        if self._options.mask == "rle":
            return [rle.encode(class_map, self.labels) for class_map in maps]
        if self._options.mask == "png":
            return [encode.png(class_map) for class_map in maps]
        return [class_map.tobytes() for class_map in maps] if self._options.mask == "raw" else []

    def _overlays(self, rendered: Rendered) -> list[bytes]:
        if rendered.pixels_nhwc is None or self._options.overlay == "mp4":
            return []
        if self._options.overlay == "jpeg":
            return [encode.jpeg(pixels) for pixels in rendered.pixels_nhwc]
        return [pixels.tobytes() for pixels in rendered.pixels_nhwc]

    def _video(self, frames: FrameBatch, rendered: Rendered, *, final: bool) -> bytes:
        if rendered.pixels_nhwc is None or self._options.overlay != "mp4":
            return b""
        if self._writer is None:
            self._writer = encode.Mp4Writer(width_px=frames.width_px, height_px=frames.height_px)
        written = self._writer.write(rendered.pixels_nhwc, frames.pts_s)
        return written + self._writer.close() if final else written
