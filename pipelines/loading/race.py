"""Which of several engines computes a model fastest, for one picture and for many. Knows no media."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from model_inference import Model
from pipelines.loading.agreement import example_pixels
from pipelines.machine.threads import use_threads
from pipelines.models.export import FAILURES
from pipelines.models.onnx_runtime import one_line
from pipelines.models.spec import PROBE_PX, ModelSpec
from pipelines.models.torch_runtime import Runner
from pipelines.protocol.errors import ModelUnavailable

log = logging.getLogger("trivid")

# An engine other than torch must be faster by this share.
LEAST_GAIN = 0.10
# How long the passes of all engines together may take, for one picture and for a batch; at least two each.
RACE_S = (0.4, 0.8)
# Batches that take longer are not needed to compare engines. If one picture does, only pictures are compared.
LONG_BATCH_S = 0.3


def fastest(model: Model, spec: ModelSpec, rivals: Mapping[str, Runner]) -> str:
    """The rival to run: the first, torch, unless another is clearly faster for one picture and for many."""
    first = next(iter(rivals))
    shape = _usual_shape(spec)
    single_s = _race(model, (1, *shape), rivals, RACE_S[0], beside=False)
    # A lane has one core for its batch.
    count = min(spec.max_batch, max(1, int(LONG_BATCH_S / (single_s[first] * torch.get_num_threads()))))
    slow = single_s[first] > LONG_BATCH_S
    batch_s = single_s if slow else _race(model, (count, *shape), rivals, RACE_S[1], beside=True)
    both_s = {name: math.sqrt(single_s[name] * batch_s[name]) for name in rivals}
    best = min(both_s, key=lambda name: both_s[name])
    if both_s[best] > (1 - LEAST_GAIN) * both_s[first]:
        best = first
    figures = {
        name: f"{1000 * single_s[name]:.1f} and {1000 * seconds / count:.1f}"
        for name, seconds in batch_s.items()
    }
    others = ", ".join(f"{name} {ms}" for name, ms in figures.items() if name != best)
    unit = "clip" if spec.clip else "frame"
    log.info(
        "%s: %s, %s ms per %s, singly and in batches of %d (%s)",
        *(spec.name, best, figures[best], unit, count, others),
    )
    return best


def _usual_shape(spec: ModelSpec) -> tuple[int, ...]:
    """The shape of one picture or clip of a wide source. Engines are compared on it."""
    shape, short = spec.example_shape()[1:], spec.preprocessing.resize_px
    if spec.preprocessing.fixed_hw:
        return shape
    height_px = short if isinstance(short, int) else PROBE_PX
    width_px = height_px * 16 // 9
    most_px = spec.preprocessing.max_px or width_px
    scale = min(1.0, most_px / width_px)
    return (*shape[:-2], round(height_px * scale), round(width_px * scale))


def _race(
    model: Model, shape: tuple[int, ...], rivals: Mapping[str, Runner], limit_s: float, *, beside: bool
) -> dict[str, float]:
    """The shortest pass of each in seconds, in turns, so that other work on the machine affects all alike.

    Args:
        beside: whether lanes, if there are any, run at once; a pass then counts its share of the time.

    Returns:
        seconds by name; infinity for a rival that fails on such pixels.
    """
    pixels, threads = next(example_pixels([shape])).to(model.device), torch.get_num_threads()
    least = dict.fromkeys(rivals, math.inf)
    fit = dict(rivals)
    end_s = time.perf_counter() + limit_s
    rounds = 0
    with ThreadPoolExecutor(threads, initializer=use_threads, initargs=(1,)) as pool:
        while rounds < 2 or time.perf_counter() < end_s:
            for name, runner in list(fit.items()):
                model.run_by(runner)
                lanes = model.lanes if beside else 1
                start_s = time.perf_counter()
                try:
                    _passes(model, pixels, pool, lanes)
                except (*FAILURES, ModelUnavailable) as error:
                    log.warning("%s: %s is left out: %s", model.spec.name, name, one_line(error))
                    least[name] = math.inf
                    del fit[name]
                else:
                    least[name] = min(least[name], (time.perf_counter() - start_s) / lanes)
            rounds += 1
    # The pool's threads have changed the number with which every new thread of torch begins.
    use_threads(threads)
    return least


def _passes(model: Model, pixels: Tensor, pool: ThreadPoolExecutor, lanes: int) -> None:
    """One pass, or one in each lane at once."""
    if lanes > 1:
        for done in [pool.submit(model, pixels) for _ in range(lanes)]:
            done.result()
        return
    model(pixels)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
