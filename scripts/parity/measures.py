"""What a parity run finds: measures with their bars, a row for each model. Knows no model and no medium."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.ops import box_iou

from pipelines.models.spec import Preprocessing
from scripts import reference
from tests.support.pixels import levels_apart

# Boxes that overlap less are of different objects.
LEAST_IOU = 0.5
# A box whose score is this near to the threshold may be on either side of it.
SCORE_MARGIN = 1e-3
# Over large areas a mask of random weights is about as likely as not; such a one may turn over.
MASK_BAR = 95.0
Probabilities = npt.NDArray[np.float32]
# Objects of one frame, best first, as torchvision names them, in source pixels; masks are bool `(D, H, W)`.
Boxes = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One number and its bar: at most it (`at_most`), or at least; without a bar it only informs."""

    name: str
    value: float
    bar: float | None = None
    at_most: bool = True
    digits: int = 4

    @property
    def passed(self) -> bool:
        return self.bar is None or (self.value <= self.bar if self.at_most else self.value >= self.bar)

    @property
    def head(self) -> str:
        """The name with its bar, the head of a column."""
        if self.bar is None:
            return self.name
        return f"{self.name} ({'≤' if self.at_most else '≥'} {self.bar:g})"

    @property
    def cell(self) -> str:
        shown = f"{self.value:.{self.digits}f}"
        return shown if self.passed else f"**{shown}**"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A model's measures over some media, and how many these were."""

    model: str
    media: int
    frames: int
    measures: tuple[Measure, ...]

    @property
    def missed(self) -> list[str]:
        """A line for each bar that was missed."""
        return [f"{one.head}: {one.value:.5g}" for one in self.measures if not one.passed]


def table(rows: Sequence[Row], first: str = "model") -> str:
    """Rows of the same measures as a Markdown table."""
    heads = [first, "media", "frames", *(one.head for one in rows[0].measures), ""]
    lines = []
    for row in rows:
        cells = [one.cell for one in row.measures]
        verdict = "**fails**" if row.missed else "passes"
        lines.append([f"`{row.model}`", str(row.media), str(row.frames), *cells, verdict])
    return reference.table(heads, lines)


@dataclass(slots=True, eq=False)
class Pixels:
    """Distances of model pixels in levels of 255, medium by medium; the worst of each counts."""

    preprocessing: Preprocessing
    mean: float = 0.0
    high: float = 0.0

    def add(self, ours: Tensor, theirs: Tensor) -> None:
        """One medium's pixels `(N, 3, h, w)`. Those of another size are infinitely far apart."""
        if ours.shape != theirs.shape:
            self.mean = self.high = math.inf
            return
        apart = levels_apart(ours, theirs, self.preprocessing)
        self.mean = max(self.mean, float(apart.mean()))
        self.high = max(self.high, float(np.percentile(apart, 99.9)))

    def measures(self, path: str) -> tuple[Measure, Measure]:
        """Both with their bars, by the name of torchvision's path."""
        return (
            Measure(name=f"{path} path: mean", value=self.mean, bar=1.0),
            Measure(name=f"{path} p99.9", value=self.high, bar=8.0, digits=2),
        )


def winner_measures(ours_nk: Probabilities, theirs_nk: Probabilities) -> tuple[Measure, ...]:
    """How the classes of both sides agree. Raises ValueError where there are not as many."""
    if ours_nk.shape != theirs_nk.shape:
        raise ValueError(f"probabilities are {ours_nk.shape}, torchvision's {theirs_nk.shape}")
    agree = ours_nk.argmax(axis=1) == theirs_nk.argmax(axis=1)
    winning = len(np.unique(theirs_nk.argmax(axis=1)))
    least = 2 if len(theirs_nk) > 4 else None
    return (
        Measure(name="top-1 agreement %", value=100 * agree.mean(), bar=99.5, at_most=False, digits=2),
        Measure(name="max Δp", value=float(np.abs(ours_nk - theirs_nk).max()), bar=0.01),
        Measure(name="mean winning p", value=float(theirs_nk.max(axis=1).mean()), digits=2),
        Measure(name="winning classes", value=winning, bar=least, at_most=False, digits=0),
    )


@dataclass(slots=True, eq=False)
class Matches:
    """Boxes of both sides in pairs: torchvision's best first, each with the closest of its class."""

    missing: int = 0
    surplus: int = 0
    iou: list[float] = field(default_factory=list)
    score: list[float] = field(default_factory=list)
    mask: list[float] = field(default_factory=list)
    keypoint: list[float] = field(default_factory=list)

    def add(self, ours: Boxes, theirs: Boxes, threshold: float) -> None:
        """One frame's boxes. Those above the threshold count; nearer to it than the margin, either way."""
        certain = threshold + SCORE_MARGIN
        overlap = box_iou(theirs["boxes"], ours["boxes"])
        overlap[theirs["labels"][:, None] != ours["labels"][None]] = 0.0
        for row in torch.nonzero(theirs["scores"] > threshold).flatten().tolist():
            best = int(overlap[row].argmax()) if len(ours["boxes"]) else -1
            if best < 0 or overlap[row, best] < LEAST_IOU:
                self.missing += bool(theirs["scores"][row] > certain)
                continue
            self.iou.append(float(overlap[row, best]))
            self.score.append(float((theirs["scores"][row] - ours["scores"][best]).abs()))
            self._shapes(ours, best, theirs, row)
            # Taken: no other may have it.
            overlap[:, best] = -1.0
        free = (overlap >= 0).all(dim=0)
        self.surplus += int((free & (ours["scores"] > certain)).sum())

    def _shapes(self, ours: Boxes, mine: int, theirs: Boxes, other: int) -> None:
        """Masks and keypoints, which fail where ours has none."""
        if "masks" in theirs:
            two = theirs["masks"][other]
            one = ours["masks"][mine] if "masks" in ours else torch.zeros_like(two)
            union = int((one | two).sum())
            self.mask.append(int((one & two).sum()) / union if union else 1.0)
        if "keypoints" in theirs:
            there = theirs["keypoints"][other]
            here = ours["keypoints"][mine] if "keypoints" in ours else torch.full_like(there, math.inf)
            self.keypoint += (here - there)[:, :2].norm(dim=-1).tolist()

    @property
    def measures(self) -> tuple[Measure, ...]:
        return (
            Measure(name="boxes", value=len(self.iou), bar=1, at_most=False, digits=0),
            _share("boxes of IoU ≥ 0.95 %", (value >= 0.95 for value in self.iou)),
            Measure(name="missing", value=self.missing, bar=0, digits=0),
            Measure(name="surplus", value=self.surplus, bar=0, digits=0),
            Measure(name="max Δscore", value=max(self.score, default=0.0), bar=0.01),
            _share("masks of IoU ≥ 0.95 %", (value >= 0.95 for value in self.mask), bar=MASK_BAR),
            _share("keypoints within 0.5 px %", (value <= 0.5 for value in self.keypoint)),
        )


def _share(name: str, hits: Iterable[bool], bar: float = 99.0) -> Measure:
    """In per cent; nothing to count is no number."""
    counted = list(hits)
    if not counted:
        return Measure(name=name, value=math.nan, digits=2)
    return Measure(name=name, value=100 * sum(counted) / len(counted), bar=bar, at_most=False, digits=2)
