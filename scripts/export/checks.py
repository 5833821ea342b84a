"""Compares what readers of an exported file make of it with torch's answers. Knows no exporter, no OpenCV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.loading.agreement import example_pixels
from pipelines.models.forms import Form, main_output, port_of
from pipelines.models.heads.boxes import Boxes
from pipelines.models.outputs import BoxOutput, named_tensors, read_output
from pipelines.models.spec import ModelSpec
from pipelines.models.torch_runtime import Foreign, headed
from pipelines.zoo.files.onnx_files import onnx_network

MAX_DELTA = 1e-3
# Pixels whose two best classes are closer than rounding may change sides.
LEAST_TOP1 = {2: 1.0, 4: 0.9999}
# Boxes may suppress others by a rounding, and those whose scores are as near to the last kept one may be cut.
LEAST_MATCHED, CUT_MARGIN = 0.99, 5e-3
BATCHES = (1, 3)
FAINT = 0.1
FREE_SHAPES = ((1, 3, 256, 320), (3, 3, 256, 320), (1, 3, 192, 256))


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """Model pixels `(N, 3, …)` and torch's answer: `(N, K, …)`, or a mapping for each of N pictures."""

    pixels: Tensor
    answer: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """The worst of some comparisons.

    Attributes:
        max_delta: largest difference of logits; of detections of scores, and of boxes as a share of a side.
        relative: the same as a share of the largest logit.
        top1: share of pictures, pixels or boxes with the same best class.
    """

    max_delta: float
    relative: float
    top1: float
    least_top1: float = 1.0

    @property
    def good(self) -> bool:
        return max(self.max_delta, self.relative) <= MAX_DELTA and self.top1 >= self.least_top1


def samples(spec: ModelSpec, network: nn.Module) -> list[Sample]:
    """Seeded pictures of the sizes that the export must answer like torch, with torch's own answers.

    Of detection: one picture at a time, among them a faint one.
    """
    if spec.task == "detection":
        *clear, faint = example_pixels([spec.example_shape()] * 3)
        # Not black: which of many equal boxes are kept is nobody's to say.
        batches = [*clear, FAINT * faint]
    elif spec.preprocessing.fixed_hw or spec.clip:
        batches = list(example_pixels(spec.example_shape(count) for count in BATCHES))
    else:
        batches = list(example_pixels(FREE_SHAPES))
    with torch.inference_mode():
        return [Sample(pixels=batch, answer=_answer(network, batch, spec)) for batch in batches]


def _answer(network: nn.Module, pixels: Tensor, spec: ModelSpec) -> Any:
    given, size_px = network(pixels), (pixels.shape[-2], pixels.shape[-1])
    if spec.task == "detection":
        return headed(Boxes(), given, size_px) if isinstance(network, Foreign) else given
    ports = [port_of(name, tensor) for name, tensor in named_tensors(given)]
    form = Form(main=main_output(ports, spec.task, model=spec.name))
    output = read_output(given, spec.task, spec.name, size_px, form)
    assert not isinstance(output, BoxOutput)
    return output.logits


def check_onnxruntime(path: Path, known: Sequence[Sample], spec: ModelSpec) -> Agreement:
    """What the server's own reader makes of the file.

    Raises:
        ModelUnavailable: it does not read the file, or answers in another form.
        RuntimeError: it reads, and does not run it.
    """
    network = onnx_network(path)
    return worst([compare(_answer(network, one.pixels, spec), one.answer, one.pixels) for one in known])


def compare(ours: Any, torchs: Any, pixels: Tensor) -> Agreement:
    """Answers to the same pixels; NaN and other shapes are no agreement at all."""
    if isinstance(torchs, Tensor):
        return _compare_logits(ours, torchs)
    side_px = max(pixels.shape[-2:])
    return worst([_compare_boxes(*both, side_px) for both in zip(ours, torchs, strict=True)])


def worst(agreements: Sequence[Agreement]) -> Agreement:
    return Agreement(
        max_delta=max(one.max_delta for one in agreements),
        relative=max(one.relative for one in agreements),
        top1=min(one.top1 for one in agreements),
        least_top1=agreements[0].least_top1,
    )


def _compare_logits(ours: Tensor, torchs: Tensor) -> Agreement:
    least = LEAST_TOP1[torchs.ndim]
    if ours.shape != torchs.shape or not ours.isfinite().all():
        return Agreement(max_delta=torch.inf, relative=torch.inf, top1=0.0, least_top1=least)
    delta = float((ours - torchs).abs().max())
    largest = float(torchs.abs().max())
    return Agreement(
        max_delta=delta,
        relative=delta / largest if largest else torch.inf,
        top1=float((ours.argmax(1) == torchs.argmax(1)).float().mean()),
        least_top1=least,
    )


def _compare_boxes(ours: Mapping[str, Tensor], torchs: Mapping[str, Tensor], side_px: int) -> Agreement:
    """Each box of torch's with the nearest of ours of its label: equal scores may come in any order."""
    counts = len(ours["scores"]), len(torchs["scores"])
    if not all(counts):
        same = float(counts[0] == counts[1])
        return Agreement(max_delta=0.0, relative=0.0, top1=same, least_top1=LEAST_MATCHED)
    boxes = (torchs["boxes"][:, None] - ours["boxes"][None]).abs().amax(-1) / side_px
    scores = (torchs["scores"][:, None] - ours["scores"][None]).abs()
    other = torchs["labels"][:, None] != ours["labels"][None]
    nearest = torch.maximum(boxes, scores).masked_fill(other, torch.inf).amin(1)
    matched = nearest <= MAX_DELTA
    delta = float(nearest[matched].max()) if matched.any() else torch.inf
    sure = torchs["scores"] > torchs["scores"].min() + CUT_MARGIN
    share = float((matched[sure] if sure.any() else matched).float().mean()) * min(counts) / max(counts)
    return Agreement(max_delta=delta, relative=delta, top1=share, least_top1=LEAST_MATCHED)
