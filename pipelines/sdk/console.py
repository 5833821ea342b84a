"""The client's terminal: answers, errors and progress. Knows no connection, no answers and no files."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


class Screen:
    """stdout for answers, stderr for errors, and on a terminal a progress line that makes way for both."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._frames = total, 0, 0
        self._live, self._start_s = sys.stderr.isatty(), time.monotonic()

    def frames(self, path: Path, count: int) -> None:
        """Say that `count` more frames of a file are done."""
        self._frames += count
        if self._live:
            filled = 20 * self._done // max(self._total, 1)
            rate = self._frames / max(time.monotonic() - self._start_s, 1e-9)
            bar = f"[{'#' * filled}{'.' * (20 - filled)}] {self._done}/{self._total} files"
            print(
                f"\r\x1b[K{bar}  {self._frames} frames  {rate:.1f} frames/s  {path.name}"[:120],
                end="",
                file=sys.stderr,
                flush=True,
            )

    def file_done(self) -> None:
        self._done += 1

    def say(self, line: str) -> None:
        self.clear()
        print(line, flush=True)

    def complain(self, error: Exception, path: Path | None = None) -> None:
        """Print an error in one line, whatever its message holds."""
        self.clear()
        text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.filename:
            path = Path(os.fsdecode(error.filename))
        where = "" if path is None else f"{path}: "
        print(f"error: {where}{' '.join(text.split())}", file=sys.stderr)

    def clear(self) -> None:
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
