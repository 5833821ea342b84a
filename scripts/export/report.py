"""The report of an export: one `Row` for each model, as Markdown and as JSON. Knows no model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

TEXT = Path(__file__).with_name("page.md")


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
    head = TEXT.read_text(encoding="utf-8").format(
        command=command,
        versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        weights=", ".join(sorted({row.weights for row in rows})),
        good=sum(row.good for row in rows),
        count=len(rows),
    )
    table = [f"| {' | '.join(_cells(row))} |" for row in rows]
    noted = [f"- {row.model}: {note}" for row in rows for note in row.notes]
    return head + "\n".join([*table, *(["", "## Notes", "", *noted] if noted else []), ""])


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
