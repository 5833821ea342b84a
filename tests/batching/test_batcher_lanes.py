"""Lanes: batches beside each other, each on a thread of its own, and whose turn is next."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model_inference import Model
from pipelines.batching.batcher import Batcher
from pipelines.machine.threads import use_threads
from pipelines.models.outputs import BoxOutput, LogitOutput, Output
from pipelines.models.torch_runtime import Foreign
from pipelines.protocol.errors import InternalError
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from tests.support.toy_batcher import Gate, frames, make_batcher, read, values, wait_until_taken


class Lanes(Gate, Foreign):
    """A gate for two threads at once; notes how many were within, and torch's threads in each call."""

    engine = "torch"
    lanes = 2

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.most, self.threads = 0, 0, [0]
        self._counting = threading.Lock()

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        with self._counting:
            self.inside += 1
            self.most = max(self.most, self.inside)
            self.threads.append(torch.get_num_threads())
        try:
            # Later frames are done sooner.
            time.sleep(0.02 if float(pixels_nchw.max()) < 0.5 else 0.001)
            return super().forward(pixels_nchw)
        finally:
            with self._counting:
                self.inside -= 1


def wait_for(inside: int, network: Lanes) -> None:
    end_s = time.monotonic() + 10
    while network.inside < inside:
        assert time.monotonic() < end_s
        time.sleep(0.001)


def test_a_chunk_is_computed_by_all_lanes_and_comes_back_in_order() -> None:
    network = Lanes()
    batcher = make_batcher(network, max_batch=2)
    numbers = [k / 16 for k in range(16)]
    assert values(batcher.submit(frames(*numbers), read)) == numbers
    batcher.close()
    assert network.most == 2
    assert sum(size * count for size, count in batcher.batch_sizes.items()) == 16


def test_a_batch_that_is_alone_has_all_threads_and_one_beside_another_has_one() -> None:
    network = Lanes()
    batcher = make_batcher(network)
    network.threads.clear()
    assert values(batcher.submit(frames(1), read)) == [1]
    assert network.threads == [4]
    network.open.clear()
    first = batcher.submit(frames(1), read)
    wait_for(1, network)
    second = batcher.submit(frames(2), read)
    wait_for(2, network)
    network.open.set()
    assert (values(first), values(second)) == ([1], [2])
    assert network.threads == [4, 4, 1]
    batcher.close()


def test_batches_that_are_alone_are_all_the_first_lanes() -> None:
    names: set[str] = set()

    class Named(Lanes):
        def forward(self, pixels_nchw: Tensor) -> Tensor:
            names.add(threading.current_thread().name)
            return super().forward(pixels_nchw)

    batcher = make_batcher(Named())
    names.clear()
    for number in range(12):
        assert values(batcher.submit(frames(number), read)) == [number]
    batcher.close()
    assert names == {"batcher-toy-0"}


def test_a_thread_keeps_the_threads_that_it_was_given() -> None:
    found: list[int] = []

    def work() -> None:
        use_threads(1)
        others = threading.Thread(target=use_threads, args=(3,))
        others.start()
        others.join()
        torch.randn(64, 64, 64).relu().sum()
        found.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [1]


def test_no_frames_are_refused_and_the_batcher_goes_on() -> None:
    batcher = make_batcher(Gate())
    with pytest.raises(ValueError, match="no frames"):
        batcher.submit(torch.empty(0, 3, 4, 4), read)
    assert values(batcher.submit(frames(2), read)) == [2]
    batcher.close()


def test_few_frames_are_shared_out_among_free_lanes() -> None:
    network = Lanes()
    batcher = make_batcher(network)
    network.open.clear()
    four = batcher.submit(frames(1, 2, 3, 4), read)
    wait_for(2, network)
    network.open.set()
    assert values(four) == [1, 2, 3, 4]
    batcher.close()
    assert batcher.batch_sizes == {2: 2}


def test_a_fault_in_one_lane_leaves_the_other_alone() -> None:
    network = Lanes()
    batcher = make_batcher(network)
    network.open.clear()
    bad = batcher.submit(frames(-1), read)
    wait_for(1, network)
    good = batcher.submit(frames(3), read)
    wait_for(2, network)
    network.open.set()
    with pytest.raises(InternalError, match="negative pixels"):
        bad.result(timeout=10)
    assert values(good) == [3]
    assert values(batcher.submit(frames(4), read)) == [4]
    batcher.close()


def test_a_work_fails_once_where_several_lanes_fail_with_it() -> None:
    batcher = make_batcher(Lanes(), max_batch=1)
    with pytest.raises(InternalError, match="negative pixels"):
        batcher.submit(frames(*(-1 - k for k in range(8))), read).result(timeout=10)
    assert values(batcher.submit(frames(4), read)) == [4]
    batcher.close()
    assert not batcher.waiting


def order_of(*streams: str) -> list[float]:
    """Who is computed when, a frame at a time: four frames of a film (0) wait in two chunks as others come.

    What holds them all back has just come itself, so the next turn is the film's.
    """
    gate = Gate()
    batcher = make_batcher(gate, max_batch=1)
    gate.open.clear()
    done: list[float] = []
    held = batcher.submit(frames(9), read)
    wait_until_taken(batcher)

    def note(output: Output) -> None:
        done.extend(read(output))

    futures = [batcher.submit(frames(0, 0), note, stream="film") for _ in range(2)]
    futures += [
        batcher.submit(frames(number), note, stream=stream) for number, stream in enumerate(streams, 1)
    ]
    gate.open.set()
    assert values(held) == [9]
    for future in futures:
        future.result(timeout=10)
    batcher.close()
    return done


def test_what_has_just_come_does_not_wait_for_a_film() -> None:
    assert order_of("image") == [0, 1, 0, 0, 0]
    assert order_of("a", "b", "c") == [0, 1, 2, 3, 0, 0, 0]


@pytest.mark.parametrize(
    "name", ["swin_t", "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"]
)
def test_networks_of_torchvision_answer_beside_each_other_as_alone(name: str) -> None:
    spec = resolve(ModelSettings(source=name, weights="random"), allow_code=False)
    model = Model(replace(spec, max_batch=1), "cpu", threads=2)
    assert model.lanes == 2
    torch.set_num_threads(1)
    shape = model.spec.example_shape()
    batches = [torch.rand(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(6)]
    alone = [tensors_of(model(batch)) for batch in batches]
    batcher = Batcher(model, threads=1)
    futures = [batcher.submit(batch, tensors_of) for batch in batches]
    beside = [future.result(timeout=60)[0] for future in futures]
    batcher.close()
    torch.testing.assert_close(beside, alone, atol=0, rtol=0)


def tensors_of(output: Output) -> list[Tensor]:
    """Logits, or boxes and scores, of a single frame; copied, for readers keep no outputs."""
    if isinstance(output, LogitOutput):
        return [output.logits.clone()]
    assert isinstance(output, BoxOutput)
    (frame,) = output.frames
    return [frame[key].clone() for key in ("boxes", "scores")]
