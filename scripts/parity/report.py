"""docs/parity.md from the rows of a parity run and the text of page.md. Knows no models."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field
from pathlib import Path

from pipelines.models.spec import TaskName
from scripts import ROOT
from scripts.parity.measures import Row, table
from scripts.parity.media import materials
from scripts.parity.subject import MBCONV_WEIGHT, RESIDUAL_WEIGHT

FILE = ROOT / "docs" / "parity.md"
TEXT = Path(__file__).with_name("page.md")
# Those of torchvision's models, in the order of the page's sections.
TASKS: tuple[TaskName, ...] = ("classification", "detection", "segmentation", "action")
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "av", "pillow", "numpy")


@dataclass(slots=True, eq=False)
class Report:
    """All rows of a run: of each task those of pixels and of answers, a pair for each model."""

    pairs: dict[TaskName, list[tuple[Row, Row]]] = field(default_factory=dict)
    clips: list[Row] = field(default_factory=list)

    @property
    def missed(self) -> list[str]:
        """A line for each bar that was missed."""
        rows = [row for pairs in self.pairs.values() for pair in pairs for row in pair]
        return [f"{row.model}: {line}" for row in (*rows, *self.clips) for line in row.missed]


def render(report: Report) -> str:
    """The whole page; tasks without a model are left out."""
    head, *sections = TEXT.read_text(encoding="utf-8").split("\n## ")
    absent = [one.name for one in materials() if one.missing]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    page = head.format(
        residual=RESIDUAL_WEIGHT,
        mbconv=MBCONV_WEIGHT,
        versions=", ".join([f"Python {platform.python_version()}", *versions]),
        media=", ".join(one.name for one in materials() if not one.missing),
        missing=f" Not there, so left out: {', '.join(absent)}." if absent else "",
    )
    for task, section in zip(TASKS, sections, strict=True):
        if task in report.pairs:
            pixels, answers = (table(rows) for rows in zip(*report.pairs[task], strict=True))
            clips = table(report.clips, first="video") if report.clips else ""
            page += "\n## " + section.format(pixels=pixels, answers=answers, clips=clips)
    return page.rstrip() + "\n"
