"""Logits of coarse pixels: read in bands they are what torchvision makes of them as a whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model_inference import Model
from pipelines.models.enlarge import BAND_ROWS, bands, enlarged
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.protocol.options import Options
from pipelines.settings.model import ModelSettings
from pipelines.tasks.segmentation import Segmentation
from pipelines.zoo import resolve
from pipelines.zoo.vision.adapters import CoarseSegmenter


@pytest.mark.parametrize(
    ("coarse_hw", "fine_hw"),
    [
        ((65, 116), (520, 924)),
        ((9, 7), (65, 51)),
        ((1, 1), (BAND_ROWS + 1, 3)),
        ((2, 40), (2, 37)),
        ((50, 50), (31, 20)),
        ((100, 4), (3 * BAND_ROWS, 8)),
    ],
)
def test_bands_are_the_whole(coarse_hw: tuple[int, int], fine_hw: tuple[int, int]) -> None:
    scores = torch.randn(2, 5, *coarse_hw, generator=torch.Generator().manual_seed(0))
    parts = list(bands(scores, fine_hw))
    assert all(part.shape[2] == BAND_ROWS for part in parts[:-1])
    torch.testing.assert_close(torch.cat(parts, dim=2), enlarged(scores, fine_hw))


@pytest.mark.parametrize(
    "name", ["lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "fcn_resnet50"]
)
def test_a_segmenter_of_torchvision_gives_what_it_gave(name: str) -> None:
    spec = resolve(ModelSettings(source=name, weights="random"), allow_code=False)
    adapted = spec.build().eval()
    assert isinstance(adapted, CoarseSegmenter)
    pixels = torch.randn(2, 3, 97, 130, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected, given = adapted.network(pixels)["out"], adapted(pixels)
        assert list(given) == ["out"]
        assert torch.equal(given["out"], expected)
        output = Model(spec, "cpu")(pixels)
    assert isinstance(output, LogitOutput)
    assert output.tensors["out"].shape[-2] < 20
    assert output.size_hw == (97, 130)
    # Untrained layers enlarge what another layout of the weights rounds otherwise.
    assert (output.logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean() > 0.99
    assert output.sized["out"].shape == expected.shape
    assert len(output.part(1, 2)) == 1
    assert output.part(1, 2).size_hw == (97, 130)


def segmentation(probabilities: bool, **options: object) -> Segmentation:
    spec = ModelSpec(
        name="toy",
        task="segmentation",
        build=torch.nn.Identity,
        source="test",
        labels=("background", "cat", "dog"),
        preprocessing=Preprocessing(resize_px=None),
        activation="none" if probabilities else "softmax",
    )
    return Segmentation(spec, Options(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_name": "dog"},
        {"class_name": "cat, dog"},
        {"score_threshold": 0.4},
        {"mask": "probability"},
    ],
)
def test_coarse_scores_count_as_enlarged_ones(probabilities: bool, options: dict[str, object]) -> None:
    coarse = torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(2))
    if probabilities:
        coarse = coarse.softmax(dim=1)
    size_hw = (100, 85)
    job = segmentation(probabilities, **options)
    found = job.read(LogitOutput({"out": coarse}, "out", size_hw)).scores
    expected = job.read(LogitOutput({"out": enlarged(coarse, size_hw)}, "out")).scores
    assert_close(found.values_nhw, expected.values_nhw)
    assert found.values_nhw.shape == (2, *size_hw)
    assert (found.kind, found.class_id, found.threshold) == (
        expected.kind,
        expected.class_id,
        expected.threshold,
    )
    if options.get("mask"):
        assert_close(found.confidence, expected.confidence)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """The same numbers, but for winners within rounding of each other."""
    assert found.dtype == expected.dtype
    same = torch.isclose(found.float(), expected.float(), atol=1e-4)
    assert same.float().mean() > 0.999
