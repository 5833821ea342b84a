"""What a user chooses of a model: its source and the options that go with it. Strings and numbers only.

Read from the command line or a settings file before anything heavy is imported; `pipelines.zoo.resolve` makes
a `ModelSpec` of it. Knows no torch, no file, and not whether such a model exists.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ValidationInfo, field_validator, model_validator

from pipelines.models import spec
from pipelines.settings.reading import STRICT, allowed, between, not_allowed, said

Pixels = Literal["imagenet", "unit", "signed", "bytes"]
Layout = Literal["NCHW", "NHWC"]
HeadName = Literal[
    "boxes",
    "boxes_scores",
    "detr",
    "end_to_end",
    "ssd",
    "yolo_v2",
    "yolo_v3",
    "yolo_v4",
    "yolo_v5",
    "yolo_v8",
    "yolox",
]
# A name is part of endpoints' names and paths. Those below are taken, now or by what may come.
NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
TAKEN_NAMES = (
    *("dali_preprocess", "dali_postprocess", "resnet101", "status", "stats"),
    *("models", "streams", "events", "recordings", "rules", "sinks", "session"),
)
# Sources and weights that are files go by these endings.
FILE_SUFFIXES = (
    ".pt2",
    ".pt",
    ".ts",
    ".torchscript",
    ".onnx",
    ".xml",
    ".safetensors",
    ".pth",
    ".bin",
    ".ckpt",
)


def _listed(count: int, text: str, *, spread: bool = True) -> BeforeValidator:
    """A list of `count` numbers, or one number, which is then all of them if `spread`."""

    def listed(value: Any) -> Any:
        values = (value,) if type(value) in (int, float) else value
        # A tuple was read before, perhaps from one number.
        lengths = (1, count) if isinstance(values, tuple) else (count,)
        if not isinstance(values, list | tuple) or len(values) not in lengths:
            raise not_allowed(text)
        return tuple(values) * (count if spread and len(values) == 1 else 1)

    return BeforeValidator(listed)


def _is_name(text: str) -> bool:
    reserved = text in TAKEN_NAMES or text.startswith("torch_") or text.endswith("_stream")
    return bool(NAME.fullmatch(text)) and not reserved


NAMES = (
    "1 to 41 of a-z, 0-9, _ and -, a letter first; not torch_… or …_stream; "
    f"and none of {', '.join(TAKEN_NAMES)}"
)
SIDES, THREE = "one number, or height and width", "one number, or one for each of three channels"
Side = Annotated[int, between(1, spec.MAX_SIDE_PX)]
Sides = Annotated[tuple[Side, Side], _listed(2, SIDES)]
SideOrSides = Annotated[
    tuple[Annotated[int, between(0, spec.MAX_SIDE_PX)], ...],
    allowed("0 alone: no resize", lambda px: 0 not in px or px == (0,)),
    _listed(2, SIDES, spread=False),
]
OF_LEVELS = "for levels up to 255, divide by 255"
Mean = Annotated[float, allowed(f"a number from -1 to 2; {OF_LEVELS}", lambda one: -1 <= one <= 2)]
Std = Annotated[float, allowed(f"a number above 0 and up to 10; {OF_LEVELS}", lambda one: 0 < one <= 10)]


class PixelSettings(BaseModel):
    """What is done differently with pixels from what a model says of itself; None: as it says.

    Attributes:
        resize_px: one number: the shorter side, 0: no resize; two: height and width.
        tile_px, tile_overlap_px: see `model_inference.Tiling`; the others: `model_inference.Preprocessing`.
    """

    model_config = STRICT

    resize_px: SideOrSides | None = said(
        None, "size of the input: HEIGHTxWIDTH, or one number for the shorter side"
    )
    pixels: Pixels | None = said(
        None, "values of the pixels: imagenet (its mean and std), unit 0..1, signed -1..1, bytes 0..255"
    )
    layout: Layout | None = said(None, "order of the input's dimensions: NCHW or NHWC")
    fit: spec.Fit | None = None
    crop_px: Sides | None = None
    mean: Annotated[tuple[Mean, Mean, Mean], _listed(3, THREE)] | None = None
    std: Annotated[tuple[Std, Std, Std], _listed(3, THREE)] | None = None
    interpolation: spec.Interpolation | None = None
    antialias: bool | None = None
    channels: spec.Channels | Literal["GRAY"] | None = said(
        None, "colours of the input: RGB, BGR or GRAY (one channel)"
    )
    pad_value: Annotated[int, between(0, 255)] | None = None
    max_px: Side | None = None
    tile_px: Sides | None = None
    tile_overlap_px: Annotated[int, between(0, spec.MAX_SIDE_PX)] | None = None

    @field_validator("tile_overlap_px")
    @classmethod
    def _less_than_a_tile(cls, overlap_px: int | None, known: ValidationInfo) -> int | None:
        tile_px = known.data.get("tile_px")
        if overlap_px is not None and not (tile_px and overlap_px < min(tile_px)):
            raise not_allowed(f"less than tile_px, which is {list(tile_px) if tile_px else 'not given'}")
        return overlap_px


class SourceSettings(BaseModel):
    """A model's source, and what is said of it beside its pixels; what has a description has a flag.

    Attributes:
        source: a torchvision name or import path, a file, `timm:NAME` or a folder for NAME, `hf:FOLDER`,
            `package.module:function`, `torch.hub:REPO[:REF]:ENTRY`.
        task: needed where the source does not tell.
        name: under which it is served; empty: its task.
        max_batch: most frames in one pass; 0: the source's own default.
        score_threshold: what counts without an option of the request; -1: the source's own.
        clip_length, clip_fps: of action models; 0: the source's own.
    """

    model_config = STRICT

    source: str
    task: spec.TaskName | None = None
    name: Annotated[str, allowed(NAMES, _is_name)] = ""
    weights: str = said(
        "", "a state dict, a name of torchvision's enum, or 'random' for noise (default: DEFAULT)"
    )
    labels: str = said("", "a text file with one label per line")
    model_proc: str = said("", "a model-proc JSON file of DL Streamer")
    arch: str = said("", "the torchvision name of the network whose state dict the source is")
    sha256: str = said("", "the SHA-256 of the model or weights file, checked before it is read")
    precision: spec.Precision = said(
        "fp32", f"number format to compute in: {', '.join(get_args(spec.Precision))} (default: fp32)"
    )
    engine: spec.Engine = said(
        "auto",
        f"runtime of the network: {', '.join(get_args(spec.Engine))} "
        "(default: auto, the fastest that agrees with torch)",
    )
    head: HeadName | None = said(
        None,
        f"what makes boxes of a detector's outputs: {', '.join(get_args(HeadName))} "
        "(default: chosen by the server)",
    )
    output: str = said("", "the name of the output to read, if a model has several")
    activation: spec.Activation | None = said(
        None, f"what makes probabilities of the outputs: {', '.join(get_args(spec.Activation))}"
    )
    multi_label: bool | None = said(
        None, "true: several classes may be true; all above the threshold are answered"
    )
    iou_threshold: Annotated[float, between(0.0, 1.0)] | None = said(
        None, "the overlap (IoU) from which the worse of two boxes of a class is left out"
    )
    normalise: bool | None = said(None, "false: vectors are not divided by their length")
    transform_input: bool | None = said(
        None, "for a state dict of googlenet or inception_v3: true if it was trained with transform_input"
    )
    norm_eps: Annotated[float, between(0.0, 1.0)] | None = said(
        None, "for a state dict with frozen batch norms: their epsilon"
    )
    max_batch: Annotated[int, between(0, spec.MAX_BATCH)] = 0
    score_threshold: Annotated[float, allowed("0 to 1; -1: not set", lambda x: x == -1 or 0 <= x <= 1)] = -1.0
    clip_length: Annotated[int, between(0, spec.MAX_CLIP_FRAMES)] = 0
    clip_fps: Annotated[float, between(0.0, float(spec.MAX_FPS))] = 0.0


class ModelSettings(SourceSettings, PixelSettings):
    """One model to serve: the source, and what is said differently from what the source says of itself.

    Attributes:
        place: the settings file and the table that name it, for messages; empty: the command line.
    """

    place: str = ""


class ModelTable(SourceSettings):
    """A `[[model]]` table of a settings file: its pixels are in a table of their own."""

    source: Annotated[str, allowed('a name or a file, such as "resnet50" or "models/plates.onnx"', bool)]
    preprocessing: PixelSettings = PixelSettings()

    @model_validator(mode="before")
    @classmethod
    def _pixels_in_their_table(cls, table: Any) -> Any:
        if isinstance(table, dict) and (outside := PixelSettings.model_fields.keys() & table.keys()):
            raise ValueError(f"{min(outside)} belongs in [model.preprocessing]")
        return table

    def settings(self, folder: Path, place: str) -> ModelSettings:
        """The same without tables; paths of files are relative to `folder`."""
        values = self.model_dump(exclude={"preprocessing"}, exclude_unset=True)
        for name in ("labels", "model_proc", "source", "weights"):
            text: str = values.get(name, "")
            if text and (name in ("labels", "model_proc") or text.lower().endswith(FILE_SUFFIXES)):
                values[name] = str(folder / Path(text).expanduser())
        library, colon, rest = values["source"].partition(":")
        # After timm: there may be a name too.
        if colon and (library == "hf" or (library == "timm" and ("/" in rest or rest.startswith(".")))):
            values["source"] = f"{library}:{folder / Path(rest).expanduser()}"
        return ModelSettings(place=place, **values, **self.preprocessing.model_dump(exclude_unset=True))
