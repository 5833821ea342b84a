"""How a model-proc file has pixels prepared: its fields, and what they mean. Knows no answers.

Pixels are 0..255 unless `range` scales them; then `mean` and `std` follow. The file does not say the input
size of the network, to which it resizes or crops.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Strict, model_validator

from pipelines.models.spec import MAX_SIDE_PX, Channels, Fit, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import STRICT, allowed, between

# DL Streamer resizes to this much more than the input where it crops afterwards.
CROP_MARGIN = 1.125
BYTE_MAX = 255.0
FITS: dict[str, Fit] = {"aspect-ratio": "letterbox_truncated", "aspect-ratio-pad": "letterbox_top_left"}
STRIDES = ("stride_y", "stride_x")


def _is_one_level(levels: tuple[float, ...]) -> bool:
    return len({*levels}) == 1 and levels[0] == int(levels[0])


def _is_rising(ends: tuple[float, float]) -> bool:
    return ends[0] < ends[1]


def _is_side(px: float) -> bool:
    return 0 <= px <= MAX_SIDE_PX and px == int(px)


Number = Annotated[float, between(-1e6, 1e6)]
Divisor = Annotated[float, between(1e-6, 1e6)]
Level = Annotated[float, between(0.0, BYTE_MAX)]
Levels = Annotated[tuple[Level, ...], Strict(False), allowed("one whole level for all", _is_one_level)]
Range = Annotated[tuple[Number, Number], Strict(False), allowed("a lower and a higher number", _is_rising)]
Pad = Annotated[float, allowed(f"whole pixels, 0 to {MAX_SIDE_PX}", _is_side)]


class _Padding(BaseModel):
    model_config = STRICT

    stride: Pad = 0.0
    stride_x: Pad = 0.0
    stride_y: Pad = 0.0
    fill_value: Levels = (0.0,)

    @model_validator(mode="after")
    def _one_stride(self) -> Self:
        if "stride" in self.model_fields_set and {*STRIDES} & self.model_fields_set:
            raise ValueError("it has stride, and stride_x or stride_y too")
        return self


class Params(BaseModel):
    model_config = STRICT

    resize: Literal["no", "no-aspect-ratio", "aspect-ratio", "aspect-ratio-pad"] = "no-aspect-ratio"
    # The others of DL Streamer's, of corners, would need a crop that is not centred.
    crop: Annotated[str, allowed("central", "central".__eq__)] = ""
    color_space: Channels = "BGR"
    range: Range = (0.0, BYTE_MAX)
    mean: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)
    std: tuple[Divisor, Divisor, Divisor] = (1.0, 1.0, 1.0)
    padding: _Padding = _Padding()
    stride_x: Pad = 0.0
    stride_y: Pad = 0.0
    alignment_points: tuple[Number, ...] = ()

    @property
    def padding_px(self) -> tuple[int, int]:
        """Of black around the picture: above and below, left and right."""
        inner = self.padding
        if "stride" in inner.model_fields_set:
            return int(inner.stride), int(inner.stride)
        pad_y, pad_x = (getattr(inner if one in inner.model_fields_set else self, one) for one in STRIDES)
        return int(pad_y), int(pad_x)

    @model_validator(mode="after")
    def _pads_are_black(self) -> Self:
        if any(self.padding.fill_value) and any(self.padding_px):
            raise ValueError(f"padding.fill_value {self.padding.fill_value} is not 0, as strides need it")
        return self


class Input(BaseModel):
    model_config = STRICT

    layer_name: Any = None
    format: Literal["image"] = "image"
    precision: Any = None
    params: Params = Params()


def preprocessing(params: Params, input_px: tuple[int, int], name: str) -> Preprocessing:
    """The facts for a network `name` whose input is `input_px` (height, width). Raises ModelUnavailable.

    Of x in 0..1 they make y = (x · (high - low) + low - mean) / std.
    """
    height_px, width_px = (size - 2 * pad for size, pad in zip(input_px, params.padding_px, strict=True))
    if min(height_px, width_px) < 1:
        wrong = f"{name}: a padding of {params.padding_px} leaves nothing of an input of {input_px}"
        raise ModelUnavailable(wrong, hint="check padding in the model-proc file")
    # A crop alone is taken of pixels as they are.
    resize = "no" if params.crop and "resize" not in params.model_fields_set else params.resize
    margin = CROP_MARGIN if params.crop else 1.0
    low, high = params.range
    mean_r, mean_g, mean_b = ((one - low) / (high - low) for one in params.mean)
    std_r, std_g, std_b = (one / (high - low) for one in params.std)
    try:
        return Preprocessing(
            resize_px=None if resize == "no" else (int(height_px * margin), int(width_px * margin)),
            fit=FITS.get(resize, "stretch"),
            crop_px=input_px if params.crop or resize == "no" or any(params.padding_px) else None,
            mean=(mean_r, mean_g, mean_b),
            std=(std_r, std_g, std_b),
            antialias=False,
            channels=params.color_space,
            pad_value=int(params.padding.fill_value[0]),
        )
    except ValueError as error:
        wrong = f"{name}, as its model-proc file has it: {error}"
        raise ModelUnavailable(wrong, hint="check range, mean and std in it") from error
