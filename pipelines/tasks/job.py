"""What a task is: a job for each medium, its options and its answer. Knows no model and no transport.

A job is asked in the order of the medium's chunks: for the model's inputs of a chunk, then, once the model
has given its outputs, for the answer. Between both, on the batcher's thread, `read` keeps what is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View
from pipelines.models.outputs import Output
from pipelines.models.spec import ModelSpec
from pipelines.protocol.answers import Answer
from pipelines.protocol.columns import Column
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.boxes import SecondModel

SELECTION = (
    *("start_s", "end_s", "fps", "keyframes_only", "stride", "max_frames", "damaged", "decoder", "base64"),
    "deadline_ms",
)
PICTURES = ("overlay", "alpha", "outline_px")
CLASSES = ("class_name", "class_id", "score_threshold", "style", "background", "mask")
FRAME_PIXELS = Column(name="pixels", dtype=np.float32, dims=(3, "h", "w"), help="one frame's model pixels")


class Job(Protocol):
    """One medium's job."""

    def inputs(self, pixels_nchw: Tensor, frames: FrameBatch) -> Tensor | None:
        """What the model is given of a chunk, `(N, …)`; None where it has to wait for more frames.

        Args:
            pixels_nchw: float32 `(V·N, 3, h, w)`, of each of V views the chunk's N frames.
        """
        ...

    def rest(self) -> Tensor | None:
        """What the model is given after the last frame."""
        ...

    def read(self, output: Output) -> Any:
        """What the answer needs of a batch's outputs, and no more; runs on the batcher's thread."""
        ...

    def complete(
        self, frames: FrameBatch | None, parts: Sequence[Any], views: Sequence[View]
    ) -> tuple[Sequence[Any], Sequence[View]]:
        """Parts and views with what another model adds to them. It may wait, since no stages are lent yet."""
        ...

    def answer(
        self,
        frames: FrameBatch | None,
        parts: Sequence[Any],
        views: Sequence[View],
        postprocessor: Postprocessor,
        *,
        final: bool,
    ) -> Answer:
        """The answer to a chunk, from what `read` left of its batches.

        Without frames and views: to the rest, or to a medium of which the options select no frame.
        """
        ...


def about(frames: FrameBatch | None) -> dict[str, Any]:
    """What answers to single frames say of them, whatever the task."""
    if frames is None:
        return {"frame_index": np.empty(0, np.int64), "pts_s": np.empty(0), "size": np.zeros(2, np.int64)}
    return {
        "frame_index": frames.frame_index,
        "pts_s": frames.pts_s,
        "size": np.array(frames.size_hw, np.int64),
        "stretch": frames.stretch,
        "damaged": frames.damaged,
    }


class FrameJob:
    """The part of a job that is common to all tasks that look at single frames."""

    def inputs(self, pixels_nchw: Tensor, frames: FrameBatch) -> Tensor | None:
        return pixels_nchw

    def rest(self) -> Tensor | None:
        return None

    def complete(
        self, frames: FrameBatch | None, parts: Sequence[Any], views: Sequence[View]
    ) -> tuple[Sequence[Any], Sequence[View]]:
        return parts, views


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A line of the TASKS table.

    Attributes:
        answer: its form of answer, which gives the endpoints' outputs and the client's columns.
        options: names of the options that it takes.
        job: makes the job for one medium. Raises InvalidOptions.
        second_job: the same with a second model, which is asked about what was found (`classify`).
        model_inputs, model_outputs: columns of the endpoint that has only the model; outputs as far as they
            are the same for all models of the task.
        tiles: whether large frames may be cut into tiles.
        select: the options by which frames are selected, where the model has a say in it.
        repeat_frames: whether frames are repeated if a higher rate is asked for than the medium's.
    """

    answer: type[Answer]
    options: tuple[str, ...]
    job: Callable[[ModelSpec, Options], Job]
    model_inputs: tuple[Column, ...]
    model_outputs: tuple[Column, ...]
    second_job: Callable[[ModelSpec, Options, SecondModel], Job] | None = None
    tiles: bool = False
    select: Callable[[ModelSpec, Options], Options] | None = None
    repeat_frames: bool = False
