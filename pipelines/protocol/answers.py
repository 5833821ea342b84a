"""Answers as frozen columns, the same objects on the server and in the client. numpy only.

A field of an answer is a column of the wire: its dtype, dimensions and meaning stand at the field, and
packing, reading and joining follow from them. Rows are frames (`N`, in `action` clips) or boxes (`D`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import numpy.typing as npt

from pipelines.protocol.columns import Column, Tensor, bytes_column, text_column

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Times = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]
AnswerT = TypeVar("AnswerT", bound="Answer")

Join = Literal["rows", "first", "last"]
# How many rows are real stands in a column of its own, since Triton knows no tensor without elements.
COUNTS = {"N": "count", "D": "box_count"}


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
    """A field that crosses the wire as a column.

    Args:
        join: how the parts of one medium become one: all rows, or what the first or last part says.
        needs: the field is empty where this one is.
    """
    facts = {"dims": dims, "dtype": dtype, "help": help_text, "binary": binary, "join": join, "needs": needs}
    return field(metadata=facts) if default is None else field(default_factory=default, metadata=facts)


def rows(
    dtype: type[np.generic] | type[object], help_text: str, *more: str | int, of: str = "N", needs: str = ""
) -> Any:
    """A column with a row for each frame or box, of `more` dimensions each."""
    sizes = (0, *(dim if isinstance(dim, int) else 0 for dim in more))
    default = None if not needs else lambda: np.empty(sizes, dtype)
    return column((of, *more), dtype, help_text, join="rows", needs=needs, default=default)


def pictures(help_text: str, of: str = "N") -> Any:
    """A column of bytes for each row; no entries where they were not asked for."""
    return column((of,), object, help_text, default=tuple, binary=True, join="rows")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answer:
    """What is said of N frames of one medium, whatever the task."""

    task: ClassVar[str] = ""

    frame_index: Ints = rows(np.int64, "number of the frame in its medium, from 0; of a clip, of its first")
    pts_s: Times = rows(np.float64, "its presentation time in seconds")
    size: Ints = column((2,), np.int64, "height and width of the source in pixels", join="last")
    overlay: Sequence[bytes] = pictures("the picture as asked for: JPEG or raw RGB bytes")
    video: bytes = column(
        (1,),
        object,
        "H.264 in fragmented MP4; the parts of a stream concatenate",
        default=bytes,
        binary=True,
        join="rows",
    )
    decoder: str = column((1,), object, "which decoder ran", default=str)
    decoder_reason: str = column((1,), object, "why that one", default=str)
    final: bool = column((1,), np.uint8, "1 on the last answer of a medium", default=bool, join="last")

    def __post_init__(self) -> None:
        lengths: dict[str, dict[str, int]] = {}
        for entry in fields(self):
            value, facts = getattr(self, entry.name), entry.metadata
            needs = facts["needs"]
            absent = len(getattr(self, needs)) == 0 if needs else facts["binary"]
            if facts["dims"][0] in COUNTS and not (absent and len(value) == 0):
                lengths.setdefault(facts["dims"][0], {})[entry.name] = len(value)
        for found in lengths.values():
            if len(set(found.values())) > 1:
                raise ValueError(f"columns disagree: {found}")

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def height_px(self) -> int:
        return int(self.size[0])

    @property
    def width_px(self) -> int:
        return int(self.size[1])

    @property
    def nbytes(self) -> int:
        """Bytes of everything that grows with the pixels."""
        values = [getattr(self, entry.name) for entry in fields(self) if entry.metadata["binary"]]
        return sum(len(value) if isinstance(value, bytes) else sum(map(len, value)) for value in values)

    def to_columns(self) -> dict[str, Tensor]:
        """The answer as named columns, without the row dimension."""
        packed = {entry.name: _pack(_column(entry), getattr(self, entry.name)) for entry in fields(self)}
        counts = {
            COUNTS[entry.metadata["dims"][0]]: np.array([len(getattr(self, entry.name))], np.int64)
            for entry in fields(self)
            if entry.metadata["dims"][0] in COUNTS
            and not entry.metadata["needs"]
            and not entry.metadata["binary"]
        }
        return {**packed, **counts, "error": text_column("")}

    @classmethod
    def from_columns(cls: type[AnswerT], columns: Mapping[str, Tensor]) -> AnswerT:
        """The inverse of `to_columns`; padding beyond the counts is dropped."""
        values: dict[str, Any] = {}
        for entry in fields(cls):
            tensor, dims = columns[entry.name], entry.metadata["dims"]
            if dims[0] in COUNTS:
                tensor = tensor[: int(columns[COUNTS[dims[0]]][0])]
            if (needs := entry.metadata["needs"]) and not any(columns[needs]):
                tensor = tensor[:0]
            values[entry.name] = _unpack(_column(entry), tensor)
        return cls(**values)

    @classmethod
    def concatenate(cls: type[AnswerT], parts: Sequence[AnswerT]) -> AnswerT:
        """The parts of one medium, in order, as one answer."""
        if len(parts) == 1:
            return parts[0]
        joined = {
            entry.name: _join(entry.metadata["join"], [getattr(part, entry.name) for part in parts])
            for entry in fields(cls)
        }
        return cls(**joined)


def answer_columns(kind: type[Answer]) -> tuple[Column, ...]:
    """The columns of a form of answer, counts and error included."""
    own = tuple(_column(entry) for entry in fields(kind))
    dims = dict.fromkeys(one.dims[0] for one in own if one.dims[0] in COUNTS)
    counts = tuple(
        Column(
            name=COUNTS[str(dim)],
            dtype=np.int64,
            dims=(1,),
            help=f"how many rows of {dim} are real; none are padded to one",
        )
        for dim in dims
    )
    error = Column(name="error", dtype=object, dims=(1,), help='empty, or JSON {"code", "message", "hint"}')
    return (*own, *counts, error)


def _column(entry: Any) -> Column:
    facts = entry.metadata
    return Column(
        name=entry.name, dtype=facts["dtype"], dims=facts["dims"], help=facts["help"], binary=facts["binary"]
    )


def _pack(facts: Column, value: Any) -> Tensor:
    if facts.dtype is not object:
        return np.asarray([value] if facts.dims == (1,) else value, dtype=facts.dtype)
    if facts.dims == (1,):
        return text_column(value)
    if facts.binary:
        return bytes_column(value)
    texts = np.asarray(value, dtype=object)
    return bytes_column([text.encode() for text in texts.flat]).reshape(texts.shape)


def _unpack(facts: Column, tensor: Tensor) -> Any:
    if facts.dtype is not object:
        return _scalar(facts, tensor) if facts.dims == (1,) else tensor
    if facts.binary:
        values = [bytes(value) for value in tensor]
        # Padding: one of empty texts alone is no entries.
        return values[0] if facts.dims == (1,) else values if any(values) else []
    texts = [bytes(text).decode() for text in tensor.flat]
    if facts.dims == (1,):
        return texts[0]
    if len(facts.dims) == 1 and facts.dims[0] not in COUNTS:
        return tuple(texts) if any(texts) else ()
    column_of_texts = np.empty(len(texts), dtype=object)
    column_of_texts[:] = texts
    return column_of_texts.reshape(tensor.shape)


def _scalar(facts: Column, tensor: Tensor) -> bool | int:
    """The one value of a column of one; flags are bytes on the wire."""
    return bool(tensor[0]) if facts.dtype is np.uint8 else int(tensor[0])


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
    """The k likeliest classes of each frame, and of the mean over all frames up to this answer's last."""

    task: ClassVar[str] = "classification"

    class_id: Ints = rows(np.int64, "numbers of the k likeliest classes, the likeliest first", "k")
    class_name: Texts = rows(object, "their names", "k")
    probability: Floats = rows(np.float32, "their probabilities", "k")
    mean_class_id: Ints = column(
        ("k",), np.int64, "the same of the mean over the whole medium so far", join="last"
    )
    mean_class_name: tuple[str, ...] = column(("k",), object, "their names", join="last")
    mean_probability: Floats = column(("k",), np.float32, "their mean probabilities", join="last")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActionAnswer(Answer):
    """The k likeliest classes of each clip; `frame_index` and `pts_s` are those of its first frame."""

    task: ClassVar[str] = "action"

    last_frame_index: Ints = rows(np.int64, "number of the clip's last frame")
    last_pts_s: Times = rows(np.float64, "its presentation time in seconds")
    class_id: Ints = rows(np.int64, "numbers of the k likeliest classes, the likeliest first", "k")
    class_name: Texts = rows(object, "their names", "k")
    probability: Floats = rows(np.float32, "their probabilities", "k")
    mean_class_id: Ints = column(("k",), np.int64, "the same of the mean over all clips so far", join="last")
    mean_class_name: tuple[str, ...] = column(("k",), object, "their names", join="last")
    mean_probability: Floats = column(("k",), np.float32, "their mean probabilities", join="last")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionAnswer(Answer):
    """D boxes in N frames; a frame without boxes is in `frame_index` alone."""

    task: ClassVar[str] = "detection"

    box_frame_index: Ints = rows(np.int64, "number of the frame that the box is in", of="D")
    box: Floats = rows(np.float32, "left, top, right, bottom in source pixels", 4, of="D")
    score: Floats = rows(np.float32, "how sure the model is, 0 to 1", of="D")
    class_id: Ints = rows(np.int64, "number of the box's class", of="D")
    class_name: Texts = rows(object, "its name", of="D")
    mask: Sequence[bytes] = pictures(
        "the object's mask as asked for: COCO run lengths as JSON, PNG, raw", of="D"
    )
    keypoint_names: tuple[str, ...] = column(("P",), object, "names of the P keypoints", default=tuple)
    keypoint: Floats = rows(
        np.float32, "x and y in source pixels, and 1 where visible", "P", 3, of="D", needs="keypoint_names"
    )
    keypoint_score: Floats = rows(
        np.float32, "how sure the model is of each keypoint", "P", of="D", needs="keypoint_names"
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentationAnswer(Answer):
    """Which pixels of each frame belong to which of K classes."""

    task: ClassVar[str] = "segmentation"

    class_names: tuple[str, ...] = column(("K",), object, "names of the K classes, the background first")
    class_pixels: Ints = rows(np.int64, "source pixels of each class", "K")
    mask: Sequence[bytes] = pictures("the class map as asked for: COCO run lengths as JSON, PNG, raw")


ANSWERS: Mapping[str, type[Answer]] = {
    kind.task: kind for kind in (ClassificationAnswer, DetectionAnswer, SegmentationAnswer, ActionAnswer)
}
