"""Answers of one medium as files and text: JSON lines, pictures, masks, a film. Knows no connection, no codec."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from pipelines.errors import InternalError
from pipelines.results import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)

# What a row's bytes are saved as; raw ones get the head of a Netpbm file, which any viewer reads.
OVERLAY_NAMES = {"jpeg": "overlay.jpg", "raw": "overlay.ppm"}
MASK_NAMES = {"png": "mask.png", "raw": "mask.pgm", "probability": "probability.png"}
NETPBM_KINDS = {".ppm": "P6", ".pgm": "P5"}

Line = dict[str, Any]


def row_lines(file: str, answer: Answer, *, with_mask: bool = False) -> Iterator[str]:
    """A JSON object for each frame or clip, and where there is a mean over the medium, one for that at its end.

    A medium of no frames has no mean. `with_mask` adds run lengths (the option `mask=rle`).
    """
    content = LINES[type(answer)]
    for row, index in enumerate(answer.frame_index):
        line = {"file": file, "frame_index": int(index), "pts_s": float(answer.pts_s[row])}
        yield _json({**line, **content(answer, row, with_mask), "decoder": answer.decoder})
    if not isinstance(answer, ClassificationAnswer | ActionAnswer):
        return
    if answer.final and answer.mean_probability.any():
        yield _json({"file": file, "mean_classes": _mean(answer)})


def _json(line: Line) -> str:
    return json.dumps(line, ensure_ascii=False)


def _segmentation_line(answer: SegmentationAnswer, row: int, with_mask: bool) -> Line:
    counts = zip(answer.class_names, answer.class_pixels[row], strict=True)
    line: Line = {"class_pixels": {name: int(count) for name, count in counts if count > 0}}
    return line | ({"mask": _run_lengths(answer.mask[row])} if with_mask and answer.mask else {})


def _classification_line(answer: ClassificationAnswer, row: int, _with_mask: bool) -> Line:
    return {"classes": _classes(answer.class_id[row], answer.class_name[row], answer.probability[row])}


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
    return line | ({"mask": _run_lengths(answer.mask[box])} if with_mask and answer.mask else {})


def _mean(answer: ClassificationAnswer | ActionAnswer) -> list[Line]:
    return _classes(answer.mean_class_id, answer.mean_class_name, answer.mean_probability)


def _classes(ids: Any, names: Any, probabilities: Any) -> list[Line]:
    ranked = zip(ids, names, probabilities, strict=True)
    return [
        {"class_id": int(number), "class_name": str(name), "probability": round(float(value), 6)}
        for number, name, value in ranked
    ]


def _run_lengths(mask: bytes) -> Any:
    try:
        return json.loads(mask)
    except ValueError:
        raise InternalError(f"the mask is no JSON: {mask[:20]!r}") from None


LINES: Mapping[type[Answer], Callable[[Any, int, bool], Line]] = {
    ClassificationAnswer: _classification_line,
    DetectionAnswer: _detection_line,
    SegmentationAnswer: _segmentation_line,
    ActionAnswer: _action_line,
}


class Dump:
    """Files of one medium, all named `<stem>…`, written as its answers come."""

    def __init__(self, folder: Path, stem: str, *, overlay: str, mask: str) -> None:
        """`overlay` and `mask` are the options that were asked for, so what the bytes are."""
        self._folder, self._stem = folder, stem
        self._overlay, self._mask = OVERLAY_NAMES.get(overlay), MASK_NAMES.get(mask)
        # Opened with the first answer: a request that fails leaves what an earlier one wrote.
        self._lines: IO[str] | None = None
        self._film: IO[bytes] | None = None

    def write(self, answer: Answer, lines: list[str]) -> None:
        """The JSON lines, and whatever pictures the answer holds."""
        if self._lines is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lines = (self._folder / f"{self._stem}.jsonl").open("w", encoding="utf-8")
        self._lines.writelines(f"{line}\n" for line in lines)
        names = [f"{index:06d}" for index in answer.frame_index]
        self._pictures(answer, names, answer.overlay, self._overlay)
        if isinstance(answer, SegmentationAnswer):
            self._pictures(answer, names, answer.mask, self._mask)
        if isinstance(answer, DetectionAnswer):
            self._pictures(answer, _box_names(answer), answer.mask, self._mask)
        if answer.video:
            if self._film is None:
                self._film = (self._folder / f"{self._stem}_overlay.mp4").open("wb")
            self._film.write(answer.video)

    def write_originals(self, answer: Answer) -> None:
        """Frames that were asked for as JPEG without anything drawn."""
        names = [f"{index:06d}" for index in answer.frame_index]
        self._pictures(answer, names, answer.overlay, "original.jpg")

    def path(self, number: str, name: str) -> Path:
        """Where a picture lies: of a frame by its number, of a box by its frame's and its own."""
        return self._folder / f"{self._stem}_{number}_{name}"

    def _pictures(
        self, answer: Answer, numbers: Sequence[str], pictures: Sequence[bytes], name: str | None
    ) -> None:
        if name is None:
            return
        kind = NETPBM_KINDS.get(Path(name).suffix)
        head = f"{kind}\n{answer.width_px} {answer.height_px}\n255\n".encode() if kind else b""
        for number, picture in zip(numbers, pictures, strict=False):
            self.path(number, name).write_bytes(head + picture)

    def __enter__(self) -> Dump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._film is not None:
            self._film.close()


def _box_names(answer: DetectionAnswer) -> list[str]:
    """Names of boxes by their frame and their place in it."""
    places: dict[int, int] = {}
    names = []
    for index in answer.box_frame_index.tolist():
        places[index] = places.get(index, -1) + 1
        names.append(f"{index:06d}_{places[index]:03d}")
    return names
