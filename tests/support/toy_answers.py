"""Small answers of every form, for frames of 2 × 3 pixels; labels are not ASCII alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from pipelines.protocol.answers import (
    ActionAnswer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
)

RankedT = TypeVar("RankedT", bound=ClassificationAnswer | ActionAnswer)


def _common(frames: Sequence[int], final: bool) -> dict[str, Any]:
    index = np.array(frames, np.int64)
    size = np.array([2, 3], np.int64)
    return {"frame_index": index, "pts_s": index / 10, "size": size, "decoder": "stub", "final": final}


def answer(frames: Sequence[int] = (0, 1), *, final: bool = True, **fields: Any) -> SegmentationAnswer:
    """An answer of two classes for frames of 2 × 3 pixels, `index` of them cat."""
    index = np.array(frames, np.int64)
    pixels = np.stack([6 - index % 6, index % 6], axis=1)
    return SegmentationAnswer(
        **_common(frames, final), class_names=("background", "cat"), class_pixels=pixels, **fields
    )


def ranked(
    kind: type[RankedT], frames: Sequence[int] = (0, 1), *, final: bool = True, **fields: Any
) -> RankedT:
    """Two classes for each frame or clip of four frames, and for all."""
    count, common = len(frames), _common(frames, final)
    rank = {"class_id": np.array([7, 0]), "class_name": np.array(["猫 Kätzchen", "dog"], object)}
    rank |= {"probability": np.array([0.75, 0.25], np.float32)}
    means = {f"mean_{name}": value for name, value in rank.items()}
    means["mean_class_name"] = tuple(rank["class_name"])  # type: ignore[assignment]
    if kind is ActionAnswer:
        common |= {"last_frame_index": common["frame_index"] + 3, "last_pts_s": common["pts_s"] + 0.3}
    rows = {name: np.tile(value, (count, 1)) for name, value in rank.items()}
    return kind(**{**common, **rows, **means, **fields})


def attributes(frames: int) -> dict[str, Any]:
    """Fields of two attributes of so many frames."""
    values = np.array(["rot é", ""], object)
    return {
        "attribute_names": ("Farbe ü", "hat"),
        "attribute_value": np.tile(values, (frames, 1)),
        "attribute_probability": np.tile(np.array([0.75, 0.5], np.float32), (frames, 1)),
    }


def embedded(frames: Sequence[int] = (0, 1), *, final: bool = True, **fields: Any) -> EmbeddingAnswer:
    """Vectors of three numbers."""
    vectors = np.arange(3 * len(frames), dtype=np.float32).reshape(len(frames), 3)
    mean = np.array([0.5, 0.25, 0.125], np.float32)
    return EmbeddingAnswer(**_common(frames, final), embedding=vectors, mean_embedding=mean, **fields)


def detected(
    frames: Sequence[int] = (0, 1),
    *,
    final: bool = True,
    keypoints: int = 0,
    models: tuple[str, ...] = (),
    **fields: Any,
) -> DetectionAnswer:
    """Boxes in frames: as many as the frame's number says, so none in frame 0.

    Args:
        models: a class of these for every second box.
    """
    numbers = np.repeat(np.array(frames, np.int64), frames)
    count = len(numbers)
    if keypoints:
        points = np.arange(3 * count * keypoints, dtype=np.float32).reshape(count, keypoints, 3)
        names = tuple(f"Gelenk {place} é" for place in range(keypoints))
        fields |= {"keypoint_names": names, "keypoint": points, "keypoint_score": points[..., 0] / 1000}
    if models:
        told = np.array([f"Rasse é {place}" * (place % 2) for place in range(count)], object)
        sure = np.linspace(0.25, 1, count, dtype=np.float32) * (told != "")
        fields |= {"classified_by": models, "predicted_class": told, "probability": sure.astype(np.float32)}
    return DetectionAnswer(
        **_common(frames, final),
        box_frame_index=numbers,
        box=np.arange(4 * count, dtype=np.float32).reshape(count, 4) / 4,
        score=np.linspace(1, 0.5, count, dtype=np.float32),
        class_id=np.arange(count),
        class_name=np.array([f"猫{place}" for place in range(count)], object),
        **fields,
    )
