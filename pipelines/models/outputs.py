"""What a network gave, in the form of its task: logits or boxes of N frames. Knows no model, no device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.models.spec import TaskName
from pipelines.protocol.errors import ModelUnavailable

BOX_OUTPUTS = ("boxes", "labels", "scores")
# Segmentation scores each pixel, the other tasks each frame or clip.
LAYOUTS: dict[str, str] = {"segmentation": "(N, K, h, w)"}
LAYOUT = "(N, K)"


@dataclass(frozen=True, slots=True, eq=False)
class LogitOutput:
    """Outputs of N frames or clips, `(N, …)` each by name; `main` is the one that the task reads.

    Attributes:
        tensors: as the network gave them.
        size_hw: the size that scores of coarse pixels are enlarged to; None: they are not.
    """

    tensors: Mapping[str, Tensor]
    main: str
    size_hw: tuple[int, int] | None = None

    @property
    def logits(self) -> Tensor:
        return self._sized(self.tensors[self.main])

    @property
    def sized(self) -> dict[str, Tensor]:
        """All outputs; scores of pixels are enlarged."""
        return {name: self._sized(tensor) for name, tensor in self.tensors.items()}

    def bands(self) -> Iterator[Tensor]:
        """The logits of segmentation from top to bottom, `(N, K, rows, w)`, enlarged band by band."""
        logits = self.tensors[self.main]
        yield from [logits] if self.size_hw is None else bands(logits, self.size_hw)

    def __len__(self) -> int:
        return len(self.tensors[self.main])

    def part(self, start: int, stop: int) -> LogitOutput:
        """The outputs for some of the frames."""
        some = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        return LogitOutput(some, self.main, self.size_hw)

    def _sized(self, tensor: Tensor) -> Tensor:
        return enlarged(tensor, self.size_hw) if self.size_hw and tensor.ndim == 4 else tensor


@dataclass(frozen=True, slots=True, eq=False)
class BoxOutput:
    """Detections of N frames, one mapping of tensors each; see `ModelSpec.build`."""

    frames: Sequence[Mapping[str, Tensor]]

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, start: int, stop: int) -> BoxOutput:
        return BoxOutput(self.frames[start:stop])


Output = LogitOutput | BoxOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFacts:
    """One output as a first pass has shown it: `dims` without the batch's; None if a length varies."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | None, ...]


def read_output(given: Any, task: TaskName, name: str, size_px: tuple[int, int]) -> Output:
    """What the network `name` gave for pixels of a height and width, in the form of its task.

    Raises:
        ModelUnavailable: it does not have that form.
    """
    if task == "detection":
        frames = [given] if isinstance(given, Mapping) else given
        if isinstance(frames, list | tuple) and all(
            isinstance(frame, Mapping) and all(name in frame for name in BOX_OUTPUTS) for frame in frames
        ):
            return BoxOutput(frames)
        named = (
            f"a dict of {', '.join(map(str, given))}"
            if isinstance(given, Mapping)
            else f"a {type(given).__name__}"
        )
        needs = "a list of boxes, labels and scores, or outputs of these names"
        raise _mismatch(name, task, named, needs)
    tensors = dict(named_tensors(given))
    layout = LAYOUTS.get(task, LAYOUT)
    rank = layout.count(",") + 1
    main = next((name for name, tensor in tensors.items() if tensor.ndim == rank), None)
    if main is None:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise _mismatch(name, task, found or f"a {type(given).__name__}", layout)
    coarse = task == "segmentation" and tuple(tensors[main].shape[-2:]) != size_px
    return LogitOutput(
        {name: tensor.float() for name, tensor in tensors.items()}, main, size_px if coarse else None
    )


def named_tensors(given: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors a network gave, by name: its own in a mapping, else `logits`, `logits_1` and so on."""
    if isinstance(given, Tensor):
        yield "logits", given
    elif isinstance(given, Mapping):
        yield from ((str(name), value) for name, value in given.items() if isinstance(value, Tensor))
    elif isinstance(given, list | tuple):
        values = [value for value in given if isinstance(value, Tensor)]
        yield from ((f"logits_{place}" if place else "logits", value) for place, value in enumerate(values))


def check_rows(output: Output, count: int, name: str) -> None:
    """Check that every output has a row for each picture: else answers would go to the wrong pictures."""
    if isinstance(output, BoxOutput):
        lengths = {"boxes": len(output)}
    else:
        lengths = {one: len(tensor) if tensor.ndim else 0 for one, tensor in output.tensors.items()}
    for one, length in lengths.items():
        if length != count:
            raise ModelUnavailable(
                f"{name} gives {length} rows of {one} for a batch of {count}",
                hint="max_batch=1 for a model exported with a fixed batch size",
            )


def are_probabilities(output: Output) -> bool:
    """Whether a network ends in a softmax: logits would not be all positive with a sum of 1."""
    if isinstance(output, BoxOutput) or output.logits.shape[1] < 2:
        return False
    logits = output.logits
    return bool((logits >= 0).all() and (logits.sum(dim=1) - 1).abs().max() < 1e-3)


def output_facts(output: Output) -> tuple[OutputFacts, ...]:
    """Names, types and dimensions; heights, widths and numbers of boxes vary."""
    if isinstance(output, BoxOutput):
        return tuple(
            OutputFacts(name=name, dtype=tensor.dtype, dims=(None, *tensor.shape[1:]))
            for name, tensor in output.frames[0].items()
        )
    return tuple(
        OutputFacts(name=name, dtype=tensor.dtype, dims=(tensor.shape[1], *[None] * (tensor.ndim - 2)))
        for name, tensor in output.tensors.items()
    )


def _mismatch(name: str, task: TaskName, found: str, expected: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{name} gives {found}, task {task} needs {expected}", hint="is it a model of another task?"
    )


# Rows of a band: 2.5 MB for 21 classes and 924 columns.
BAND_ROWS = 32


def enlarged(scores_nkhw: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Scores `(N, K, h, w)` → `(N, K, H, W)`, bilinear between the centres of pixels."""
    return functional.interpolate(scores_nkhw, size=size_hw, mode="bilinear", align_corners=False)


def bands(scores_nkhw: Tensor, size_hw: tuple[int, int]) -> Iterator[Tensor]:
    """The same from top to bottom in bands `(N, K, rows, W)`; on a GPU, which gains nothing by bands, in one.

    Use each before you ask for the next.
    """
    if scores_nkhw.is_cuda:
        yield enlarged(scores_nkhw, size_hw)
        return
    rows, columns = size_hw
    wide = enlarged(scores_nkhw, (scores_nkhw.shape[-2], columns))
    weights, first, last = _down(scores_nkhw.shape[-2], rows)
    for top in range(0, rows, BAND_ROWS):
        bottom = min(top + BAND_ROWS, rows)
        seen = slice(first[top], last[bottom - 1] + 1)
        yield weights[top:bottom, seen] @ wide[:, :, seen]


def _down(coarse: int, fine: int) -> tuple[Tensor, list[int], list[int]]:
    """The weight of each coarse row in each fine one, `(fine, coarse)`; the first and last that have any."""
    place = ((torch.arange(fine) + 0.5) * (coarse / fine) - 0.5).clamp_min(0)
    first = place.long()
    last = (first + 1).clamp_max(coarse - 1)
    weights = torch.zeros(fine, coarse)
    row = torch.arange(fine)
    weights[row, last] = place - first
    weights[row, first] += 1 - (place - first)
    return weights, first.tolist(), last.tolist()
