"""What all peers share: torchvision's model and its own transforms, PyAV's frames, answers as rows of JSON's
types.
"""

from __future__ import annotations

import argparse
import io
import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import av
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torchvision import models

SCORE_THRESHOLD = 0.5
TOP_K = 5
# Frames in one pass, where a peer works in chunks: on two cores 8 were faster than 32.
CHUNK = 8


class Network:
    """The model with its state dict; frames in, rows out."""

    def __init__(self, asked: argparse.Namespace) -> None:
        bare = {"weights_backbone": None} if asked.task in ("detection", "segmentation") else {}
        self.task, self.device = asked.task, asked.device
        self.module = models.get_model(asked.model, weights=None, **bare).eval()
        self.module.load_state_dict(load_file(asked.weights))
        self.module.to(asked.device)
        self.transforms = models.get_model_weights(asked.model).DEFAULT.transforms()

    def prepare(self, pixels_nhwc: Any) -> Tensor:
        """Frames uint8 `(N, H, W, 3)` → the model's pixels, by torchvision's own transforms."""
        prepared: Tensor = self.transforms(torch.from_numpy(pixels_nhwc).to(self.device).permute(0, 3, 1, 2))
        return prepared

    def answer(self, chunks: Iterable[Any]) -> dict[str, list[Any]]:
        """What is answered of a medium's frames, chunk after chunk."""
        rows = (self.rows(self.prepare(frames), frames.shape[1:3]) for frames in chunks)
        return {"rows": list(itertools.chain.from_iterable(rows))}

    @torch.inference_mode()
    def rows(self, pixels_nchw: Tensor, frame_hw: tuple[int, int]) -> list[Any]:
        """What is answered of each frame."""
        output = self.module(list(pixels_nchw) if self.task == "detection" else pixels_nchw)
        if self.task == "detection":
            return [_boxes(frame) for frame in output]
        if self.task == "segmentation":
            classes = output["out"].argmax(1, keepdim=True).to(torch.uint8)
            sized = torch.nn.functional.interpolate(classes, size=frame_hw)
            return [torch.bincount(one.flatten(), minlength=21).tolist() for one in sized]
        best = output.softmax(1).topk(TOP_K)
        return [
            {"class_id": ids, "probability": values}
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]


def _boxes(frame: dict[str, Tensor]) -> dict[str, Any]:
    kept = frame["scores"] > SCORE_THRESHOLD
    return {name: frame[name][kept].tolist() for name in ("boxes", "scores", "labels")}


def decode(media: bytes, size: int) -> Iterator[Any]:
    """Frames uint8 `(n, H, W, 3)`, up to `size` at once, of a video or a picture."""
    with av.open(io.BytesIO(media), "r") as source:
        source.streams.video[0].thread_type = "AUTO"
        shown = (frame.to_ndarray(format="rgb24") for frame in source.decode(video=0))
        while held := list(itertools.islice(shown, size)):
            yield np.stack(held)
