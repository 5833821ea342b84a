"""Scores → class maps of the source's size, and pictures that show them, with DALI. Knows no model, no codec.

Only the patch of the source that holds all classes of a run's frames goes through DALI. Around it is
background. If only the class map is asked for, no picture is made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.frames.batch import PixelArray, to_numpy
from pipelines.frames.dali import Graph, as_samples, runs
from pipelines.frames.geometry import Geometry
from pipelines.protocol.errors import InternalError
from pipelines.protocol.options import Options, Style
from pipelines.rendering.dali_graphs import Kind, block_px, define, look_up, palette
from pipelines.telemetry.counters import Telemetry


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassScores:
    """What postprocessing needs from N frames' logits: the winning classes, or one class's probability.

    Attributes:
        class_map_nhw: uint8 `(N, h, w)`, the class of each model pixel; or None.
        probability_nhw: float32 `(N, h, w)`, probability of the class `class_id`; or None.
        threshold: a pixel belongs to that class if its probability, resized to the source, is above this.
        confidence_nhw: float32 `(N, h, w)`, probability of the winner, if that was asked for.
    """

    class_map_nhw: Tensor | None = None
    probability_nhw: Tensor | None = None
    class_id: int = -1
    threshold: float = 0.5
    confidence_nhw: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.class_map_nhw is None) == (self.probability_nhw is None):
            raise ValueError("ClassScores takes either class_map_nhw or probability_nhw")
        if self.probability_nhw is not None and self.class_id < 0:
            raise ValueError(f"probability_nhw needs the class it is of, not class_id={self.class_id}")

    @property
    def values_nhw(self) -> Tensor:
        """The class map or the probability, whichever there is."""
        values = self.probability_nhw if self.class_map_nhw is None else self.class_map_nhw
        assert values is not None
        return values

    @property
    def confidence(self) -> Tensor:
        """The probability of the one class, or of the winner."""
        values = self.probability_nhw if self.confidence_nhw is None else self.confidence_nhw
        assert values is not None
        return values

    @property
    def kind(self) -> Kind:
        return "one" if self.class_map_nhw is None else "all"

    @property
    def floor(self) -> float:
        """A model pixel whose value is above this holds a class."""
        return self.threshold if self.kind == "one" else 0

    def __len__(self) -> int:
        return len(self.values_nhw)

    def without(self, holes_nhw: Tensor) -> ClassScores:
        """The same with no class, and a probability of 0, in some pixels, bool `(N, h, w)`."""
        names = ("class_map_nhw", "probability_nhw", "confidence_nhw")
        values = {name: value for name in names if (value := getattr(self, name)) is not None}
        return replace(self, **{name: value.masked_fill(holes_nhw, 0) for name, value in values.items()})

    @classmethod
    def concatenate(cls, parts: Sequence[ClassScores], dim: int = 0) -> ClassScores:
        """Scores of successive frames, or rows (`dim` 1), joined; all have the same class and threshold."""
        if len(parts) == 1:
            return parts[0]
        values = torch.cat([part.values_nhw for part in parts], dim)
        if parts[0].kind == "all":
            confidences = [part.confidence_nhw for part in parts if part.confidence_nhw is not None]
            confidence = torch.cat(confidences, dim) if confidences else None
            return cls(class_map_nhw=values, confidence_nhw=confidence)
        return cls(probability_nhw=values, class_id=parts[0].class_id, threshold=parts[0].threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderStyle:
    """What pictures show.

    Attributes:
        style: `overlay` colours the classes and outlines them in white; `extract` leaves only the classes on
            `background`; `redact` replaces them with a mosaic. Class 0 leaves the frames unchanged.
        alpha: opacity of the overlay's colours; at 0 the frames are left untouched, without outlines.
        outline_px: how far within a class its outline reaches, in source pixels; 0 for none.
        background: RGB colour that `extract` puts where no class is.
    """

    style: Style
    alpha: float = 0.5
    outline_px: int = 2
    background: tuple[int, int, int] = (0, 0, 0)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1 or not 0 <= self.outline_px <= 16:
            raise ValueError(f"alpha={self.alpha} or outline_px={self.outline_px} is not in 0..1, 0..16")

    @classmethod
    def of(cls, options: Options) -> RenderStyle:
        """The style that a request's options ask for."""
        red, green, blue = bytes.fromhex(options.background)
        return cls(
            style=options.style,
            alpha=options.alpha,
            outline_px=options.outline_px,
            background=(red, green, blue),
        )

    @property
    def visible(self) -> bool:
        """Whether it changes a frame at all."""
        return self.style != "overlay" or self.alpha > 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """The answer for N frames, in the source's size `(H, W)`, on the host.

    Attributes:
        class_map_nhw: uint8 `(N, H, W)`, the classes' numbers; with one class, its number or 0.
        class_pixels: int64 `(N, K)`; with one class, its pixels, and all others under 0.
        pixels_nhwc: uint8 RGB `(N, H, W, 3)` if a style was given.
    """

    class_map_nhw: npt.NDArray[np.uint8]
    class_pixels: npt.NDArray[np.int64]
    pixels_nhwc: npt.NDArray[np.uint8] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Patch:
    """A part of the source, in whole pixels."""

    rows: slice
    columns: slice

    @property
    def starts(self) -> list[int]:
        return [self.rows.start, self.columns.start]

    @property
    def stops(self) -> list[int]:
        return [self.rows.stop, self.columns.stop]

    @property
    def hw(self) -> list[int]:
        return [stop - start for start, stop in zip(self.starts, self.stops, strict=True)]


class Postprocessor:
    """Scores and frames → `Rendered`; for one thread at a time. Graphs are built when first needed.

    Args:
        device: where the work is done, `"cpu"` or `"cuda"`.
        max_frames: most frames in one run; more are rendered in several.
        classes: K, the background included.
        telemetry: counts pictures that leave the GPU, so that no such copy stays unnoticed.
    """

    def __init__(
        self, *, device: str, max_frames: int, classes: int, telemetry: Telemetry | None = None
    ) -> None:
        self._device = device
        self._max_frames = max_frames
        self._classes = classes
        self._telemetry = telemetry or Telemetry()
        self._palette = palette(classes)
        self._graphs: dict[tuple[Kind, Style | None, int, bool], Graph] = {}

    def __call__(
        self,
        pixels_nhwc: PixelArray | None,
        scores: ClassScores,
        geometry: Geometry,
        style: RenderStyle | None,
    ) -> Rendered:
        """Class maps of N frames and, with a style, their pictures.

        Args:
            pixels_nhwc: uint8 RGB `(N, H, W, 3)`, numpy or CUDA; only needed with a style.

        Raises:
            InternalError: the arguments disagree, or DALI failed.
        """
        _check(pixels_nhwc, scores, geometry, style)
        height_px, width_px = geometry.source_hw
        class_map = np.zeros((len(scores), height_px, width_px), np.uint8)
        class_pixels = np.zeros((len(scores), self._classes), np.int64)
        pictures = self._canvas(pixels_nhwc, style)
        for run in runs(len(scores), height_px * width_px, self._max_frames):
            values, corner = with_margins(scores.values_nhw[run], geometry)
            patch = _find_patch(values > scores.floor, corner, geometry, style)
            if patch is None:
                continue
            inputs = _score_inputs(values, corner, scores, patch, geometry)
            region = (run, patch.rows, patch.columns)
            if pictures is None or pixels_nhwc is None or style is None or not style.visible:
                (found,) = self._draw(scores.kind, None, inputs)
            else:
                inputs["frames"] = pixels_nhwc[region]
                inputs |= self._style_inputs(values, scores, patch, geometry, style)
                found, drawn = self._draw(scores.kind, style, inputs)
                pictures[region] = self.on_host(drawn)
            labels = to_numpy(found)
            class_map[region] = labels[..., 0] * np.uint8(scores.class_id if scores.kind == "one" else 1)
            class_pixels[run] = _count(labels, scores, self._classes)
        if scores.class_id != 0:
            class_pixels[:, 0] = height_px * width_px - class_pixels[:, 1:].sum(axis=1)
        return Rendered(class_map_nhw=class_map, class_pixels=class_pixels, pixels_nhwc=pictures)

    def on_host(self, pixels_nhwc: PixelArray) -> npt.NDArray[np.uint8]:
        """Pictures as a numpy array; those that were on a GPU are counted in telemetry."""
        if getattr(pixels_nhwc, "is_cuda", False):
            self._telemetry.count("copies", "pictures_from_gpu", len(pixels_nhwc))
        return to_numpy(pixels_nhwc)

    def _canvas(
        self, pixels_nhwc: PixelArray | None, style: RenderStyle | None
    ) -> npt.NDArray[np.uint8] | None:
        """What a style shows where no class is, on the host: one colour, or the frames."""
        if pixels_nhwc is None or style is None:
            return None
        if style.style == "extract":
            return np.full(tuple(pixels_nhwc.shape), style.background, np.uint8)
        return np.array(self.on_host(pixels_nhwc))

    def _draw(self, kind: Kind, style: RenderStyle | None, inputs: dict[str, Any]) -> list[Tensor]:
        """Run a graph; its labels `(n, h, w, 1)` and, with a style, its pictures `(n, h, w, 3)`."""
        key = (
            (kind, style.style, style.outline_px, any(style.background)) if style else (kind, None, 0, False)
        )
        if key not in self._graphs:
            graph = partial(define, *key)
            self._graphs[key] = Graph(graph, device=self._device, max_samples=self._max_frames)
        count = len(inputs["scores"])
        samples = {name: self._samples(value, count) for name, value in inputs.items()}
        return self._graphs[key](**samples)

    def _style_inputs(
        self, values_nhw: Tensor, scores: ClassScores, patch: _Patch, geometry: Geometry, style: RenderStyle
    ) -> dict[str, Any]:
        """What a style's graph takes besides frames and scores."""
        if style.style == "redact":
            unit_px = block_px(geometry.source_hw)
            return {"mosaic": [-(-side // unit_px) for side in patch.hw]}
        if style.style == "extract":
            backdrop = np.array(style.background, np.uint8)
            return {"backdrop": np.tile(backdrop, (len(values_nhw), 1, 1, 1))} if backdrop.any() else {}
        tints = np.round(style.alpha * self._palette).astype(np.uint8)
        if scores.kind == "one":
            return {"alpha": style.alpha, "tint": np.tile(tints[scores.class_id], (len(values_nhw), 1, 1, 1))}
        return {"alpha": style.alpha, "tint": look_up(tints, values_nhw)}

    def _samples(self, value: Any, count: int) -> list[Any]:
        """Pictures one by one; numbers repeated for each frame."""
        if hasattr(value, "shape"):
            return as_samples(value, self._device)
        return [np.array(value, np.float32)] * count


def _check(
    pixels_nhwc: PixelArray | None, scores: ClassScores, geometry: Geometry, style: RenderStyle | None
) -> None:
    expected = (len(scores), *geometry.source_hw, 3)
    got = None if pixels_nhwc is None else tuple(pixels_nhwc.shape)
    if style is not None and got != expected:
        raise InternalError(f"frames and scores disagree: pixels_nhwc is {got}, expected {expected}")
    if tuple(scores.values_nhw.shape[1:]) != geometry.model_hw:
        raise InternalError(
            f"scores are {tuple(scores.values_nhw.shape[1:])} pixels, the geometry says {geometry.model_hw}"
        )


def with_margins(values_nhw: Tensor, geometry: Geometry) -> tuple[Tensor, tuple[int, int]]:
    """Scores of the model's region, padded with background as far as a source pixel beside it reaches.

    Also the top and left of what they are of, in the resized frame. All of it could fit into no memory.
    """
    top, left, height, width = geometry.crop_yxhw
    margins, corner = [], []
    for start, length, resized, source in zip(
        (top, left), (height, width), geometry.resized_hw, geometry.source_hw, strict=True
    ):
        most = 2 * math.ceil(max(1.0, resized / source)) + 2
        margins.append((min(start, most), min(resized - start - length, most)))
        corner.append(start - margins[-1][0])
    sides = (*margins[1], *margins[0])
    values_nhw = functional.pad(values_nhw, sides) if any(sides) else values_nhw
    return values_nhw, (corner[0], corner[1])


def whole_frame(values_nhw: Tensor, geometry: Geometry) -> Tensor:
    """Scores of the model's region, padded with background to those of the whole resized frame."""
    top, left, height, width = geometry.crop_yxhw
    resized_h, resized_w = geometry.resized_hw
    margins = (left, resized_w - left - width, top, resized_h - top - height)
    return functional.pad(values_nhw, margins) if any(margins) else values_nhw


def _find_patch(
    present_nhw: Tensor, corner: tuple[int, int], geometry: Geometry, style: RenderStyle | None
) -> _Patch | None:
    """The rows and columns of the source outside of which no frame has a class; for a mosaic, whole blocks.

    It has one more model pixel on each side, as far as interpolation reaches, and one more source pixel.
    """
    source_hw = geometry.source_hw
    unit_px = block_px(source_hw) if style is not None and style.style == "redact" else 1
    present_hw = present_nhw.any(dim=0).cpu().numpy()
    spans = []
    for axis, side_px in enumerate(source_hw):
        hits = np.flatnonzero(present_hw.any(axis=1 - axis))
        if not hits.size:
            return None
        scale = side_px / geometry.resized_hw[axis]
        hits = hits + corner[axis]
        first, last = math.floor((hits[0] - 1) * scale) - 1, math.ceil((hits[-1] + 2) * scale) + 1
        spans.append(slice(max(0, first // unit_px * unit_px), min(side_px, -(-last // unit_px) * unit_px)))
    return _Patch(rows=spans[0], columns=spans[1])


def _score_inputs(
    values_nhw: Tensor, corner: tuple[int, int], scores: ClassScores, patch: _Patch, geometry: Geometry
) -> dict[str, Any]:
    """What every graph takes: scores, the patch in model pixels, its size in source pixels.

    For class maps the patch is shifted by half of the smallest distance that the centre of a source pixel can
    have from a border between two model pixels. So a centre on the border always goes to the next pixel,
    however sums are rounded.
    """
    scales = [resized / side for resized, side in zip(geometry.resized_hw, geometry.source_hw, strict=True)]
    nudge = 0.25 if scores.kind == "all" else 0.0
    nudges = [nudge / side for side in geometry.source_hw]
    corners = [
        [
            edge * scale + nudge - first
            for edge, scale, nudge, first in zip(edges, scales, nudges, corner, strict=True)
        ]
        for edges in (patch.starts, patch.stops)
    ]
    values = values_nhw if scores.kind == "all" else values_nhw.float() - scores.threshold
    return {"scores": values[..., None], "start": corners[0], "end": corners[1], "size": patch.hw}


def _count(labels: npt.NDArray[np.uint8], scores: ClassScores, classes: int) -> npt.NDArray[np.int64]:
    """Pixels `(n, K)` of each class in a patch."""
    if scores.kind == "all":
        return np.stack([np.bincount(one.ravel(), minlength=classes) for one in labels])
    counts = np.zeros((len(labels), classes), np.int64)
    counts[:, scores.class_id] = [np.count_nonzero(one) for one in labels]
    return counts
