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
    good: bool
    weights: str = ""
    exporter: str | None = None
    opset: int | None = None
    dynamic_batch: bool | None = None
    input: str = ""
    size_mb: float | None = None
    ort_max_delta: float | None = None
    ort_relative: float | None = None
    opencv_max_delta: float | None = None
    top1_equal: float | None = None
    notes: Sequence[str] = ()

    def line(self) -> str:
        """For people who watch it run."""
        ort, cv = _shown(self.ort_max_delta, ".1e"), _shown(self.opencv_max_delta, ".1e")
        notes = f"  ({'; '.join(self.notes)})" if self.notes else ""
        return f"{'ok  ' if self.good else 'FAIL'} {self.model}: ONNX Runtime {ort}, OpenCV {cv}{notes}"


def write_report(
    rows: Sequence[Row], markdown: Path, data: Path, command: str, versions: Mapping[str, str]
) -> None:
    """Write both forms; rows that `data` holds of other models stay."""
    before = json.loads(data.read_text(encoding="utf-8"))["rows"] if data.is_file() else []
    merged = {row.model: row for row in [*(Row(**row) for row in before), *rows]}
    kept = [merged[name] for name in sorted(merged, key=lambda name: (merged[name].task, name))]
    facts = {"command": command, "versions": dict(versions), "rows": [asdict(row) for row in kept]}
    data.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    markdown.write_text(_markdown(kept, command, versions), encoding="utf-8")


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
    deltas = (row.ort_max_delta, row.ort_relative, row.opencv_max_delta)
    return [
        row.model,
        row.task,
        row.exporter or "none",
        _shown(row.opset),
        {True: "yes", False: "no", None: "–"}[row.dynamic_batch],
        row.input or "–",
        _shown(row.size_mb, ".1f"),
        *(_shown(delta, ".1e") for delta in deltas),
        "yes" if row.top1_equal == 1 else _shown(row.top1_equal, ".3%").replace("%", " %"),
        "yes" if row.good else "**no**",
    ]


def _shown(value: float | None, form: str = "") -> str:
    return "–" if value is None else format(value, form)
