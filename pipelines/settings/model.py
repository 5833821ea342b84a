"""What a user chooses of a model: its source and the options that go with it. Strings and numbers, stdlib
only.

Read from the command line or a settings file before anything heavy is imported; `pipelines.zoo.resolve` makes
a `ModelSpec` of it. Knows no torch, no file, and not whether such a model exists.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.models.spec import Channels, Engine, Fit, Interpolation, Precision, TaskName


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings:
    """One model to serve: the source, and what is said differently from what the source says of itself.

    Attributes:
        source: a torchvision name or import path, a file, `package.module:function`,
            `torch.hub:REPO[:REF]:ENTRY`.
        task: needed where the source does not tell.
        weights: of a torchvision name: "" or `DEFAULT`, a name of its enum, a state dict, or `random`.
        arch: the torchvision name whose state dict the source is.
        labels: a file with a label a line.
        model_proc: a model-proc JSON file of DL Streamer's.
        sha256: of the file that the weights are read from, 64 hex digits.
        engine: what computes the network; auto: the fastest here that agrees with torch.
        max_batch: most frames in one pass; 0: the source's own default.
        score_threshold: what counts without an option of the request; -1: the source's own.
        clip_length, clip_fps: of action models; 0: the source's own.
        resize_px: one number: the shorter side; two: height and width. Like all below: None when not set.
        fit, crop_px, mean, std, interpolation, antialias, channels, pad_value, max_px: see
            `model_inference.Preprocessing`.
        tile_px, tile_overlap_px: see `model_inference.Tiling`.
    """

    source: str
    task: TaskName | None = None
    weights: str = ""
    arch: str = ""
    labels: str = ""
    model_proc: str = ""
    sha256: str = ""
    precision: Precision = "fp32"
    engine: Engine = "auto"
    max_batch: int = 0
    score_threshold: float = -1.0
    clip_length: int = 0
    clip_fps: float = 0.0
    resize_px: tuple[int, ...] | None = None
    fit: Fit | None = None
    crop_px: tuple[int, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: Interpolation | None = None
    antialias: bool | None = None
    channels: Channels | None = None
    pad_value: int | None = None
    max_px: int | None = None
    tile_px: tuple[int, ...] | None = None
    tile_overlap_px: int | None = None
