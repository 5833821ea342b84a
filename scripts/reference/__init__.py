"""Pages made from the code: `python -m scripts.reference.openapi`, `.page` and `.codecs`.

Each writes its file; with `--check` it exits with 1 if the file is not what would be written.
"""

import sys
from pathlib import Path

from scripts import ROOT


def write_or_check(file: Path, wanted: str) -> int:
    """Write `wanted` into `file` where it differs, or only say so with `--check`. Returns the exit code."""
    name = file.relative_to(ROOT)
    if file.is_file() and file.read_text() == wanted:
        return 0
    if sys.argv[1:] == ["--check"]:
        print(f"error: {name} is stale: run `make reference`", file=sys.stderr)
        return 1
    file.write_text(wanted)
    print(f"wrote {name}")
    return 0
