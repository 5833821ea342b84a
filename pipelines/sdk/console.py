"""The client's terminal: answers, errors and progress. Knows no connection, no answers and no files."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path
from typing import TextIO

from pipelines.sdk.text import fitting, one_line


class OutputLost(Exception):
    """stdout takes no more: its reader has left, or its disk is full. The cause says which."""


class Screen:
    """stdout for answers, stderr for errors, and on a terminal a progress line that makes way for both."""

    def __init__(self, total: int) -> None:
        self.total, self._done, self._frames = total, 0, 0
        self._live, self._start_s = sys.stderr is not None and sys.stderr.isatty(), time.monotonic()

    def frames(self, path: Path, count: int) -> None:
        """Say that `count` more frames of a file are done."""
        self._frames += count
        if self._live:
            filled = 20 * self._done // max(self.total, 1)
            rate = self._frames / max(time.monotonic() - self._start_s, 1e-9)
            bar = f"[{'#' * filled}{'.' * (20 - filled)}] {self._done}/{self.total} files"
            line = one_line(f"{bar}  {self._frames} frames  {rate:.1f} frames/s  {path.name}")[:115]
            self._tell(f"\r\x1b[K{line}")

    def file_done(self) -> None:
        self._done += 1

    def say(self, line: str) -> None:
        """Print one line. Raises OutputLost."""
        self.clear()
        if sys.stdout is None:
            return
        try:
            print(fitting(one_line(line), sys.stdout.encoding), flush=True)
        except OSError as error:
            _drop(sys.stdout)
            raise OutputLost(f"stdout: {error.strerror or error}") from error

    def complain(self, error: Exception, path: Path | None = None) -> None:
        """Print an error in one line, whatever its message holds."""
        text = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        if isinstance(error, OSError) and error.filename:
            path = Path(os.fsdecode(error.filename))
        self.note(f"error: {'' if path is None else f'{path}: '}{' '.join(text.split())}")

    def note(self, line: str) -> None:
        """Print one line to stderr."""
        self.clear()
        self._tell(f"{one_line(line)}\n")

    def clear(self) -> None:
        if self._live:
            self._tell("\r\x1b[K")

    def close(self) -> None:
        """Write what is buffered, so that nothing can fail when Python ends."""
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                try:
                    stream.flush()
                except OSError:
                    _drop(stream)

    def _tell(self, text: str) -> None:
        """Write to stderr. Where that fails, there is nobody to be told."""
        if sys.stderr is not None:
            try:
                sys.stderr.write(fitting(text, sys.stderr.encoding))
                sys.stderr.flush()
            except OSError:
                _drop(sys.stderr)


def _drop(stream: TextIO) -> None:
    """Let whatever a stream still holds go nowhere, or Python would fail at it when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
