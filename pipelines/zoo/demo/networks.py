"""The embedded demo models: their networks, labels and preprocessing facts. Knows no files, no video.

Toys for drawn shapes, made by python -m scripts.demo.train; each file of weights is under 2 MB.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor, nn

SHAPE_LABELS = ("circle", "square", "triangle", "star")
ACTION_LABELS = ("moves left", "moves right", "rotates", "grows")

DemoTask = Literal["segmentation", "classification", "detection", "action"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoFacts:
    """How a demo model is fed: resize bilinearly with antialiasing, round to uint8, scale to 0..1, normalize.

    Attributes:
        resize_px: the shorter side after resizing.
        mean, std: per RGB channel, of values in 0..1.
        clip_frames, clip_rate_hz: frames of a clip, and per second of media time; zero: single frames.
    """

    labels: tuple[str, ...]
    resize_px: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)
    clip_frames: int = 0
    clip_rate_hz: float = 0.0


DEMO_FACTS: MappingProxyType[DemoTask, DemoFacts] = MappingProxyType(
    {
        "segmentation": DemoFacts(labels=("background", *SHAPE_LABELS), resize_px=160),
        "classification": DemoFacts(labels=SHAPE_LABELS, resize_px=112),
        "detection": DemoFacts(labels=("background", *SHAPE_LABELS), resize_px=160),
        "action": DemoFacts(labels=ACTION_LABELS, resize_px=64, clip_frames=8, clip_rate_hz=15.0),
    }
)

SCORE_FLOOR, NMS_IOU, MAX_BOXES = 0.05, 0.5, 100


def build_demo(task: DemoTask) -> nn.Module:
    """The network of a task with random weights."""
    networks = {
        "segmentation": DemoSegmenter,
        "classification": DemoClassifier,
        "detection": DemoDetector,
        "action": DemoActionNet,
    }
    network: nn.Module = networks[task](classes=len(DEMO_FACTS[task].labels))
    return network


class _Pyramid(nn.Module):
    """Features `(N, widths[0], h, w)` → the same shape, having seen coarser scales; and their stem."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        steps = tuple(itertools.pairwise(widths))
        self.stem = nn.Sequential(_convolution(3, 16, stride=2), _convolution(16, 32, stride=2))
        self.downs = nn.ModuleList(
            [nn.Sequential(_convolution(fine, coarse, stride=2), _Residual(coarse)) for fine, coarse in steps]
        )
        self.laterals = nn.ModuleList([nn.Conv2d(coarse, fine, 1) for fine, coarse in reversed(steps)])
        self.ups = nn.ModuleList([_convolution(fine, fine) for fine, _ in reversed(steps)])

    def forward(self, finest: Tensor) -> Tensor:
        scales = [finest]
        for down in self.downs:
            scales.append(down(scales[-1]))
        features = scales.pop()
        for lateral, up, scale in zip(self.laterals, self.ups, reversed(scales), strict=True):
            features = up(_resize_as(lateral(features), scale) + scale)
        return features


class DemoSegmenter(_Pyramid):
    """A small pyramid network: features at 1/4 to 1/32 of the input, added up again from coarse to fine.

    The last features, at 1/4, give four logits each (a pixel shuffle to 1/2): nothing wide runs at a fine
    scale.
    """

    def __init__(self, classes: int) -> None:
        super().__init__((32, 48, 96, 128))
        self.head = nn.Conv2d(32, 4 * classes, 3, padding=1)

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """Normalized RGB float32 `(N, 3, h, w)`, h and w at least 32 → logits `(N, K, h, w)`."""
        features = super().forward(self.stem(pixels_nchw))
        return _resize_as(nn.functional.pixel_shuffle(self.head(features), 2), pixels_nchw)


class DemoClassifier(nn.Module):
    """Which class covers most of a frame: shares of the classes per cell, added up over the frame.

    The cells are 1/4 of the input. A logit is the logarithm of a class's area, sharpened by a learnt factor.
    """

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.pyramid = _Pyramid((32, 48, 96, 128))
        self.head = nn.Conv2d(32, classes + 1, 3, padding=1)
        self.sharpness = nn.Parameter(torch.tensor(4.0))

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        """Normalized RGB float32 `(N, 3, h, w)`, h and w at least 32 → logits `(N, K)`."""
        return self.pooled(self.cells(pixels_nchw))

    def cells(self, pixels_nchw: Tensor) -> Tensor:
        """Logits per cell `(N, 1 + K, h / 4, w / 4)`, the background first: trained on masks."""
        logits: Tensor = self.head(self.pyramid(self.pyramid.stem(pixels_nchw)))
        return logits

    def pooled(self, cell_logits: Tensor) -> Tensor:
        """Logits per cell → logits per frame `(N, K)`."""
        areas = cell_logits.softmax(1)[:, 1:].mean((2, 3))
        return self.sharpness * torch.log(areas + 1e-4)


class DemoDetector(nn.Module):
    """A one-stage detector without anchors: each cell, 1/8 of the input, scores the classes and places a box.

    As FCOS (Tian et al. 2019); a score is trained towards the IoU of its box (Li et al. 2020).
    """

    STRIDE_PX = 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.entry = _convolution(32, 64, stride=2)
        self.pyramid = _Pyramid((64, 96, 128))
        self.tower = _convolution(64, 64)
        self.scores = nn.Conv2d(64, classes - 1, 3, padding=1)
        self.sides = nn.Conv2d(64, 4, 3, padding=1)
        # Nearly all cells are background: start from a low score, or the first steps only learn that.
        nn.init.constant_(self.scores.bias, -4.0)  # type: ignore[arg-type]

    def forward(self, pixels_nchw: Tensor) -> list[dict[str, Tensor]]:
        """Normalized RGB float32 `(N, 3, h, w)`, h and w at least 32 → boxes per frame, as torchvision's.

        `boxes` float32 `(D, 4)`, x0 y0 x1 y1 in input pixels within the frame; `labels` int64 `(D,)`, from 1;
        `scores` float32 `(D,)`, falling, at least `SCORE_FLOOR`; after NMS, at most `MAX_BOXES`.
        """
        height, width = pixels_nchw.shape[-2:]
        return self.boxes(self.maps(pixels_nchw), (height, width))

    def boxes(self, maps: tuple[Tensor, Tensor], size_px: tuple[int, int]) -> list[dict[str, Tensor]]:
        """What `forward` gives for pixels of a height and width, of their `maps`."""
        logits, boxes = maps
        height, width = size_px
        limit = boxes.new_tensor([width, height, width, height])
        frames_boxes = torch.minimum(boxes.flatten(2).mT.clamp(min=0), limit)
        return [
            self._select(*frame) for frame in zip(logits.flatten(2).mT.sigmoid(), frames_boxes, strict=True)
        ]

    def maps(self, pixels_nchw: Tensor) -> tuple[Tensor, Tensor]:
        """Score logits `(N, K - 1, h / 8, w / 8)` and xyxy boxes `(N, 4, h / 8, w / 8)` in input pixels."""
        features = self.tower(self.pyramid(self.entry(self.pyramid.stem(pixels_nchw))))
        # In units of two cells; the clamp keeps an untrained network finite.
        sides = self.sides(features).clamp(-4, 4).exp() * (2 * self.STRIDE_PX)
        centres = self.centres(sides)
        boxes = torch.cat([centres - sides[:, :2], centres + sides[:, 2:]], 1)
        return self.scores(features), boxes

    def centres(self, cells: Tensor) -> Tensor:
        """The middles of the cells, x and y in input pixels, `(1, 2, h / 8, w / 8)`.

        Three convolutions of stride 2 with a padding of 1 centre cell i on pixel 8 i.
        """
        rows, columns = (
            torch.arange(length, dtype=cells.dtype, device=cells.device) * self.STRIDE_PX + 0.5
            for length in cells.shape[-2:]
        )
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        return torch.stack([x, y])[None]

    @staticmethod
    def _select(scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Scores `(C, K - 1)` and boxes `(C, 4)` of a frame's cells → its best boxes."""
        from torchvision.ops import batched_nms

        best, labels = scores.max(1)
        candidates = torch.nonzero(best >= SCORE_FLOOR)[:, 0]
        kept = batched_nms(boxes[candidates], best[candidates], labels[candidates], NMS_IOU)[:MAX_BOXES]
        chosen = candidates[kept]
        return {"boxes": boxes[chosen], "labels": labels[chosen] + 1, "scores": best[chosen]}


class DemoActionNet(nn.Module):
    """What the shape of a short clip does: convolutions over time and space, pooled by mean and maximum."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution_3d(3, 16, kernel=(1, 3, 3), stride=(1, 2, 2)),
            _convolution_3d(16, 32, kernel=(3, 3, 3), stride=(1, 2, 2)),
            _convolution_3d(32, 64, kernel=(3, 3, 3), stride=(2, 2, 2)),
            _convolution_3d(64, 64, kernel=(3, 3, 3), stride=(1, 1, 1)),
            _convolution_3d(64, 128, kernel=(3, 3, 3), stride=(2, 2, 2)),
        )
        self.head = nn.Linear(256, classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Normalized RGB float32 `(N, 3, T, h, w)`, h and w at least 16 → logits `(N, K)`."""
        features = self.features(clips)
        pooled = torch.cat([features.mean((2, 3, 4)), features.amax((2, 3, 4))], 1)
        logits: Tensor = self.head(pooled)
        return logits


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


def _convolution_3d(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
) -> nn.Module:
    """`kernel` and `stride` as (time, rows, columns)."""
    padding = tuple(size // 2 for size in kernel)
    convolution = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
    return nn.Sequential(convolution, nn.BatchNorm3d(outputs), nn.ReLU(inplace=True))


def _resize_as(values_nchw: Tensor, like: Tensor) -> Tensor:
    """Bilinear to the height and width of `like`: a scale factor would miss odd sizes by one."""
    return nn.functional.interpolate(values_nchw, size=like.shape[-2:], mode="bilinear", align_corners=False)
