"""What a detector found in a frame: read, brought to the source, joined over tiles. Draws nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.models.outputs import finite_rows
from pipelines.protocol.answers import Floats, Ints, Texts

# The parts of an output that are read; a network may give more.
COLUMNS = ("boxes", "scores", "labels", "masks", "keypoints", "keypoints_scores")
# Boxes of one class, from two tiles, that overlap by this much are of one object.
SAME_OBJECT_IOU = 0.5
# The best of a frame that are answered. Torchvision's detectors give 100 to 300; a network may give any
# number, and masks and captions take time for each.
MAX_OBJECTS = 1000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """D objects in one frame, best first, on the host.

    Attributes:
        box_d4: float32 `(D, 4)` xyxy; in the source none reaches beyond the frame.
        region_d4: the same as the model gave it, reaching beyond the frame too; masks lie in it.
        score_d: float32 `(D,)`.
        class_id_d: int64 `(D,)`.
        keypoint_dp3: float32 `(D, P, 3)` of x, y, visible; of most models P is 0.
        keypoint_score_dp: float32 `(D, P)`; where the model gives none: whether they are visible.
        mask_d1mm: float32 `(D, 1, m, m)`, how probably a part of the region is the object's; or None.
        predicted_d, probability_d: the class that a second model gives them, and how probable that is; empty
            and 0 for those that it was not asked about; None where there is no second model.
        attribute_da, attribute_probability_da: likewise the values of A attributes `(D, A)`.
        not_finite: whether the frame had numbers that are not finite; objects of such are left out.
    """

    box_d4: Floats
    region_d4: Floats
    score_d: Floats
    class_id_d: Ints
    keypoint_dp3: Floats
    keypoint_score_dp: Floats
    mask_d1mm: Floats | None = None
    predicted_d: Texts | None = None
    probability_d: Floats | None = None
    attribute_da: Texts | None = None
    attribute_probability_da: Floats | None = None
    not_finite: bool = False

    def __len__(self) -> int:
        return len(self.box_d4)

    def pick(self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> Found:
        """Some of the objects, by their numbers or by a mask."""
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        picked: dict[str, Any] = {
            name: value[rows] if isinstance(value, np.ndarray) else value for name, value in values.items()
        }
        return Found(**picked)

    @classmethod
    def none(cls, keypoints: int) -> Found:
        """No objects, of so many keypoints each."""
        return cls(
            box_d4=np.empty((0, 4), np.float32),
            region_d4=np.empty((0, 4), np.float32),
            score_d=np.empty(0, np.float32),
            class_id_d=np.empty(0, np.int64),
            keypoint_dp3=np.empty((0, keypoints, 3), np.float32),
            keypoint_score_dp=np.empty((0, keypoints), np.float32),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Found]) -> Found:
        """The objects from several views of one frame, one after the other."""
        columns = {entry.name: [getattr(part, entry.name) for part in parts] for entry in fields(cls)}
        joined: dict[str, Any] = {
            name: np.concatenate(values) if isinstance(values[0], np.ndarray) else values[0]
            for name, values in columns.items()
        }
        return cls(**joined | {"not_finite": any(columns["not_finite"])})


class SecondModel(Protocol):
    """What is asked about objects after the detector.

    Attributes:
        models: names of the models that it asks.
        attribute_names: of the attributes that they tell.
    """

    models: tuple[str, ...]
    attribute_names: tuple[str, ...]

    def __call__(self, frames: FrameBatch, found: Sequence[Found]) -> list[Found]:
        """The objects of each of N frames, in its pixels, with what the models say of them."""
        ...


def read_frame(
    frame: Mapping[str, Tensor], threshold: float, class_ids: Sequence[int], *, not_finite: bool = False
) -> Found:
    """One frame of a `BoxOutput` → the objects that count: scored above the threshold, of one of the classes.

    An object with a number that is not finite is left out; of more than MAX_OBJECTS the best stay.

    Args:
        class_ids: empty for all classes.
        not_finite: whether the layers gave numbers for the frame that are not finite.
    """
    labels = frame["labels"]
    finite = finite_rows(frame["scores"]) & finite_rows(frame["boxes"]) & finite_rows(labels)
    counts = (frame["scores"] > threshold) & finite
    if class_ids:
        counts &= torch.isin(labels, torch.tensor(class_ids, device=labels.device))
    rows = counts.nonzero()[:, 0]
    if len(rows) > MAX_OBJECTS:
        rows = rows[frame["scores"][rows].topk(MAX_OBJECTS).indices.sort().values]
    kept = {name: tensor[rows] for name, tensor in frame.items() if name in COLUMNS}
    box_d4, score_d = _host(kept["boxes"]), _host(kept["scores"])
    keypoints = _host(kept["keypoints"]) if "keypoints" in kept else np.empty((len(box_d4), 0, 3), np.float32)
    sure = _host(kept["keypoints_scores"]) if "keypoints_scores" in kept else keypoints[..., 2]
    found = Found(
        box_d4=box_d4,
        region_d4=box_d4,
        score_d=score_d,
        class_id_d=kept["labels"].long().cpu().numpy(),
        keypoint_dp3=keypoints,
        keypoint_score_dp=sure,
        mask_d1mm=_host(kept["masks"]) if "masks" in kept else None,
        not_finite=not_finite or not bool(finite.all()),
    )
    return _finite_parts(found)


def _finite_parts(found: Found) -> Found:
    """The objects whose masks and keypoints are finite too."""
    whole = np.ones(len(found), bool)
    for part in (found.mask_d1mm, found.keypoint_dp3, found.keypoint_score_dp):
        if part is not None:
            whole &= np.isfinite(part.reshape(len(part), -1)).all(axis=1) if part.size else True
    return found if whole.all() else replace(found.pick(whole), not_finite=True)


def _host(tensor: Tensor) -> Floats:
    """float32 on the host."""
    values: Floats = tensor.float().cpu().numpy()
    return values


def to_source(found: Found, view: View) -> Found:
    """What was found in a view, in pixels of the frame. Boxes are clipped to what the view shows of it.

    An object that lies entirely in the bars around the view is left out.
    """
    shift = np.array([view.left_px, view.top_px], np.float32)
    # Far points may leave what a float32 holds, and are left out below.
    with np.errstate(over="ignore"):
        spots = view.geometry.to_source_xy(found.keypoint_dp3[..., :2]) + shift
    box_d4 = view.geometry.to_source_xy(found.box_d4, clip=True)
    moved = replace(
        found,
        box_d4=box_d4 + np.tile(shift, 2),
        region_d4=view.geometry.to_source_xy(found.region_d4) + np.tile(shift, 2),
        keypoint_dp3=np.concatenate([spots, found.keypoint_dp3[..., 2:]], axis=-1),
    )
    return _finite_parts(moved.pick((box_d4[:, :2] < box_d4[:, 2:]).all(axis=1)))


def join_views(parts: Sequence[Found]) -> Found:
    """What was found in several views of one frame, in its pixels, best first, each object once.

    If boxes of one class overlap by more than SAME_OBJECT_IOU, only the best is kept. At most MAX_OBJECTS are
    kept. With one view, all are.
    """
    if len(parts) == 1:
        return parts[0]
    from torchvision.ops import batched_nms

    found = Found.concatenate(parts)
    kept = batched_nms(
        torch.from_numpy(found.box_d4),
        torch.from_numpy(found.score_d),
        torch.from_numpy(found.class_id_d),
        SAME_OBJECT_IOU,
    )
    return found.pick(kept[:MAX_OBJECTS].numpy())
