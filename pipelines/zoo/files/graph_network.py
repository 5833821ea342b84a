"""A file's graph as a network like others: model pixels of any batch in, outputs by name. Knows no task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pipelines.models.outputs import named_tensors
from pipelines.models.spec import Engine
from pipelines.models.torch_runtime import Foreign, Pieces
from pipelines.zoo.files.input_form import InputForm

Outputs = Mapping[str, Tensor]


class Opened(Protocol):
    """A graph that an engine has opened: pixels, and the other inputs by name → its outputs by name."""

    engine: Engine

    @property
    def lanes(self) -> int: ...

    def __call__(self, pixels: Tensor, extra: Mapping[str, Tensor]) -> Outputs: ...


Open = Callable[[torch.device], Opened]


class GraphNetwork(Foreign):
    """Model pixels `(N, 3, …)` of any N → the graph's outputs by name, on the device of the pixels.

    A graph of a fixed batch is run in pieces of that size. Outputs that do not have a row for each picture,
    as lists of detections, come as `Pieces`.

    Args:
        openers: by engine, what opens it for a device; the first is used. They raise ModelUnavailable.
    """

    def __init__(self, openers: Mapping[Engine, Open], form: InputForm) -> None:
        super().__init__()
        self._openers, self._form = openers, form
        self.engines = tuple(openers)
        self.engine = self.engines[0]
        self._device = torch.device("cpu")
        self._graph = openers[self.engine](self._device)

    def by(self, engine: Engine) -> GraphNetwork:
        first = {engine: self._openers[engine]}
        return GraphNetwork({**first, **self._openers}, self._form)

    @property
    def lanes(self) -> int:
        return self._graph.lanes

    def forward(self, pixels: Tensor) -> Outputs | Pieces:
        if pixels.device != self._device:
            self._graph, self._device = self._openers[self.engine](pixels.device), pixels.device
        form = self._form
        runs = [form.outputs(self._graph(part, form.extra(part))) for part in form.batches(pixels)]
        return joined(runs, len(pixels), form)


class ProgramNetwork(nn.Module):
    """A torch program as a network; it has the mode that it was saved in, whatever is asked of it."""

    def __init__(self, program: Any, form: InputForm) -> None:
        super().__init__()
        self.program, self._form = program, form

    def train(self, mode: bool = True) -> ProgramNetwork:
        """Exported programs raise where they are asked for another mode."""
        del mode
        return self

    def forward(self, pixels: Tensor) -> Any:
        if self._form == InputForm(size_hw=self._form.size_hw):
            return self.program(pixels)
        runs = [self.program(part) for part in self._form.batches(pixels)]
        if _by_picture(runs[0]):
            return [one for run in runs for one in run][: len(pixels)]
        if self._form.batch is None and not self._form.channels_last:
            return runs[0]
        named = [self._form.outputs(dict(named_tensors(run))) for run in runs]
        return joined(named, len(pixels), self._form)


def joined(runs: list[Outputs], count: int, form: InputForm) -> Outputs | Pieces:
    """The outputs of all pieces of a batch of `count`, joined where each has a row for each picture."""
    size = form.batch or count
    whole = all(len(tensor) == size for run in runs for tensor in run.values() if tensor.ndim)
    same = all(_shapes(run) == _shapes(runs[0]) for run in runs)
    if form.batch is not None and (form.apart or not (whole and same)):
        return Pieces(runs, size, count)
    found = dict(runs[0])
    if len(runs) > 1:
        found = {name: torch.cat([run[name] for run in runs]) for name in found}
    # Only a batch that was filled up has more rows than pictures.
    filled = len(runs) * size > count
    return {name: tensor[:count] if filled and tensor.ndim else tensor for name, tensor in found.items()}


def _shapes(run: Outputs) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in run.values()]


def _by_picture(given: Any) -> bool:
    """Whether a program gives a list of mappings, one for each picture."""
    return isinstance(given, list) and bool(given) and isinstance(given[0], Mapping)
