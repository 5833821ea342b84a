"""Answers against what was measured: within 0.05 of each score, and an IoU of a half of each box."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import tensor
from torchvision.ops import box_iou

from pipelines.protocol.answers import (
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
)
from scripts.tried.cases import Attributes, Boxes, Classes, Cosines, Expected, Picture, Shares

SCORE, IOU = 0.05, 0.5
Ask = Callable[[Picture], Answer]


def faults(answer: Answer, expected: Expected, ask: Ask) -> list[str]:
    """What of an answer is wrong, in words; empty: nothing."""
    if isinstance(expected, Boxes):
        return _boxes(answer, expected)
    if isinstance(expected, Classes):
        return _classes(answer, expected)
    if isinstance(expected, Shares):
        return _shares(answer, expected)
    if isinstance(expected, Attributes):
        return _attributes(answer, expected)
    return _cosines(answer, expected, ask)


def told(answer: Answer, expected: Expected) -> str:
    """An answer in words, as far as it was asked about."""
    if isinstance(answer, DetectionAnswer):
        found = zip(answer.class_name, answer.score, answer.box, strict=True)
        shown = [f"{name} {score:.2f} {box.round().astype(int).tolist()}" for name, score, box in found]
        return ", ".join(shown[:4])
    if isinstance(answer, SegmentationAnswer):
        share = answer.class_pixels[0] / answer.class_pixels[0].sum()
        named = zip(answer.class_names, share, strict=True)
        return ", ".join(
            f"{name} {part:.3f}" for name, part in named if part >= 0.001 and name != "background"
        )
    if isinstance(expected, Attributes) and isinstance(answer, ClassificationAnswer):
        return ", ".join(f"{name}: {value} {p:.2f}" for name, (value, p) in _named(answer).items())
    if isinstance(answer, ClassificationAnswer):
        named = zip(answer.class_name[0], answer.probability[0], strict=True)
        return ", ".join(f"{name} {value:.3f}" for name, value in list(named)[:3])
    return ""


def _boxes(answer: Answer, expected: Boxes) -> list[str]:
    assert isinstance(answer, DetectionAnswer)
    wrong = []
    for name, score, box in expected.found:
        of_name = answer.class_name == name
        overlap = box_iou(tensor([box]).float(), tensor(answer.box[of_name]))[0].numpy()
        near = (overlap >= IOU) & (np.abs(answer.score[of_name] - score) <= SCORE)
        if not near.any():
            wrong.append(f"no {name} {score:.2f} at {list(box)}")
    return wrong


def _classes(answer: Answer, expected: Classes) -> list[str]:
    assert isinstance(answer, ClassificationAnswer)
    found = dict(zip(answer.class_name[0], answer.probability[0], strict=True))
    wrong = (
        []
        if answer.class_name[0, 0] == expected.best
        else [f"{answer.class_name[0, 0]}, not {expected.best}"]
    )
    for name, value in expected.probability.items():
        if abs(found.get(name, 0.0) - value) > SCORE:
            wrong.append(f"{name} {found.get(name, 0.0):.3f}, not {value}")
    return wrong


def _shares(answer: Answer, expected: Shares) -> list[str]:
    assert isinstance(answer, SegmentationAnswer)
    share = answer.class_pixels[0] / answer.class_pixels[0].sum()
    wrong = []
    for name, value in zip(answer.class_names, share, strict=True):
        if name != "background" and abs(value - expected.share.get(name, 0.0)) > SCORE:
            wrong.append(f"{name} {value:.3f}, not {expected.share.get(name, 0.0)}")
    return wrong


def _named(answer: ClassificationAnswer) -> dict[str, tuple[str, float]]:
    columns = (answer.attribute_names, answer.attribute_value[0], answer.attribute_probability[0])
    return {name: (value, float(p)) for name, value, p in zip(*columns, strict=True)}


def _attributes(answer: Answer, expected: Attributes) -> list[str]:
    assert isinstance(answer, ClassificationAnswer)
    found, wrong = _named(answer), []
    for name, (value, probability) in expected.value.items():
        got, p = found.get(name, ("nothing", 0.0))
        if got != value or abs(p - probability) > SCORE:
            wrong.append(f"{name}: {got} {p:.2f}, not {value} {probability}")
    return wrong


def _cosines(answer: Answer, expected: Cosines, ask: Ask) -> list[str]:
    wrong = []
    for picture, least in expected.same:
        if (cosine := _cosine(answer, ask(picture))) < least:
            wrong.append(f"cosine {cosine:.2f} to {picture}, below {least}")
    for picture, most in expected.different:
        if (cosine := _cosine(answer, ask(picture))) > most:
            wrong.append(f"cosine {cosine:.2f} to {picture}, over {most}")
    return wrong


def _cosine(one: Answer, other: Answer) -> float:
    assert isinstance(one, EmbeddingAnswer)
    assert isinstance(other, EmbeddingAnswer)
    return float(one.embedding[0] @ other.embedding[0])
