"""ModelSpec and its parts: what a model is, as data. Knows no network, no device, and no files of weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

TaskName = Literal[
    "classification",
    "detection",
    "segmentation",
    "action",
    "embedding",
]
Precision = Literal["fp32", "fp16", "bf16"]
Engine = Literal["auto", "torch", "compile", "onnxruntime", "openvino"]
Fit = Literal["stretch", "letterbox", "letterbox_truncated", "letterbox_top_left"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
# Whose arithmetic gives sizes that are bounded by `max_px`, and where a centre crop begins.
Rounding = Literal["torchvision", "transformers", "yolos"]
Channels = Literal["RGB", "BGR"]
# What makes scores of a network's numbers; none: they are scores already.
Activation = Literal["softmax", "sigmoid", "none"]

# Side of the random pictures for models that take any size.
PROBE_PX = 224
# No model wants more: a file that says so is damaged or hostile.
MAX_SIDE_PX, MAX_CLIP_FRAMES, MAX_FPS, MAX_BATCH = 8192, 1024, 1000, 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a model wants its pixels: resize, crop, scale to 0..1, subtract `mean`, divide by `std`.

    Attributes:
        resize_px: the shorter side after resizing, or (height, width), or None for the source's own size.
        max_px: with a shorter side: no side becomes longer than this, as in torchvision's detectors.
        fit: with (height, width): `stretch`; or keep the aspect and pad with `pad_value`: `letterbox` around
            the picture, `letterbox_truncated` likewise with sides truncated, not rounded, and
            `letterbox_top_left` to its right and below, with sides truncated too.
        crop_px: height and width of the centre crop after resizing, or None; black where it is larger.
        mean, std: per channel, in the model's order of channels, for values in 0..1.
        round_pixels: whether resized pixels are rounded to whole levels of 255, as images are.
        channels: the order in which the model takes colours.
        pad_value: level 0..255 of the bars of a letterbox.
        rounding: how sizes and the begin of a crop become whole pixels: as in torchvision; as in
            transformers' processors; as in that of its YOLOS, whose sides are multiples of 16 with `max_px`.
    """

    resize_px: int | tuple[int, int] | None
    max_px: int | None = None
    fit: Fit = "stretch"
    crop_px: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    round_pixels: bool = True
    channels: Channels = "RGB"
    pad_value: int = 0
    rounding: Rounding = "torchvision"

    def __post_init__(self) -> None:
        for name in ("resize_px", "crop_px", "max_px"):
            value: int | tuple[int, int] | None = getattr(self, name)
            for size in value if isinstance(value, tuple) else (value,):
                if size is not None and not 1 <= size <= MAX_SIDE_PX:
                    raise ValueError(f"{name}: a side of {size} px is not in 1 to {MAX_SIDE_PX}")
        if not all(-1 <= value <= 2 for value in self.mean):
            raise ValueError(f"mean {self.mean} is not in -1 to 2 (for levels up to 255, divide by 255)")
        if not all(0 < value <= 10 for value in self.std):
            raise ValueError(
                f"std {self.std} is not above 0 and up to 10 (for levels up to 255, divide by 255)"
            )
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value {self.pad_value} is not in 0 to 255")
        if self.fit != "stretch" and not isinstance(self.resize_px, tuple):
            raise ValueError(f"{self.fit} needs resize_px=(height, width), not {self.resize_px}")
        if self.max_px is not None and not isinstance(self.resize_px, int):
            raise ValueError(f"max_px needs a shorter side to resize to, not {self.resize_px}")

    @property
    def fixed_hw(self) -> tuple[int, int] | None:
        """Height and width of the model's pixels where they are the same for all sources."""
        return self.crop_px or (self.resize_px if isinstance(self.resize_px, tuple) else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clip:
    """What a clip model takes: `length` frames, sampled `fps` times a second; only those if `fixed`."""

    length: int
    fps: float
    fixed: bool = False

    def __post_init__(self) -> None:
        if not (1 <= self.length <= MAX_CLIP_FRAMES and 0 < self.fps <= MAX_FPS):
            raise ValueError(
                f"clips of {self.length} frames at {self.fps} a second are not of 1 to {MAX_CLIP_FRAMES} "
                f"frames, above 0 and at most {MAX_FPS} a second"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Large frames in pieces: tiles of `tile_px` (height, width) source pixels that share `overlap_px`."""

    tile_px: tuple[int, int]
    overlap_px: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_px < min(self.tile_px):
            raise ValueError(f"tiles of {self.tile_px} px cannot share {self.overlap_px}")


class Head(Protocol):
    """How a detector's outputs are read: raw tensors → boxes in model pixels. One family each, as a value.

    Attributes:
        family: its name for users, as `--head` takes it.
        numbers_pictures: of some: rows say of which picture they are, so that the last pictures of a batch
            may be missing from the answer.
    """

    family: ClassVar[str]

    def __call__(self, outputs: Mapping[str, Tensor], size_hw: tuple[int, int]) -> list[dict[str, Tensor]]:
        """The detections of each of N pictures, best first: `boxes` (D, 4) xyxy, `scores`, `labels`, …"""
        ...

    def pixels(self, size_hw: tuple[int, int]) -> Preprocessing:
        """How networks of this family are usually fed, where nothing else is said."""
        ...

    def with_classes(self, count: int) -> Self:
        """The same for so many classes."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """A named part of a classifier's answer: the winner of some columns of one of its outputs.

    Attributes:
        output: the name of the output.
        start, stop: which of its columns; with one column, `labels` are the value above `threshold` and the
            one below it.
        activation: what makes probabilities of them.
    """

    name: str
    output: str
    labels: tuple[str, ...]
    start: int = 0
    stop: int | None = None
    activation: Activation = "softmax"
    threshold: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Where a model comes from and how it is fed.

    Attributes:
        build: makes the network with its weights, on the CPU. Its forward takes float32 `(N, 3, h, w)`, or
            for clips `(N, 3, T, h, w)`. It gives logits `(N, K)`, for segmentation `(N, K, h, w)`, as a
            tensor or by name in a dict. For detection it gives a list of N dicts: `boxes` `(D, 4)` xyxy in
            model pixels, `labels` `(D,)`, `scores` `(D,)`, best first; and maybe `masks` `(D, 1, m, m)` of
            0..1 within the boxes, and `keypoints` `(D, P, 3)` (x, y, visible). With a `head`: what
            that takes.
        source: where the weights are from, in words for people.
        labels: the K class names, the background first where there is one; empty: their numbers.
        clip: for action models.
        head: reads a detector's outputs; None: they are boxes already.
        output: which of several outputs the task reads; empty: the only one of its form.
        activation: what makes scores of them; None: not known before the network's first pass.
        multi_label: of several classes all may be true at once: each that is above the threshold is answered.
        attributes: named parts of a classifier's answer.
        class_map: a segmenter gives the numbers of the winners and no probabilities; found by a first pass.
        normalise: an embedding's vectors are made as long as 1.
        assumed: what was assumed of the model, in words for people.
        score_threshold: used if the request has none; -1: the task's own.
        max_batch: most frames, or clips, in one pass.
        thread_safe: several threads may call the network at once, since it stores nothing of a pass.
        precision, engine: how it should run, which `pipelines.loading` ensures. A `Model` that was not loaded
            by it runs with torch in plain fp32. In a loaded model: the engine that runs.
    """

    name: str
    task: TaskName
    build: Callable[[], nn.Module] = field(compare=False)
    source: str
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing
    max_batch: int = 8
    thread_safe: bool = False
    clip: Clip | None = None
    tiling: Tiling | None = None
    keypoint_names: tuple[str, ...] = ()
    head: Head | None = None
    output: str = ""
    activation: Activation | None = None
    multi_label: bool = False
    attributes: tuple[Attribute, ...] = ()
    class_map: bool = False
    normalise: bool = True
    assumed: tuple[str, ...] = ()
    score_threshold: float = -1.0
    licence: str = ""
    precision: Precision = "fp32"
    engine: Engine = "torch"

    def __post_init__(self) -> None:
        if (self.clip is not None) != (self.task == "action"):
            raise ValueError(f"a model has clip facts if and only if its task is action, not {self.task}")
        if not 1 <= self.max_batch <= MAX_BATCH:
            raise ValueError(f"max_batch {self.max_batch} is not in 1 to {MAX_BATCH}")

    def example_shape(self, count: int = 1) -> tuple[int, ...]:
        """The shape of a batch that the model takes."""
        height_px, width_px = self.preprocessing.fixed_hw or (PROBE_PX, PROBE_PX)
        if self.clip is not None:
            return count, 3, self.clip.length, height_px, width_px
        return count, 3, height_px, width_px
