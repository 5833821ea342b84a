"""The embedded demo model: its weights, its clip with the exact masks, and the script that makes both."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn.functional import interpolate

from model_inference import ASSETS, DEMO_LABELS, DEMO_WEIGHTS, DemoSegmenter, Model, demo_spec

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "train_demo.py"
SHIPPED_SEED = 2027
FRAME_STEP = 10
Array = npt.NDArray[np.uint8]


def decode(path: Path) -> Iterator[Array]:
    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)


def read_masks(path: Path) -> Array:
    with np.load(path) as arrays:
        masks: Array = arrays["masks"]
    return masks


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(demo_spec(), "cpu")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Array], Array]]:
    """Three short clips as the script draws and writes them: frames and masks by name."""
    folder = tmp_path_factory.mktemp("clips")
    running = {}
    for name, seed in (("first", SHIPPED_SEED), ("again", SHIPPED_SEED), ("other", 7)):
        outputs = ["--draw", str(folder / f"{name}.mp4"), "--truth", str(folder / f"{name}.npz")]
        command = [sys.executable, str(SCRIPT), *outputs, "--seed", str(seed), "--seconds", "0.2"]
        running[name] = subprocess.Popen(command)
    clips = {}
    for name, process in running.items():
        assert process.wait(timeout=60) == 0
        clips[name] = list(decode(folder / f"{name}.mp4")), read_masks(folder / f"{name}.npz")
    return clips


def test_weights_are_small_and_load(model: Model) -> None:
    assert DEMO_WEIGHTS.stat().st_size <= 2_000_000
    assert model.spec.labels == DEMO_LABELS


@pytest.mark.parametrize("size_hw", [(32, 32), (33, 47), (160, 284), (225, 301)])
def test_logits_have_the_inputs_size(size_hw: tuple[int, int]) -> None:
    network = DemoSegmenter(classes=5).eval()
    with torch.inference_mode():
        assert network(torch.zeros(2, 3, *size_hw)).shape == (2, 5, *size_hw)


def test_a_seed_decides_the_drawing(drawn: dict[str, tuple[list[Array], Array]]) -> None:
    (frames, masks), (frames_again, masks_again), (_, masks_other) = drawn.values()
    assert len(frames) == len(masks) == 6
    np.testing.assert_array_equal(frames, frames_again)
    np.testing.assert_array_equal(masks, masks_again)
    assert (masks != masks_other).mean() > 0.05


def test_the_shipped_clip_is_what_the_script_draws(drawn: dict[str, tuple[list[Array], Array]]) -> None:
    frames, masks = drawn["first"]
    shipped = np.stack([frame for frame, _ in zip(decode(ASSETS / "demo.mp4"), frames, strict=False)])
    # Another processor may round a point on an edge to its other side, and x264 decide otherwise.
    assert (read_masks(ASSETS / "demo_truth.npz")[: len(masks)] != masks).mean() < 1e-4
    assert np.abs(shipped.astype(int) - np.stack(frames)).mean() < 4


def test_the_shipped_files_are_small_and_whole() -> None:
    assert (ASSETS / "demo_truth.npz").stat().st_size <= 400_000
    with av.open(ASSETS / "demo.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 640, 360)
        assert stream.average_rate == 30
        kinds = [frame.pict_type for frame in container.decode(stream)]
    assert av.video.frame.PictureType.B in kinds
    assert read_masks(ASSETS / "demo_truth.npz").shape == (len(kinds), 360, 640) == (150, 360, 640)


def test_the_model_finds_the_shapes_of_the_shipped_clip(model: Model) -> None:
    facts = model.spec.preprocessing
    assert facts.resize_px == 160
    frames = np.stack(list(decode(ASSETS / "demo.mp4"))[::FRAME_STEP])
    truth = read_masks(ASSETS / "demo_truth.npz")[::FRAME_STEP]
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2) / 255
    small = interpolate(pixels, size=(160, 284), mode="bilinear", antialias=True)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (facts.mean, facts.std))
    ids = model((small - mean) / std).argmax(1, keepdim=True).to(torch.uint8)
    found = interpolate(ids, size=(360, 640), mode="nearest-exact")[:, 0].numpy()
    overlaps = [((found == k) & (truth == k)).sum() / ((found == k) | (truth == k)).sum() for k in range(5)]
    assert np.mean(overlaps) >= 0.9, dict(zip(DEMO_LABELS, overlaps, strict=True))
