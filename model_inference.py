"""ModelSpec → Model: model pixels in, scores out. Owns where weights come from; knows no video, no Triton.

A `ModelSpec` is data: which network, whose weights, which labels, and how its pixels are prepared. A `Model`
is a loaded spec on one device.
"""

from __future__ import annotations

import contextlib
import pickle
import socket
import urllib.error
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pipelines.errors import ModelUnavailable

ASSETS = Path(__file__).parent / "assets"
DEMO_WEIGHTS = ASSETS / "demo_segmentation.safetensors"
DEMO_LABELS = ("background", "circle", "square", "triangle", "star")
DOWNLOAD_TIMEOUT_S = 20.0

TaskName = Literal["classification", "detection", "segmentation", "action"]
Interpolation = Literal["nearest", "bilinear", "bicubic"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a model wants its pixels: resize, crop, scale to 0..1, subtract `mean`, divide by `std`.

    Attributes:
        resize_px: the shorter side after resizing, or (height, width), or None for the source's own size.
        crop_px: height and width of the centre crop after resizing, or None.
        mean, std: per RGB channel, of values in 0..1.
    """

    resize_px: int | tuple[int, int] | None
    crop_px: tuple[int, int] | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        sizes = [self.resize_px] if isinstance(self.resize_px, int) else [*(self.resize_px or ())]
        if any(size < 1 for size in [*sizes, *(self.crop_px or ())]):
            raise ValueError(f"sizes must be positive: resize_px={self.resize_px}, crop_px={self.crop_px}")
        if not all(self.std):
            raise ValueError(f"std has a zero: {self.std}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Where a model comes from and how it is fed.

    Attributes:
        build: makes the network with its weights, on the CPU; maps `(N, 3, h, w)` to logits `(N, K, h, w)`.
        source: the weights in words, for people.
        labels: the K class names; for segmentation the first is the background.
        max_batch: most frames in one pass.
    """

    name: str
    task: TaskName
    build: Callable[[], nn.Module] = field(compare=False)
    source: str
    labels: tuple[str, ...]
    preprocessing: Preprocessing
    max_batch: int = 8


class Model:
    """A loaded `ModelSpec` on one device (`"cpu"`, `"cuda"`); calling it runs one batch.

    Raises:
        ModelUnavailable: weights are missing, unreadable or of another network.
    """

    def __init__(self, spec: ModelSpec, device: str) -> None:
        self.spec = spec
        self.device = torch.device(device)
        network = spec.build().eval().requires_grad_(requires_grad=False)
        self._network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, pixels_nchw: Tensor) -> Tensor:
        """Model pixels float32 `(N, 3, h, w)` → logits float32 `(N, K, h, w)` on the same device."""
        with torch.inference_mode():
            batch = pixels_nchw.to(self.device).contiguous(memory_format=torch.channels_last)
            logits: Tensor = self._network(batch)
        return logits


class DictOutput(nn.Module):
    """A torchvision segmentation network, which answers a dict, as one that answers its `out` alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        out: Tensor = self.network(pixels_nchw)["out"]
        return out


def torchvision_spec(name: str, weights: str = "") -> ModelSpec:
    """A torchvision segmentation model by its name or import path (`fcn_resnet101`).

    Args:
        weights: empty for torchvision's default weights (downloaded on first use), a `.safetensors` or
            `.pth` state dict, or `random` for seeded noise (tests and benchmarks).

    Raises:
        ModelUnavailable: torchvision has no segmentation model of that name.
    """
    from torchvision import models

    short = name.removeprefix("torchvision.models.").removeprefix("segmentation.")
    known = models.list_models(module=models.segmentation)
    if short not in known:
        raise ModelUnavailable(
            f"torchvision has no segmentation model {name!r}", hint=f"one of: {', '.join(known)}"
        )
    default = models.get_model_weights(short).DEFAULT
    return ModelSpec(
        name=short,
        task="segmentation",
        build=lambda: DictOutput(_build_torchvision(short, default, weights)),
        source=weights or f"torchvision {default}",
        labels=tuple(label.strip("_") for label in default.meta["categories"]),
        preprocessing=torchvision_preprocessing(default.transforms()),
    )


def torchvision_preprocessing(transform: Any) -> Preprocessing:
    """The facts of a torchvision preset (`weights.transforms()`), source of every size, mean and std."""
    size = list(transform.resize_size)
    crop = getattr(transform, "crop_size", None)
    return Preprocessing(
        resize_px=size[0] if len(size) == 1 else (size[0], size[1]),
        crop_px=(crop[0], crop[-1]) if crop else None,
        mean=tuple(transform.mean),
        std=tuple(transform.std),
        interpolation=transform.interpolation.value,
        antialias=bool(transform.antialias),
    )


def _build_torchvision(name: str, default: Any, weights: str) -> nn.Module:
    from torchvision import models

    if not weights:
        with _download_errors(name, default.url):
            network: nn.Module = models.get_model(name, weights=default, progress=True)
        return network
    classes = len(default.meta["categories"])
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    if weights != "random":
        _load_state(network, Path(weights))
    return network


@contextlib.contextmanager
def _download_errors(name: str, url: str) -> Iterator[None]:
    """Turn a failing download into ModelUnavailable that names the ways out; never wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    except (urllib.error.URLError, OSError) as error:
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        raise ModelUnavailable(
            f"cannot download the weights of {name} from {url}: {error}",
            hint=f"give a weights file (--weights FILE), put {Path(url).name} into {cache}, "
            "or use the embedded demo model (--demo)",
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _load_state(network: nn.Module, path: Path) -> None:
    """Load a state dict into `network`; torchvision's training-only auxiliary head may be there or not."""
    state = {key: value for key, value in _read_state(path).items() if not key.startswith("aux_classifier.")}
    missing, unexpected = network.load_state_dict(state, strict=False)
    missing = [key for key in missing if not key.startswith("aux_classifier.")]
    if missing or unexpected:
        raise ModelUnavailable(
            f"{path} holds the weights of another network: {len(missing)} tensors missing "
            f"({', '.join(missing[:3])}), {len(unexpected)} unknown ({', '.join(unexpected[:3])})"
        )


def _read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` or `.pth` file; a pickle is read with `weights_only`, so it runs no code."""
    if not path.is_file():
        raise ModelUnavailable(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(
            f"{path} is no state dict that can be read without running code from it",
            hint="save it with torch.save(model.state_dict(), FILE), or as .safetensors",
        ) from error
    except Exception as error:  # readers raise anything at damaged files; all mean the same here
        raise ModelUnavailable(f"cannot read the weights file {path}: {error}") from error
    return state


def demo_spec() -> ModelSpec:
    """The embedded demo model, made by scripts/train_demo.py: a toy for trying the server out.

    It finds drawn circles, squares, triangles and stars, each in its own family of colours; colour is what it
    mostly goes by, so it says nothing of other pictures.
    """
    return ModelSpec(
        name="demo_segmentation",
        task="segmentation",
        build=_build_demo,
        source=f"demo model, {DEMO_WEIGHTS.name}: drawn shapes in colours of their own, for trying the server out",
        labels=DEMO_LABELS,
        preprocessing=Preprocessing(resize_px=160, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        max_batch=16,
    )


def _build_demo() -> nn.Module:
    network = DemoSegmenter(classes=len(DEMO_LABELS))
    _load_state(network, DEMO_WEIGHTS)
    return network


class DemoSegmenter(nn.Module):
    """A small pyramid network: features at 1/4 to 1/32 of the input, added up again from coarse to fine.

    The last features, at 1/4, give four logits each (a pixel shuffle to 1/2): nothing wide runs at a fine scale.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        steps = ((32, 48), (48, 96), (96, 128))
        self.stem = nn.Sequential(_convolution(3, 16, stride=2), _convolution(16, 32, stride=2))
        self.downs = nn.ModuleList(
            [nn.Sequential(_convolution(fine, coarse, stride=2), _Residual(coarse)) for fine, coarse in steps]
        )
        self.laterals = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in reversed(steps)])
        self.ups = nn.ModuleList([_convolution(fine, fine) for fine, _ in reversed(steps)])
        self.head = nn.Conv2d(32, 4 * classes, 3, padding=1)

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """Normalized RGB float32 `(N, 3, h, w)`, h and w at least 32 → logits `(N, K, h, w)`."""
        scales = [self.stem(pixels_nchw)]
        for down in self.downs:
            scales.append(down(scales[-1]))
        features = scales.pop()
        for lateral, up, scale in zip(self.laterals, self.ups, reversed(scales), strict=True):
            features = up(_resize_as(lateral(features), scale) + scale)
        return _resize_as(nn.functional.pixel_shuffle(self.head(features), 2), pixels_nchw)


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, features: Tensor) -> Tensor:
        return nn.functional.relu(features + self.norm(self.second(self.first(features))))


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _resize_as(values_nchw: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the height and width of `like`: a scale factor would miss odd sizes by one."""
    return nn.functional.interpolate(values_nchw, size=like.shape[-2:], mode="bilinear", align_corners=False)
