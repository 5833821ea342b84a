"""The frame batcher: shared batches, order, owners, and faults that stay with their owner."""

from __future__ import annotations

import time
from concurrent.futures import Future
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.batching.batcher import Batcher
from pipelines.models.outputs import Output
from pipelines.models.spec import Clip, ModelSpec, Preprocessing
from pipelines.protocol.errors import DeadlineExceeded, InternalError, ModelUnavailable
from tests.support.toy_batcher import Gate, frames, make_batcher, read, values, wait_until_taken


def test_frames_of_many_streams_share_batches_and_come_back_in_order() -> None:
    gate = Gate()
    batcher = make_batcher(gate)
    gate.open.clear()
    first = batcher.submit(frames(0), read)
    wait_until_taken(batcher)
    streams = {
        number: batcher.submit(frames(*(number + k / 16 for k in range(5))), read) for number in range(1, 9)
    }
    gate.open.set()
    assert values(first) == [0]
    for number, future in streams.items():
        assert values(future) == [number + k / 16 for k in range(5)]
    batcher.close()
    assert batcher.batch_sizes[8] >= 4
    assert max(batcher.batch_sizes) == 8


def test_a_chunk_larger_than_a_batch_is_split_and_joined() -> None:
    batcher = make_batcher(Gate(), max_batch=4)
    numbers = [k / 32 for k in range(11)]
    assert values(batcher.submit(frames(*numbers), read)) == numbers
    batcher.close()
    assert sum(size * count for size, count in batcher.batch_sizes.items()) == 11


def test_frames_of_other_sizes_never_meet() -> None:
    gate = Gate()
    batcher = make_batcher(gate)
    gate.open.clear()
    futures = [batcher.submit(frames(k, size=4 + k % 2), read) for k in range(6)]
    gate.open.set()
    assert [values(future) for future in futures] == [[k] for k in range(6)]
    batcher.close()


def test_a_fault_of_the_model_fails_its_batch_and_the_batcher_goes_on() -> None:
    batcher = make_batcher(Gate())
    with pytest.raises(InternalError, match="negative pixels"):
        batcher.submit(frames(-1), read).result(timeout=10)
    assert values(batcher.submit(frames(2), read)) == [2]
    batcher.close()


class Fault(nn.Module):
    """Fails as no list of exceptions foresees, when a pixel is negative."""

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        if (pixels_nchw < 0).any():
            raise AssertionError("Guard failed: x.size()[0] == 1")
        return pixels_nchw.mean(dim=(1, 2, 3), keepdim=True)


def test_no_fault_ends_the_batcher() -> None:
    batcher = make_batcher(Fault())
    for _ in range(3):
        with pytest.raises(InternalError, match="Guard failed"):
            batcher.submit(frames(-1), read).result(timeout=10)
        assert values(batcher.submit(frames(2), read)) == [2]
    batcher.close()


def test_longer_clips_run_in_smaller_batches() -> None:
    class Means(nn.Module):
        def forward(self, clips: Tensor) -> Tensor:
            return clips.mean(dim=(3, 4)).mean(dim=2)

    spec = ModelSpec(
        name="toy",
        task="action",
        build=Means,
        source="test",
        preprocessing=Preprocessing(resize_px=(4, 4)),
        clip=Clip(length=4, fps=10),
        max_batch=8,
    )
    batcher = Batcher(Model(spec, "cpu"), batch_s=60)
    for length, largest in ((4, 8), (2, 8), (8, 4), (32, 1)):
        batcher.batch_sizes.clear()
        clips = torch.zeros(8, 3, length, 4, 4)
        assert (
            sum(len(part) for part in batcher.submit(clips, lambda output: [0] * len(output)).result(10)) == 8
        )
        assert max(batcher.batch_sizes) == largest
    batcher.close()


def test_a_fault_of_one_reader_leaves_its_batch_mates_alone() -> None:
    gate = Gate()
    batcher = make_batcher(gate)

    def fail(_output: Output) -> list[float]:
        raise ValueError("mine alone")

    gate.open.clear()
    good, bad, last = (
        batcher.submit(frames(1), read),
        batcher.submit(frames(2), fail),
        batcher.submit(frames(3), read),
    )
    gate.open.set()
    assert (values(good), values(last)) == ([1], [3])
    with pytest.raises(ValueError, match="mine alone"):
        bad.result(timeout=10)
    batcher.close()


def test_closing_finishes_what_is_queued_and_refuses_more() -> None:
    batcher = make_batcher(Gate())
    future = batcher.submit(frames(1, 2, 3), read)
    batcher.close()
    assert values(future) == [1, 2, 3]
    with pytest.raises(ModelUnavailable, match="closed"):
        batcher.submit(frames(1), read)


def hold(gate: Gate, batcher: Batcher) -> Future[list[list[float]]]:
    """Keep the batcher at work on a first frame, so that what is submitted now meets in the queue."""
    gate.open.clear()
    first = batcher.submit(frames(0), read)
    deadline = time.monotonic() + 10
    while batcher.waiting and time.monotonic() < deadline:
        time.sleep(0.001)
    return first


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [
        ([16, 1], [[5, 1], [6], [5]]),
        ([16, 16], [[4, 4]] * 4),
        ([16, 2, 2], [[3, 2, 2], [7], [6]]),
        ([6, 16], [[4, 4], [2, 5], [7]]),
    ],
)
def test_streams_that_wait_get_their_shares(lengths: list[int], shares: list[list[int]]) -> None:
    """An image beside a film is in the next batch, and no stream has more than its part while others wait."""
    gate = Gate()
    batcher = make_batcher(gate)
    hold(gate, batcher)
    sizes: list[tuple[int, int]] = []

    def note(length: int, done: Future[list[list[float]]]) -> None:
        sizes.append((sum(map(len, done.result())), length))

    futures = [
        batcher.submit(frames(*[number + k / 32 for k in range(length)]), read, stream=number)
        for number, length in enumerate(lengths)
    ]
    run = batcher.model
    seen: list[list[int]] = []

    class Spy:
        spec = run.spec

        def __call__(self, pixels: Tensor) -> Output:
            owners = [int(value) for value in pixels.mean(dim=(1, 2, 3))]
            seen.append([owners.count(number) for number in range(len(lengths)) if number in owners])
            return run(pixels)

    batcher.model = Spy()  # type: ignore[assignment]
    for future, length in zip(futures, lengths, strict=True):
        future.add_done_callback(partial(note, length))
    gate.open.set()
    for number, (future, length) in enumerate(zip(futures, lengths, strict=True)):
        assert values(future) == [number + k / 32 for k in range(length)]
    batcher.close()
    assert seen == shares
    # A result was whole when it was given.
    assert all(size == length for size, length in sizes)
    assert len(sizes) == len(lengths)


def test_the_stream_served_longest_ago_comes_first() -> None:
    """With more streams than a batch holds, and two sizes of frames, none has to wait for ever."""
    gate = Gate()
    batcher = make_batcher(gate, max_batch=2)
    order: list[int] = []
    hold(gate, batcher)

    def submit(number: int, size: int) -> Future[list[list[float]]]:
        def note(output: Output) -> list[float]:
            order.append(number)
            return read(output)

        return batcher.submit(frames(*[number] * 4, size=size), note, stream=number)

    futures = [submit(number, 4 if number < 4 else 5) for number in range(5)]
    gate.open.set()
    for future in futures:
        future.result(timeout=10)
    batcher.close()
    assert order.index(4) < 6
    assert sorted(order[:4]) == [0, 1, 2, 3]


def test_what_is_cancelled_or_too_late_never_reaches_the_model() -> None:
    gate = Gate()
    batcher = make_batcher(gate)
    hold(gate, batcher)
    cancelled = batcher.submit(frames(*range(8)), read)
    late = batcher.submit(frames(*range(8)), read, deadline_s=time.monotonic())
    good = batcher.submit(frames(3), read, deadline_s=time.monotonic() + 60)
    assert batcher.waiting == 17
    assert cancelled.cancel()
    gate.open.set()
    assert values(good) == [3]
    with pytest.raises(DeadlineExceeded, match="deadline_ms"):
        late.result(timeout=10)
    batcher.close()
    assert batcher.batch_sizes == {1: 2}
    assert not batcher.waiting


class Slow(nn.Module):
    """Takes twenty milliseconds a frame."""

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        time.sleep(0.02 * len(pixels_nchw))
        return pixels_nchw.mean(dim=(1, 2, 3), keepdim=True)


def test_batches_of_a_slow_model_are_short() -> None:
    """Twenty milliseconds a frame leave room for two in fifty; the first batch is not known yet."""
    batcher = make_batcher(Slow(), batch_s=0.05)
    numbers = [k / 64 for k in range(32)]
    assert values(batcher.submit(frames(*numbers), read)) == numbers
    batcher.close()
    assert batcher.batch_sizes[8] == 1
    assert set(batcher.batch_sizes) <= {8, 2, 1}


def test_batches_are_short_for_a_while_behind_something_urgent(monkeypatch: pytest.MonkeyPatch) -> None:
    batcher = make_batcher(Slow())
    numbers = [k / 64 for k in range(16)]
    # Until its time is known a frame is let in with any number of others.
    batcher.submit(frames(0), read).result(timeout=10)
    for just_now_s, sizes in ((60, {1: 16}), (-1, {8: 2})):
        monkeypatch.setattr("pipelines.batching.batcher.JUST_NOW_S", just_now_s)
        assert values(batcher.submit(frames(1), read, urgent=True)) == [1]
        batcher.batch_sizes.clear()
        assert values(batcher.submit(frames(*numbers), read)) == numbers
        assert batcher.batch_sizes == sizes
    batcher.close()
