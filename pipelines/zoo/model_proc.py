"""DL Streamer's model-proc files: how pixels are prepared and answers are read, as JSON. Knows no network.

https://dlstreamer.github.io/dev_guide/model_proc_file.html, schema 2.2.0. Pixels are 0..255 unless `range`
scales them; then `mean` and `std` follow. The file does not say the network's input size, to which it resizes
or crops.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, model_validator

from pipelines.models.spec import MAX_SIDE_PX, Channels, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import (
    STRICT,
    WrongInput,
    allowed,
    between,
    not_allowed,
    only,
    read,
    read_text,
)
from pipelines.zoo.texts import LONGEST_NAME, MOST_NAMES, Names, wrong_name

# DL Streamer resizes to this much more than the input where it crops afterwards.
CROP_MARGIN = 1.125
BYTE_MAX = 255.0
CONVERTERS = "label, tensor_to_label, detection_output, boxes_labels, tensor_to_bbox_ssd, raw_data_copy"
# What the method says of the outputs: scores to be made probabilities, or to be taken as they are.
METHODS = {"softmax": False, "max": True, "index": True}


def _beside(name: str) -> bool:
    """A file from elsewhere must not have others read than those that came with it."""
    return not (Path(name).is_absolute() or ".." in Path(name).parts or wrong_name(name))


def _is_one_level(levels: tuple[float, ...]) -> bool:
    return len({*levels}) == 1 and levels[0] == int(levels[0])


Number = Annotated[float, between(-1e6, 1e6)]
Divisor = Annotated[float, between(1e-6, 1e6)]
Level = Annotated[float, between(0.0, BYTE_MAX)]
Pad = Annotated[
    float,
    allowed(f"whole pixels from 0 to {MAX_SIDE_PX}", lambda px: 0 <= px <= MAX_SIDE_PX and px == int(px)),
]


def _labels(named: tuple[str, ...] | str, info: ValidationInfo) -> tuple[str, ...]:
    """The lines of the file that is named beside or below the model-proc file, or the labels themselves."""
    if isinstance(named, tuple):
        return named
    try:
        lines = tuple(read_text(Path(info.context or "") / named, "labels").rstrip(" \n").split("\n"))
    except WrongInput as error:
        raise not_allowed("a list of texts, or a file that can be read with a label a line") from error
    if len(lines) > MOST_NAMES or any(map(wrong_name, lines)):
        most = f"at most {MOST_NAMES} printable labels of at most {LONGEST_NAME} characters"
        raise not_allowed(f"a file of {most}")
    return lines


LabelsFile = Annotated[str, allowed("a file beside the model-proc file or below it", _beside)]
Labels = Annotated[Names | LabelsFile, AfterValidator(_labels)]


class _Padding(BaseModel):
    model_config = STRICT

    stride_x: Pad = 0.0
    stride_y: Pad = 0.0
    fill_value: Annotated[tuple[Level, ...], only("one whole level for all channels", _is_one_level)] = (0.0,)


class _Params(BaseModel):
    model_config = STRICT

    resize: Literal["no", "no-aspect-ratio", "aspect-ratio"] = "no-aspect-ratio"
    # The others of DL Streamer's, of corners, would need a crop that is not centred.
    crop: Annotated[str, allowed("central", lambda text: text == "central")] = ""
    color_space: Channels = "BGR"
    range: Annotated[
        tuple[Number, Number], only("a lower and a higher number", lambda ends: ends[0] < ends[1])
    ] = (0.0, BYTE_MAX)
    mean: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)
    std: tuple[Divisor, Divisor, Divisor] = (1.0, 1.0, 1.0)
    padding: _Padding = _Padding()
    stride_x: Pad = 0.0
    stride_y: Pad = 0.0

    @property
    def resized(self) -> str:
        """What is done before a crop; a crop alone is taken of pixels as they are."""
        return "no" if self.crop and "resize" not in self.model_fields_set else self.resize

    @property
    def padding_px(self) -> tuple[int, int]:
        """Of black around the picture: above and below, left and right."""
        return self._pad("stride_y"), self._pad("stride_x")

    def _pad(self, name: str) -> int:
        return int(getattr(self.padding if name in self.padding.model_fields_set else self, name))

    @model_validator(mode="after")
    def _pads_are_black(self) -> Self:
        if any(self.padding.fill_value) and any(self.padding_px):
            raise ValueError(f"padding.fill_value {self.padding.fill_value} is not 0, as strides need it")
        return self


class _Input(BaseModel):
    model_config = STRICT

    layer_name: Any = None
    format: Literal["image"] = "image"
    precision: Any = None
    params: _Params = _Params()


class _Output(BaseModel):
    model_config = STRICT

    layer_name: Any = None
    layer_names: Any = None
    attribute_name: Any = None
    converter: Annotated[str, allowed(CONVERTERS, CONVERTERS.split(", ").__contains__)] = ""
    method: Annotated[str, allowed(", ".join(METHODS), METHODS.__contains__)] = ""
    labels: Labels = ()
    labels_file: Labels = Field(default=(), validation_alias="labels-file")
    threshold: Annotated[float, between(0.0, 1.0)] = -1.0
    format: Any = None
    precision: Any = None

    @model_validator(mode="after")
    def _one_list_of_labels(self) -> Self:
        if {"labels", "labels_file"} <= self.model_fields_set:
            raise ValueError("it has labels and labels-file, and may have one of them only")
        return self


SEVERAL = "a list of one; networks of several inputs or outputs are not served"


class _File(BaseModel):
    model_config = STRICT

    json_schema_version: Literal["2.2.0"] = "2.2.0"
    input_preproc: Annotated[tuple[_Input, ...], only(SEVERAL, lambda layers: len(layers) <= 1)] = ()
    output_postproc: Annotated[tuple[_Output, ...], only(SEVERAL, lambda layers: len(layers) <= 1)] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProc:
    """What a model-proc file says.

    Attributes:
        params: of pixels, as they are written.
        probabilities: whether outputs are probabilities already; None: not said.
        score_threshold: -1: not said.
    """

    params: _Params
    labels: tuple[str, ...]
    probabilities: bool | None
    score_threshold: float

    def preprocessing(self, input_px: tuple[int, int], name: str) -> Preprocessing:
        """The facts for a network `name` whose input is `input_px` (height, width). Raises ModelUnavailable.

        y = (x · (high - low) + low - mean) / std, of x in 0..1, is what they are made of.
        """
        params, (low, high) = self.params, self.params.range
        height_px, width_px = (size - 2 * pad for size, pad in zip(input_px, params.padding_px, strict=True))
        if min(height_px, width_px) < 1:
            raise ModelUnavailable(
                f"{name}: a padding of {params.padding_px} leaves nothing of an input of {input_px}",
                hint="check padding in the model-proc file",
            )
        margin = CROP_MARGIN if params.crop else 1.0
        resized = int(height_px * margin), int(width_px * margin)
        cut = params.crop or params.resized == "no" or any(params.padding_px)
        mean_r, mean_g, mean_b = ((one - low) / (high - low) for one in params.mean)
        std_r, std_g, std_b = (one / (high - low) for one in params.std)
        try:
            return Preprocessing(
                resize_px=None if params.resized == "no" else resized,
                fit="letterbox" if params.resized == "aspect-ratio" else "stretch",
                crop_px=input_px if cut else None,
                mean=(mean_r, mean_g, mean_b),
                std=(std_r, std_g, std_b),
                antialias=False,
                channels=params.color_space,
                pad_value=int(params.padding.fill_value[0]),
            )
        except ValueError as error:
            raise ModelUnavailable(
                f"{name}, as its model-proc file has it: {error}", hint="check range, mean and std in it"
            ) from error


def read_model_proc(path: Path) -> ModelProc:
    """Read a model-proc file.

    Raises:
        WrongInput: it cannot be read, or a field is unknown, wrong, or of a kind that is not supported; the
            message names file, field, value and what is allowed.
    """
    origin = f"the model-proc file {path}"
    file = read(_File, read_text(path, "model-proc"), origin, folder=path.parent)
    output = file.output_postproc[0] if file.output_postproc else _Output()
    return ModelProc(
        params=file.input_preproc[0].params if file.input_preproc else _Params(),
        labels=tuple(output.labels_file or output.labels),
        probabilities=METHODS.get(output.method),
        score_threshold=output.threshold,
    )
