"""CONTRIBUTING.md tells the truth: its changes apply, and the tests that they touch pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
MODEL = "import shades; from model_inference import Model; Model(shades.shade(), 'cpu')"
TOUCHED = [
    *("tests/tasks/test_classification.py", "tests/tasks/test_measurement.py"),
    *("tests/protocol/test_options.py", "tests/protocol/test_answers.py"),
]


def run(command: list[str], folder: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, input=text, capture_output=True, text=True, timeout=200, check=False
    )


def change(folder: Path, diff: str) -> None:
    """Change each file as the page says, except where someone who follows the page already has."""
    for of_a_file in re.split(r"^(?=diff --git)", diff, flags=re.MULTILINE)[1:]:
        if run(["git", "apply", "--check", "--reverse"], folder, of_a_file).returncode == 0:
            continue
        done = run(["git", "apply"], folder, of_a_file)
        assert done.returncode == 0, f"update this change in CONTRIBUTING.md:\n{of_a_file}\n{done.stderr}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the project."""
    for name in ("pipelines", "scripts", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("client.py", "server.py", "model_inference.py", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_there_is_a_change_for_a_model_an_option_and_a_task() -> None:
    heads = [re.findall(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE)[0] for diff in DIFFS]
    assert heads == ["shades.py", "pipelines/protocol/options.py", "pipelines/models/spec.py"]


def test_the_changes_fit_and_where_they_are_made_too(folder: Path) -> None:
    for _ in range(2):
        for diff in DIFFS:
            change(folder, diff)
    for done in (run(["git", "apply", "--check", "--reverse"], folder, diff) for diff in DIFFS):
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_with_the_changes_the_tests_pass(folder: Path) -> None:
    for diff in DIFFS:
        change(folder, diff)
    for command in (
        ["-m", "ruff", "check", "."],
        ["-m", "ruff", "format", "--check", "."],
        ["-c", MODEL],
        ["-m", "pytest", "-p", "no:cacheprovider", *TOUCHED],
    ):
        done = run([sys.executable, *command], folder)
        assert done.returncode == 0, done.stdout + done.stderr
