"""The demo models on drawings they have never seen, through the whole served chain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from client import Client
from pipelines.protocol.answers import ANSWERS
from scripts.demo.judging import MEASURES, Truth, read_truth
from tests.conftest import ROOT, Server

FRESH_SEED = 31_415
SECONDS = {"action": 12, "other": 3}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Truth]]:
    """Clips that the models have not seen, neither in training nor tests, and their truth, by task."""
    folder = tmp_path_factory.mktemp("drawing")
    drawn = {}
    for kind, seconds in SECONDS.items():
        clip, truth = folder / f"{kind}.mp4", folder / f"{kind}.npz"
        draw = ["--draw", clip, "--truth", truth, "--seed", FRESH_SEED, "--seconds", seconds]
        task = ["--task", kind] if kind == "action" else []
        command = [sys.executable, "-m", "scripts.demo.train", *map(str, draw), *task]
        subprocess.run(command, cwd=ROOT, check=True, timeout=100)
        drawn[kind] = clip, read_truth(truth)
    return drawn


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("task", list(ANSWERS))
def test_a_fresh_drawing_is_understood(
    task: str, protocol: str, server: Server, drawings: dict[str, tuple[Path, Truth]]
) -> None:
    clip, truth = drawings["action" if task == "action" else "other"]
    kind = ANSWERS[task]
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, timeout_s=60) as client:
        answer = kind.concatenate(list(client.ask_stream(kind, clip, MEASURES[kind].options)))
    quality = MEASURES[kind].judge(answer, truth)
    assert quality >= MEASURES[kind].least, (MEASURES[kind].name, quality)
