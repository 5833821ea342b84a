"""Served pixels and answers against torchvision's by hand on the same decoded frames. Knows all four tasks.

By hand: `transform(frame)`, one Pillow picture (for clips and boxes: uint8 tensor) at a time, then the
network as torchvision builds it, in batches of one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from pipelines.frames.batch import FrameBatch, to_numpy
from pipelines.models.spec import TaskName
from pipelines.protocol.answers import (
    ActionAnswer,
    Answer,
    AnswerT,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.options import Options
from scripts.parity.clips import clips_by_hand
from scripts.parity.measures import Boxes, Matches, Measure, Pixels, Probabilities, Row, winner_measures
from scripts.parity.media import Material, decode
from scripts.parity.subject import Subject
from tests.support.pixels import to_nchw

# Boxes a frame that count, on average over a medium.
BOXES_A_FRAME = 20
ALL_CLASSES = 1000
Media = Sequence[Material]
Found = tuple[int, Sequence[Measure]]


def compare_pixels(subject: Subject, media: Media, select: Options) -> Row:
    """Prepared pixels against the transform by its tensor path, and, where there is one, by its PIL path."""
    tensor, pil, own = (Pixels(subject.spec.preprocessing) for _ in range(3))
    frames = 0
    for material in media:
        batch = decode(material, select)
        ours, frames = subject.pipeline.prepare(batch), frames + len(batch)
        by_tensor = transformed(subject, to_nchw(to_numpy(batch.pixels_nhwc)))
        tensor.add(ours, by_tensor)
        if subject.spec.task != "action":
            by_pillow = transformed(subject, pictures(batch))
            pil.add(ours, by_pillow)
            own.add(by_tensor, by_pillow)
    measures: tuple[Measure, ...] = tensor.measures("tensor")
    if subject.spec.task != "action":
        measures += (*pil.measures("PIL"), Measure(name="torchvision's own two: mean", value=own.mean))
    return _row(subject, media, (frames, measures))


def compare_answers(subject: Subject, media: Media, select: Options) -> Row:
    """Whole answers, from the media's bytes on, against torchvision's."""
    with torch.inference_mode():
        return _row(subject, media, COMPARISONS[subject.spec.task](subject, media, select))


def _row(subject: Subject, media: Media, found: Found) -> Row:
    frames, measures = found
    return Row(model=subject.spec.name, media=len(media), frames=frames, measures=tuple(measures))


def pictures(batch: FrameBatch) -> list[Image.Image]:
    """Frames as Pillow has them, which is what presets of images are made for."""
    return [Image.fromarray(one) for one in to_numpy(batch.pixels_nhwc)]


def transformed(subject: Subject, frames: Iterable[Any]) -> Tensor:
    """What torchvision's network sees of frames, `(N, 3, h, w)`; a detector's own transform is done too."""
    if subject.spec.task == "action":
        clip: Tensor = subject.transform(torch.stack(list(frames)))
        return clip.transpose(0, 1)
    pixels = [subject.transform(one) for one in frames]
    if subject.spec.task == "detection":
        resize: Any = subject.network.transform
        images = [resize([one])[0] for one in pixels]
        pixels = [one.tensors[0, :, : one.image_sizes[0][0], : one.image_sizes[0][1]] for one in images]
    return torch.stack(pixels)


def served(subject: Subject, material: Material, kind: type[AnswerT], options: Options) -> AnswerT:
    """The whole answer to a medium's bytes."""
    parts: list[Answer] = list(subject.pipeline.run(material.load(), options))
    return kind.concatenate([one for one in parts if isinstance(one, kind)])


def _compare_classes(subject: Subject, media: Media, select: Options) -> Found:
    ours, logits = [], []
    for material in media:
        answer = served(subject, material, ClassificationAnswer, replace(select, top_k=ALL_CLASSES))
        ours.append(_by_class(answer))
        frames = pictures(decode(material, select))
        logits += [subject.network(transformed(subject, [one])) for one in frames]
    theirs = torch.cat(logits).softmax(dim=1).numpy()
    return len(theirs), winner_measures(np.concatenate(ours), theirs)


def _by_class(answer: ClassificationAnswer | ActionAnswer) -> Probabilities:
    """Probabilities `(N, K)` in the order of the classes, of answers that name them all."""
    ordered = np.zeros_like(answer.probability)
    np.put_along_axis(ordered, answer.class_id, answer.probability, axis=1)
    return ordered


def _compare_maps(subject: Subject, media: Media, select: Options) -> Found:
    """Class maps of the source's size, to which torchvision's winners are enlarged by the nearest pixel."""
    hits, sizes, classes = [], [], []
    for material in media:
        answer = served(subject, material, SegmentationAnswer, replace(select, mask="raw"))
        for frame, mask in zip(pictures(decode(material, select)), answer.mask, strict=True):
            theirs = _class_map(subject, frame)
            hits.append(int((np.frombuffer(mask, np.uint8).reshape(theirs.shape) == theirs).sum()))
            sizes.append(theirs.size)
            classes.append(int((np.bincount(theirs.ravel()) > 0.005 * theirs.size).sum()))
    worst = min(hit / size for hit, size in zip(hits, sizes, strict=True))
    agreeing = 100 * sum(hits) / sum(sizes)
    return len(hits), (
        Measure(name="pixels that agree %", value=agreeing, bar=99.5, at_most=False, digits=3),
        Measure(name="in the worst frame %", value=100 * worst, digits=3),
        Measure(name="classes a frame", value=float(np.mean(classes)), bar=2, at_most=False, digits=1),
    )


def _class_map(subject: Subject, frame: Image.Image) -> npt.NDArray[np.uint8]:
    """torchvision's winners, each source pixel that of the model pixel in which its middle lies."""
    winners = subject.network(transformed(subject, [frame]))["out"].argmax(dim=1, keepdim=True)
    # Double: a middle may lie on the border of two model pixels.
    enlarged = interpolate(winners.double(), (frame.height, frame.width), mode="nearest-exact")
    return enlarged[0, 0].numpy().astype(np.uint8)


def _compare_boxes(subject: Subject, media: Media, select: Options) -> Found:
    """Boxes, masks and keypoints in source pixels, above a score that BOXES_A_FRAME of torchvision's have."""
    matches, thresholds, frames = Matches(), [], 0
    for material in media:
        batch = decode(material, select)
        theirs = [_boxes_by_hand(subject, frame) for frame in to_nchw(to_numpy(batch.pixels_nhwc))]
        thresholds.append(_threshold(theirs))
        options = replace(select, score_threshold=thresholds[-1], mask="raw")
        answer = served(subject, material, DetectionAnswer, options)
        for number, boxes in zip(batch.frame_index, theirs, strict=True):
            matches.add(_served_boxes(answer, int(number)), boxes, thresholds[-1])
        frames += len(batch)
    return frames, (*matches.measures, Measure(name="thresholds from", value=min(thresholds), digits=3))


def _threshold(frames: Sequence[Boxes]) -> float:
    """A score between two of torchvision's, above which there are BOXES_A_FRAME a frame."""
    scores = torch.cat([one["scores"] for one in frames]).sort(descending=True).values
    place = min(BOXES_A_FRAME * len(frames), len(scores) - 1)
    # Where trained heads would find nothing more, torchvision's own floor ends the list.
    return float((scores[place - 1] + scores[place]) / 2) if place > 0 else 0.0


def _boxes_by_hand(subject: Subject, frame_chw: Tensor) -> Boxes:
    """torchvision's answer, in source pixels, without boxes that have no area, as the server has none."""
    found = subject.network([subject.transform(frame_chw)])[0]
    solid = (found["boxes"][:, :2] < found["boxes"][:, 2:]).all(dim=1)
    return {name: value[solid, 0] > 0.5 if name == "masks" else value[solid] for name, value in found.items()}


def _served_boxes(answer: DetectionAnswer, number: int) -> Boxes:
    """One frame's objects of an answer."""
    rows = np.flatnonzero(answer.box_frame_index == number)
    found = {"boxes": answer.box[rows], "scores": answer.score[rows], "labels": answer.class_id[rows]}
    if len(answer.mask):
        masks = np.frombuffer(b"".join(answer.mask[row] for row in rows), np.uint8)
        found["masks"] = masks.reshape(-1, answer.height_px, answer.width_px) > 0
    if answer.keypoint.size:
        found["keypoints"] = answer.keypoint[rows]
    return {name: torch.from_numpy(value) for name, value in found.items()}


def _compare_clips(subject: Subject, media: Media, select: Options) -> Found:
    """Clips as torchvision's `VideoClips` cuts them; and logits of both networks for the same pixels."""
    pairs, frames, wrong, equal = [], 0, 0, 0.0
    for material in media:
        clips, index = clips_by_hand(subject, material, select)
        answer = served(subject, material, ActionAnswer, replace(select, top_k=ALL_CLASSES, tail="drop"))
        ends = np.stack([answer.frame_index, answer.last_frame_index], axis=1)
        wrong += not np.array_equal(ends, index[:, [0, -1]])
        logits = torch.cat([subject.network(one) for one in clips])
        again = torch.cat([subject.pipeline.batcher.model(one).part(0, 1).logits for one in clips])  # type: ignore[union-attr]
        equal = max(equal, float((again - logits).abs().max() / logits.abs().max()))
        count = min(len(answer), len(logits))
        pairs.append((_by_class(answer)[:count], logits[:count].softmax(dim=1).numpy()))
        frames += index.size
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return frames, (
        *winner_measures(ours, theirs),
        Measure(name="clips of other frames", value=wrong, bar=0, digits=0),
        Measure(name="Δlogits, equal pixels", value=equal, bar=1e-3, digits=6),
        Measure(name="clips", value=len(ours), bar=1, at_most=False, digits=0),
    )


COMPARISONS: dict[TaskName, Callable[[Subject, Media, Options], Found]] = {
    "classification": _compare_classes,
    "segmentation": _compare_maps,
    "detection": _compare_boxes,
    "action": _compare_clips,
}
