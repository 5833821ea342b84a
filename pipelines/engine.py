"""The frame batcher, the only place where frames of different streams meet. Knows a model, no media, no tasks.

Chunks of many streams queue up; one thread takes frames of equal size off the queue, up to the model's
`max_batch`, runs them as one batch and gives every stream its own slices back, in order.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from model_inference import Model, Output
from pipelines.errors import InternalError, ModelUnavailable

T = TypeVar("T")


@dataclass(slots=True, kw_only=True, eq=False)
class _Work(Generic[T]):
    """One submitted chunk: frames not yet taken start at `taken`; `parts` are the outputs read so far."""

    pixels: Tensor
    read: Callable[[Output], T]
    future: Future[list[T]]
    taken: int = 0
    parts: list[T] = field(default_factory=list)

    @property
    def left(self) -> int:
        return len(self.pixels) - self.taken


class Engine:
    """One model, one thread, one queue.

    Args:
        max_wait_ms: how long a batch that is not full waits for frames of other streams.
    """

    def __init__(self, model: Model, *, max_wait_ms: float = 2.0) -> None:
        self.model = model
        self.batch_sizes: Counter[int] = Counter()
        self._max_wait_s = max_wait_ms / 1000
        self._pending: deque[_Work[Any]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"engine-{model.spec.name}", daemon=True)
        self._thread.start()

    def submit(self, pixels: Tensor, read: Callable[[Output], T]) -> Future[list[T]]:
        """Queue N frames (or clips) of one stream; the future holds `read(output)` of its slices, in order.

        Args:
            pixels: float32 `(N, 3, h, w)`, of clips `(N, 3, T, h, w)`, on the model's device.
            read: takes the outputs of n ≤ N of them; runs on the engine's thread, so that what it leaves out
                (logits are large) is freed at once. It must not keep the outputs.
        """
        future: Future[list[T]] = Future()
        with self._changed:
            if self._closed or not self.alive:
                raise ModelUnavailable(f"the engine of {self.model.spec.name} is closed")
            self._pending.append(_Work(pixels=pixels, read=read, future=future))
            self._changed.notify()
        return future

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while slices := self._gather():
            self._forward(slices)

    def _gather(self) -> list[tuple[_Work[Any], Tensor]]:
        """Slices of equal frame size for one batch, oldest first; empty once closed and drained."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closed)
            if not self._pending:
                return []
            shape = self._pending[0].pixels.shape[1:]
            room = self._room(shape)
            if not self._closed:
                self._changed.wait_for(lambda: self._closed or self._ready(shape) >= room, self._max_wait_s)
            slices = []
            for work in [work for work in self._pending if work.pixels.shape[1:] == shape]:
                size = min(room, work.left)
                slices.append((work, work.pixels[work.taken : work.taken + size]))
                work.taken += size
                room -= size
                if not work.left:
                    self._pending.remove(work)
                if not room:
                    break
            return slices

    def _room(self, shape: torch.Size) -> int:
        """Most frames, or clips, of a shape in one batch: fewer of clips that are longer than the model's own."""
        spec = self.model.spec
        if spec.clip is None:
            return spec.max_batch
        return max(1, spec.max_batch * spec.clip.length // max(shape[1], spec.clip.length))

    def _ready(self, shape: torch.Size) -> int:
        return sum(work.left for work in self._pending if work.pixels.shape[1:] == shape)

    def _forward(self, slices: list[tuple[_Work[Any], Tensor]]) -> None:
        """Run one batch and hand the slices back; an error goes to the works of this batch alone."""
        works = [work for work, _ in slices]
        shape = tuple(slices[0][1].shape[1:])
        try:
            batch = torch.cat([pixels for _, pixels in slices]) if len(slices) > 1 else slices[0][1]
            self.batch_sizes[len(batch)] += 1
            outputs = self.model(batch)
        except Exception as error:  # noqa: BLE001 - the model's border: what it raises must not end this thread
            reason = (str(error).strip().splitlines() or [""])[-1] or type(error).__name__
            self._fail(works, InternalError(f"the model failed on frames of {shape}: {reason}"))
            return
        start = 0
        for work, pixels in slices:
            stop = start + len(pixels)
            try:
                work.parts.append(work.read(outputs.part(start, stop)))
            except Exception as error:  # noqa: BLE001 - the same border: a reader's fault is its stream's alone
                self._fail([work], error)
            start = stop
            if not work.left and not work.future.done():
                work.future.set_result(work.parts)

    def _fail(self, works: list[_Work[Any]], error: Exception) -> None:
        with self._changed:
            for work in works:
                work.taken = len(work.pixels)
                if work in self._pending:
                    self._pending.remove(work)
                if not work.future.done():
                    work.future.set_exception(error)
