"""The demo model on a drawing it has never seen, through the whole served chain."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from client import Client
from conftest import ROOT
from pipelines import rle
from pipelines.results import SegmentationAnswer

FRESH_SEED = 31_415


@pytest.fixture(scope="module")
def drawing(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, npt.NDArray[np.uint8]]:
    """A clip of a seed that neither trained nor tested the model, and its truth `(N, H, W)`."""
    folder = tmp_path_factory.mktemp("drawing")
    clip, truth = folder / "fresh.mp4", folder / "fresh.npz"
    draw = ["--draw", clip, "--truth", truth, "--seed", FRESH_SEED, "--seconds", 2]
    script = ROOT / "scripts" / "train_demo.py"
    subprocess.run([sys.executable, script, *map(str, draw)], check=True, timeout=100)
    return clip, np.load(truth)["masks"]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_fresh_drawing_is_segmented(
    protocol: str, request: pytest.FixtureRequest, drawing: tuple[Path, npt.NDArray[np.uint8]]
) -> None:
    clip, truth = drawing
    with Client(request.getfixturevalue(f"{protocol}_url"), timeout_s=60) as client:
        answer = SegmentationAnswer.concatenate(list(client.segment_stream(clip)))
    assert len(answer) == len(truth)
    size = (answer.height_px, answer.width_px)
    found = np.stack([rle.decode(mask, size) for mask in answer.mask])
    classes = range(len(answer.class_names))
    scores = [np.sum((found == k) & (truth == k)) / np.sum((found == k) | (truth == k)) for k in classes]
    assert np.mean(scores) >= 0.90, scores
