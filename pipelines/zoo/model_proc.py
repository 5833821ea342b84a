"""DL Streamer's model-proc files: how pixels are prepared and answers are read, as JSON. Knows no network.

https://dlstreamer.github.io/dev_guide/model_proc_file.html, schema 2.2.0. Pixels are 0..255 unless `range`
scales them; then `mean` and `std` follow. The file does not say the network's input size, to which it resizes
or crops.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, get_args

from pipelines.models.spec import MAX_SIDE_PX, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.texts import LONGEST_NAME, MOST_NAMES, read_text, wrong_name

Resize = Literal["no", "no-aspect-ratio", "aspect-ratio"]
Triple = tuple[float, float, float]

SCHEMA = "2.2.0"
# DL Streamer resizes to this much more than the input where it crops afterwards.
CROP_MARGIN = 1.125
BYTE_MAX = 255.0
LARGEST_NUMBER = 1e6
SMALLEST_STD = 1e-6
PARAMS = ("resize", "crop", "color_space", "range", "mean", "std", "padding", "stride_x", "stride_y")
INPUT_FIELDS = ("layer_name", "format", "precision", "params")
OUTPUT_FIELDS = (
    "layer_name",
    "layer_names",
    "attribute_name",
    "converter",
    "method",
    "labels",
    "labels-file",
    "threshold",
    "format",
    "precision",
)
CONVERTERS = (
    "label",
    "tensor_to_label",
    "detection_output",
    "boxes_labels",
    "tensor_to_bbox_ssd",
    "raw_data_copy",
)
# What the method says of the outputs: scores to be made probabilities, or to be taken as they are.
METHODS: dict[str, bool | None] = {"softmax": False, "max": True, "index": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelProc:
    """What a model-proc file says.

    Attributes:
        mean, std: of values in 0..1, with `range` folded into them; in the order of `channels`.
        padding_px: of black around the picture: above and below, left and right.
        pad_value: level of the bars that keep the aspect.
        probabilities: whether outputs are probabilities already; None: not said.
        score_threshold: -1: not said.
    """

    resize: Resize = "no-aspect-ratio"
    crop: bool = False
    channels: Literal["RGB", "BGR"] = "BGR"
    mean: Triple = (0.0, 0.0, 0.0)
    std: Triple = (1 / BYTE_MAX, 1 / BYTE_MAX, 1 / BYTE_MAX)
    padding_px: tuple[int, int] = (0, 0)
    pad_value: int = 0
    labels: tuple[str, ...] = ()
    probabilities: bool | None = None
    score_threshold: float = -1.0

    def preprocessing(self, input_px: tuple[int, int], name: str) -> Preprocessing:
        """The facts for a network `name` whose input is `input_px` (height, width). Raises
        ModelUnavailable.
        """
        height_px, width_px = (size - 2 * pad for size, pad in zip(input_px, self.padding_px, strict=True))
        if min(height_px, width_px) < 1:
            raise ModelUnavailable(
                f"{name}: a padding of {self.padding_px} leaves nothing of an input of {input_px}",
                hint="check padding in the model-proc file",
            )
        margin = CROP_MARGIN if self.crop else 1.0
        resized = int(height_px * margin), int(width_px * margin)
        cut = self.crop or self.resize == "no" or any(self.padding_px)
        try:
            return Preprocessing(
                resize_px=None if self.resize == "no" else resized,
                fit="letterbox" if self.resize == "aspect-ratio" else "stretch",
                crop_px=input_px if cut else None,
                mean=self.mean,
                std=self.std,
                antialias=False,
                channels=self.channels,
                pad_value=self.pad_value,
            )
        except ValueError as error:
            raise ModelUnavailable(
                f"{name}, as its model-proc file has it: {error}", hint="check range, mean and std in it"
            ) from error


def read_model_proc(path: Path) -> ModelProc:
    """Read a model-proc file.

    Raises:
        ModelUnavailable: it cannot be read, or a field is unknown, wrong, or of a kind that is not supported;
            the message names file, field, value and what is allowed.
    """
    try:
        whole = json.loads(read_text(path, "model-proc"))
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(
            f"the model-proc file {path} is no JSON: {error}", hint="see DL Streamer's documentation of it"
        ) from error
    root = _Node(path, "", whole).fields(("json_schema_version", "input_preproc", "output_postproc"))
    if "json_schema_version" in root:
        root["json_schema_version"].one_of((SCHEMA,))
    missing = _Node(path, "input_preproc", [])
    values = {**_input(root.get("input_preproc", missing)), **_output(root.get("output_postproc", missing))}
    return ModelProc(**values)  # type: ignore[arg-type]


class _Node:
    """A value of the file and where it lies, so that what is wrong with it can be said."""

    def __init__(self, file: Path, path: str, value: object) -> None:
        self.file, self.path, self.value = file, path, value

    def fail(self, allowed: str) -> NoReturn:
        try:
            shown = json.dumps(self.value)
        except RecursionError:
            shown = "nested too deep"
        raise ModelUnavailable(
            f"the model-proc file {self.file}: {self.path or 'the whole'} is "
            f"{shown if len(shown) <= 60 else shown[:57] + '…'}",
            hint=f"allowed: {allowed}",
        )

    def fields(self, known: tuple[str, ...]) -> dict[str, _Node]:
        if not isinstance(self.value, dict):
            self.fail("an object")
        for name in self.value:
            if name not in known:
                known_as = name if name.isprintable() else ascii(name)
                field = f"{self.path}.{known_as}".lstrip(".")[:100]
                raise ModelUnavailable(
                    f"the model-proc file {self.file}: unknown field {field}",
                    hint=f"allowed: {', '.join(known)}",
                )
        return {
            name: _Node(self.file, f"{self.path}.{name}".lstrip("."), one) for name, one in self.value.items()
        }

    def items(self) -> list[_Node]:
        if not isinstance(self.value, list):
            self.fail("a list")
        return [_Node(self.file, f"{self.path}[{place}]", one) for place, one in enumerate(self.value)]

    def text(self) -> str:
        if not isinstance(self.value, str):
            self.fail("a text")
        return self.value

    def one_of(self, allowed: tuple[str, ...]) -> str:
        if self.value not in allowed:
            self.fail(", ".join(allowed))
        return str(self.value)

    def label(self) -> str:
        if wrong_name(self.text()):
            self.fail(f"a printable text of at most {LONGEST_NAME} characters")
        return self.text()

    def number(self, least: float = -LARGEST_NUMBER, most: float = LARGEST_NUMBER) -> float:
        number = self.value
        if isinstance(number, bool) or not isinstance(number, int | float) or not least <= number <= most:
            self.fail(f"a number from {least:g} to {most:g}")
        return float(number)

    def numbers(self, count: int, least: float = -LARGEST_NUMBER) -> tuple[float, ...]:
        if not isinstance(self.value, list) or len(self.value) != count:
            self.fail(f"a list of {count} numbers")
        return tuple(item.number(least) for item in self.items())


def _only(node: _Node, what: str) -> _Node | None:
    """The one layer of a network with one input and one output; more of them are refused."""
    layers = node.items()
    if len(layers) > 1:
        node.fail(f"a list of one {what}; networks of several are not served")
    return layers[0] if layers else None


def _input(node: _Node) -> dict[str, object]:
    layer = _only(node, "input")
    if layer is None:
        return {}
    fields = layer.fields(INPUT_FIELDS)
    if "format" in fields:
        fields["format"].one_of(("image",))
    if "params" not in fields:
        return {}
    params = fields["params"].fields(PARAMS)
    values: dict[str, object] = {**_colours(params), **_padding(params)}
    if "crop" in params:
        # The others of DL Streamer's, of corners, would need a crop that is not centred.
        params["crop"].one_of(("central",))
        values |= {"crop": True, "resize": "no"}
    if "resize" in params:
        values["resize"] = params["resize"].one_of(get_args(Resize))
    return values


def _colours(params: dict[str, _Node]) -> dict[str, object]:
    """y = (x · (high − low) + low − mean) / std of x in 0..1 is (x − (mean − low) / (high − low)) / (std /
    …).
    """
    channels = params["color_space"].one_of(("RGB", "BGR")) if "color_space" in params else "BGR"
    low, high = params["range"].numbers(2) if "range" in params else (0.0, BYTE_MAX)
    if high <= low:
        params["range"].fail("a lower and a higher number")
    mean = params["mean"].numbers(3) if "mean" in params else (0.0,) * 3
    std = params["std"].numbers(3, SMALLEST_STD) if "std" in params else (1.0,) * 3
    return {
        "channels": channels,
        "mean": tuple((one - low) / (high - low) for one in mean),
        "std": tuple(one / (high - low) for one in std),
    }


def _padding(params: dict[str, _Node]) -> dict[str, object]:
    fields: dict[str, _Node] = {name: params[name] for name in ("stride_x", "stride_y") if name in params}
    if "padding" in params:
        fields |= params["padding"].fields(("stride_x", "stride_y", "fill_value"))
    pads = []
    for name in ("stride_y", "stride_x"):
        pad = fields[name].number(0, MAX_SIDE_PX) if name in fields else 0.0
        if pad != int(pad):
            fields[name].fail("whole pixels")
        pads.append(int(pad))
    levels = (
        {item.number(0, BYTE_MAX) for item in fields["fill_value"].items()}
        if "fill_value" in fields
        else {0.0}
    )
    level = levels.pop() if len(levels) == 1 else -1.0
    if level != int(level) or level < 0 or (level and any(pads)):
        fields["fill_value"].fail("one level for all channels, and 0 with strides")
    return {"padding_px": (pads[0], pads[1]), "pad_value": int(level)}


def _output(node: _Node) -> dict[str, object]:
    layer = _only(node, "output")
    if layer is None:
        return {}
    fields = layer.fields(OUTPUT_FIELDS)
    values: dict[str, object] = {}
    if "converter" in fields:
        fields["converter"].one_of(CONVERTERS)
    if "method" in fields:
        values["probabilities"] = METHODS[fields["method"].one_of(tuple(METHODS))]
    if "threshold" in fields:
        values["score_threshold"] = fields["threshold"].number(0, 1)
    if "labels" in fields and "labels-file" in fields:
        fields["labels-file"].fail("labels or labels-file, not both")
    if labels := fields.get("labels") or fields.get("labels-file"):
        values["labels"] = _labels(labels)
    return values


def _labels(node: _Node) -> tuple[str, ...]:
    if isinstance(node.value, list):
        if len(node.value) > MOST_NAMES:
            node.fail(f"at most {MOST_NAMES} labels")
        return tuple(item.label() for item in node.items())
    named = Path(node.text())
    # A file from elsewhere must not have others read than those that came with it.
    if named.is_absolute() or ".." in named.parts or wrong_name(node.text()):
        node.fail("a list of texts, or a file beside the model-proc file or below it")
    try:
        lines = read_text(node.file.parent / named, "labels").rstrip(" \n").split("\n")
    except ModelUnavailable:
        node.fail("a list of texts, or a file that can be read with a label a line")
    if len(lines) > MOST_NAMES or any(map(wrong_name, lines)):
        node.fail(f"a file of at most {MOST_NAMES} printable labels of at most {LONGEST_NAME} characters")
    return tuple(lines)
