"""Loading a model, and the proof that it answers as in fp32 where it runs otherwise. Knows no media.

A model of lower precision, or compiled, serves only if it agrees with itself as it was before on pictures of
blurred noise: winners of at least 99.5 % of frames (of segmentation: pixels), or as many boxes found again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from model_inference import BoxOutput, LogitOutput, Model, ModelSpec, Output
from pipelines.errors import ModelUnavailable

LEAST_AGREEMENT = 0.995
PICTURES = 32
SAME_IOU = 0.9
SURE_SCORE = 0.5
# A winner ahead by less than this share of the spread of its row is a tie, which rounding may decide.
TIE = 0.01


def load_model(spec: ModelSpec, device: str) -> Model:
    """The model, optimised as its spec says. Raises ModelUnavailable where it then answers otherwise."""
    model = Model(spec, device)
    if spec.precision == "fp32" and not spec.compiled:
        return model
    batches = list(example_pixels(model.spec))
    plain = [model(batch) for batch in batches]
    model.optimise()
    agreement = agreeing(plain, [model(batch) for batch in batches])
    if agreement < LEAST_AGREEMENT:
        raise ModelUnavailable(
            f"{spec.name} in {spec.precision}{', compiled,' if spec.compiled else ''} agrees with fp32 in "
            f"{100 * agreement:.2f} % only, under {100 * LEAST_AGREEMENT:g} %",
            hint="leave --precision and --compile out",
        )
    return model


def example_pixels(spec: ModelSpec) -> Iterator[Tensor]:
    """Batches of seeded pictures with structure of all sizes, normalized: what a model sees is never white noise."""
    generator = torch.Generator().manual_seed(0)
    for start in range(0, PICTURES, spec.max_batch):
        shape = spec.example_shape(min(spec.max_batch, PICTURES - start))
        pixels = torch.zeros(shape[0], 3, *shape[-2:])
        for cells in (2, 5, 12, 30):
            grain = torch.randn(shape[0], 3, cells, cells, generator=generator)
            pixels += functional.interpolate(grain, size=shape[-2:], mode="bilinear")
        pixels = pixels / pixels.std()
        yield pixels[:, :, None].expand(shape).contiguous() if len(shape) == 5 else pixels


def agreeing(plain: Sequence[Output], other: Sequence[Output]) -> float:
    """The share of winners, or of sure boxes, of the one that the other has too."""
    same = total = 0
    for before, after in zip(plain, other, strict=True):
        if isinstance(before, LogitOutput) and isinstance(after, LogitOutput):
            hits = _same_winners(before.logits, after.logits)
        else:
            assert isinstance(before, BoxOutput)
            assert isinstance(after, BoxOutput)
            hits = _same_boxes(before, after)
        same, total = same + int(hits.sum()), total + hits.numel()
    return same / total if total else 1.0


def _same_winners(before: Tensor, after: Tensor) -> Tensor:
    """For each row that is no tie, whether the winner is the same."""
    best = before.topk(2, dim=1).values
    spread = before.amax(dim=1) - before.amin(dim=1)
    clear = best[:, 0] - best[:, 1] > TIE * spread
    return (before.argmax(dim=1) == after.argmax(dim=1))[clear]


def _same_boxes(before: BoxOutput, after: BoxOutput) -> Tensor:
    """For each sure box, whether there is one of its class at its place."""
    from torchvision.ops import box_iou

    hits = [torch.empty(0, dtype=torch.bool)]
    for one, two in zip(before.frames, after.frames, strict=True):
        sure = one["scores"] > SURE_SCORE
        boxes, labels = one["boxes"][sure].float(), one["labels"][sure]
        if len(two["boxes"]) == 0:
            hits.append(torch.zeros(len(boxes), dtype=torch.bool))
            continue
        close = box_iou(boxes, two["boxes"].float()) > SAME_IOU
        hits.append((close & (labels[:, None] == two["labels"][None])).any(dim=1).cpu())
    return torch.cat(hits)
