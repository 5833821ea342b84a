"""What an exporter wrote beside a network: Ultralytics' keys, and those of ModelAPI. Knows no shapes.

Whatever is not of the expected form says nothing: metadata may be anything.
"""

from __future__ import annotations

import ast
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from pipelines.models.spec import MAX_SIDE_PX, TaskName

# Most characters of a literal that is read, and of a name; most names, and points of a pose.
LONGEST_LITERAL, LONGEST_NAME, MOST_NAMES, MOST_POINTS = 4 << 20, 1000, 100_000, 1000
ULTRALYTICS_TASKS: Mapping[str, TaskName] = {
    "detect": "detection",
    "segment": "detection",
    "pose": "detection",
    "classify": "classification",
}
# Types of models as ModelAPI names them, in small letters.
MODEL_API_TASKS: Mapping[str, TaskName] = {
    "classification": "classification",
    "detection": "detection",
    "detr": "detection",
    "maskrcnn": "detection",
    "segmentation": "segmentation",
    "ssd": "detection",
    "yolo": "detection",
    "yolov5": "detection",
    "yolov8": "detection",
    "yolo11": "detection",
    "yolox": "detection",
}
MODEL_API = "model_info "
YES = frozenset({"true", "yes", "1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What metadata says of a network; empty or None where it says nothing.

    Attributes:
        unserved: a kind of model in the exporter's words, which no head reads, such as `obb`.
        size_hw: the height and width to feed it with.
        keypoints: how many points a pose has, and how many numbers each.
        chosen: whether the network chooses its boxes itself.
        family: what the exporter calls the head, in small letters.
        raw_scores: whether scores are logits.
        score_threshold, iou_threshold: the exporter's.
    """

    task: TaskName | None = None
    unserved: str = ""
    labels: tuple[str, ...] = ()
    size_hw: tuple[int, int] | None = None
    keypoints: tuple[int, int] | None = None
    chosen: bool | None = None
    family: str = ""
    licence: str = ""
    raw_scores: bool | None = None
    multi_label: bool | None = None
    score_threshold: float | None = None
    iou_threshold: float | None = None


def read_facts(metadata: Mapping[str, str]) -> Facts:
    """What Ultralytics or ModelAPI wrote."""
    if any(key.startswith(MODEL_API) for key in metadata):
        return _model_api(metadata)
    task = metadata.get("task", "").strip()
    served = ULTRALYTICS_TASKS.get(task)
    chosen = [_literal(metadata.get("end2end", ""))]
    arguments = _literal(metadata.get("args", ""))
    if isinstance(arguments, dict):
        chosen.append(arguments.get("nms"))
    return Facts(
        task=served,
        unserved=task if task == "obb" else "",
        labels=_names(metadata.get("names", "")),
        size_hw=_size(_integers(metadata.get("imgsz", ""))),
        keypoints=_keypoints(_integers(metadata.get("kpt_shape", ""))),
        chosen=True if True in chosen else None,
        family=metadata.get("head", "").strip().lower() or _described(metadata.get("description", "")),
        licence=metadata.get("license", "").strip(),
    )


def _described(description: str) -> str:
    """Versions that write no `head` describe the model all the same."""
    return "rtdetrdecoder" if re.search(r"\brt-?detr", description.lower()) else ""


def _model_api(metadata: Mapping[str, str]) -> Facts:
    said = {
        key.removeprefix(MODEL_API): value.strip()
        for key, value in metadata.items()
        if key.startswith(MODEL_API)
    }
    kind = said.get("model_type", "").lower()
    raw, multi = said.get("output_raw_scores"), said.get("multilabel")
    return Facts(
        task=MODEL_API_TASKS.get(kind),
        unserved="" if kind in MODEL_API_TASKS or not _unserved(kind) else kind,
        labels=_split(said.get("labels", "")),
        family=kind,
        raw_scores=None if raw is None else raw.lower() in YES,
        multi_label=None if multi is None else multi.lower() in YES,
        score_threshold=_share(said.get("confidence_threshold", "")),
        iou_threshold=_share(said.get("iou_threshold", "")),
    )


def _split(text: str) -> tuple[str, ...]:
    """Labels between spaces or commas, as ModelAPI joins them: within a label a space is `_`."""
    found = tuple(name for name in re.split(r"[,; ]+", text[:LONGEST_LITERAL]) if name)
    return found if len(found) <= MOST_NAMES and all(map(_is_name, found)) else ()


def _unserved(kind: str) -> bool:
    return any(word in kind for word in ("anomaly", "rotated", "keypoint", "sam_", "action", "openpose"))


def _share(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 <= number <= 1 else None


def _literal(text: str) -> object:
    """The Python value that a text writes; None: it writes none, or is not to be read."""
    if not text or len(text) > LONGEST_LITERAL:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None


def _names(text: str) -> tuple[str, ...]:
    """Of a dict of numbers from 0, or a list."""
    found = _literal(text)
    if isinstance(found, dict) and found and set(found) == set(range(len(found))):
        found = [found[number] for number in range(len(found))]
    if not isinstance(found, list | tuple) or len(found) > MOST_NAMES:
        return ()
    return tuple(found) if all(isinstance(name, str) and _is_name(name) for name in found) else ()


def _is_name(text: str) -> bool:
    """Whether it may be shown: neither empty nor long, without what breaks lines or moves a cursor."""
    unseen = any(unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") for one in text)
    return 0 < len(text) <= LONGEST_NAME and not unseen


def _integers(text: str) -> tuple[int, ...]:
    found = _literal(text)
    values = found if isinstance(found, list | tuple) else [found]
    whole = [int(one) for one in values if isinstance(one, int | float) and one == one // 1]
    return tuple(whole) if len(whole) == len(values) and all(one > 0 for one in whole) else ()


def _size(sides: tuple[int, ...]) -> tuple[int, int] | None:
    if len(sides) not in (1, 2) or max(sides) > MAX_SIDE_PX:
        return None
    return sides[0], sides[-1]


def _keypoints(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if len(shape) != 2 or shape[0] > MOST_POINTS or shape[1] not in (2, 3):
        return None
    return shape[0], shape[1]
