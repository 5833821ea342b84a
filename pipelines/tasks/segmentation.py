"""Segmentation: logits (N, K, h, w) → class maps, pixel counts, masks and pictures of the source's size.

If no class is named, the winner of all K classes counts. If several are named, pixels count where one of them
wins. If one is named (`class_name`, `class_id`), pixels count where its probability is above
`score_threshold`. Of a network of one column, that is the only class beside the background, and is always
named. A network that gives class maps knows no probabilities: requests for them are refused. A pixel with a
score that is not finite is of no class.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import Geometry, View
from pipelines.models.outputs import LogitOutput, Output
from pipelines.models.spec import Activation, ModelSpec
from pipelines.protocol import rle
from pipelines.protocol.answers import SegmentationAnswer
from pipelines.protocol.columns import Column
from pipelines.protocol.errors import InvalidOptions, TooLarge
from pipelines.protocol.options import Options
from pipelines.rendering import encode
from pipelines.rendering.postprocess import (
    ClassScores,
    Postprocessor,
    Rendered,
    RenderStyle,
    whole_frame,
    with_margins,
)
from pipelines.tasks.classes import class_ids
from pipelines.tasks.job import CLASSES, FRAME_PIXELS, PICTURES, SELECTION, FrameJob, Task, about

DEFAULT_CLASS_THRESHOLD = 0.5
# What a frame's tiles become together: twice the pixels of 8K.
MAX_JOINED_PIXELS = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """Which classes count, and above which probability: only one, or the winner among all.

    `class_ids` are those that count where they win; empty for all. With `confident`, how probable the winner
    is stays with the scores. `activation` makes probabilities of scores; of a `class_map` there are none. For
    a network of one column, `least` is the threshold of its class. There are `classes` in all.
    """

    class_id: int | None
    class_ids: tuple[int, ...]
    threshold: float
    confident: bool = False
    activation: Activation = "softmax"
    class_map: bool = False
    least: float = DEFAULT_CLASS_THRESHOLD
    classes: int = 256

    @classmethod
    def of(cls, options: Options, spec: ModelSpec) -> Decision:
        """The options' decision.

        Raises:
            InvalidOptions: at an unknown class, listing what there is; at a question for probabilities that
                the model does not give.
        """
        chosen = class_ids(options, spec.labels)
        if spec.class_map:
            _check_asked(options, spec)
        class_id = chosen[0] if len(chosen) == 1 else None
        default = 0.0 if class_id is None else DEFAULT_CLASS_THRESHOLD
        said = [one for one in (options.score_threshold, spec.score_threshold) if one >= 0]
        said = [] if spec.class_map else said
        return cls(
            class_id=class_id,
            class_ids=chosen,
            threshold=[*said, default][0],
            confident=options.mask == "probability",
            activation=spec.activation or "softmax",
            class_map=spec.class_map,
            least=[*said, DEFAULT_CLASS_THRESHOLD][0],
            classes=len(spec.labels),
        )

    def read(self, scores_nkhw: Tensor) -> ClassScores:
        """Scores `(n, K, h, w)` → what postprocessing needs of them; runs on the batcher's thread."""
        if self.class_map:
            return self._of_map(scores_nkhw[:, 0])
        if scores_nkhw.shape[1] == 1:
            return self._of_column(scores_nkhw[:, 0])
        if self.class_id is not None:
            sure = self._sure(scores_nkhw[:, self.class_id], scores_nkhw)
            return self._one(sure, self.class_id, self.threshold)
        class_map, best = winners(scores_nkhw)
        confidence: Tensor | None = None
        if self.threshold > 0 or self.confident:
            confidence = self._sure(best, scores_nkhw)
            class_map[confidence <= self.threshold] = 0
        counted = self._counted(class_map)
        return ClassScores(class_map_nhw=counted, confidence_nhw=confidence if self.confident else None)

    @staticmethod
    def _one(probability_nhw: Tensor, class_id: int, threshold: float) -> ClassScores:
        return ClassScores(probability_nhw=probability_nhw, class_id=class_id, threshold=threshold)

    def _sure(self, score_nhw: Tensor, scores_nkhw: Tensor) -> Tensor:
        """How probable the classes of some of the scores are."""
        if self.activation == "softmax":
            return torch.exp(score_nhw - torch.logsumexp(scores_nkhw, dim=1))
        return torch.sigmoid(score_nhw) if self.activation == "sigmoid" else score_nhw

    def _of_column(self, score_nhw: Tensor) -> ClassScores:
        """Of one class and the background, which is what is not of the class."""
        probability = score_nhw if self.activation == "none" else torch.sigmoid(score_nhw)
        of_background = self.class_id == 0
        return self._one(
            1 - probability if of_background else probability, 0 if of_background else 1, self.least
        )

    def _of_map(self, class_nhw: Tensor) -> ClassScores:
        """Of a map of the classes' numbers; those that have no name are nothing."""
        if self.class_id is not None:
            return self._one((class_nhw == self.class_id).float(), self.class_id, self.threshold)
        return ClassScores(class_map_nhw=self._counted(class_nhw * (class_nhw.int() < self.classes)))

    def _counted(self, class_map_nhw: Tensor) -> Tensor:
        """The map with 0 where a class does not count."""
        if self.class_ids:
            counts = torch.zeros(256, dtype=torch.uint8, device=class_map_nhw.device)
            counts[list(self.class_ids)] = 1
            class_map_nhw *= counts[class_map_nhw.int()]
        return class_map_nhw


def _check_asked(options: Options, spec: ModelSpec) -> None:
    """Refuse what needs probabilities."""
    asked = "mask=probability" if options.mask == "probability" else ""
    if options.score_threshold >= 0:
        asked = f"score_threshold={options.score_threshold:g}"
    if asked:
        raise InvalidOptions(
            f"{asked}: {spec.name} gives class maps without probabilities", hint="leave it out"
        )


class Scored(NamedTuple):
    """What is read of N frames; `not_finite` `(N,)`: whether there are scores that are not finite."""

    scores: ClassScores
    not_finite: npt.NDArray[np.bool_]


class Segmentation(FrameJob):
    """One medium's job."""

    def __init__(self, spec: ModelSpec, options: Options) -> None:
        self._spec = spec
        self._options = options
        self._decision = Decision.of(options, spec)
        self._writer = encode.PictureWriter(options.overlay)
        self._style = RenderStyle.of(options) if self._writer.wanted else None

    def read(self, output: Output) -> Scored:
        assert isinstance(output, LogitOutput)
        parts = [self._decision.read(band) for band in output.bands()]
        scores = ClassScores.concatenate(parts, dim=1)
        holes_nhw = output.holes_nhw
        if holes_nhw is None:
            return Scored(scores, np.zeros(len(output), bool))
        return Scored(scores.without(holes_nhw), holes_nhw.flatten(1).any(dim=1).cpu().numpy())

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[Scored],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> SegmentationAnswer:
        if frames is None:
            return self._empty()
        scores, geometry = join_views(ClassScores.concatenate([one.scores for one in parts]), views, frames)
        marks = np.concatenate([one.not_finite for one in parts]).reshape(len(views), len(frames))
        rendered = postprocessor(frames.kept_nhwc, scores, geometry, self._style)
        masks = self._masks(rendered)
        if self._options.mask == "probability":
            levels = _levels(scores.confidence, geometry)
            masks = [encode.png(one) for one in levels]
        return SegmentationAnswer(
            **about(frames),
            not_finite=marks.any(axis=0),
            class_names=self._spec.labels,
            class_pixels=rendered.class_pixels,
            mask=masks,
            overlay=[] if rendered.pixels_nhwc is None else self._writer.pictures(rendered.pixels_nhwc),
            video=self._video(frames, rendered, final=final),
            final=final,
        )

    def _empty(self) -> SegmentationAnswer:
        return SegmentationAnswer(
            **about(None),
            class_names=self._spec.labels,
            class_pixels=np.empty((0, len(self._spec.labels)), np.int64),
            final=True,
        )

    def _masks(self, rendered: Rendered) -> list[bytes]:
        maps = rendered.class_map_nhw
        if self._options.mask == "rle":
            return [rle.encode(class_map, self._spec.labels) for class_map in maps]
        if self._options.mask == "png":
            return [encode.png(class_map) for class_map in maps]
        return [class_map.tobytes() for class_map in maps] if self._options.mask == "raw" else []

    def _video(self, frames: FrameBatch, rendered: Rendered, *, final: bool) -> bytes:
        if rendered.pixels_nhwc is None:
            return b""
        written = self._writer.film(rendered.pixels_nhwc, frames.played_s)
        return written + self._writer.close() if final else written


def winners(logits_nkhw: Tensor) -> tuple[Tensor, Tensor]:
    """The class of the highest score, uint8 `(n, h, w)`, of equal ones the first; and that score.

    On planes, `max` searches indices element by element; the way used here takes half the time on a CPU. With
    channels last, `max` is faster.
    """
    if not logits_nkhw.is_contiguous():
        best_nhw, places = logits_nkhw.max(dim=1)
        return places.to(torch.uint8), best_nhw
    last = logits_nkhw.shape[1] - 1
    best = logits_nkhw.amax(dim=1, keepdim=True)
    backwards = torch.arange(last, -1, -1, dtype=torch.uint8, device=logits_nkhw.device).view(1, -1, 1, 1)
    won = (logits_nkhw == best).view(torch.uint8)
    return last - (won * backwards).amax(dim=1), best[:, 0]


def _levels(probability_nhw: Tensor, geometry: Geometry) -> npt.NDArray[np.uint8]:
    """Probabilities resized to the source, 0..1 as 0..255, uint8 `(N, H, W)` on the host."""
    values, corner = with_margins(probability_nhw, geometry)
    if tuple(values.shape[1:]) == geometry.resized_hw:
        found = functional.interpolate(values[:, None], size=geometry.source_hw, mode="bilinear")[:, 0]
        return _as_levels(found)
    sides = zip(geometry.source_hw, geometry.resized_hw, corner, values.shape[1:], strict=True)
    (rows, down), (columns, across) = (_bilinear(*side) for side in sides)
    levels = np.zeros((len(values), *geometry.source_hw), np.uint8)
    levels[:, rows, columns] = _as_levels(down.to(values.device) @ values @ across.to(values.device).T)
    return levels


def _as_levels(probability_nhw: Tensor) -> npt.NDArray[np.uint8]:
    levels: npt.NDArray[np.uint8] = (255 * probability_nhw).round().to(torch.uint8).cpu().numpy()
    return levels


def _bilinear(source_px: int, resized_px: int, first: int, count: int) -> tuple[slice, Tensor]:
    """The source pixels that `count` resized ones from `first` on have a part in; how much of each it is."""
    places = (torch.arange(source_px, dtype=torch.float64) + 0.5) * (resized_px / source_px) - 0.5
    places = places.clamp(0, resized_px - 1)
    start, stop = torch.searchsorted(places, torch.tensor([first - 1.0, first + count])).tolist()
    distance = places[start:stop, None] - torch.arange(first, first + count)
    return slice(start, stop), (1 - distance.abs()).clamp_min(0).float()


TASK = Task(
    answer=SegmentationAnswer,
    options=(*SELECTION, *PICTURES, *CLASSES),
    job=Segmentation,
    model_inputs=(FRAME_PIXELS,),
    model_outputs=(
        Column(name="logits", dtype=np.float32, dims=("K", "h", "w"), help="scores of the K classes"),
    ),
    tiles=True,
)


def join_views(
    scores: ClassScores, views: Sequence[View], frames: FrameBatch
) -> tuple[ClassScores, Geometry]:
    """Scores of V·N frames, view by view, as those of N frames, and how they lie on the frame."""
    if len(views) == 1:
        return scores, views[0].geometry
    source_hw = frames.size_hw
    first = views[0].geometry
    scales = [resized / side for resized, side in zip(first.resized_hw, first.source_hw, strict=True)]
    height, width = (max(1, round(side * scale)) for side, scale in zip(source_hw, scales, strict=True))
    if height * width > MAX_JOINED_PIXELS:
        raise TooLarge(
            f"the tiles of a frame of {source_hw[1]}x{source_hw[0]} px become {width}x{height} px together",
            hint="cut long, narrow frames into pieces",
        )
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
    """Paste a tile on the canvas, from the middle of its overlap with the tiles above and to the left."""
    region, cut = [], []
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
        region.append(slice(start + skipped, stop))
        cut.append(slice(skipped, stop - start))
    canvas[:, region[0], region[1]] = tile[:, cut[0], cut[1]]
