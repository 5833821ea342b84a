"""The report of an export: one `Row` for each model, as Markdown and as JSON. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TITLES = (
    "model",
    "task",
    "exporter",
    "opset",
    "dynamic batch",
    "input",
    "size MB",
    "ORT max \\|Δ\\|",
    "relative",
    "OpenCV max \\|Δ\\|",
    "top-1 equal",
    "good",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What came of one model; None where a thing was not reached, `notes` say why."""

    model: str
    task: str
    weights: str
    good: bool
    exporter: str | None = None
    opset: int | None = None
    dynamic_batch: bool | None = None
    input: str = ""
    size_mb: float | None = None
    ort_max_delta: float | None = None
    ort_relative: float | None = None
    opencv_max_delta: float | None = None
    top1_equal: float | None = None
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """For people who watch it run."""
        ort, cv = _number(self.ort_max_delta), _number(self.opencv_max_delta)
        notes = f"  ({'; '.join(self.notes)})" if self.notes else ""
        return f"{'ok  ' if self.good else 'FAIL'} {self.model}: ONNX Runtime {ort}, OpenCV {cv}{notes}"


def write_report(
    rows: Sequence[Row], markdown: Path, data: Path, command: str, versions: Mapping[str, str]
) -> None:
    """Write both forms; rows that `data` holds of other models stay."""
    merged = {row.model: row for row in [*read_rows(data), *rows]}
    kept = [merged[name] for name in sorted(merged, key=lambda name: (merged[name].task, name))]
    facts = {"command": command, "versions": dict(versions), "rows": [asdict(row) for row in kept]}
    data.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    markdown.write_text(_markdown(kept, command, versions), encoding="utf-8")


def read_rows(data: Path) -> list[Row]:
    """The rows of a report written before, none where there is none."""
    if not data.is_file():
        return []
    rows = json.loads(data.read_text(encoding="utf-8"))["rows"]
    return [Row(**{**row, "notes": tuple(row["notes"])}) for row in rows]


def _markdown(rows: Sequence[Row], command: str, versions: Mapping[str, str]) -> str:
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    weights = ", ".join(sorted({row.weights for row in rows}))
    good = sum(row.good for row in rows)
    lines = [
        "# Exported to ONNX",
        "",
        f"Made by `{command}` with {named}. Weights: {weights}. {good} of {len(rows)} models are good.",
        "",
        *_explained(),
        *(RANDOM_NOTE if "random" in weights else ()),
        "",
        f"| {' | '.join(TITLES)} |",
        f"|{' --- |' * len(TITLES)}",
        *[f"| {' | '.join(_cells(row))} |" for row in rows],
    ]
    noted = [f"- {row.model}: {note}" for row in rows for note in row.notes]
    return "\n".join([*lines, *(["", "## Notes", "", *noted] if noted else []), ""])


RANDOM_NOTE = (
    "",
    "Random weights: batch norms are calibrated, and the branches of residual networks are as small as "
    "training",
    "leaves them, since untrained ones enlarge any rounding from layer to layer.",
)


def _explained() -> list[str]:
    return [
        "Every file holds what a server needs to prepare its pixels (metadata `trivid`), so it is served "
        "without",
        "options. It was compared with torch in fp32 on seeded pictures: batches of 1 and 3, a second "
        "frame size",
        "where any is taken. max |Δ| is that of the logits; of detections that of scores, and of boxes as "
        "a share of",
        "the frame's side. Relative is max |Δ| over the largest logit. Good: both at most 1e-3 with ONNX "
        "Runtime, the",
        "same best class (of pixels 99.99 %, of boxes 99 % matched), and for the sixteen models of OpenCV's",
        "tutorial the same with its DNN module. Where that module does not read another model, a note says "
        "why.",
        "",
        "Limits: detectors take one picture at a time, of one size, into which frames are fitted with "
        "bars: how many",
        "boxes there are depends on the pixels, which a batch cannot express. Clips keep the length and "
        "the size",
        "that they were exported with. Only the main output is exported, no auxiliary heads.",
    ]


def _cells(row: Row) -> list[str]:
    return [
        row.model,
        row.task,
        row.exporter or "none",
        str(row.opset or "–"),
        {True: "yes", False: "no", None: "–"}[row.dynamic_batch],
        row.input or "–",
        f"{row.size_mb:.1f}" if row.size_mb is not None else "–",
        _number(row.ort_max_delta),
        _number(row.ort_relative),
        _number(row.opencv_max_delta),
        _share(row.top1_equal),
        "yes" if row.good else "**no**",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _share(value: float | None) -> str:
    if value is None:
        return "–"
    return "yes" if value == 1 else f"{100 * value:.3f} %"
