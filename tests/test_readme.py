"""The README tells the truth: its commands run, its tables are what the code says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.serving.endpoint_table import ENDPOINT_TABLE
from pipelines.settings.flags import parse_args
from tests.conftest import ROOT, Server, free_ports

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for language, text in BLOCKS
    if language == "sh" and "needs a GPU" not in text
    for line in text.splitlines()
    if line and not line.startswith("#")
]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that looks like the project's root, so that what a command writes stays out of it."""
    for name in ("assets", "client.py", "server.py", "model_inference.py", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("line", [line for line in COMMANDS if "server.py" in line])
def test_server_commands(line: str, folder: Path) -> None:
    """Those that end by themselves are run; the flags of the others are read."""
    words = shlex.split(line, comments=True)[2:]
    settings = parse_args(words, "")
    if settings.check or settings.dry_run:
        names = ("--http-port", "--grpc-port", "--metrics-port")
        ports = [text for name, port in zip(names, free_ports(3), strict=True) for text in (name, str(port))]
        done = run([sys.executable, "server.py", *words, *ports], folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", [line for line in COMMANDS if "client.py" in line or "curl" in line])
def test_client_commands(line: str, folder: Path, server: Server) -> None:
    if "curl" in line and not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    (folder / "out").mkdir()
    line = line.replace("8000", str(server.http_port)).replace("8001", str(server.grpc_port))
    done = run(["bash", "-c", line.replace(".venv/bin/python", sys.executable)], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout or any((folder / "out").rglob("*"))
    assert '"error":"' not in done.stdout.replace('"error":""', "")


def test_python_examples(folder: Path, server: Server) -> None:
    examples = [text for language, text in BLOCKS if language == "python"]
    assert examples
    for text in examples:
        done = run([sys.executable, "-c", text.replace("8001", str(server.grpc_port))], folder)
        assert done.returncode == 0, done.stderr
        assert "circle" in done.stdout


def test_other_commands_are_the_two_that_ci_runs() -> None:
    rest = [line for line in COMMANDS if not re.search(r"server\.py|client\.py|curl", line)]
    assert rest == ["make demo", "make test"]
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(f"{command}\n" in ci for command in rest)


def test_tables_and_openapi_are_what_the_code_says() -> None:
    done = run([sys.executable, "-m", "scripts.reference.openapi", "--check"], ROOT)
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^\| `(\w+)` \| (?:unary|stream)", README, re.MULTILINE)
    assert sorted(listed) == sorted([*ENDPOINT_TABLE, "status"])


def test_pictures_and_links_exist() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README) + re.findall(r"`(docs/[^`]+)`", README):
        assert (ROOT / target).exists(), target
