"""What a network is given while its head is looked for."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pipelines.models.graph import Graph, Port
from pipelines.models.heads.identify.evidence import UNIT, Evidence


def test_pixels_of_bytes_are_given_as_bytes_wherever_they_come_among_the_inputs() -> None:
    given: list[Tensor] = []

    def run(pixels: Tensor) -> Mapping[str, Tensor]:
        given.append(pixels)
        return {"out": torch.zeros(1, 1)}

    size = Port(name="im_shape", dtype="float32", dims=(1, 2))
    image = Port(name="image", dtype="uint8", dims=(1, 8, 8, 3))
    Evidence(graph=Graph(inputs=(size, image), outputs=(), run=run), size_hw=(8, 8)).on_pictures(UNIT)
    assert all(pixels.max() > 100 for pixels in given)
    assert len(given) == 2
