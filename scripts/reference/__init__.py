"""Pages made from the code: `python -m scripts.reference.page` and `.codecs`.

Each writes its files; with `--check` it exits with 1 if a file is not what would be written.
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from string import Template

from scripts import ROOT


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    escaped = ([cell.replace("|", "\\|") for cell in row] for row in rows)
    lines = (head, ["---"] * len(head), *escaped)
    return "\n".join(f"| {' | '.join(cells)} |".replace("|  |", "| |") for cells in lines)


def fill(template: str, **parts: str) -> str:
    """The text of a file beside this one with `parts` in place of their `$names`."""
    return Template(Path(__file__).with_name(template).read_text()).substitute(parts)


def write_or_check(name: str, wanted: str) -> int:
    """Write `wanted` into a file of docs/ where it differs, or only say so with `--check`: the exit code."""
    file = ROOT / "docs" / name
    if file.is_file() and file.read_text() == wanted:
        return 0
    if sys.argv[1:] == ["--check"]:
        print(f"error: docs/{name} is stale: run `make reference`", file=sys.stderr)
        return 1
    file.write_text(wanted)
    print(f"wrote docs/{name}")
    return 0
