"""Detection: boxes, and of some models masks and keypoints, in source pixels; pictures of them.

Boxes count if scored above `score_threshold`, by default the model spec's threshold, else 0.5. If a model
sees a large frame in tiles, each object is given once. A second model may be asked about the objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.models.outputs import BoxOutput, Output
from pipelines.models.spec import ModelSpec
from pipelines.protocol.answers import DetectionAnswer, Floats, Texts
from pipelines.protocol.columns import Column, count_column
from pipelines.protocol.options import Options
from pipelines.rendering.encode import PictureWriter
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.boxes import Found, SecondModel, join_views, read_frame, to_source
from pipelines.tasks.classes import class_ids
from pipelines.tasks.job import CLASSES, FRAME_PIXELS, PICTURES, SELECTION, FrameJob, Task, about
from pipelines.tasks.masks import ClassMap, box_pixels, object_masks
from pipelines.tasks.painter import Painter

DEFAULT_THRESHOLD = 0.5


class Detection(FrameJob):
    """One medium's job."""

    def __init__(self, spec: ModelSpec, options: Options, second: SecondModel | None = None) -> None:
        self._spec = spec
        self._second = second
        self._form = options.mask
        self._class_ids = class_ids(options, spec.labels)
        thresholds = (options.score_threshold, spec.score_threshold, DEFAULT_THRESHOLD)
        self._threshold = next(value for value in thresholds if value >= 0)
        self._writer = PictureWriter(options.overlay)
        self._painter = Painter.of(options, spec.labels)

    def read(self, output: Output) -> list[Found]:
        assert isinstance(output, BoxOutput)
        marks = output.not_finite or [False] * len(output)
        return [
            read_frame(frame, self._threshold, self._class_ids, not_finite=mark)
            for frame, mark in zip(output.frames, marks, strict=True)
        ]

    def complete(
        self, frames: FrameBatch | None, parts: Sequence[Any], views: Sequence[View]
    ) -> tuple[Sequence[Any], Sequence[View]]:
        """With a second model: the objects with what it says, as if one view had shown all of the frames."""
        if self._second is None or frames is None:
            return parts, views
        found = self._second(frames, _found(len(frames), parts, views))
        return [found], [View.whole(frames.size_hw)]

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[list[Found]],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> DetectionAnswer:
        count, frame_hw = (0, (0, 0)) if frames is None else (len(frames), frames.size_hw)
        found = _found(count, parts, views)
        masks, covered = self._masks(found, frame_hw)
        overlay, video = self._pictures(frames, found, covered, postprocessor, final=final)
        names = self._spec.keypoint_names
        objects = Found.concatenate(found) if found else Found.none(len(names))
        facts = about(frames)
        points = objects.keypoint_dp3.shape[1]
        return DetectionAnswer(
            **facts,
            not_finite=np.array([one.not_finite for one in found], bool),
            box_frame_index=np.repeat(facts["frame_index"], [len(one) for one in found]),
            box=objects.box_d4,
            score=objects.score_d,
            class_id=objects.class_id_d,
            class_name=self._painter.names(objects.class_id_d),
            mask=masks,
            keypoint_names=names if len(names) == points else tuple(map(str, range(points))),
            keypoint=objects.keypoint_dp3,
            keypoint_score=objects.keypoint_score_dp,
            classified_by=self._second.models if self._second else (),
            predicted_class=_texts(objects.predicted_d),
            probability=_floats(objects.probability_d),
            attribute_names=self._second.attribute_names if self._second else (),
            attribute_value=_texts(objects.attribute_da),
            attribute_probability=_floats(objects.attribute_probability_da),
            overlay=overlay,
            video=video,
            final=final,
        )

    def _masks(
        self, found: Sequence[Found], frame_hw: tuple[int, int]
    ) -> tuple[list[bytes], ClassMap | None]:
        """Masks as asked for, and colours `(N, H, W)` of what the objects cover, where pictures show that."""
        shown = self._writer.wanted and any(map(self._painter.covers, found))
        covered = np.zeros((len(found), *frame_hw), np.uint8) if shown else None
        masks: list[bytes] = []
        for row, objects in enumerate(found):
            canvas = None if covered is None else covered[row]
            if objects.mask_d1mm is not None and (canvas is not None or self._form != "none"):
                masks += self._pasted(objects, frame_hw, canvas)
            elif canvas is not None:
                for box, number in zip(
                    objects.box_d4, self._painter.numbers(objects.class_id_d), strict=True
                ):
                    region = canvas[box_pixels(box)]
                    region[region == 0] = number
        return masks, covered

    def _pasted(self, objects: Found, frame_hw: tuple[int, int], canvas: ClassMap | None) -> list[bytes]:
        """One frame's masks as asked for; on the canvas the best lies on top."""
        masks = []
        numbers = self._painter.numbers(objects.class_id_d)
        for mask, number in zip(object_masks(objects, frame_hw), numbers, strict=True):
            if self._form != "none":
                masks.append(mask.pack(self._form))
            if canvas is not None:
                region = canvas[mask.rows, mask.columns]
                region[mask.inside_hw & (region == 0)] = number
        return masks

    def _pictures(
        self,
        frames: FrameBatch | None,
        found: Sequence[Found],
        covered: ClassMap | None,
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> tuple[list[bytes], bytes]:
        """Pictures, and the next part of the overlay video."""
        if frames is None or not self._writer.wanted:
            return [], b""
        pixels = self._painter(frames, found, covered, postprocessor)
        film = self._writer.film(pixels, frames.played_s)
        return self._writer.pictures(pixels), film + self._writer.close() if final else film


def _found(count: int, parts: Sequence[list[Found]], views: Sequence[View]) -> list[Found]:
    """The objects of each of `count` frames in the source's pixels, each once."""
    looks = [one for part in parts for one in part]
    # View by view, and in each frame by frame.
    return [
        join_views([to_source(looks[row], view) for row, view in zip(rows, views, strict=True)])
        for rows in np.arange(len(looks)).reshape(len(views), count).T
    ]


def _texts(told: Texts | None) -> Texts:
    return np.empty(0, object) if told is None else told


def _floats(told: Floats | None) -> Floats:
    return np.empty(0, np.float32) if told is None else told


TASK = Task(
    answer=DetectionAnswer,
    options=(*SELECTION, *PICTURES, *CLASSES, "classify"),
    job=Detection,
    second_job=Detection,
    model_inputs=(FRAME_PIXELS,),
    model_outputs=(
        Column(
            name="boxes", dtype=np.float32, dims=("D", 4), help="left, top, right, bottom in model pixels"
        ),
        Column(name="scores", dtype=np.float32, dims=("D",), help="confidence, the highest first"),
        Column(name="labels", dtype=np.int64, dims=("D",), help="ids of the boxes' classes"),
        count_column("box_count", "number of real boxes; zero boxes are padded to one"),
    ),
    tiles=True,
)
