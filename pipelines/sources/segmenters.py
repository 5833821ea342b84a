"""torchvision's segmentation networks, which can leave out their last step: enlarging the logits."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pipelines.enlarge import enlarged


class CoarseSegmenter(nn.Module):
    """A segmentation network of torchvision's that can stop before its last step; see `pipelines.runners.Coarse`.

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
