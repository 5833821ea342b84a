"""CONTRIBUTING.md tells the truth: its changes apply, and their tests pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)


def test_there_is_a_change_for_a_model_an_option_and_a_task() -> None:
    heads = [re.findall(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE)[0] for diff in DIFFS]
    assert heads == ["shades.py", "pipelines/protocol/options.py", "pipelines/models/spec.py"]


@pytest.mark.slow
def test_the_changes_apply_and_their_tests_pass(tmp_path: Path) -> None:
    """All of them after each other, in a copy of the project."""
    for folder in ("pipelines", "scripts", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("client.py", "server.py", "model_inference.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    for diff in DIFFS:
        done = subprocess.run(
            ["git", "apply"], cwd=tmp_path, input=diff, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    code = "import shades; from model_inference import Model; Model(shades.shade(), 'cpu')"
    tests = ["tests/tasks/test_classification.py", "tests/tasks/test_embedding.py"]
    for command in (["-c", code], ["-m", "pytest", "-p", "no:cacheprovider", *tests]):
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
