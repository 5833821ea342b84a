"""What is known of a network while its head is looked for: its outputs' shapes, and their values on pictures.

The network is run only when somebody asks for what the file does not show. Knows no heads.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pipelines.models.graph import Graph, Port
from pipelines.models.heads.identify.facts import Facts
from pipelines.models.spec import Preprocessing

Outputs = Mapping[str, Tensor]
Scale = tuple[tuple[float, ...], tuple[float, ...]]
UNIT = Preprocessing(resize_px=None, mean=(0, 0, 0), std=(1, 1, 1))
BYTES = Preprocessing(resize_px=None, mean=(0, 0, 0), std=(1 / 255,) * 3)
# A level of grey, as the bars of a letterbox have it.
GREY = 114 / 255
# Cells of the grains of the picture, and how strong each is.
GRAINS = ((2, 0.2), (5, 0.1), (12, 0.05), (30, 0.025))
THINGS = 10
BACKGROUNDS = frozenset({"background", "bg", "no object", "no_object", "none"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A network and what is said of it.

    Attributes:
        size_hw: of its pixels; None: any is taken, and none is said.
        labels: the names of the classes, as far as they are known; count: how many there are, 0: not known.
        pixels: how the user has them; None: as is usual for the head in question.
        passes: what it gave, by the scale of the pixels.
    """

    graph: Graph
    size_hw: tuple[int, int] | None
    facts: Facts = Facts()
    labels: tuple[str, ...] = ()
    count: int = 0
    pixels: Preprocessing | None = None
    passes: dict[Scale, tuple[Outputs, ...]] = field(default_factory=dict, compare=False)

    @property
    def with_background(self) -> bool:
        """Whether the first name is the background's."""
        return bool(self.labels) and self.labels[0].strip("_ ").lower() in BACKGROUNDS

    def matches(self, classes: int) -> bool:
        """Whether there are as many names, or one more for the background."""
        return self.count > 0 and self.count - classes in ((0, 1) if self.with_background else (0,))

    @property
    def outputs(self) -> tuple[Port, ...]:
        """The outputs with the shapes that they have for one picture, as far as they can be known."""
        known = self.graph.outputs
        if known and all(port.dims and None not in port.dims[1:] for port in known):
            return known
        found = self.on_pictures(UNIT)
        if not found:
            return known
        operators = {port.name: port.operator for port in known}
        return tuple(_port(name, one, operators.get(name, "")) for name, one in found[0].items())

    def on_pictures(self, usual: Preprocessing) -> tuple[Outputs, ...]:
        """What it gives of a picture with structure, and of a grey one; empty: it cannot be run.

        Args:
            usual: how pixels are scaled where the user does not say it.
        """
        clips = any(len(port.dims) == 5 for port in self.graph.inputs)
        if self.graph.run is None or self.size_hw is None or clips:
            return ()
        levels = any(len(port.dims) == 4 and port.dtype == "uint8" for port in self.graph.inputs)
        scaled = self.pixels or (BYTES if levels else usual)
        scale = (tuple(scaled.mean), tuple(scaled.std))
        if scale not in self.passes:
            mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in scale)
            pictures = (picture(self.size_hw), torch.full((1, 3, *self.size_hw), GREY))
            runs = [self.graph.run((one - mean) / std) for one in pictures]
            self.passes[scale] = tuple(_plain(run) for run in runs)
        return self.passes[scale]


def _port(name: str, tensor: Tensor, operator: str) -> Port:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Port(name=name, dtype=dtype, dims=tuple(tensor.shape), operator=operator)


def _plain(outputs: Outputs) -> Outputs:
    """On the CPU, in float32 where they are no whole numbers."""
    tensors = {name: one.detach().cpu() for name, one in outputs.items()}
    whole = {name: one.long() for name, one in tensors.items() if not one.is_floating_point()}
    return {name: whole[name] if name in whole else one.float() for name, one in tensors.items()}


def picture(size_hw: tuple[int, int]) -> Tensor:
    """Levels 0..1 `(1, 3, h, w)` of a seeded picture: smooth colours, and shaded ellipses of many sizes.

    Trained detectors take some of these for objects, if their pixels are scaled rightly.
    """
    generator = torch.Generator().manual_seed(3)
    pixels = torch.full((1, 3, *size_hw), 0.45)
    for cells, strength in GRAINS:
        grain = torch.randn(1, 3, cells, cells, generator=generator)
        pixels += strength * functional.interpolate(grain, size=size_hw, mode="bilinear")
    down, across = (((torch.arange(side) + 0.5) / side) for side in size_hw)
    for _ in range(THINGS):
        y, x = torch.rand(2, generator=generator)
        tall, wide = 0.05 + 0.2 * torch.rand(2, generator=generator)
        colour = torch.rand(3, generator=generator).view(3, 1, 1)
        rows, columns = (down[:, None] - y) / tall, (across[None] - x) / wide
        shaded = colour * (0.85 - 0.15 * rows.clamp(-1, 1))
        pixels[0] = torch.where(rows**2 + columns**2 < 1, shaded, pixels[0])
    return pixels.clamp_(0, 1)
