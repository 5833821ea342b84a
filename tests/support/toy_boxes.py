"""Toy detections: what a network would give of generated frames, and the task's answers to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import Geometry, View, geometry
from pipelines.models.outputs import BoxOutput
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.protocol.answers import DetectionAnswer
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.detection import Detection
from tests.support.media import picture

Array = npt.NDArray[Any]
LABELS = ("__background__", "person", "dog", "traffic light", "N/A", "N/A")
HEIGHT, WIDTH = 96, 128
# The model sees the frame at half its size.
HALF = geometry(Preprocessing(resize_px=(HEIGHT // 2, WIDTH // 2)), HEIGHT, WIDTH)
WHOLE = View(top_px=0, left_px=0, geometry=HALF)
# left, top, right, bottom in model pixels; class; score.
Row = tuple[float, float, float, float, int, float]
PERSON: Row = (5, 6, 25, 30, 1, 0.9)
DOG: Row = (30, 10, 60, 40, 2, 0.6)
FAINT: Row = (1, 2, 3, 4, 1, 0.3)


def spec(**fields: Any) -> ModelSpec:
    given: dict[str, Any] = {"labels": LABELS, **fields}
    return ModelSpec(
        name="toy",
        task="detection",
        build=nn.Identity,
        source="none",
        preprocessing=Preprocessing(resize_px=(HEIGHT // 2, WIDTH // 2)),
        **given,
    )


def seen(*rows: Row, **more: Tensor) -> dict[str, Tensor]:
    """One frame's detections as a network gives them."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": table[:, :4], "labels": table[:, 4].long(), "scores": table[:, 5], **more}


def batch(count: int, first: int = 0, height: int = HEIGHT, width: int = WIDTH) -> FrameBatch:
    index = np.arange(first, first + count)
    pixels = np.stack([picture(int(number), width=width, height=height) for number in index])
    return FrameBatch.of(pixels, pts_s=index / 10, frame_index=index)


def ask(
    *frames: dict[str, Tensor],
    views: Sequence[View] = (WHOLE,),
    model: ModelSpec | None = None,
    pictures: FrameBatch | None = None,
    slices: int = 2,
    **options: Any,
) -> DetectionAnswer:
    """The answer to detections of V·N frames, view by view, that come from the batcher in slices."""
    given = model or spec()
    job = Detection(given, Options(**options))
    output = BoxOutput(frames)
    parts = [job.read(output.part(row, row + slices)) for row in range(0, len(frames), slices)]
    post = Postprocessor(device="cpu", max_frames=4, classes=max(2, len(given.labels)))
    return job.answer(pictures or batch(len(frames) // len(views)), parts, views, post, final=True)


def tile(top_px: int, left_px: int) -> View:
    """64 x 48 source pixels, seen at 32 x 24."""
    shape = Geometry(source_hw=(48, 64), resized_hw=(24, 32), crop_yxhw=(0, 0, 24, 32))
    return View(top_px=top_px, left_px=left_px, geometry=shape)


def masks(count: int, seed: int = 0) -> Tensor:
    """Probabilities with an edge within the box, as Mask R-CNN gives them."""
    coarse = torch.rand((count, 1, 5, 5), generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, (28, 28), mode="bicubic").clamp(0, 1)
