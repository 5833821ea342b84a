"""What a user chooses of a model: its source and the options that go with it. Strings and numbers only.

Read from the command line or a settings file before anything heavy is imported; `pipelines.zoo.resolve` makes
a `ModelSpec` of it. Knows no torch, no file, and not whether such a model exists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ValidationInfo, field_validator, model_validator

from pipelines.models import spec
from pipelines.settings.reading import STRICT, allowed, between, not_allowed, said

# Sources and weights that are files go by these endings.
FILE_SUFFIXES = (".pt2", ".pt", ".ts", ".torchscript", ".onnx", ".safetensors", ".pth", ".bin")


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

    resize_px: SideOrSides | None = None
    fit: spec.Fit | None = None
    crop_px: Sides | None = None
    mean: Annotated[tuple[Mean, Mean, Mean], _listed(3, THREE)] | None = None
    std: Annotated[tuple[Std, Std, Std], _listed(3, THREE)] | None = None
    interpolation: spec.Interpolation | None = None
    antialias: bool | None = None
    channels: spec.Channels | None = None
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
        source: a torchvision name or import path, a file, `package.module:function`,
            `torch.hub:REPO[:REF]:ENTRY`.
        task: needed where the source does not tell.
        max_batch: most frames in one pass; 0: the source's own default.
        score_threshold: what counts without an option of the request; -1: the source's own.
        clip_length, clip_fps: of action models; 0: the source's own.
    """

    model_config = STRICT

    source: str
    task: spec.TaskName | None = None
    weights: str = said(
        "", "a state dict, a name of torchvision's enum, or 'random' for noise (default: DEFAULT)"
    )
    labels: str = said("", "a text file with one label per line")
    model_proc: str = said("", "a model-proc JSON file of DL Streamer")
    arch: str = said("", "the torchvision name of the network whose state dict the source is")
    sha256: str = said("", "the digest of the weights file, checked before it is read")
    precision: spec.Precision = said(
        "fp32", f"number format to compute in: {', '.join(get_args(spec.Precision))} (default: fp32)"
    )
    engine: spec.Engine = said(
        "auto",
        f"runtime of the network: {', '.join(get_args(spec.Engine))} "
        "(default: auto, the fastest that agrees with torch)",
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
        return ModelSettings(place=place, **values, **self.preprocessing.model_dump(exclude_unset=True))
