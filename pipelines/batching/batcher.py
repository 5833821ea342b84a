"""The only place where frames of different streams meet. Knows a model, no media, no tasks.

Chunks of many streams queue up. A lane, which is a thread, takes frames of equal size off the queue, up to
the model's `max_batch`. It runs them as one batch and gives every stream its own slices back, in order. It
never waits for a batch to fill: frames gather while the current batch runs, so batches grow with the load. If
several streams wait, each gets a share of a batch, and the one that was served longest ago comes first.

If a model gains by it, there is a lane for each core. A batch that runs alone uses all cores. Batches that
run at the same time use one core each, so that cores never wait for one another within a layer.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, TypeVar

import torch
from torch import Tensor

from model_inference import Model
from pipelines.batching.work import NEVER_S, Slice, Work, read
from pipelines.machine.threads import use_threads
from pipelines.models.outputs import Output
from pipelines.protocol.errors import InternalError, ModelUnavailable

T = TypeVar("T")
# A batch takes about this long at most: on a CPU that is a few frames, on a GPU as many as the model takes.
BATCH_S = 0.08
# For some time after urgent work, a batch takes this long at most: the next urgent one need not wait long.
URGENT_BATCH_S, JUST_NOW_S = 0.01, 10.0
# The weight of the last batch in the estimated rate.
NEWEST = 0.2
MOST_SHAPES = 100


class Batcher:
    """One model, one queue, and as many lanes as the model has.

    Args:
        threads: CPU threads for a batch that runs alone; 0 leaves the choice to torch.
        batch_s: how long a batch may take; one frame is always let in.
    """

    def __init__(self, model: Model, *, threads: int = 0, batch_s: float = BATCH_S) -> None:
        self.model = model
        self.batch_sizes: Counter[int] = Counter()
        self._threads, self._batch_s = threads or torch.get_num_threads(), batch_s
        self._urgent_until_s = 0.0
        # Each stream's work in order; streams in the order in which they were last served.
        self._pending: dict[Hashable, deque[Work[Any]]] = {}
        # The first lane waits for `_changed`, the others for `_beside`: they compute only beside the first.
        lock = threading.RLock()
        self._changed, self._beside = threading.Condition(lock), threading.Condition(lock)
        self._first_runs = False
        self._closed = False
        # Whether the last turn went to a stream that had just arrived.
        self._favoured = False
        # Seconds per frame (or clip), by the frames' shape.
        self._frame_s: dict[torch.Size, float] = {}
        # How many lanes compute now.
        self._running = 0
        self._lanes = [
            threading.Thread(
                target=self._run, args=(lane == 0,), name=f"batcher-{model.spec.name}-{lane}", daemon=True
            )
            for lane in range(model.lanes)
        ]
        for lane in self._lanes:
            lane.start()

    def submit(
        self,
        pixels: Tensor,
        read: Callable[[Output], T],
        *,
        stream: Hashable = None,
        deadline_s: float = NEVER_S,
        urgent: bool = False,
    ) -> Future[list[T]]:
        """Queue N frames (or clips) of one stream; the future holds `read(output)` of its slices, in order.

        Cancelling the future takes the frames off the queue, unless some are computed already.

        Args:
            pixels: float32 `(N, 3, h, w)`, for clips `(N, 3, T, h, w)`, on the model's device.
            read: takes the outputs of n ≤ N frames. It runs on the batcher's threads, maybe on several at
                once. It must not keep the outputs: logits are large, and are freed as soon as it returns.
            stream: the stream of the frames; None: a stream of their own.
            deadline_s: by `time.monotonic`; what has not begun by then fails with DeadlineExceeded.
            urgent: whether somebody waits only for these frames, as for a picture. More such work is
                expected, so batches are short for a while.
        """
        if not len(pixels):
            raise ValueError("there are no frames to compute")
        work = Work(pixels=pixels, read=read, deadline_s=deadline_s, future=Future())
        with self._changed:
            if self._closed or not self.alive:
                raise ModelUnavailable(f"the batcher of {self.model.spec.name} is closed")
            if urgent:
                self._urgent_until_s = time.monotonic() + JUST_NOW_S
            self._pending.setdefault(work if stream is None else stream, deque()).append(work)
            self._wake_one()
        return work.future

    @property
    def alive(self) -> bool:
        """Whether its threads are running."""
        return all(lane.is_alive() for lane in self._lanes)

    @property
    def waiting(self) -> int:
        """How many frames, or clips, wait for the model."""
        with self._changed:
            return sum(work.left for works in self._pending.values() for work in works)

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            self._beside.notify_all()
        for lane in self._lanes:
            lane.join()

    def _run(self, first: bool) -> None:
        use_threads(self._threads if first else 1)
        while True:
            slices = self._gather(first)
            if not slices:
                return
            self._forward(slices, first)
            # Free the frames now: it may take long until the next ones come.
            del slices

    def _gather(self, first: bool) -> list[Slice]:
        """Slices of equal frame size for one batch; empty once closed and drained.

        A batch that runs alone is always the first lane's, so no other lane ever uses more than one thread.
        """
        changed = self._changed if first else self._beside
        with changed:
            while True:
                changed.wait_for(lambda: (self._pending and (first or self._first_runs)) or self._closed)
                if not self._pending:
                    return []
                if slices := self._take():
                    if first and len(self._lanes) > 1:
                        alone = not self._running and not self._pending
                        use_threads(self._threads if alone else 1)
                    self._first_runs |= first
                    self._running += 1
                    if self._pending:
                        self._wake_one()
                    return slices

    def _wake_one(self) -> None:
        (self._beside if self._first_runs else self._changed).notify()

    def _take(self) -> list[Slice]:
        """A batch of frames of the stream whose turn it is, and of all others with frames of that size.

        First each gets its share. The room that is left goes to those that have more frames.
        """
        first = self._first()
        shape = self._pending[first][0].shape
        others = [stream for stream, works in self._pending.items() if works[0].shape == shape]
        streams = [first, *(stream for stream in others if stream != first)]
        waiting = sum(work.left for works in self._pending.values() for work in works if work.shape == shape)
        # As many batches as are needed, or as there are free lanes, but of even sizes: in a batch of one, a
        # frame costs almost twice as much.
        free = len(self._lanes) - self._running
        room = math.ceil(waiting / max(math.ceil(waiting / self._room(shape)), min(waiting, free)))
        slices: list[Slice] = []
        for most in (max(1, room // len(streams)), room):
            for stream in streams:
                taken = self._off_queue(stream, shape, min(most, room))
                room -= sum(len(one.pixels) for one in taken)
                slices += taken
                if taken and stream in self._pending:
                    self._pending[stream] = self._pending.pop(stream)
        return slices

    def _first(self) -> Hashable:
        """The stream that was served longest ago; every second time one that has just arrived, if any has.

        So an image does not wait for the frames of videos, and a flood of images does not stop the videos.
        """
        came = (stream for stream, works in self._pending.items() if len(works) == 1 and not works[0].taken)
        newest = None if self._favoured else next(came, None)
        self._favoured = newest is not None
        return next(iter(self._pending)) if newest is None else newest

    def _off_queue(self, stream: Hashable, shape: torch.Size, most: int) -> list[Slice]:
        """At most `most` frames of a stream, in order."""
        works, slices = self._pending.get(stream, deque()), []
        while works and most and works[0].shape == shape:
            work = works[0]
            size = min(most, work.left) if work.taken or work.begin() else 0
            if size:
                slices.append(Slice(work, work.taken, work.pixels[work.taken : work.taken + size]))
                work.taken += size
                most -= size
            if not size or not work.left:
                works.popleft()
        if not works:
            self._pending.pop(stream, None)
        return slices

    def _room(self, shape: torch.Size) -> int:
        """How many frames, or clips, of a shape one batch may hold, by time and by the model's `max_batch`.

        For clips that are longer than the model's own, it is less in proportion.
        """
        spec, most = self.model.spec, self.model.spec.max_batch
        if spec.clip is not None:
            most = most * spec.clip.length // max(shape[1], spec.clip.length)
        if shape in self._frame_s:
            urgent = time.monotonic() < self._urgent_until_s
            batch_s = min(self._batch_s, URGENT_BATCH_S) if urgent else self._batch_s
            most = int(min(most, batch_s / self._frame_s[shape]))
        return max(1, most)

    def _learn(self, shape: torch.Size, frame_s: float) -> None:
        """Note how long a frame took; with many sizes, as pictures have, the oldest is forgotten."""
        known_s = self._frame_s.pop(shape, frame_s)
        self._frame_s[shape] = (1 - NEWEST) * known_s + NEWEST * frame_s
        if len(self._frame_s) > MOST_SHAPES:
            del self._frame_s[next(iter(self._frame_s))]

    def _forward(self, slices: list[Slice], first: bool) -> None:
        """Run one batch and hand the slices back; an error goes only to the work in this batch."""
        shape, begun_s = slices[0].pixels.shape[1:], time.perf_counter()
        count = sum(len(one.pixels) for one in slices)
        parts: list[Any] = []
        try:
            batch = torch.cat([one.pixels for one in slices]) if len(slices) > 1 else slices[0].pixels
            outputs = self.model(batch)
        except Exception as error:  # noqa: BLE001 - the model's border: what it raises must not end this thread
            reason = (str(error).strip().splitlines() or [""])[-1] or type(error).__name__
            fault = InternalError(f"the model failed on frames of {tuple(shape)}: {reason}")
            parts = [fault] * len(slices)
        else:
            start = 0
            for one in slices:
                parts.append(read(one, outputs.part(start, start + len(one.pixels))))
                start += len(one.pixels)
        with self._changed:
            self._running -= 1
            self._first_runs &= not first
            self.batch_sizes[count] += 1
            self._learn(shape, (time.perf_counter() - begun_s) / count)
            for one, part in zip(slices, parts, strict=True):
                if isinstance(part, Exception):
                    self._fail(one.work, part)
                else:
                    one.work.add(one.start, len(one.pixels), part)

    def _fail(self, work: Work[Any], error: Exception) -> None:
        work.taken = len(work.pixels)
        for stream, works in list(self._pending.items()):
            if work in works:
                works.remove(work)
            if not works:
                del self._pending[stream]
        if not work.future.done():
            work.future.set_exception(error)
