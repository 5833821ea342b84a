"""Parts of the bench that run as processes of their own: `python -m scripts.bench.NAME JSON`, JSON out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from pydantic import TypeAdapter

from scripts import ROOT

T = TypeVar("T")
G = TypeVar("G")


@contextmanager
def program(name: str, given: Any, kind: type[T], *arguments: str) -> Iterator[Callable[[], T]]:
    """A part at work, as a function that waits for what it finds; after the `with` block it has ended.

    Args:
        name: the module's, in scripts.bench.
        given: a data class, which the part reads; `arguments` follow it.
        kind: what it answers.
    """
    text = TypeAdapter(type(given)).dump_json(given).decode()
    command = [sys.executable, "-m", f"scripts.bench.{name}", text, *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:

        def answer() -> T:
            found, _ = process.communicate()
            if process.returncode:
                raise SystemExit(f"error: scripts.bench.{name} broke off, its message stands above")
            return TypeAdapter(kind).validate_json(found.splitlines()[-1])

        try:
            yield answer
        finally:
            process.kill()


def run_program(kind: type[G], work: Callable[[G], object]) -> NoReturn:
    """The other end: read what is given, print what came of it, and end at once."""
    found = work(TypeAdapter(kind).validate_json(sys.argv[1]))
    sys.stdout.buffer.write(b"\n" + TypeAdapter(Any).dump_json(found) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # DALI and ONNX Runtime take their time to end
