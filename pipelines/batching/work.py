"""What waits for a model, on what terms, and what batches are made of: chunks of frames. Knows no model."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from pipelines.models.outputs import Output
from pipelines.protocol.errors import DeadlineExceeded
from pipelines.protocol.options import Options

T = TypeVar("T")
NEVER_S = float("inf")
TOO_LATE = "request less, or allow more time"


@dataclass(slots=True, kw_only=True)
class Terms:
    """A request's deadline, by `time.monotonic`, and whether it is about only one frame."""

    deadline_s: float
    urgent: bool

    @classmethod
    def of(cls, options: Options) -> Terms:
        return cls(
            deadline_s=time.monotonic() + options.deadline_ms / 1000 if options.deadline_ms else NEVER_S,
            urgent=options.max_frames == 1,
        )

    def check(self) -> None:
        """Raise DeadlineExceeded if it is too late to decode more."""
        if time.monotonic() > self.deadline_s:
            raise DeadlineExceeded("deadline_ms passed before the next frames were decoded", hint=TOO_LATE)


@dataclass(slots=True, kw_only=True, eq=False)
class Work(Generic[T]):
    """A submitted chunk: `taken` frames are off the queue, `computed` ones are in `parts`, by their start."""

    pixels: Tensor
    read: Callable[[Output], T]
    deadline_s: float
    future: Future[list[T]]
    taken: int = 0
    computed: int = 0
    parts: dict[int, T] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return len(self.pixels) - self.taken

    @property
    def shape(self) -> torch.Size:
        return self.pixels.shape[1:]

    def begin(self) -> bool:
        """Whether the work is still wanted as it begins; if it comes too late, its future fails."""
        if not self.future.set_running_or_notify_cancel():
            return False
        if time.monotonic() > self.deadline_s:
            self.future.set_exception(
                DeadlineExceeded("deadline_ms passed while frames waited for the model", hint=TOO_LATE)
            )
            return False
        return True

    def add(self, start: int, count: int, part: T) -> None:
        """Note what was read of some frames; after the last ones the work is done."""
        self.parts[start] = part
        self.computed += count
        if self.computed == len(self.pixels) and not self.future.done():
            self.future.set_result([self.parts[start] for start in sorted(self.parts)])


class Slice(NamedTuple):
    """Some frames of a piece of work, from `start` on."""

    work: Work[Any]
    start: int
    pixels: Tensor


def read(one: Slice, output: Output) -> Any:
    """What the work's reader makes of the outputs, or the reader's error."""
    try:
        return one.work.read(output)
    except Exception as error:  # noqa: BLE001 - the same border: a reader's fault is only its stream's
        return error
