"""Parts of the bench that run as processes of their own (python -m scripts.bench.NAME): JSON in, JSON out."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Generic, NoReturn, TypeVar

from pydantic import TypeAdapter

from scripts import ROOT

T = TypeVar("T")
G = TypeVar("G")


class Program(Generic[T]):
    """A part at work; after the `with` block it has ended.

    Args:
        name: the module's, in scripts.bench.
        given: a data class, which the part reads.
        kind: what it answers.
    """

    def __init__(self, name: str, given: Any, kind: type[T], *arguments: str) -> None:
        self._name, self._kind, pipe = name, kind, subprocess.PIPE
        command = [sys.executable, "-m", f"scripts.bench.{name}", *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe)
        assert self._process.stdin is not None
        self._process.stdin.write(TypeAdapter(type(given)).dump_json(given))
        self._process.stdin.close()
        self._process.stdin = None  # or `communicate` would flush it

    def answer(self) -> T:
        """What it found, once it is done."""
        text, _ = self._process.communicate()
        if self._process.returncode:
            raise SystemExit(f"error: scripts.bench.{self._name} broke off, its message stands above")
        return TypeAdapter(self._kind).validate_json(text.splitlines()[-1])

    def __enter__(self) -> Program[T]:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.stdout is not None and not self._process.stdout.closed:
            self._process.kill()
            self._process.communicate()


def run_program(kind: type[G], work: Callable[[G], object]) -> NoReturn:
    """The other end: read what is given, print what came of it, and end at once."""
    found = work(TypeAdapter(kind).validate_json(sys.stdin.buffer.read()))
    sys.stdout.buffer.write(b"\n" + TypeAdapter(Any).dump_json(found) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # DALI and ONNX Runtime take their time to end
