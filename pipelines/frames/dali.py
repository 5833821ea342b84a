"""A DALI graph as a function of samples. Owns how graphs are run, fed and rebuilt; knows no graph itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nvidia.dali import backend, fn
from nvidia.dali.pipeline import Pipeline
from nvidia.dali.types import DALIDataType
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipelines.frames.batch import PixelArray, to_numpy
from pipelines.protocol.errors import InternalError

# Frames go through a graph in groups of about this many pixels: 16 of 1280x720, 2 of 3840x2160.
MAX_RUN_PIXELS = 16 << 20
# Two threads prepare a single stream almost twice as fast as one; more would only compete with other streams.
THREADS = 2


class Graph:
    """A DALI pipeline as a function: built on first use, by one thread at a time, anew after any error.

    Args:
        define: makes the graph's output nodes, given the DALI device of the pixels (`"cpu"`, `"gpu"`).
        device: torch's name of the device.
        max_samples: most samples in one call.
    """

    def __init__(self, define: Callable[[str], Sequence[Any]], *, device: str, max_samples: int) -> None:
        self._define = define
        self._device = torch.device(device)
        self._max_samples = max_samples
        self._pipeline: Any = None

    def __call__(self, **inputs: Sequence[Any]) -> list[Tensor]:
        """Samples of equal size, by input name → one tensor `(N, …)` for each output, not copied.

        Raises:
            InternalError: DALI failed; the next call starts with a new pipeline.
        """
        pipeline, self._pipeline = self._pipeline, None
        try:
            pipeline = pipeline or self._build()
            for name, samples in inputs.items():
                pipeline.feed_input(name, samples)
            outputs = run_pipeline(pipeline, self._device)
        except (RuntimeError, IndexError) as error:
            raise InternalError(f"DALI failed: {_reason(error)}") from error
        self._pipeline = pipeline
        return outputs

    def _build(self) -> Any:
        kind = "gpu" if self._device.type == "cuda" else "cpu"
        device_id = (self._device.index or 0) if kind == "gpu" else None
        return build_pipeline(lambda: self._define(kind), batch_size=self._max_samples, device_id=device_id)


def build_pipeline(define: Callable[[], Sequence[Any]], *, batch_size: int, device_id: int | None) -> Any:
    """A DALI pipeline that never runs ahead: with a queue of two, a call may get another call's output."""
    untyped: Any = Pipeline
    pipeline = untyped(
        batch_size=batch_size, num_threads=THREADS, device_id=device_id, prefetch_queue_depth=1
    )
    with pipeline:
        pipeline.set_outputs(*define())
    pipeline.build()
    return pipeline


def run_pipeline(pipeline: Any, device: torch.device) -> list[Tensor]:
    """One run, on torch's stream for the device; a tensor for each output, not copied."""
    stream = [torch.cuda.current_stream(device)] if device.type == "cuda" else []
    return [from_dlpack(output.as_tensor()) for output in pipeline.run(*stream)]


def release_unused() -> None:
    """Release unused memory in DALI's pools, both on the GPU and pinned on the host."""
    untyped: Any = backend
    untyped.ReleaseUnusedMemory()


def _reason(error: Exception) -> str:
    """DALI's message, without the source files and lines around it."""
    text = str(error).split("encountered:")[-1]
    for tail in ("C++ context", "Stacktrace", "Current pipeline object"):
        text = text.split(tail)[0]
    return " ".join(text.split())


def picture_input(name: str, device: str, dtype: Any = DALIDataType.UINT8) -> Any:
    """A graph's input of HWC pictures; on the CPU not copied, since inputs outlive the call."""
    return fn.external_source(name=name, device=device, dtype=dtype, layout="HWC", no_copy=device == "cpu")


def number_input(name: str, ndim: int = 1) -> Any:
    """A graph's input of float32 numbers (`ndim` 1: pairs), on the CPU, where DALI wants arguments."""
    return fn.external_source(name=name, dtype=DALIDataType.FLOAT, ndim=ndim)


def runs(frames: int, pixels_each: int, max_frames: int) -> Iterator[slice]:
    """Frames in groups of at most `max_frames` and about MAX_RUN_PIXELS, so that memory stays bounded."""
    step = max(1, min(max_frames, MAX_RUN_PIXELS // pixels_each))
    return (slice(start, start + step) for start in range(0, frames, step))


def as_samples(pixels: PixelArray, device: str) -> list[Any]:
    """N pictures as DALI takes them: contiguous, on the host or already on the graph's GPU."""
    if device != "cpu" and getattr(pixels, "is_cuda", False):
        return list(pixels.contiguous())  # type: ignore[attr-defined]
    return list(np.ascontiguousarray(to_numpy(pixels)))
