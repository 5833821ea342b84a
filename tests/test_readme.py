"""The documents tell the truth: commands run, tables are what the code says, links lead somewhere."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.settings.flags import parse_args
from tests.conftest import ROOT, Server, free_ports

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages whose prose is written by hand for readers of today; the others are made, or are of their day.
PROSE = [page for page in PAGES if page.name not in ("codecs.md", "models-tried.md", "onnx.md", "parity.md")]
MOST_LINES_OF_README, MOST_WORDS = 130, 30


def blocks(language: str) -> list[str]:
    """All fenced blocks of a language, each once."""
    found = (
        block for page in PAGES for block in re.findall(r"```(\w+)\n(.*?)```", page.read_text(), re.DOTALL)
    )
    return list(dict.fromkeys(text for name, text in found if name == language))


COMMANDS = [
    line
    for text in blocks("sh")
    if "needs docker" not in text
    for line in text.splitlines()
    if line and not line.startswith("#")
]
SERVER = [line for line in COMMANDS if "server.py" in line]
CLIENT = [line for line in COMMANDS if "client.py" in line or "curl" in line]
# What CI runs, or what a test of its own runs.
OTHERS = {
    *("make install", "make demo", "make lint", "make test"),
    ".venv/bin/python -m pytest tests/tasks",
    ".venv/bin/python -m scripts.export resnet50 fcn_resnet50 r3d_18 --output onnx/",
}


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
    (tmp_path / "out").mkdir()
    return tmp_path


@pytest.mark.parametrize("line", SERVER)
def test_server_commands(line: str, folder: Path) -> None:
    """Those that end by themselves are run; the flags of the others are read."""
    words = shlex.split(line, comments=True)[2:]
    settings = parse_args(words, "")
    if not (settings.check or settings.dry_run or settings.list_models):
        return
    for diff in blocks("diff"):
        (name,) = re.findall(r"^\+\+\+ b/(\S+)", diff, re.MULTILINE)[:1]
        if "/" not in name:
            (folder / name).write_text("\n".join(re.findall(r"^\+(?!\+)(.*)", diff, re.MULTILINE)))
    names = ("--http-port", "--grpc-port", "--metrics-port")
    ports = [text for name, port in zip(names, free_ports(3), strict=True) for text in (name, str(port))]
    done = run([sys.executable, "server.py", *words, *ports], folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", CLIENT)
def test_client_commands(line: str, folder: Path, server: Server) -> None:
    if "curl" in line and not shutil.which("curl"):
        pytest.skip("no curl on this machine")
    if "--url" not in line:
        line = line.replace("client.py", f"client.py --url {server.grpc_url}")
    line = line.replace(":8000", f":{server.http_port}").replace(":8001", f":{server.grpc_port}")
    done = run(["bash", "-c", line.replace(".venv/bin/python", sys.executable)], folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout or any((folder / "out").rglob("*"))
    assert '"error":"' not in done.stdout.replace('"error":""', "")


def test_python_examples(folder: Path, server: Server) -> None:
    examples = [text for text in blocks("python") if "Client(" in text]
    assert examples
    for text in examples:
        done = run([sys.executable, "-c", text.replace("8001", str(server.grpc_port))], folder)
        assert done.returncode == 0, done.stderr
        assert "circle" in done.stdout


def test_other_commands_are_run_elsewhere() -> None:
    rest = [line for line in COMMANDS if line not in (*SERVER, *CLIENT)]
    assert set(rest) == OTHERS
    ci = (ROOT / ".ci" / "run").read_text()
    assert all(
        f"{command}\n" in ci for command in rest if command.startswith("make") and command != "make lint"
    )


def test_made_pages_are_what_the_code_says() -> None:
    done = run([sys.executable, "-m", "scripts.reference.page", "--check"], ROOT)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        heads = re.findall(r"^#+ (.*)", file.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {
            re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads
        }


def sentences(text: str) -> Iterator[str]:
    """Sentences of prose: code, tables and headings are left out; an item of a list stands by itself."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"^(\||#).*$", "", text, flags=re.MULTILINE)
    for paragraph in re.split(r"\n\s*\n|\n\s*(?:-|\d+\.) ", text):
        yield from re.split(r"(?<=[.?!])\*{0,2}\)?\s+", " ".join(paragraph.split()))


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    long = [one for one in sentences(page.read_text()) if len(one.split()) > MOST_WORDS]
    assert long == []


def test_a_client_needs_only_two_rooms(tmp_path: Path) -> None:
    """What the README says to copy is all that the client imports of the project."""
    (tmp_path / "pipelines").mkdir()
    for name in ("client.py", "pipelines/__init__.py", "pipelines/protocol", "pipelines/sdk"):
        assert f"`{name}`" in (ROOT / "README.md").read_text()
        (tmp_path / name).symlink_to(ROOT / name)
    # Isolated: `client.py` is a link, whose folder Python would search too.
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import client"
    done = run([sys.executable, "-I", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_settings_file_is_read(tmp_path: Path) -> None:
    (text,) = blocks("toml")
    (tmp_path / "server.toml").write_text(text)
    settings = parse_args(["--settings", str(tmp_path / "server.toml")], "")
    assert [model.task or model.source for model in settings.models] == ["resnet50", "detection"]


def test_the_readme_is_short() -> None:
    assert (ROOT / "README.md").read_text().count("\n") <= MOST_LINES_OF_README
