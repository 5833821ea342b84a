"""docs/codecs.md is what encoding and decoding every codec gives, and says what it should."""

from __future__ import annotations

import subprocess
import sys

from tests.conftest import ROOT

NO_ENCODER = "no encoder to make one"


def tables() -> list[dict[str, list[str]]]:
    """The two tables: a codec's cells by its name."""
    found: list[dict[str, list[str]]] = []
    for line in (ROOT / "docs" / "codecs.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] == "codec":
            found.append({})
        elif line.startswith("| ") and cells[0] != "---":
            found[-1][cells[0]] = cells[1:]
    return found


def test_the_published_matrix_is_what_decoding_gives() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.reference.codecs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_what_can_be_made_is_decoded() -> None:
    """No cell is an error or empty; what has no encoder is known."""
    cpu, gpu = tables()
    assert len(cpu) == len(gpu) == 10
    for row in cpu.values():
        assert len(row) == 3
        assert set(row) <= {"cpu", NO_ENCODER}
    made = [name for name, row in cpu.items() if row[0] == "cpu"]
    assert len(made) >= 9
    for name, row in gpu.items():
        for layout, cell in enumerate(row):
            assert cell == NO_ENCODER or cell.startswith(("nvdec if the GPU decodes it", "cpu: "))
            assert (cell == NO_ENCODER) == (cpu[name][layout] == NO_ENCODER)
            # Only 8 bits of 4:2:0 may go to the GPU.
            assert not cell.startswith("nvdec") or (layout == 0 and "8 bits" in name)
