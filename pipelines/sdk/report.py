"""Answers as text: a JSON line for each row, a line for a whole medium. Knows no connection, no files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.protocol.answers import (
    MARKS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.errors import InternalError
from pipelines.sdk.text import as_json, one_line

Line = dict[str, Any]


def row_lines(file: str, answer: Answer, *, with_mask: bool = False) -> Iterator[str]:
    """A JSON object for each frame or clip, and at the end one for the mean over the medium, if any.

    Marks stand where they are not 0. A medium of no frames has no mean. `with_mask` adds run lengths (the
    option `mask=rle`). Names that are not UTF-8 are as `os.fsdecode` gives them, with escapes.
    """
    content = REPORTS[type(answer)].line
    for row, index in enumerate(answer.frame_index):
        line = {"file": file, "frame_index": int(index), "pts_s": float(answer.pts_s[row])}
        line |= {name: int(value) for name in MARKS if (value := getattr(answer, name)[row])}
        yield _json({**line, **content(answer, row, with_mask), "decoder": answer.decoder})
    if not isinstance(answer, ClassificationAnswer | ActionAnswer):
        return
    if answer.final and answer.mean_probability.any():
        yield _json({"file": file, "mean_classes": _mean(answer)})


def _json(line: Line) -> str:
    return one_line(as_json(line))


def _segmentation_line(answer: SegmentationAnswer, row: int, with_mask: bool) -> Line:
    counts = zip(answer.class_names, answer.class_pixels[row], strict=True)
    line: Line = {"class_pixels": {name: int(count) for name, count in counts if count > 0}}
    return line | ({"mask": _run_lengths(answer.mask[row])} if with_mask and answer.mask else {})


def _classification_line(answer: ClassificationAnswer, row: int, _with_mask: bool) -> Line:
    line: Line = {"classes": _classes(answer.class_id[row], answer.class_name[row], answer.probability[row])}
    if answer.attribute_names and not answer.not_finite[row]:
        line["attributes"] = _attributes(answer, row)
    return line


def _action_line(answer: ActionAnswer, row: int, _with_mask: bool) -> Line:
    return {
        "last_frame_index": int(answer.last_frame_index[row]),
        "last_pts_s": float(answer.last_pts_s[row]),
        "classes": _classes(answer.class_id[row], answer.class_name[row], answer.probability[row]),
    }


def _detection_line(answer: DetectionAnswer, row: int, with_mask: bool) -> Line:
    boxes = np.flatnonzero(answer.box_frame_index == answer.frame_index[row])
    return {"boxes": [_box(answer, int(box), with_mask) for box in boxes]}


def _box(answer: DetectionAnswer, box: int, with_mask: bool) -> Line:
    line: Line = {
        "class_id": int(answer.class_id[box]),
        "class_name": str(answer.class_name[box]),
        "score": round(float(answer.score[box]), 6),
        "box": [round(float(side), 2) for side in answer.box[box]],
    }
    if answer.keypoint_names:
        points = zip(answer.keypoint_names, answer.keypoint[box], answer.keypoint_score[box], strict=True)
        line["keypoints"] = {
            name: [round(float(x), 2), round(float(y), 2), round(float(score), 4)]
            for name, (x, y, _), score in points
        }
    line |= _told(answer, box)
    return line | ({"mask": _run_lengths(answer.mask[box])} if with_mask and answer.mask else {})


def _told(answer: DetectionAnswer, box: int) -> Line:
    """What a second model says of a box, if it was asked about it."""
    line: Line = {}
    if answer.classified_by and answer.predicted_class[box]:
        line["predicted_class"] = str(answer.predicted_class[box])
        line["probability"] = round(float(answer.probability[box]), 6)
    if answer.attribute_names and any(answer.attribute_value[box]):
        told = _attributes(answer, box)
        line["attributes"] = {name: one for name, one in told.items() if one["value"]}
    return line


def _attributes(answer: ClassificationAnswer | DetectionAnswer, row: int) -> Line:
    values, sure = answer.attribute_value[row], answer.attribute_probability[row]
    told = zip(answer.attribute_names, values, sure, strict=True)
    return {name: {"value": str(value), "probability": round(float(part), 6)} for name, value, part in told}


def _embedding_line(answer: EmbeddingAnswer, row: int, _with_mask: bool) -> Line:
    return {"embedding": [round(float(value), 6) for value in answer.embedding[row]]}


def _mean(answer: ClassificationAnswer | ActionAnswer) -> list[Line]:
    return _classes(answer.mean_class_id, answer.mean_class_name, answer.mean_probability)


def _classes(ids: Any, names: Any, probabilities: Any) -> list[Line]:
    """Those that count: of the others the id is -1."""
    ranked = zip(ids, names, probabilities, strict=True)
    return [
        {"class_id": int(number), "class_name": str(name), "probability": round(float(value), 6)}
        for number, name, value in ranked
        if number >= 0
    ]


def _run_lengths(mask: bytes) -> Any:
    try:
        return json.loads(mask)
    except (ValueError, RecursionError):
        raise InternalError(f"the mask is not JSON: {mask[:20]!r}") from None


# Of a file, the classes that a form of answer shows most of; `counts` keeps those of its answers before.
NAMED = 5


def _mean_words(_counts: Counter[str], answer: ClassificationAnswer | ActionAnswer) -> list[str]:
    ranked = zip(answer.mean_class_id, answer.mean_class_name, answer.mean_probability, strict=False)
    return [f"{name} {100 * value:.2f} %" for number, name, value in ranked if number >= 0][:NAMED]


def _class_words(counts: Counter[str], answer: ClassificationAnswer) -> list[str]:
    """The mean classes; or of each attribute the value that most frames have."""
    if not answer.attribute_names:
        return _mean_words(counts, answer)
    told = []
    for place, name in enumerate(answer.attribute_names):
        start = f"{name}: "
        counts.update(f"{start}{value}" for value in answer.attribute_value[answer.not_finite == 0, place])
        found = Counter({key: count for key, count in counts.items() if key.startswith(start)})
        told += [key for key, _ in found.most_common(1)]
    return told


def _vector_words(_counts: Counter[str], answer: EmbeddingAnswer) -> list[str]:
    return [f"vectors of {len(answer.mean_embedding)} numbers"]


def _box_words(counts: Counter[str], answer: DetectionAnswer) -> list[str]:
    told = answer.predicted_class if answer.classified_by else [""] * len(answer.box)
    pairs = zip(answer.class_name, told, strict=True)
    counts.update(f"{name} ({predicted})" if predicted else str(name) for name, predicted in pairs)
    classes = [f"{name} {count}" for name, count in counts.most_common(NAMED)]
    return [f"{counts.total()} {_plural('box', counts.total())}", *classes]


def _pixel_words(counts: Counter[str], answer: SegmentationAnswer) -> list[str]:
    counts.update(dict(zip(answer.class_names, answer.class_pixels.sum(axis=0).tolist(), strict=False)))
    found = Counter({name: counts[name] for name in answer.class_names[1:] if counts[name]})
    shares = [f"{name} {100 * count / counts.total():.1f} %" for name, count in found.most_common(NAMED)]
    return shares or ["nothing but background"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """How a form of answer is told: a line for each row; for a file, what its rows are and show."""

    line: Callable[[Any, int, bool], Line]
    noun: str = "frame"
    words: Callable[[Counter[str], Any], list[str]] = lambda _counts, _answer: []


REPORTS: Mapping[type[Answer], Report] = {
    ClassificationAnswer: Report(line=_classification_line, words=_class_words),
    DetectionAnswer: Report(line=_detection_line, words=_box_words),
    SegmentationAnswer: Report(line=_segmentation_line, words=_pixel_words),
    ActionAnswer: Report(line=_action_line, words=_mean_words, noun="clip"),
    EmbeddingAnswer: Report(line=_embedding_line, words=_vector_words),
}


class Summary:
    """What a file shows most of, and how many `rows` it has."""

    def __init__(self) -> None:
        self.rows, self._decoder, self._noun = 0, "", "frame"
        self._damaged = self._not_finite = 0
        self._counts: Counter[str] = Counter()
        self._words: list[str] = []
        self._breaks, self._break_at = 0, 0

    def add(self, answer: Answer) -> None:
        report = REPORTS[type(answer)]
        self.rows += len(answer)
        self._damaged += int(np.count_nonzero(answer.damaged))
        self._not_finite += int(np.count_nonzero(answer.not_finite))
        self._decoder, self._noun = answer.decoder, report.noun
        if (later := answer.frame_index[answer.stretch > 0]).size:
            self._break_at = self._break_at or int(later[0])
            self._breaks = int(answer.stretch.max())
        self._words = report.words(self._counts, answer)

    def __str__(self) -> str:
        if not self.rows:
            return f"0 {self._noun}s: the options select none, or too few"
        told = [f"{self.rows} {_plural(self._noun, self.rows)}", *self._words]
        if self._damaged:
            told.append(f"{self._damaged} damaged")
        if self._not_finite:
            told.append(f"{self._not_finite} without finite numbers")
        if self._breaks:
            often = f" {self._breaks} times, first" if self._breaks > 1 else ""
            told.append(f"its clock breaks{often} at frame {self._break_at}")
        return f"{', '.join(told)} ({self._decoder})"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}es" if noun.endswith("x") else f"{noun}s"
