"""Frames → the model's pixels on the CPU, with torchvision's own resizing kernels. Knows no decoder.

The pixels are those of torchvision's transforms v2 to the bit, or of v1 for its presets without antialiasing.
A few pixels in a thousand differ from Pillow's, by one level. Letterboxes without antialiasing are v2's too:
they are resized as integers, as by OpenCV, which is faster, and differ from floats by one level at most. The
kernels take a third to an eighth of the time of DALI's CPU operators (docs/performance.md). On a GPU the DALI
graph of `preprocess` does the same work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from pipelines.frames.batch import PixelArray
from pipelines.frames.geometry import MAX_MODEL_PIXELS, View, geometry, needed_part
from pipelines.models.spec import Interpolation, Preprocessing
from pipelines.protocol.errors import ModelUnavailable

# A frame is enlarged whole up to so many times its own pixels or the model's; of others only what is cut out.
WHOLE_RESIZE = 4


class Resizer:
    """Resizes frames of one size, one by one, to the model's size; for one thread.

    Args:
        height_px, width_px: size of the frames.

    Attributes:
        part: the only part of each frame that is read.
        model_hw: height and width of the result.

    Raises:
        TooLarge: the model cannot take frames of this size (`geometry`).
    """

    def __init__(self, preprocessing: Preprocessing, height_px: int, width_px: int) -> None:
        self._preprocessing = preprocessing
        # Kept from frame to frame, since memory of this size would be mapped anew at every allocation.
        self._floats: Tensor | None = None
        # Presets without antialiasing (for clips) take only tensors, which torchvision resizes as floats.
        smooth = preprocessing.interpolation != "nearest"
        as_tensors = smooth and not preprocessing.antialias and preprocessing.fit == "stretch"
        self._by_floats = not preprocessing.round_pixels or as_tensors
        whole = geometry(preprocessing, height_px, width_px)
        # With floats, or nearest neighbours, the last bit depends on where a part begins.
        exact = smooth and not self._by_floats
        self.part = needed_part(whole) if exact else View(top_px=0, left_px=0, geometry=whole)
        self._shape = self.part.geometry
        self.model_hw = self._shape.model_hw
        usual = WHOLE_RESIZE * max(height_px * width_px, math.prod(self.model_hw))
        self._far = math.prod(self._shape.resized_hw) > max(MAX_MODEL_PIXELS, usual)
        if self._far:
            self.part = View(top_px=0, left_px=0, geometry=whole)
            self._shape = whole

    def __call__(self, pixels_hwc: npt.NDArray[Any]) -> Tensor:
        """A frame's part, uint8 RGB `(H, W, 3)` → levels 0..255 `(3, h, w)`, uint8 or float32."""
        frame = torch.from_numpy(pixels_hwc).permute(2, 0, 1)[None]
        if self._far:
            return self._placed(self._cut_enlarged(frame))[0]
        if self._by_floats:
            if self._floats is None:
                self._floats = torch.empty(
                    frame.shape, dtype=torch.float32, memory_format=torch.channels_last
                )
            frame = self._floats.copy_(frame)
        rows, columns = self._cut
        return self._placed(self._resized(frame)[..., rows, columns])[0]

    @property
    def _cut(self) -> tuple[slice, slice]:
        """The rows and columns of the resized frame that the model sees."""
        top, left, height, width = self._shape.crop_yxhw
        resized_h, resized_w = self._shape.resized_hw
        return (
            slice(max(0, top), min(top + height, resized_h)),
            slice(max(0, left), min(left + width, resized_w)),
        )

    def _cut_enlarged(self, frame_nchw: Tensor) -> Tensor:
        """Only those, within rounding of what the kernels give; far larger frames fit into no memory."""
        preprocessing = self._preprocessing
        (rows, down), (columns, across) = (
            _weights(source, resized, cut, preprocessing.interpolation, antialias=preprocessing.antialias)
            for source, resized, cut in zip(
                self._shape.source_hw, self._shape.resized_hw, self._cut, strict=True
            )
        )
        cut = (down @ frame_nchw[..., rows, columns].float() @ across.T).clamp_(0, 255)
        return cut.round_() if preprocessing.round_pixels else cut

    def _resized(self, frame_nchw: Tensor) -> Tensor:
        if self._shape.resized_hw == self._shape.source_hw:
            # The decoder reuses its memory for the next frame.
            return frame_nchw.clone(memory_format=torch.contiguous_format)
        mode = self._preprocessing.interpolation
        smooth = {} if mode == "nearest" else {"antialias": self._preprocessing.antialias}
        resized = functional.interpolate(frame_nchw, size=self._shape.resized_hw, mode=mode, **smooth)
        if not self._by_floats:
            return resized
        # Cubic curves overshoot 0..255; for uint8 the kernel itself clips them.
        resized = resized.clamp_(0, 255)
        return resized.round_() if self._preprocessing.round_pixels else resized

    def _placed(self, cut: Tensor) -> Tensor:
        """The model's region: what is cut out, with padding around it, in the model's order of colours."""
        top, left, height, width = self._shape.crop_yxhw
        preprocessing = self._preprocessing
        backwards = preprocessing.channels == "BGR"
        if cut.shape[2:] == (height, width):
            return cut.flip(1) if backwards else cut.contiguous()
        level = preprocessing.pad_value if preprocessing.fit != "stretch" else 0
        # A colour at a time: copies of whole planes are several times as fast as of pixels.
        whole = cut.new_full((1, 3, height, width), level)
        inner = whole[..., max(0, -top) :, max(0, -left) :][..., : cut.shape[2], : cut.shape[3]]
        for colour in range(3):
            inner[:, colour] = cut[:, 2 - colour if backwards else colour]
        return whole


def _weights(
    source_px: int, resized_px: int, cut: slice, interpolation: Interpolation, *, antialias: bool
) -> tuple[slice, Tensor]:
    """Of one side: the source pixels that some resized ones are made of, and the weight of each in each.

    The filters are those of Pillow's and torchvision's resizing: a triangle, or a cubic curve of -1/2.
    """
    scale = source_px / resized_px
    places = torch.arange(cut.start, cut.stop, dtype=torch.float64)
    nearest = interpolation == "nearest"
    centres = (places * scale).floor() + 0.5 if nearest else (places + 0.5) * scale
    wide = max(1.0, scale) if antialias and not nearest else 1.0
    reach = (2 if interpolation == "bicubic" else 1) * wide
    first = max(0, math.floor(float(centres[0]) - reach))
    last = min(source_px, math.ceil(float(centres[-1]) + reach))
    pixels = torch.arange(first, last, dtype=torch.float64) + 0.5
    distance = (pixels - centres[:, None]).abs() / wide
    if nearest:
        weights = (distance < 0.5).double()
    elif interpolation == "bilinear":
        weights = (1 - distance).clamp_min(0)
    else:
        near, far = (1.5 * distance - 2.5) * distance**2 + 1, (2.5 - 0.5 * distance) * distance**2
        weights = torch.where(distance < 1, near, far - 4 * distance + 2).where(distance < 2, 0)
    return slice(first, last), (weights / weights.sum(dim=1, keepdim=True)).float()


def normalize(levels: Sequence[Tensor], preprocessing: Preprocessing) -> Tensor:
    """Frames with levels 0..255 `(3, h, w)` → the model's pixels, float32 `(N, 3, h, w)`."""
    mean, std = (
        255 * torch.tensor(each).view(1, 3, 1, 1) for each in (preprocessing.mean, preprocessing.std)
    )
    pixels = torch.stack(list(levels)).to(torch.float32)
    # Levels as they are need no passes over all pixels.
    return pixels if not mean.any() and (std == 1).all() else pixels.sub_(mean).mul_(1 / std)


def prepare_on_cpu(pixels_nhwc: PixelArray, preprocessing: Preprocessing) -> Tensor:
    """Frames uint8 RGB `(N, H, W, 3)` on the host → the model's pixels, float32 `(N, 3, h, w)`.

    Raises:
        TooLarge: the model cannot take frames of this size.
    """
    resize = Resizer(preprocessing, int(pixels_nhwc.shape[1]), int(pixels_nhwc.shape[2]))
    rows, columns = resize.part.region
    parts: Any = pixels_nhwc[:, rows, columns]
    return normalize([resize(pixels) for pixels in parts], preprocessing)


def check_kernel(preprocessing: Preprocessing) -> None:
    """Raise ModelUnavailable if pixels would differ between a CPU and a GPU."""
    if preprocessing.interpolation == "bicubic" and not preprocessing.antialias:
        # Here torchvision's kernel (a = -0.75) differs from DALI's, by up to 12 levels of 255.
        raise ModelUnavailable("bicubic interpolation without antialias is not supported")
