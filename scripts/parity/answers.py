"""Served pixels and answers against torchvision's by hand on the same decoded frames. Knows all four tasks.

By hand: `transform(frame)`, one Pillow picture (for clips and boxes: uint8 tensor) at a time, into the
network as torchvision builds it, in batches of one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipelines.frames.batch import FrameBatch
from pipelines.protocol.answers import (
    ActionAnswer,
    Answer,
    AnswerT,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.options import Options
from scripts.parity.measures import Boxes, Matches, Measure, Pixels, Row, Winners
from scripts.parity.media import Material, decode
from scripts.parity.subject import Subject

# Boxes a frame that count, on average over a medium.
BOXES_A_FRAME = 20
ALL_CLASSES = 1000


def compare_pixels(subject: Subject, media: Sequence[Material], select: Options) -> Row:
    """Prepared pixels against the transform by its tensor path, and, where there is one, by its PIL path."""
    std = subject.spec.preprocessing.std
    tensor, pil, own = Pixels(std), Pixels(std), Pixels(std)
    frames = 0
    for material in media:
        batch = decode(material, select)
        ours, frames = subject.pipeline.prepare(batch), frames + len(batch)
        theirs = transformed(subject, list(tensors(batch)))
        tensor.add(ours, theirs)
        if subject.task != "action":
            by_pillow = transformed(subject, pictures(batch))
            pil.add(ours, by_pillow)
            own.add(theirs, by_pillow)
    with_pil = subject.task != "action"
    nothing = float("nan")
    measures = (
        Measure(name="tensor path: mean", value=tensor.mean, bar=1.0),
        Measure(name="p99.9", value=tensor.high, bar=8.0, digits=2),
        Measure(
            name="PIL path: mean", value=pil.mean if with_pil else nothing, bar=1.0 if with_pil else None
        ),
        Measure(
            name="PIL p99.9", value=pil.high if with_pil else nothing, bar=8.0 if with_pil else None, digits=2
        ),
        Measure(name="torchvision's own two: mean", value=own.mean if with_pil else nothing),
    )
    return Row(model=subject.name, media=_names(media), frames=frames, measures=measures)


def compare_answers(subject: Subject, media: Sequence[Material], select: Options) -> Row:
    """Whole answers, from the media's bytes on, against torchvision's."""
    compare = {
        "classification": compare_classes,
        "segmentation": compare_maps,
        "detection": compare_boxes,
        "action": compare_clips,
    }[subject.task]
    with torch.inference_mode():
        return compare(subject, media, select)


def tensors(batch: FrameBatch) -> Tensor:
    """Frames uint8 `(N, 3, H, W)`."""
    return torch.from_numpy(np.asarray(batch.pixels_nhwc)).permute(0, 3, 1, 2)


def pictures(batch: FrameBatch) -> list[Image.Image]:
    """Frames as Pillow has them, which is what presets of images are made for."""
    return [Image.fromarray(one) for one in np.asarray(batch.pixels_nhwc)]


def transformed(subject: Subject, frames: Sequence[Any]) -> Tensor:
    """What torchvision's network itself would see of frames, `(N, 3, h, w)`: of a detector its own transform
    too.
    """
    if subject.task == "action":
        clip: Tensor = subject.transform(torch.stack(list(frames)))
        return clip.transpose(0, 1)
    pixels = [subject.transform(one) for one in frames]
    if subject.task == "detection":
        resize: Any = subject.network.transform
        images = [resize([one])[0] for one in pixels]
        pixels = [one.tensors[0, :, : one.image_sizes[0][0], : one.image_sizes[0][1]] for one in images]
    return torch.stack(pixels)


def served(subject: Subject, material: Material, kind: type[AnswerT], options: Options) -> AnswerT:
    """The whole answer to a medium's bytes."""
    parts: list[Answer] = list(subject.pipeline.run(material.load(), options))
    return kind.concatenate([one for one in parts if isinstance(one, kind)])


def compare_classes(subject: Subject, media: Sequence[Material], select: Options) -> Row:
    winners, frames = Winners(), 0
    for material in media:
        answer = served(subject, material, ClassificationAnswer, replace(select, top_k=ALL_CLASSES))
        batch = decode(material, select)
        logits = [subject.network(transformed(subject, [one])) for one in pictures(batch)]
        winners.add(by_class(answer.class_id, answer.probability), torch.cat(logits).softmax(dim=1).numpy())
        frames += len(batch)
    return Row(model=subject.name, media=_names(media), frames=frames, measures=winners.measures)


def by_class(
    class_id: npt.NDArray[np.int64], probability: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Probabilities `(N, K)` in the order of the classes, of answers that name them all."""
    ordered = np.zeros_like(probability)
    np.put_along_axis(ordered, class_id, probability, axis=1)
    return ordered


def compare_maps(subject: Subject, media: Sequence[Material], select: Options) -> Row:
    """Class maps of the source's size; torchvision's winners are enlarged to it by the nearest pixel, ours
    are so too.
    """
    worst, same, total, frames, classes = 1.0, 0, 0, 0, []
    for material in media:
        answer = served(subject, material, SegmentationAnswer, replace(select, mask="raw"))
        batch = decode(material, select)
        frames += len(batch)
        for frame, mask in zip(pictures(batch), answer.mask, strict=True):
            ours = np.frombuffer(mask, np.uint8).reshape(frame.height, frame.width)
            theirs = class_map(subject, frame)
            hits = int((ours == theirs).sum())
            worst, same, total = min(worst, hits / ours.size), same + hits, total + ours.size
            counts = np.bincount(theirs.ravel()) / theirs.size
            classes.append(int((counts > 0.005).sum()))
    measures = (
        Measure(name="pixels that agree %", value=100 * same / total, bar=99.5, at_most=False, digits=3),
        Measure(name="in the worst frame %", value=100 * worst, digits=3),
        Measure(name="classes a frame", value=float(np.mean(classes)), bar=2, at_most=False, digits=1),
    )
    return Row(model=subject.name, media=_names(media), frames=frames, measures=measures)


def class_map(subject: Subject, frame: Image.Image) -> npt.NDArray[np.uint8]:
    """torchvision's winners, each source pixel that of the model pixel in which its middle lies."""
    winners = subject.network(transformed(subject, [frame]))["out"].argmax(dim=1)[0].numpy()
    rows, columns = (
        ((2 * np.arange(side) + 1) * model // (2 * side))
        for side, model in zip((frame.height, frame.width), winners.shape, strict=True)
    )
    return np.asarray(winners[rows[:, None], columns[None]], np.uint8)


def compare_boxes(subject: Subject, media: Sequence[Material], select: Options) -> Row:
    """Boxes, masks and keypoints in source pixels, above a score that BOXES_A_FRAME of torchvision's have."""
    total, thresholds = Matches(0.0), []
    for material in media:
        batch = decode(material, select)
        theirs = [boxes_by_hand(subject, frame) for frame in tensors(batch)]
        matches = Matches(threshold(theirs))
        thresholds.append(matches.threshold)
        options = replace(select, score_threshold=matches.threshold, mask="raw")
        answer = served(subject, material, DetectionAnswer, options)
        for number, boxes in zip(batch.frame_index, theirs, strict=True):
            matches.add(served_boxes(answer, int(number)), boxes)
        total.join(matches)
    scores = Measure(name="thresholds from", value=min(thresholds), digits=3)
    return Row(
        model=subject.name, media=_names(media), frames=total.frames, measures=(*total.measures, scores)
    )


def threshold(frames: Sequence[Boxes]) -> float:
    """A score between two of torchvision's, above which there are BOXES_A_FRAME a frame."""
    scores = torch.cat([one.score_d for one in frames]).sort(descending=True).values
    place = min(BOXES_A_FRAME * len(frames), len(scores) - 1)
    # Where trained heads would find nothing more, torchvision's own floor ends the list.
    return float((scores[place - 1] + scores[place]) / 2) if place > 0 else 0.0


def boxes_by_hand(subject: Subject, frame_chw: Tensor) -> Boxes:
    """torchvision's own answer, which is in source pixels, without boxes that have no area, as the server has
    none.
    """
    found = subject.network([subject.transform(frame_chw)])[0]
    solid = (found["boxes"][:, :2] < found["boxes"][:, 2:]).all(dim=1)
    found = {name: value[solid] for name, value in found.items()}
    return Boxes(
        box_d4=found["boxes"],
        score_d=found["scores"],
        class_id_d=found["labels"],
        mask_dhw=found["masks"][:, 0] > 0.5 if "masks" in found else None,
        keypoint_dp2=found["keypoints"][..., :2] if "keypoints" in found else None,
    )


def served_boxes(answer: DetectionAnswer, number: int) -> Boxes:
    """One frame's objects of an answer."""
    rows = np.flatnonzero(answer.box_frame_index == number)
    size = (answer.height_px, answer.width_px)
    masks = [np.frombuffer(answer.mask[row], np.uint8).reshape(size) > 0 for row in rows if len(answer.mask)]
    return Boxes(
        box_d4=torch.from_numpy(answer.box[rows]),
        score_d=torch.from_numpy(answer.score[rows]),
        class_id_d=torch.from_numpy(answer.class_id[rows]),
        mask_dhw=torch.from_numpy(np.stack(masks)) if masks else None,
        keypoint_dp2=torch.from_numpy(answer.keypoint[rows][..., :2]) if answer.keypoint.size else None,
    )


def compare_clips(subject: Subject, media: Sequence[Material], select: Options) -> Row:
    """Clips as torchvision's `VideoClips` cuts them; and logits where both networks are fed the same
    pixels.
    """
    from scripts.parity.clips import clips_by_hand

    winners, frames, wrong, equal = Winners(), 0, 0, 0.0
    for material in media:
        clips = clips_by_hand(subject, material, select)
        answer = served(subject, material, ActionAnswer, replace(select, top_k=ALL_CLASSES, tail="drop"))
        ours = np.stack([answer.frame_index, answer.last_frame_index], axis=1)
        wrong += int((ours != clips.ends).any()) if ours.shape == clips.ends.shape else 1
        logits = torch.cat([subject.network(one) for one in clips.pixels])
        again = torch.cat([subject.pipeline.batcher.model(one).part(0, 1).logits for one in clips.pixels])  # type: ignore[union-attr]
        equal = max(equal, float((again - logits).abs().max() / logits.abs().max()))
        count = min(len(answer), len(logits))
        probability = logits[:count].softmax(dim=1).numpy()
        winners.add(by_class(answer.class_id[:count], answer.probability[:count]), probability)
        frames += clips.frames
    measures = (
        *winners.measures,
        Measure(name="clips of other frames", value=wrong, bar=0, digits=0),
        Measure(name="Δlogits, equal pixels", value=equal, bar=1e-3, digits=6),
        Measure(name="clips", value=sum(map(len, winners.ours)), bar=1, at_most=False, digits=0),
    )
    return Row(model=subject.name, media=_names(media), frames=frames, measures=measures)


def _names(media: Sequence[Material]) -> tuple[str, ...]:
    return tuple(material.name for material in media)
