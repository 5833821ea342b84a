"""The DALI graphs of postprocessing: a patch's scores and frames → labels and a picture; colours, blocks.

A picture takes as few operations as possible, since each costs a CPU about half a nanosecond per byte. Masks
are 0 or 255 and are combined bitwise. Sums may wrap around at 256 if a later step subtracts the same amount.
"""

from __future__ import annotations

import colorsys
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn
from nvidia.dali.types import Constant, DALIDataType, DALIImageType, DALIInterpType
from torch import Tensor

from pipelines.frames.dali import number_input, picture_input
from pipelines.protocol.options import Style

Kind = Literal["all", "one"]
LINEAR, NEAREST = DALIInterpType.INTERP_LINEAR, DALIInterpType.INTERP_NN
GOLDEN_RATIO = 0.618034
# A mosaic has at most this many blocks along the longer side, none smaller than 16 pixels. A face as wide as
# a tenth of the frame then becomes four blocks wide.
MOSAIC_BLOCKS = 40
MOSAIC_BLOCK_PX = 16


def palette(classes: int) -> npt.NDArray[np.uint8]:
    """Colours uint8 `(K, 3)`: black for the background, then distinct hues for any K."""
    hues = (number * GOLDEN_RATIO % 1 for number in range(classes - 1))
    colours = [colorsys.hsv_to_rgb(hue, 0.85, 1.0) for hue in hues]
    levels: npt.NDArray[np.uint8] = np.round(255 * np.array([(0.0, 0.0, 0.0), *colours])).astype(np.uint8)
    return levels


def look_up(colours: npt.NDArray[np.uint8], class_map_nhw: Tensor) -> Any:
    """The maps' colours, `(N, h, w, 3)`, on the maps' device; on the CPU numpy is six times faster."""
    if class_map_nhw.is_cuda:
        return torch.from_numpy(colours).to(class_map_nhw.device)[class_map_nhw.int()]
    return np.take(colours, class_map_nhw.numpy(), axis=0)


def block_px(source_hw: tuple[int, int]) -> int:
    """Side of a mosaic's blocks in source pixels."""
    return max(MOSAIC_BLOCK_PX, -(-max(source_hw) // MOSAIC_BLOCKS))


def define(kind: Kind, style: Style | None, outline_px: int, has_backdrop: bool, device: str) -> list[Any]:
    """A graph's outputs: labels uint8 HW1 (all classes' ids, or 1 for one class) and a style's picture."""
    size = number_input("size")
    region = {"roi_start": number_input("start"), "roi_end": number_input("end")}
    if kind == "all":
        labels = _enlarge(picture_input("scores", device), size, **region)
    else:
        margins: Any = picture_input("scores", device, DALIDataType.FLOAT)
        margins = fn.resize(margins, size=size, interp_type=LINEAR, antialias=False, **region)
        labels = _where(margins > 0.0, 1)
    if style is None:
        return [labels]
    frames = picture_input("frames", device)
    inside = _to_rgb(_where(labels != _byte(0), 255))
    if style == "extract" and not has_backdrop:
        return [labels, frames & inside]
    if style == "extract":
        backdrop = _enlarge(picture_input("backdrop", device), size)
        return [labels, backdrop ^ ((frames ^ backdrop) & inside)]
    if style == "redact":
        return [labels, frames ^ ((frames ^ _mosaic(frames, size)) & inside)]
    # frame * (1 - alpha) + tint, computed as frame - (frame * alpha - tint). Both operands are bytes, so what
    # wraps around at 256 wraps back.
    covered = fn.brightness(frames, brightness=number_input("alpha", ndim=0))
    tint = _enlarge(picture_input("tint", device), size, **(region if kind == "all" else {}))
    coloured = frames - ((covered - tint) & inside)
    return [labels, coloured | _to_rgb(_outline(labels, size, outline_px)) if outline_px else coloured]


def _outline(labels: Any, size: Any, outline_px: int) -> Any:
    """255 where another class lies `outline_px` above, below, left or right of a class's pixel; else 0."""
    differs = None
    for offset in ([outline_px, 0], [-outline_px, 0], [0, outline_px], [0, -outline_px]):
        shift = np.array(offset, np.float32)
        there = _enlarge(labels, size, roi_start=shift, roi_end=size + shift)
        differs = labels ^ there if differs is None else differs | (labels ^ there)
    return _where((differs != _byte(0)) & (labels != _byte(0)), 255)


def _mosaic(frames: Any, size: Any) -> Any:
    """The frames in blocks of their mean colours."""
    blocks = fn.resize(frames, size=number_input("mosaic"), interp_type=LINEAR, antialias=True)
    return _enlarge(blocks, size)


def _enlarge(pictures: Any, size: Any, **region: Any) -> Any:
    """Nearest neighbour: the output's pixel i is the input's pixel floor((i + 1/2) * scale)."""
    return fn.resize(pictures, size=size, interp_type=NEAREST, **region)


def _where(truth: Any, value: int) -> Any:
    """`value` where `truth` holds, else 0."""
    return truth * _byte(value)


def _byte(value: int) -> Any:
    untyped: Any = Constant
    return untyped(value, dtype=DALIDataType.UINT8)


def _to_rgb(grey: Any) -> Any:
    """HW1 → HW3; cheaper than broadcasting the channel in arithmetic."""
    return fn.color_space_conversion(grey, image_type=DALIImageType.GRAY, output_type=DALIImageType.RGB)
