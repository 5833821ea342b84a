"""DL Streamer's model-proc files: how pixels are prepared and answers are read, as JSON. Knows no network.

https://dlstreamer.github.io/dev_guide/model_proc_file.html, schema 2.2.0. Pixels are 0..255 unless `range`
scales them; then `mean` and `std` follow. The file does not say the network's input size, to which it resizes
or crops.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, Strict, ValidationInfo, model_validator

from pipelines.models.spec import MAX_SIDE_PX, Channels, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import STRICT, WrongInput, allowed, between, not_allowed, read, read_text
from pipelines.zoo.texts import LONGEST_NAME, MOST_NAMES, Names, wrong_name

# DL Streamer resizes to this much more than the input where it crops afterwards.
CROP_MARGIN = 1.125
BYTE_MAX = 255.0
CONVERTERS = "label, tensor_to_label, detection_output, boxes_labels, tensor_to_bbox_ssd, raw_data_copy"
# What the method says of the outputs: scores to be made probabilities, or to be taken as they are.
METHODS = {"softmax": False, "max": True, "index": True}


def _labels(named: tuple[str, ...] | str, info: ValidationInfo) -> tuple[str, ...]:
    """The labels, or the lines of the file that is named beside or below the model-proc file."""
    if isinstance(named, tuple):
        return named
    # A file from elsewhere must not have others read than those that came with it.
    if Path(named).is_absolute() or ".." in Path(named).parts or wrong_name(named):
        raise not_allowed("a list of texts, or a file in the model-proc file's folder or below")
    try:
        lines = tuple(read_text(Path(info.context or "") / named, "labels").rstrip(" \n").split("\n"))
    except WrongInput as error:
        raise not_allowed("a list of texts, or a readable file with one label per line") from error
    if len(lines) > MOST_NAMES or any(map(wrong_name, lines)):
        most = f"at most {MOST_NAMES} printable labels of at most {LONGEST_NAME} characters"
        raise not_allowed(f"a file of {most}")
    return lines


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
Labels = Annotated[Names | str, AfterValidator(_labels)]


def _one_at_most(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(layers) > 1:
        raise not_allowed("a list of one; networks of several inputs or outputs are not served")
    return layers


class _Padding(BaseModel):
    model_config = STRICT

    stride_x: Pad = 0.0
    stride_y: Pad = 0.0
    fill_value: Levels = (0.0,)


class _Params(BaseModel):
    model_config = STRICT

    resize: Literal["no", "no-aspect-ratio", "aspect-ratio"] = "no-aspect-ratio"
    # The others of DL Streamer's, of corners, would need a crop that is not centred.
    crop: Annotated[str, allowed("central", "central".__eq__)] = ""
    color_space: Channels = "BGR"
    range: Range = (0.0, BYTE_MAX)
    mean: tuple[Number, Number, Number] = (0.0, 0.0, 0.0)
    std: tuple[Divisor, Divisor, Divisor] = (1.0, 1.0, 1.0)
    padding: _Padding = _Padding()
    stride_x: Pad = 0.0
    stride_y: Pad = 0.0

    @property
    def padding_px(self) -> tuple[int, int]:
        """Of black around the picture: above and below, left and right."""
        inner = self.padding.model_fields_set
        pad_y, pad_x = (getattr(self.padding if one in inner else self, one) for one in STRIDES)
        return int(pad_y), int(pad_x)

    @model_validator(mode="after")
    def _pads_are_black(self) -> Self:
        if any(self.padding.fill_value) and any(self.padding_px):
            raise ValueError(f"padding.fill_value {self.padding.fill_value} is not 0, as strides need it")
        return self


STRIDES = ("stride_y", "stride_x")


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
            raise ValueError("it has labels and labels-file, but may have only one of them")
        return self


class ModelProc(BaseModel):
    """What a model-proc file says, as it is written; its properties say what it means."""

    model_config = STRICT

    json_schema_version: Literal["2.2.0"] = "2.2.0"
    input_preproc: Annotated[tuple[_Input, ...], AfterValidator(_one_at_most)] = ()
    output_postproc: Annotated[tuple[_Output, ...], AfterValidator(_one_at_most)] = ()

    @property
    def _output(self) -> _Output:
        return self.output_postproc[0] if self.output_postproc else _Output()

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self._output.labels_file or self._output.labels)

    @property
    def probabilities(self) -> bool | None:
        """Whether outputs are probabilities already; None: not said."""
        return METHODS.get(self._output.method)

    @property
    def score_threshold(self) -> float:
        """-1: not said."""
        return self._output.threshold

    def preprocessing(self, input_px: tuple[int, int], name: str) -> Preprocessing:
        """The facts for a network `name` whose input is `input_px` (height, width). Raises ModelUnavailable.

        Of x in 0..1 they make y = (x · (high - low) + low - mean) / std.
        """
        params = self.input_preproc[0].params if self.input_preproc else _Params()
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
                fit="letterbox" if resize == "aspect-ratio" else "stretch",
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


def read_model_proc(path: Path) -> ModelProc:
    """Read a model-proc file.

    Raises:
        WrongInput: it cannot be read, or a field is unknown, wrong, or of a kind that is not supported; the
            message names file, field, value and what is allowed.
    """
    text = read_text(path, "model-proc")
    return read(ModelProc, text, f"the model-proc file {path}", folder=path.parent)
