"""Answers as frozen columns, the same objects on the server and in the client. numpy only.

A field of an answer is a column of the wire: its dtype, dimensions and meaning stand at the field, and
packing, reading and joining follow from them. Rows are frames (`N`, in `action` clips) or boxes (`D`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.protocol.columns import (
    ERROR_COLUMN,
    Column,
    Join,
    Tensor,
    bytes_column,
    count_column,
    text_column,
)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Times = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]
Marks = npt.NDArray[np.uint8]
AnswerT = TypeVar("AnswerT", bound="Answer")

# The columns that are 0 in most rows.
MARKS = ("stretch", "damaged", "not_finite")
# The columns that say how many rows are real.
COUNTS: Mapping[str | int, str] = {"N": "count", "D": "box_count"}


def column(
    dims: tuple[str | int, ...],
    dtype: type[np.generic] | type[object],
    help_text: str,
    *,
    default: Callable[[], Any] | None = None,
    binary: bool = False,
    join: Join = "first",
    needs: str = "",
) -> Any:
    """A field that crosses the wire as a `Column` of these facts."""
    facts = {"dims": dims, "dtype": dtype, "help": help_text, "binary": binary, "join": join, "needs": needs}
    return field(metadata=facts) if default is None else field(default_factory=default, metadata=facts)


def rows(
    dtype: type[np.generic] | type[object], help_text: str, *more: str | int, of: str = "N", needs: str = ""
) -> Any:
    """A column with a row for each frame or box, of `more` dimensions each."""
    sizes = (0, *(dim if isinstance(dim, int) else 0 for dim in more))
    default = None if not needs else lambda: np.empty(sizes, dtype)
    return column((of, *more), dtype, help_text, join="rows", needs=needs, default=default)


def mark(help_text: str, dtype: type[np.generic] = np.uint8) -> Any:
    """A column with a number for each frame or clip, which is 0 of most: of all where it is not given."""
    return column(("N",), dtype, help_text, join="rows", default=lambda: np.empty(0, dtype))


def bytes_rows(help_text: str, of: str = "N") -> Any:
    """A column of bytes for each row; no entries where they were not asked for."""
    return column((of,), object, help_text, default=tuple, binary=True, join="rows")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What is said of N frames of one medium, whatever the task."""

    task: ClassVar[str] = ""

    frame_index: Ints = rows(np.int64, "index of the frame in its medium, from 0; of a clip, its first frame")
    pts_s: Times = rows(np.float64, "its presentation time in seconds")
    size: Ints = column((2,), np.int64, "height and width of the source in pixels", join="last")
    stretch: Ints = mark(
        "number of the stretch of time that it lies in, from 0: a new one begins where the medium's times "
        "fall, leap or stand still",
        np.int64,
    )
    damaged: Marks = mark("1 if its pixels are damaged, or depend on others that are damaged or lost")
    not_finite: Marks = mark("1 if the model gave numbers for it that are not finite; they count for nothing")
    overlay: Sequence[bytes] = bytes_rows("the picture in the requested form: JPEG or raw RGB bytes")
    video: bytes = column(
        (1,),
        object,
        "H.264 in fragmented MP4; the parts of a stream can be concatenated",
        default=bytes,
        binary=True,
        join="rows",
    )
    decoder: str = column((1,), object, "the decoder that was used", default=str)
    decoder_reason: str = column((1,), object, "why that decoder was used", default=str)
    final: bool = column((1,), np.uint8, "1 on the last answer of a medium", default=bool, join="last")

    def __post_init__(self) -> None:
        for name in MARKS:
            values = np.asarray(getattr(self, name))
            values = values if len(values) else np.zeros(len(self), values.dtype)
            object.__setattr__(self, name, values.astype(np.int64 if name == "stretch" else np.uint8))
        lengths: dict[str | int, dict[str, int]] = {}
        for one in self.own_columns():
            value, rows_of = getattr(self, one.name), one.dims[0]
            absent = len(getattr(self, one.needs)) == 0 if one.needs else one.binary
            if rows_of in COUNTS and not (absent and len(value) == 0):
                lengths.setdefault(rows_of, {})[one.name] = len(value)
        for found in lengths.values():
            if len(set(found.values())) > 1:
                raise ValueError(f"columns disagree: {found}")

    def __len__(self) -> int:
        return len(self.frame_index)

    @classmethod
    @functools.cache
    def own_columns(cls) -> tuple[Column, ...]:
        """The columns that are its fields."""
        return tuple(Column(name=entry.name, **entry.metadata) for entry in fields(cls))

    @property
    def height_px(self) -> int:
        return int(self.size[0])

    @property
    def width_px(self) -> int:
        return int(self.size[1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything that grows with the pixels."""
        values = [getattr(self, one.name) for one in self.own_columns() if one.binary]
        return sum(len(value) if isinstance(value, bytes) else sum(map(len, value)) for value in values)

    def to_columns(self) -> dict[str, Tensor]:
        """The answer as named columns, without the row dimension."""
        own = self.own_columns()
        packed = {one.name: _pack(one, getattr(self, one.name)) for one in own}
        counts = {
            COUNTS[one.dims[0]]: np.array([len(getattr(self, one.name))], np.int64)
            for one in own
            if one.dims[0] in COUNTS and not one.needs and not one.binary
        }
        return {**packed, **counts, "error": text_column("")}

    @classmethod
    def from_columns(cls: type[AnswerT], columns: Mapping[str, Tensor]) -> AnswerT:
        """The inverse of `to_columns`; padding beyond the counts is dropped."""
        values: dict[str, Any] = {}
        for one in cls.own_columns():
            tensor, rows_of = columns[one.name], one.dims[0]
            if rows_of in COUNTS:
                tensor = tensor[: int(columns[COUNTS[rows_of]][0])]
            if one.needs and not any(columns[one.needs]):
                tensor = tensor[:0]
            values[one.name] = _unpack(one, tensor)
        return cls(**values)

    @classmethod
    def concatenate(cls: type[AnswerT], parts: Sequence[AnswerT]) -> AnswerT:
        """The parts of one medium, in order, as one answer."""
        if len(parts) == 1:
            return parts[0]
        joined = {
            one.name: _join(one.join, [getattr(part, one.name) for part in parts])
            for one in cls.own_columns()
        }
        return cls(**joined)


def answer_columns(kind: type[Answer]) -> tuple[Column, ...]:
    """The columns of a form of answer, counts and error included."""
    dims = dict.fromkeys(one.dims[0] for one in kind.own_columns() if one.dims[0] in COUNTS)
    counts = (
        count_column(COUNTS[dim], f"number of real rows of {dim}; zero rows are padded to one")
        for dim in dims
    )
    return (*kind.own_columns(), *counts, ERROR_COLUMN)


def _pack(one: Column, value: Any) -> Tensor:
    if one.dtype is not object:
        return np.asarray([value] if one.dims == (1,) else value, dtype=one.dtype)
    if one.dims == (1,):
        return text_column(value)
    if one.binary:
        return bytes_column(value)
    texts = np.asarray(value, dtype=object)
    return bytes_column([text.encode() for text in texts.flat]).reshape(texts.shape)


def _unpack(one: Column, tensor: Tensor) -> Any:
    if one.dtype is not object:
        if one.dims != (1,):
            return tensor
        # Flags are bytes on the wire.
        return bool(tensor[0]) if one.dtype is np.uint8 else int(tensor[0])
    if one.binary:
        values = [bytes(value) for value in tensor]
        # Nothing but an empty text is padding.
        return values[0] if one.dims == (1,) else values if any(values) else []
    texts = [bytes(text).decode() for text in tensor.flat]
    if one.dims == (1,):
        return texts[0]
    if len(one.dims) == 1 and one.dims[0] not in COUNTS:
        return tuple(texts) if any(texts) else ()
    return np.array(texts, dtype=object).reshape(tensor.shape)


def _join(how: Join, values: Sequence[Any]) -> Any:
    if how != "rows":
        return values[0 if how == "first" else -1]
    if isinstance(values[0], bytes):
        return b"".join(values)
    if isinstance(values[0], np.ndarray):
        filled = [value for value in values if len(value)]
        return np.concatenate(filled) if filled else values[0]
    return [entry for value in values for entry in value]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClassificationAnswer(Answer):
    """The k likeliest classes of each frame, and of the mean over all frames up to this answer's last.

    Of classes that are not above the threshold, the id is -1, the name empty and the probability 0. Some
    models also tell A named attributes.
    """

    task: ClassVar[str] = "classification"

    class_id: Ints = rows(
        np.int64, "ids of the k likeliest classes, the likeliest first; -1 if not above score_threshold", "k"
    )
    class_name: Texts = rows(object, "their names", "k")
    probability: Floats = rows(np.float32, "their probabilities", "k")
    mean_class_id: Ints = column(
        ("k",), np.int64, "the same for the mean over the medium so far", join="last"
    )
    mean_class_name: tuple[str, ...] = column(("k",), object, "their names", join="last")
    mean_probability: Floats = column(("k",), np.float32, "their mean probabilities", join="last")
    attribute_names: tuple[str, ...] = column(("A",), object, "names of the A attributes", default=tuple)
    attribute_value: Texts = rows(object, "the value of each attribute", "A", needs="attribute_names")
    attribute_probability: Floats = rows(
        np.float32, "how probable that value is", "A", needs="attribute_names"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActionAnswer(Answer):
    """The k likeliest classes of each clip; `frame_index` and `pts_s` are those of its first frame."""

    task: ClassVar[str] = "action"

    last_frame_index: Ints = rows(np.int64, "index of the clip's last frame")
    last_pts_s: Times = rows(np.float64, "its presentation time in seconds")
    class_id: Ints = rows(np.int64, "ids of the k likeliest classes, the likeliest first", "k")
    class_name: Texts = rows(object, "their names", "k")
    probability: Floats = rows(np.float32, "their probabilities", "k")
    mean_class_id: Ints = column(("k",), np.int64, "the same for the mean over all clips so far", join="last")
    mean_class_name: tuple[str, ...] = column(("k",), object, "their names", join="last")
    mean_probability: Floats = column(("k",), np.float32, "their mean probabilities", join="last")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionAnswer(Answer):
    """D boxes in N frames; a frame without boxes is in `frame_index` only."""

    task: ClassVar[str] = "detection"

    box_frame_index: Ints = rows(np.int64, "index of the frame that the box is in", of="D")
    box: Floats = rows(np.float32, "left, top, right, bottom in source pixels", 4, of="D")
    score: Floats = rows(np.float32, "confidence, 0 to 1", of="D")
    class_id: Ints = rows(np.int64, "id of the box's class", of="D")
    class_name: Texts = rows(object, "its name", of="D")
    mask: Sequence[bytes] = bytes_rows(
        "the object's mask in the requested form: COCO run lengths as JSON, PNG or raw", of="D"
    )
    keypoint_names: tuple[str, ...] = column(("P",), object, "names of the P keypoints", default=tuple)
    keypoint: Floats = rows(
        np.float32, "x and y in source pixels, and 1 where visible", "P", 3, of="D", needs="keypoint_names"
    )
    keypoint_score: Floats = rows(
        np.float32, "confidence of each keypoint", "P", of="D", needs="keypoint_names"
    )
    classified_by: tuple[str, ...] = column(
        ("M",), object, "names of the M models that `classify` asks about the boxes", default=tuple
    )
    predicted_class: Texts = rows(
        object,
        "the class that such a model gives the box; empty if none was asked",
        of="D",
        needs="classified_by",
    )
    probability: Floats = rows(np.float32, "how probable that class is", of="D", needs="classified_by")
    attribute_names: tuple[str, ...] = column(
        ("A",), object, "names of the A attributes of these models", default=tuple
    )
    attribute_value: Texts = rows(
        object, "the value of each attribute, or empty", "A", of="D", needs="attribute_names"
    )
    attribute_probability: Floats = rows(
        np.float32, "how probable that value is", "A", of="D", needs="attribute_names"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentationAnswer(Answer):
    """Which pixels of each frame belong to which of K classes."""

    task: ClassVar[str] = "segmentation"

    class_names: tuple[str, ...] = column(("K",), object, "names of the K classes, the background first")
    class_pixels: Ints = rows(np.int64, "number of source pixels of each class", "K")
    mask: Sequence[bytes] = bytes_rows(
        "the class map in the requested form: COCO run lengths as JSON, PNG or raw"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingAnswer(Answer):
    """A vector of E numbers for each frame: alike for pictures of what the network takes for alike."""

    task: ClassVar[str] = "embedding"

    embedding: Floats = rows(np.float32, "the vector, of length 1 unless normalise is false", "E")
    mean_embedding: Floats = column(
        ("E",), np.float32, "the mean over the medium so far, of length 1 likewise", join="last"
    )


ANSWERS: Mapping[str, type[Answer]] = {
    kind.task: kind
    for kind in (
        ClassificationAnswer,
        DetectionAnswer,
        SegmentationAnswer,
        ActionAnswer,
        EmbeddingAnswer,
    )
}
