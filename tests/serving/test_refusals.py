"""What the server refuses to start with, and what it says then. No server gets as far as Triton here."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_ports

OWN = "lraspp_mobilenet_v3_large"
# Each group of flags and what comes of it: the exit code, and words of the message.
CASES = {
    "name": (["--model", "segmentation=fcn_resnet999"], 3, "no model 'fcn_resnet999'"),
    "file": (["--weights", "/no/such/file.pth"], 3, "no weights file /no/such/file.pth"),
    "contents": (["--weights", __file__], 3, "is not a state dict"),
    "own": (["--model", f"segmentation={OWN}", "--weights", "own.pth"], 0, ""),
}
# One process for all: each would load torch for seconds.
IN_TURN = """
import contextlib, io, json, sys
import torch, torchvision, server
network = torchvision.models.get_model(sys.argv[1], weights=None, weights_backbone=None, num_classes=21)
torch.save(network.state_dict(), "own.pth")
for flags in json.load(sys.stdin):
    errors, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(said):
        code = server.main(["--dry-run", "--device", "cpu", *flags])
    print(json.dumps([code, errors.getvalue(), said.getvalue()]), flush=True)
"""


def run_server(*flags: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "server.py", *flags],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_check_lists_what_it_looked_at() -> None:
    names = ("--http-port", "--grpc-port", "--metrics-port")
    flags = [text for name, port in zip(names, free_ports(3), strict=True) for text in (name, str(port))]
    done = run_server("--check", *flags)
    assert done.returncode == 0, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok"] * len(done.stdout.splitlines())
    assert "libpython" in done.stdout
    assert "/dev/shm" in done.stdout


def test_a_taken_port_is_refused_by_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run_server("--demo", "--http-port", port)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_setting_that_cannot_be_is_refused() -> None:
    done = run_server("--dry-run", "--device", "cpu", "--max-media-mb", "0")
    assert (done.returncode, "--max-media-mb is 0 (allowed: 1 to 2047" in done.stderr) == (2, True), (
        done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str]]:
    """Exit code, errors and output of the server's program for each of the cases."""
    done = subprocess.run(
        [sys.executable, "-c", IN_TURN, OWN],
        cwd=tmp_path_factory.mktemp("dry"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=json.dumps([flags for flags, _, _ in CASES.values()]),
        stdout=subprocess.PIPE,
        text=True,
        timeout=100,
        check=True,
    )
    return dict(zip(CASES, map(json.loads, done.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_model_that_cannot_be_has_a_code_and_a_message(
    case: str, outcomes: dict[str, tuple[int, str, str]]
) -> None:
    _, expected, message = CASES[case]
    code, errors, said = outcomes[case]
    assert code == expected, errors
    assert message in errors
    assert "Traceback" not in errors
    assert (f"{OWN} answered segmentation on cpu" in said) == (code == 0)


def test_offline_without_weights_the_error_names_the_ways_out(tmp_path: Path) -> None:
    closed = f"http://127.0.0.1:{free_ports(1)[0]}"
    env = {**os.environ, "TORCH_HOME": str(tmp_path), "https_proxy": closed, "http_proxy": closed}
    with tempfile.TemporaryDirectory() as temp:
        # As without a home, where torch's cache is among the temporary files.
        env |= {"TMPDIR": temp, "XDG_CACHE_HOME": "none"}
        done = run_server("--dry-run", "--device", "cpu", env=env)
        assert os.listdir(temp) == []
    assert done.returncode == 3
    for way_out in ("--weights FILE", str(tmp_path), "--demo"):
        assert way_out in done.stderr
    assert "Traceback" not in done.stderr
