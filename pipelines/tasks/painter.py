"""Pictures of what a detector found: boxes, masks and keypoints on frames. Knows no model, no file format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import Geometry
from pipelines.protocol.answers import Ints, Texts
from pipelines.protocol.options import Options
from pipelines.rendering.annotate import draw_boxes, draw_keypoints, line_px
from pipelines.rendering.dali_graphs import palette
from pipelines.rendering.postprocess import ClassScores, Postprocessor, RenderStyle
from pipelines.tasks.boxes import Found
from pipelines.tasks.masks import ClassMap

# Class maps are bytes.
MOST_COLOURS = 256
# For a detector that does not say how many classes it has.
UNNAMED_COLOURS = 32


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Painter:
    """What is drawn on the frames of one medium.

    Attributes:
        labels: names of the classes by number; others are shown by their number.
        colours_k3: uint8 RGB `(K, 3)`, the first one for no class.
        lines_px: width of the boxes' lines; None: as fits the frame.
    """

    style: RenderStyle
    labels: Sequence[str]
    colours_k3: npt.NDArray[np.uint8]
    lines_px: int | None

    @classmethod
    def of(cls, options: Options, labels: Sequence[str]) -> Painter:
        return cls(
            style=RenderStyle.of(options),
            labels=labels,
            colours_k3=palette(len(labels) if len(labels) > 1 else UNNAMED_COLOURS),
            lines_px=options.outline_px if options.is_set("outline_px") else None,
        )

    def covers(self, found: Found) -> bool:
        """Whether it shows what the objects cover: masks are coloured, boxes only framed."""
        return self.style.visible and (self.style.style != "overlay" or found.mask_d1mm is not None)

    def numbers(self, class_ids: Ints) -> npt.NDArray[np.uint8]:
        """Numbers of colours for classes: their own, as far as there are so many; never the background's."""
        return ((class_ids - 1) % (min(len(self.colours_k3), MOST_COLOURS) - 1) + 1).astype(np.uint8)

    def __call__(
        self,
        frames: FrameBatch,
        found: Sequence[Found],
        covered_nhw: ClassMap | None,
        postprocessor: Postprocessor,
    ) -> npt.NDArray[np.uint8]:
        """The pictures, uint8 `(N, H, W, 3)`.

        Args:
            covered_nhw: uint8 `(N, H, W)`, numbers of the colours of what covers each pixel, 0 for nothing;
                needed where this `covers` anything.
        """
        if covered_nhw is None:
            pixels = postprocessor.on_host(frames.pixels_nhwc)
        else:
            scores = ClassScores(class_map_nhw=torch.from_numpy(covered_nhw))
            whole = Geometry.whole(frames.size_hw)
            rendered = postprocessor(frames.pixels_nhwc, scores, whole, self.style)
            assert rendered.pixels_nhwc is not None
            pixels = rendered.pixels_nhwc
        if self.style.style != "overlay" or not self.style.visible:
            return pixels
        return np.stack([self._annotate(one, objects) for one, objects in zip(pixels, found, strict=True)])

    def _annotate(self, pixels_hwc: npt.NDArray[np.uint8], found: Found) -> npt.NDArray[np.uint8]:
        fitting_px = line_px((pixels_hwc.shape[0], pixels_hwc.shape[1]))
        colours = self.colours_k3[self.numbers(found.class_id_d)]
        lines_px = fitting_px if self.lines_px is None else self.lines_px
        drawn = draw_boxes(pixels_hwc, found.box_d4, self.captions(found), colours, lines_px)
        # The scores of torchvision's keypoints are logits; of others none is below 0.
        points = found.keypoint_dp3 * np.array([1, 1, 0], np.float32)
        points[..., 2] = (found.keypoint_dp3[..., 2] > 0) & (found.keypoint_score_dp > 0)
        return draw_keypoints(drawn, points, colours, fitting_px)

    def captions(self, found: Found) -> list[str]:
        """Of each object its class and score, and what a second model says: its class, or its attributes."""
        names = self.names(found.class_id_d)
        captions = [
            f"{name if self.labels else f'class {name}'} {score:.2f}"
            for name, score in zip(names, found.score_d, strict=True)
        ]
        if found.predicted_d is None or found.probability_d is None or found.attribute_da is None:
            return captions
        told = zip(found.predicted_d, found.probability_d, found.attribute_da, strict=True)
        for row, (predicted, sure, values) in enumerate(told):
            lines = [value for value in values if value] or ([f"{predicted} {sure:.2f}"] if predicted else [])
            captions[row] = ", ".join([captions[row], *lines])
        return captions

    def names(self, class_ids: Ints) -> Texts:
        """Names of classes, `(D,)`."""
        known = len(self.labels)
        names = [self.labels[one] if 0 <= one < known else str(one) for one in class_ids.tolist()]
        return np.array(names, dtype=object)
