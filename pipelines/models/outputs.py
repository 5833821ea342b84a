"""What a network gave, in the form of its task: logits or boxes of N frames. Knows no model, no device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.models import forms
from pipelines.models.enlarge import bands, enlarged
from pipelines.models.forms import Form
from pipelines.models.spec import TaskName
from pipelines.protocol.errors import ModelUnavailable

BOX_OUTPUTS = ("boxes", "labels", "scores")


@dataclass(frozen=True, slots=True, eq=False)
class LogitOutput:
    """Outputs of N frames or clips, `(N, …)` each by name; `main` is the one that the task reads.

    Attributes:
        tensors: as the network gave them, but with the axes that the task reads; a class map is uint8.
        size_hw: the size that scores of coarse pixels are enlarged to; None: they are not.
        vectors: the numbers of a row are the coordinates of a vector, not scores.
        holes: bool `(N, 1, h, w)`, the pixels of `main` with a score that is not finite; None: no pixels.
    """

    tensors: Mapping[str, Tensor]
    main: str
    size_hw: tuple[int, int] | None = None
    vectors: bool = False
    holes: Tensor | None = None

    @property
    def logits(self) -> Tensor:
        return self._sized(self.tensors[self.main])

    @property
    def sized(self) -> dict[str, Tensor]:
        """All outputs; scores of pixels are enlarged."""
        return {name: self._sized(tensor) for name, tensor in self.tensors.items()}

    def bands(self) -> Iterator[Tensor]:
        """The logits of segmentation from top to bottom, `(N, K, rows, w)`, enlarged band by band.

        Those of `holes` are 0, so that they spoil no pixels around them.
        """
        logits = self.tensors[self.main]
        if self.holes is not None and logits.is_floating_point():
            logits = logits.masked_fill(self.holes, 0)
        whole = self.size_hw is None or not logits.is_floating_point()
        yield from [self._sized(logits)] if whole or self.size_hw is None else bands(logits, self.size_hw)

    @property
    def holes_nhw(self) -> Tensor | None:
        """The pixels, bool `(N, h, w)` of the size of the logits, that a hole has a part in."""
        if self.holes is None:
            return None
        smooth = self.tensors[self.main].is_floating_point()
        return self._sized(self.holes.float() if smooth else self.holes.byte())[:, 0] > 0

    def __len__(self) -> int:
        return len(self.tensors[self.main])

    def part(self, start: int, stop: int) -> LogitOutput:
        """The outputs for some of the frames."""
        some = {name: tensor[start:stop] for name, tensor in self.tensors.items()}
        holes = None if self.holes is None else self.holes[start:stop]
        return LogitOutput(some, self.main, self.size_hw, self.vectors, holes)

    def _sized(self, tensor: Tensor) -> Tensor:
        if self.size_hw is None or tensor.ndim != 4:
            return tensor
        if not tensor.is_floating_point():
            return functional.interpolate(tensor, size=self.size_hw, mode="nearest-exact")
        return enlarged(tensor, self.size_hw)


@dataclass(frozen=True, slots=True, eq=False)
class BoxOutput:
    """Detections of N frames, one mapping of tensors each; see `ModelSpec.build`.

    Attributes:
        not_finite: of each frame whether the layers gave numbers for it that are not finite; empty: of none.
    """

    frames: Sequence[Mapping[str, Tensor]]
    not_finite: Sequence[bool] = ()

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, start: int, stop: int) -> BoxOutput:
        return BoxOutput(self.frames[start:stop], self.not_finite[start:stop])


Output = LogitOutput | BoxOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFacts:
    """One output as a first pass has shown it: `dims` without the batch's; None if a length varies."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | None, ...]


def read_output(given: Any, task: TaskName, name: str, size_px: tuple[int, int], form: Form) -> Output:
    """What the network `name` gave for pixels of a height and width, in the form of its task.

    Raises:
        ModelUnavailable: it does not have that form.
    """
    if task == "detection":
        return _boxes(given, name)
    tensors = {one: value for one, value in named_tensors(given) if one not in form.left_out}
    if task != "segmentation":
        rows = {one: _row(value) for one, value in tensors.items()}
        return LogitOutput(rows, form.main, vectors=task == "embedding")
    read = {one: value.float() for one, value in tensors.items() if one != form.main}
    given_planes = forms.laid_out(tensors[form.main], form)
    planes = forms.arranged(tensors[form.main], form)
    scores = given_planes if form.class_map else planes
    holes = None if bool(finite_rows(scores).all()) else ~scores.isfinite().all(dim=1, keepdim=True)
    coarse = tuple(planes.shape[-2:]) != size_px
    return LogitOutput({form.main: planes, **read}, form.main, size_px if coarse else None, holes=holes)


def finite_rows(tensor: Tensor) -> Tensor:
    """Whether all numbers of each row are finite, bool `(N,)`.

    A sum tells, in a fraction of the time; only where it is not finite, each number is looked at.
    """
    if not tensor.is_floating_point():
        return torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
    axes = tuple(range(1, tensor.ndim))
    finite = (tensor.sum(dim=axes, dtype=torch.float32) if axes else tensor).isfinite()
    if axes and not bool(finite.all()):
        finite = tensor.isfinite().flatten(1).all(dim=1)
    return finite


def _boxes(given: Any, name: str) -> BoxOutput:
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
    raise ModelUnavailable(
        f"{name} gives {named}, task detection needs {needs}", hint="is it a model of another task?"
    )


def _row(tensor: Tensor) -> Tensor:
    """float32, and `(N, K)` if it has at most one axis for each picture."""
    row = tensor.ndim == 1 or forms.is_row(forms.port_of("", tensor))
    return (forms.flat(tensor) if row else tensor).float()


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


def check_widths(output: Output, facts: Sequence[OutputFacts], read: Sequence[str], name: str) -> None:
    """Check that what is read still has the columns that names were given to.

    Args:
        facts: what the first pass has shown.
        read: the outputs that the task reads; of detections all are read.
    """
    boxes = isinstance(output, BoxOutput)
    rows = output.frames if isinstance(output, BoxOutput) else [output.tensors]
    for fact in facts:
        known = fact.dims[1:] if boxes else fact.dims[:1]
        for row in rows if boxes or fact.name in read else []:
            tensor = row.get(fact.name)
            found = None if tensor is None else tuple(tensor.shape[1 : 1 + len(known)])
            if found != known:
                raise ModelUnavailable(
                    f"{name} gives {'no' if found is None else found} columns of {fact.name}, and gave "
                    f"{known} for its first picture",
                    hint="the number of a model's outputs may not depend on its input",
                )


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
