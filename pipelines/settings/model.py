"""What a user chooses of a model: its source and the options that go with it. Strings and numbers only.

Read from the command line or a settings file before anything heavy is imported; `pipelines.zoo.resolve` makes
a `ModelSpec` of it. Knows no torch, no file, and not whether such a model exists.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from pipelines.models.spec import (
    MAX_BATCH,
    MAX_CLIP_FRAMES,
    MAX_FPS,
    MAX_SIDE_PX,
    Channels,
    Engine,
    Fit,
    Interpolation,
    Precision,
    TaskName,
)
from pipelines.settings.reading import STRICT, allowed, between

# Sources and weights that are files go by these endings.
FILE_SUFFIXES = (".pt2", ".pt", ".ts", ".torchscript", ".onnx", ".safetensors", ".pth", ".bin")


def _are_sides(sides: tuple[int, ...]) -> bool:
    return all(1 <= side <= MAX_SIDE_PX for side in sides)


def _listed(count: int) -> BeforeValidator:
    """One value, or a list of `count`; with 0 as long as it is."""

    def listed(value: Any) -> Any:
        values = (value,) if type(value) in (int, float) else value
        if isinstance(values, list | tuple):
            values = tuple(values) * (count if len(values) == 1 and count else 1)
        return values

    return BeforeValidator(listed)


SIDES = f"one whole number from 1 to {MAX_SIDE_PX}, or height and width"
Sides = Annotated[tuple[int, int], _listed(2), allowed(SIDES, _are_sides)]
SideOrSides = Annotated[
    tuple[int, ...],
    _listed(0),
    allowed(f"{SIDES}; 0: no resize", lambda px: px == (0,) or (len(px) in (1, 2) and _are_sides(px))),
]
Three = Annotated[
    tuple[float, float, float], _listed(3), allowed("one number, or one for each of three channels")
]


class PixelSettings(BaseModel):
    """What is done differently with pixels from what a model says of itself; None: as it says.

    Attributes:
        resize_px: one number: the shorter side, 0: no resize; two: height and width.
        tile_px, tile_overlap_px: see `model_inference.Tiling`; the others: `model_inference.Preprocessing`.
    """

    model_config = STRICT

    resize_px: SideOrSides | None = None
    fit: Fit | None = None
    crop_px: Sides | None = None
    mean: Three | None = None
    std: Three | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None
    channels: Channels | None = None
    pad_value: Annotated[int, between(0, 255)] | None = None
    max_px: Annotated[int, between(1, MAX_SIDE_PX)] | None = None
    tile_px: Sides | None = None
    tile_overlap_px: Annotated[int, between(0, MAX_SIDE_PX)] | None = None


class SourceSettings(BaseModel):
    """A model's source, and what is said of it beside its pixels; descriptions are those of the flags.

    Attributes:
        source: a torchvision name or import path, a file, `package.module:function`,
            `torch.hub:REPO[:REF]:ENTRY`.
        task: needed where the source does not tell.
        weights: of a torchvision name: "" or `DEFAULT`, a name of its enum, a state dict, or `random`.
        sha256: of the file that the weights are read from, 64 hex digits.
        max_batch: most frames in one pass; 0: the source's own default.
        score_threshold: what counts without an option of the request; -1: the source's own.
        clip_length, clip_fps: of action models; 0: the source's own.
    """

    model_config = STRICT

    source: str
    task: TaskName | None = None
    weights: str = Field(
        default="",
        description="a state dict, a name of torchvision's enum, or 'random' for noise (default: DEFAULT)",
    )
    labels: str = Field(default="", description="a text file with a label a line")
    model_proc: str = Field(default="", description="a model-proc JSON file of DL Streamer's")
    arch: str = Field(
        default="", description="the torchvision name of the network whose state dict the source is"
    )
    sha256: str = Field(default="", description="of the file that the weights are read from")
    precision: Precision = Field(
        default="fp32",
        description=f"what the model computes in: {', '.join(get_args(Precision))} (default: fp32)",
    )
    engine: Engine = Field(
        default="auto",
        description=f"what computes the network: {', '.join(get_args(Engine))} "
        "(default: auto, the fastest that agrees)",
    )
    max_batch: Annotated[int, between(0, MAX_BATCH)] = 0
    score_threshold: Annotated[float, allowed("0 to 1; -1: not set", lambda x: x == -1 or 0 <= x <= 1)] = -1.0
    clip_length: Annotated[int, between(0, MAX_CLIP_FRAMES)] = 0
    clip_fps: Annotated[float, between(0.0, float(MAX_FPS))] = 0.0


class ModelSettings(SourceSettings, PixelSettings):
    """One model to serve: the source, and what is said differently from what the source says of itself."""


class ModelTable(SourceSettings):
    """A `[[model]]` table of a settings file: its pixels are in a table of their own."""

    source: Annotated[str, allowed("a text that is not empty", bool)]
    preprocessing: PixelSettings = PixelSettings()

    @model_validator(mode="before")
    @classmethod
    def _pixels_in_their_table(cls, table: Any) -> Any:
        if isinstance(table, dict) and (outside := PixelSettings.model_fields.keys() & table.keys()):
            raise ValueError(f"{min(outside)} belongs into [model.preprocessing]")
        return table

    def settings(self, folder: Path) -> ModelSettings:
        """The same without tables; paths of files are relative to `folder`."""
        values = self.model_dump(exclude={"preprocessing"}, exclude_unset=True)
        for name in ("labels", "model_proc", "source", "weights"):
            text: str = values.get(name, "")
            if text and (name in ("labels", "model_proc") or text.lower().endswith(FILE_SUFFIXES)):
                values[name] = str(folder / Path(text).expanduser())
        return ModelSettings(**values, **self.preprocessing.model_dump(exclude_unset=True))
