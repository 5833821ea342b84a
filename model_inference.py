"""ModelSpec → Model: model pixels in, outputs out. Knows no video, no Triton, and not where weights come from.

A `ModelSpec` is data: which network, whose weights, which labels, and how its pixels are prepared; the modules
of `pipelines/sources` make them. A `Model` is a loaded spec on one device, which has answered a first, random
batch: what that batch gave is what the model is known to give.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipelines.errors import ModelUnavailable

TaskName = Literal["classification", "detection", "segmentation", "action"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]
Precision = Literal["fp32", "fp16", "bf16"]

# Side of the random pictures for models that take any size.
PROBE_PX = 224
# What no model wants: a file that says so is damaged or hostile.
MAX_SIDE_PX, MAX_CLIP_FRAMES, MAX_FPS, MAX_BATCH = 8192, 1024, 1000, 1024
# Class maps are bytes.
MAX_SEGMENTS = 256
BOX_OUTPUTS = ("boxes", "labels", "scores")
# Segmentation has scores of each pixel; the others of each frame or clip.
LAYOUTS: dict[str, str] = {"segmentation": "(N, K, h, w)"}
LAYOUT = "(N, K)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a model wants its pixels: resize, crop, scale to 0..1, subtract `mean`, divide by `std`.

    Attributes:
        resize_px: the shorter side after resizing, or (height, width), or None for the source's own size.
        max_px: with a shorter side: no side becomes longer than this, as torchvision's detectors have it.
        fit: with (height, width): `stretch` to it, or `letterbox`, which keeps the aspect and pads with `pad_value`.
        crop_px: height and width of the centre crop after resizing, or None; black where it is larger.
        mean, std: per channel, in the model's order of channels, of values in 0..1.
        round_pixels: whether resized pixels are rounded to whole levels of 255, as images are, or kept as they are.
        channels: the order in which the model takes colours.
        pad_value: level 0..255 of the bars of a letterbox.
    """

    resize_px: int | tuple[int, int] | None
    max_px: int | None = None
    fit: Literal["stretch", "letterbox"] = "stretch"
    crop_px: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True
    round_pixels: bool = True
    channels: Literal["RGB", "BGR"] = "RGB"
    pad_value: int = 0

    def __post_init__(self) -> None:
        sizes = [self.resize_px] if isinstance(self.resize_px, int) else [*(self.resize_px or ())]
        for size in (*sizes, *(self.crop_px or ()), self.max_px or 1):
            if not 1 <= size <= MAX_SIDE_PX:
                raise ValueError(f"a side of {size} px is not in 1 to {MAX_SIDE_PX}")
        if not all(-1 <= value <= 2 for value in self.mean):
            raise ValueError(f"mean {self.mean} is not of values in 0 to 1 (of levels to 255: divide by 255)")
        if not all(0 < value <= 10 for value in self.std):
            raise ValueError(f"std {self.std} is not of values in 0 to 1 (of levels to 255: divide by 255)")
        if not 0 <= self.pad_value <= 255:
            raise ValueError(f"pad_value {self.pad_value} is not in 0 to 255")
        if self.fit == "letterbox" and not isinstance(self.resize_px, tuple):
            raise ValueError(f"letterbox needs resize_px=(height, width), not {self.resize_px}")
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
                f"clips of {self.length} frames at {self.fps} a second are not of 1 to {MAX_CLIP_FRAMES} frames, "
                f"above 0 and at most {MAX_FPS} a second"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """Large frames in pieces: tiles of `tile_px` (height, width) source pixels that share `overlap_px`."""

    tile_px: tuple[int, int]
    overlap_px: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.overlap_px < min(self.tile_px):
            raise ValueError(f"tiles of {self.tile_px} px cannot share {self.overlap_px}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Where a model comes from and how it is fed.

    Attributes:
        build: makes the network with its weights, on the CPU. Its forward takes float32 `(N, 3, h, w)`, of clips
            `(N, 3, T, h, w)`, and gives logits `(N, K)`, of segmentation `(N, K, h, w)`, alone or by name in a
            dict; of detection a list of N dicts of `boxes` `(D, 4)` xyxy in model pixels, `labels` `(D,)`,
            `scores` `(D,)`, best first, and maybe `masks` `(D, 1, m, m)` of 0..1 within the boxes, and `keypoints`
            `(D, P, 3)` (x, y, visible).
        source: the weights in words, for people.
        labels: the K class names, the background first where there is one; empty: their numbers.
        clip: of action models.
        probabilities: the outputs are probabilities already, so no softmax.
        score_threshold: what counts without an option of the request; -1: the task's own.
        max_batch: most frames, or clips, in one pass.
        precision, compiled: how it runs after `Model.optimise`; before, every model runs in plain fp32.
    """

    name: str
    task: TaskName
    build: Callable[[], nn.Module] = field(compare=False)
    source: str
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing
    max_batch: int = 8
    clip: Clip | None = None
    tiling: Tiling | None = None
    keypoint_names: tuple[str, ...] = ()
    probabilities: bool = False
    score_threshold: float = -1.0
    licence: str = ""
    precision: Precision = "fp32"
    compiled: bool = False

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


@dataclass(frozen=True, slots=True, eq=False)
class LogitOutput:
    """Outputs of N frames or clips, `(N, …)` each by name; `main` is the one that the task reads."""

    tensors: Mapping[str, Tensor]
    main: str

    @property
    def logits(self) -> Tensor:
        return self.tensors[self.main]

    def __len__(self) -> int:
        return len(self.logits)

    def part(self, start: int, stop: int) -> LogitOutput:
        """Those of some of the frames."""
        return LogitOutput({name: tensor[start:stop] for name, tensor in self.tensors.items()}, self.main)


@dataclass(frozen=True, slots=True, eq=False)
class BoxOutput:
    """Detections of N frames, one mapping of tensors each; see `ModelSpec.build`."""

    frames: Sequence[Mapping[str, Tensor]]

    def __len__(self) -> int:
        return len(self.frames)

    def part(self, start: int, stop: int) -> BoxOutput:
        return BoxOutput(self.frames[start:stop])


Output = LogitOutput | BoxOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFacts:
    """One output as a first pass has shown it: `dims` without the batch's; None where a length varies."""

    name: str
    dtype: torch.dtype
    dims: tuple[int | None, ...]


class Model:
    """A loaded `ModelSpec` on one device (`"cpu"`, `"cuda"`); calling it runs one batch.

    Attributes:
        spec: with the labels filled in.
        outputs: what the model gives, found by a pass of a random batch.

    Raises:
        ModelUnavailable: weights are missing, unreadable or of another network; the network does not take the
            pixels that the spec speaks of, or does not give what its task needs; labels and outputs disagree.
    """

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.device = torch.device(device)
        network = spec.build().eval().requires_grad_(requires_grad=False)
        self._network: Callable[[Tensor], Any] = network.to(self.device)
        for parameter in network.parameters():
            if parameter.ndim == 4:  # convolutions over pixels are faster with the channels last
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self._buckets: tuple[int, ...] = ()
        self._autocast: torch.dtype | None = None
        self.spec = spec
        first = self._try(min(2, spec.max_batch))
        self.outputs = _facts(first)
        self.spec = replace(
            spec, labels=_labels(spec, first), probabilities=spec.probabilities or _are_probabilities(first)
        )

    def __call__(self, pixels: Tensor) -> Output:
        """Model pixels float32 `(N, 3, h, w)` or clips `(N, 3, T, h, w)` → outputs on the same device."""
        count = len(pixels)
        with torch.inference_mode(), self._precision():
            batch = _padded(pixels.to(self.device), self._buckets)
            if batch.ndim == 4:
                batch = batch.contiguous(memory_format=torch.channels_last)
            outputs = _outputs(self._network(batch), self.spec)
        _check_rows(outputs, len(batch), self.spec)
        return outputs.part(0, count) if len(batch) > count else outputs

    def optimise(self) -> None:
        """Go over to the precision and the compiled code that the spec asks for; compare it with before."""
        self._autocast = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(self.spec.precision)
        if self.spec.compiled:
            self._buckets = _buckets(self.spec.max_batch)
            self._network = torch.compile(self._network, dynamic=False)

    def warm_up(self) -> None:
        """Run every batch size that is kept static, so that no request pays for it, and the largest in any case."""
        for count in self._buckets or (self.spec.max_batch,):
            self._try(count)

    def _try(self, count: int) -> Output:
        """The outputs of random pictures; whatever fails with them makes the model unavailable."""
        shape = self.spec.example_shape(count)
        try:
            return self(torch.rand(shape, generator=torch.Generator().manual_seed(0)))
        except ModelUnavailable:
            raise
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[-1] or type(error).__name__
            raise ModelUnavailable(
                f"{self.spec.name} does not take pixels {shape} as task {self.spec.task} gives them: {reason}",
                hint="check the task, and what the model takes: one number as resize_px is the shorter side, "
                "[height, width] a size; max_batch=1 for one exported without a free batch",
            ) from error

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        return (
            torch.autocast(self.device.type, self._autocast) if self._autocast else contextlib.nullcontext()
        )


def _buckets(max_batch: int) -> tuple[int, ...]:
    """Batch sizes that compiled code is made for: powers of two, and the largest."""
    return tuple(sorted({*(1 << power for power in range(max_batch.bit_length())), max_batch}))


def _padded(batch: Tensor, buckets: Sequence[int]) -> Tensor:
    """The batch, its last element repeated up to the next size that is kept static."""
    size = next((size for size in buckets if size >= len(batch)), len(batch))
    return (
        torch.cat([batch, batch[-1:].expand(size - len(batch), *batch.shape[1:])])
        if size > len(batch)
        else batch
    )


def _outputs(given: Any, spec: ModelSpec) -> Output:
    """What a network gave, in the form of its task. Raises ModelUnavailable where it has no such form."""
    if spec.task == "detection":
        frames = [given] if isinstance(given, Mapping) else given
        if isinstance(frames, list | tuple) and all(
            isinstance(frame, Mapping) and all(name in frame for name in BOX_OUTPUTS) for frame in frames
        ):
            return BoxOutput(frames)
        named = (
            f"a dict of {', '.join(map(str, given))}"
            if isinstance(given, Mapping)
            else f"a {type(given).__name__}"
        )
        raise _mismatch(spec, named, "a list of boxes, labels and scores, or outputs of these names")
    tensors = dict(_named(given))
    layout = LAYOUTS.get(spec.task, LAYOUT)
    rank = layout.count(",") + 1
    main = next((name for name, tensor in tensors.items() if tensor.ndim == rank), None)
    if main is None:
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise _mismatch(spec, found or f"a {type(given).__name__}", layout)
    return LogitOutput({name: tensor.float() for name, tensor in tensors.items()}, main)


def _named(given: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a network's answer by name."""
    if isinstance(given, Tensor):
        yield "logits", given
    elif isinstance(given, Mapping):
        yield from ((str(name), value) for name, value in given.items() if isinstance(value, Tensor))
    elif isinstance(given, list | tuple):
        values = [value for value in given if isinstance(value, Tensor)]
        yield from ((f"logits_{place}" if place else "logits", value) for place, value in enumerate(values))


def _check_rows(outputs: Output, count: int, spec: ModelSpec) -> None:
    """Every output has a row for each picture: else answers would go to the wrong ones."""
    if isinstance(outputs, BoxOutput):
        lengths = {"boxes": len(outputs)}
    else:
        lengths = {name: len(tensor) if tensor.ndim else 0 for name, tensor in outputs.tensors.items()}
    for name, length in lengths.items():
        if length != count:
            raise ModelUnavailable(
                f"{spec.name} gives {length} rows of {name} for a batch of {count}",
                hint="max_batch=1 for one that was exported without a free batch",
            )


def _are_probabilities(output: Output) -> bool:
    """Whether a network ends in a softmax already: logits are not all positive with a sum of 1."""
    if isinstance(output, BoxOutput) or output.logits.shape[1] < 2:
        return False
    logits = output.logits
    return bool((logits >= 0).all() and (logits.sum(dim=1) - 1).abs().max() < 1e-3)


def _mismatch(spec: ModelSpec, found: str, expected: str) -> ModelUnavailable:
    return ModelUnavailable(
        f"{spec.name} gives {found}, task {spec.task} needs {expected}", hint="is it a model of another task?"
    )


def _facts(output: Output) -> tuple[OutputFacts, ...]:
    """Names, types and dimensions: what comes behind the classes of a dense output, and how many boxes, varies."""
    if isinstance(output, BoxOutput):
        return tuple(
            OutputFacts(name=name, dtype=tensor.dtype, dims=(None, *tensor.shape[1:]))
            for name, tensor in output.frames[0].items()
        )
    return tuple(
        OutputFacts(name=name, dtype=tensor.dtype, dims=(tensor.shape[1], *[None] * (tensor.ndim - 2)))
        for name, tensor in output.tensors.items()
    )


def _labels(spec: ModelSpec, output: Output) -> tuple[str, ...]:
    """The spec's labels, as many as the model has outputs; numbers where there are none."""
    if isinstance(output, BoxOutput):
        return spec.labels
    count = output.logits.shape[1]
    if not count or (spec.task == "segmentation" and count > MAX_SEGMENTS):
        raise ModelUnavailable(f"{spec.name} has {count} classes", hint=f"1 to {MAX_SEGMENTS} are served")
    if spec.labels and len(spec.labels) != count:
        raise ModelUnavailable(
            f"{spec.name} has {count} outputs and {len(spec.labels)} labels",
            hint="give a file with a label a line",
        )
    return spec.labels or tuple(map(str, range(count)))
