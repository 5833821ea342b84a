"""The demo models on drawings they have never seen, through the whole served chain."""

from __future__ import annotations

from pathlib import Path

import pytest

from client import Client
from pipelines.protocol.answers import Answer
from scripts.demo.judging import MEASURES, TruthArrays, read_truth
from scripts.demo.train import draw
from tests.conftest import Server

FRESH_SEED = 31_415
SECONDS = {"action": 12, "other": 3}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, TruthArrays]]:
    """Clips of a seed that neither trained nor tested the models, and their truth: of actions, of shapes."""
    folder = tmp_path_factory.mktemp("drawing")
    drawn = {}
    for kind, seconds in SECONDS.items():
        clip, truth = folder / f"{kind}.mp4", folder / f"{kind}.npz"
        draw(clip, truth, FRESH_SEED, seconds, action=kind == "action")
        drawn[kind] = clip, read_truth(truth)
    return drawn


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", MEASURES, ids=lambda kind: kind.task)
def test_a_fresh_drawing_is_understood(
    kind: type[Answer], protocol: str, server: Server, drawings: dict[str, tuple[Path, TruthArrays]]
) -> None:
    clip, truth = drawings["action" if kind.task == "action" else "other"]
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, timeout_s=60) as client:
        answer = kind.concatenate(list(client.ask_stream(kind, clip, MEASURES[kind].options)))
    quality = MEASURES[kind].judge(answer, truth)
    assert quality[MEASURES[kind].name] >= MEASURES[kind].least, quality
