"""torchvision's detectors as networks of prepared pixels, and how these are prepared. Knows no weights.

A detector of torchvision resizes and normalizes its pictures itself, and brings its boxes back to their size;
here both happen outside of the model. So the module that does this is replaced by one that does neither.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipelines.models.enlarge import enlarged
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.vision.one_stage import is_one_stage, one_stage_boxes, one_stage_maps

# What makes a module a detector's transform, whatever its class.
TRANSFORM_FIELDS = ("min_size", "max_size", "image_mean", "image_std", "size_divisible", "fixed_size")


class PreparedTransform(nn.Module):
    """Stands in for torchvision's `GeneralizedRCNNTransform`: pictures come resized and normalized.

    Boxes and keypoints stay in model pixels, and masks within their boxes. The fields are the original's, so
    that a detector says how its pixels are prepared before and after it was adapted.
    """

    size_divisible: int

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        for name in TRANSFORM_FIELDS:
            setattr(self, name, getattr(original, name))

    def forward(self, images: Sequence[Tensor], targets: Any = None) -> tuple[Any, Any]:
        """Pictures `(3, h, w)` of one size → a batch with black, at the right and below, up to whole strides.

        The black and the sizes without it are those of `GeneralizedRCNNTransform.batch_images`.
        """
        from torchvision.models.detection.image_list import ImageList

        batch = torch.stack(list(images))
        height_px, width_px = batch.shape[-2:]
        return ImageList(self.padded(batch), [(height_px, width_px)] * len(batch)), targets

    def padded(self, batch: Tensor) -> Tensor:
        """A batch with black up to whole strides."""
        height_px, width_px = batch.shape[-2:]
        stride = self.size_divisible
        return functional.pad(batch, (0, -width_px % stride, 0, -height_px % stride)) if stride > 1 else batch

    def postprocess(self, result: list[dict[str, Tensor]], *_sizes: Any) -> list[dict[str, Tensor]]:
        """What the heads found, untouched."""
        return result


class AdaptedDetector(nn.Module):
    """A detector of torchvision that takes a batch; see `adapt_detector`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: Tensor) -> list[dict[str, Tensor]]:
        frames: list[dict[str, Tensor]] = self.network(list(batch))
        return frames


class OneStageDetector(AdaptedDetector):
    """A detector of one stage, in two steps (`torch_runtime.InTwoSteps`)."""

    def forward(self, batch: Tensor) -> list[dict[str, Tensor]]:
        height_px, width_px = batch.shape[-2:]
        return self.boxes(self.maps(batch), (height_px, width_px))

    def maps(self, batch: Tensor) -> dict[str, Tensor]:
        return one_stage_maps(self.network, self._padded(batch))

    def boxes(self, maps: Mapping[str, Tensor], size_px: tuple[int, int]) -> list[dict[str, Tensor]]:
        padded = self._padded(torch.empty(1, 3, *size_px, device="meta"))
        return one_stage_boxes(self.network, maps, size_px, (padded.shape[-2], padded.shape[-1]))

    def _padded(self, batch: Tensor) -> Tensor:
        transform = self.network.transform
        assert isinstance(transform, PreparedTransform)
        return transform.padded(batch)


def adapt_detector(network: nn.Module) -> nn.Module:
    """A detector of torchvision as a network that takes prepared pixels; `network` itself is changed.

    Its forward takes float32 `(N, 3, h, w)`, resized and normalized as `detector_preprocessing` says, and
    gives N dicts of `boxes` `(D, 4)` xyxy in these pixels, `labels`, `scores`, and of some models `masks`
    `(D, 1, m, m)` of 0..1 within the boxes, `keypoints` `(D, P, 3)` and `keypoints_scores` `(D, P)`.

    Raises:
        ModelUnavailable: the network is no detector of torchvision's kind.
    """
    parent, name, transform = _transform(network)
    setattr(parent, name, PreparedTransform(transform))
    if isinstance(network, AdaptedDetector):
        return network
    return OneStageDetector(network) if is_one_stage(network) else AdaptedDetector(network)


def detector_preprocessing(network: nn.Module) -> Preprocessing:
    """How a detector of torchvision prepares its pixels, adapted or not.

    Like `torchvision.models.detection.transform` in evaluation: the last of several shorter sides, bilinear
    without antialiasing, and levels that are not rounded.

    Raises:
        ModelUnavailable: the network is no detector of torchvision's kind, or has other channels than RGB.
    """
    transform: Any = _transform(network)[2]
    mean, std = (tuple(map(float, values)) for values in (transform.image_mean, transform.image_std))
    if len(mean) != 3 or len(std) != 3:
        raise ModelUnavailable(
            f"{type(network).__name__} takes {len(mean)} channels, not the 3 of RGB",
            hint="detectors of RGB pictures are served",
        )
    fixed, sides = transform.fixed_size, transform.min_size
    shorter = sides[-1] if isinstance(sides, Sequence) else sides
    return Preprocessing(
        # A fixed size is (width, height) in torchvision.
        resize_px=(int(fixed[1]), int(fixed[0])) if fixed else int(shorter),
        max_px=None if fixed else int(transform.max_size),
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        interpolation="bilinear",
        antialias=False,
        round_pixels=False,
    )


def _transform(network: nn.Module) -> tuple[nn.Module, str, nn.Module]:
    """The module that has the detector's transform, the attribute's name, and the transform."""
    found = [
        (parent, name, module)
        for parent in network.modules()
        for name, module in parent.named_children()
        if all(hasattr(module, field) for field in (*TRANSFORM_FIELDS, "postprocess"))
    ]
    if len(found) != 1:
        raise ModelUnavailable(
            f"{type(network).__name__} has {len(found)} modules that prepare pictures as torchvision's "
            "detectors do, not one",
            hint="is it a detector? Pass others as code that takes prepared pixels",
        )
    return found[0]


class CoarseSegmenter(nn.Module):
    """A segmentation network of torchvision's that can stop before its last step (`torch_runtime.Coarse`).

    Its forward gives what the network itself gives, without the output that only training uses.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        height_px, width_px = pixels.shape[-2:]
        return {name: enlarged(one, (height_px, width_px)) for name, one in self.maps(pixels).items()}

    def maps(self, pixels: Tensor) -> dict[str, Tensor]:
        """Logits `(N, K, h, w)` of the network's own, coarse pixels, under its name for them."""
        network: Any = self.network
        features = network.backbone(pixels)
        # LR-ASPP reads two scales of its backbone's, the others one.
        logits: Tensor = network.classifier(features.get("out", features))
        return {"out": logits}
