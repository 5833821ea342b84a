"""What a file's network is given, made of the model pixels that all networks share. Knows no files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.models.graph import Graph, Port
from pipelines.models.torch_runtime import padded
from pipelines.protocol.errors import ModelUnavailable

# Pictures (N, C, h, w) and clips (N, C, T, h, w), as model pixels lie, in the order that a layout has them.
ORDERS = {
    "NCHW": (0, 1, 2, 3),
    "NHWC": (0, 2, 3, 1),
    "NCTHW": (0, 1, 2, 3, 4),
    "NTCHW": (0, 2, 1, 3, 4),
    "NTHWC": (0, 2, 3, 4, 1),
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}
# Of red, green and blue in grey: ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)
# Inputs beside the pixels that exporters of detectors leave in, by name, and what they are given.
CONSTANTS = {
    "orig_target_sizes": "width, height",
    "image_info": "height, width, scale",
    "im_info": "height, width, scale",
    "im_shape": "height, width",
    "image_shape": "height, width",
    "scale_factor": "ones",
}
HINT = "export it with python -m scripts.export, or with one input of pixels (N, 3, h, w) or (N, h, w, 3)"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputForm:
    """How model pixels become a file's inputs.

    Attributes:
        layout: the order of the dimensions, one of `ORDERS`.
        channels: 3, or 1: the luma of the colours.
        dtype: `float32`, `float16`, or `uint8`, for which model pixels are levels 0..255.
        batch: the only batch size that the file takes; None: any.
        apart: some output has no row for each picture of such a batch, so the outputs of two are not joined.
        size_hw: the only height and width; None where any is taken.
        constants: the other inputs, by their names in the file.
        channels_last: outputs (N, h, w, K), by name, which are served as (N, K, h, w).
    """

    layout: str = "NCHW"
    channels: int = 3
    dtype: str = "float32"
    batch: int | None = None
    apart: bool = False
    size_hw: tuple[int, int] | None = None
    constants: tuple[Port, ...] = ()
    channels_last: tuple[str, ...] = ()

    def batches(self, pixels: Tensor) -> Iterator[Tensor]:
        """Model pixels float32 `(N, 3, h, w)` or `(N, 3, T, h, w)` in pieces as the file takes them.

        The last one is filled up with its last row.
        """
        size = self.batch or len(pixels)
        for part in torch.split(pixels, size):
            yield self._given(padded(part, size))

    def _given(self, pixels: Tensor) -> Tensor:
        if self.channels == 1:
            weights = torch.tensor(LUMA, device=pixels.device).view(1, 3, *[1] * (pixels.ndim - 2))
            pixels = (pixels * weights).sum(dim=1, keepdim=True)
        if self.dtype == "uint8":
            pixels = pixels.round().clamp_(0, 255)
        return pixels.permute(ORDERS[self.layout]).to(DTYPES[self.dtype]).contiguous()

    def outputs(self, run: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The outputs with their channels first."""
        if not self.channels_last:
            return run
        return {name: one.movedim(-1, 1) if name in self.channels_last else one for name, one in run.items()}

    def extra(self, pixels: Tensor) -> dict[str, Tensor]:
        """The other inputs for a piece of the batch in the file's form."""
        if not self.constants:
            return {}
        order = ORDERS[self.layout]
        sides = [pixels.shape[order.index(axis)] for axis in (len(order) - 2, len(order) - 1)]
        values = {"height": float(sides[0]), "width": float(sides[1]), "scale": 1.0}
        found = {}
        for port in self.constants:
            said = CONSTANTS[port.name]
            count = port.dims[-1] or 2
            row = [1.0] * count if said == "ones" else [values[one] for one in said.split(", ")]
            row = (row + [1.0] * count)[:count]
            found[port.name] = torch.tensor([row] * len(pixels)).to(getattr(torch, port.dtype))
        return found


def input_form(graph: Graph, name: str, *, layout: str = "", grey: bool | None = None) -> InputForm:
    """The form of a network's inputs, as its file shows it and a user says it.

    Args:
        name: of the file, for messages.
        layout: `NCHW` or `NHWC` where the user says so.
        grey: whether the user says that it takes one channel.

    Raises:
        ModelUnavailable: it takes no pixels, or more than them.
    """
    pixels = [port for port in graph.inputs if len(port.dims) in (4, 5)]
    others = tuple(port for port in graph.inputs if port not in pixels)
    unknown = [port for port in others if port.name not in CONSTANTS or port.dtype not in vars(torch)]
    if len(pixels) != 1 or unknown:
        wrong = f"{name} {graph}: it needs one input of pixels of rank 4, or 5 for clips"
        raise ModelUnavailable(wrong, hint=HINT)
    port = pixels[0]
    if port.dtype not in DTYPES:
        wrong = f"{name}: input {port} is none of {', '.join(DTYPES)}"
        raise ModelUnavailable(wrong, hint=HINT)
    order, channels = _layout(port, name, layout)
    if grey and channels == 3:
        raise ModelUnavailable(f"{name}: input {port} has three channels, not one", hint="leave out GRAY")
    places = ORDERS[order]
    height_px, width_px = (port.dims[places.index(len(places) - back)] for back in (2, 1))
    return InputForm(
        layout=order,
        channels=1 if grey else channels or 3,
        dtype=port.dtype,
        batch=port.dims[0],
        apart=port.dims[0] is not None
        and any(one.dims and one.dims[0] != port.dims[0] for one in graph.outputs),
        size_hw=(height_px, width_px) if height_px and width_px else None,
        constants=others,
    )


def _layout(port: Port, name: str, said: str) -> tuple[str, int | None]:
    """The order of the dimensions, and how many channels there are; None: any number is taken."""
    orders = {"NCHW": 1, "NHWC": 3} if len(port.dims) == 4 else {"NCTHW": 1, "NTCHW": 2, "NTHWC": 4}
    if said and len(port.dims) == 4:
        orders = {said: orders[said]}
    for wanted in ((3,), (1,), (None,)):
        fit = [order for order, place in orders.items() if port.dims[place] in wanted]
        if fit:
            return fit[0], port.dims[orders[fit[0]]]
    places: Sequence[str] = [f"{port.dims[place]} as {order}" for order, place in orders.items()]
    wrong = f"{name}: input {port} has neither 3 channels nor 1 ({', '.join(places)})"
    raise ModelUnavailable(wrong, hint=HINT)
