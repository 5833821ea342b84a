"""Pixels of transformers' processors: sizes and values against the library's own, and what is refused."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.frames.geometry import geometry
from pipelines.frames.preprocess import Preprocessor
from pipelines.frames.resize import prepare_on_cpu
from pipelines.models.spec import Preprocessing, Rounding
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.libraries.hf_pixels import processor_pixels
from tests.support.pixels import natural

pytest.importorskip("transformers", reason="the extra transformers is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import transformers as hf
    from transformers.image_transforms import get_size_with_aspect_ratio
    from transformers.models.yolos.image_processing_yolos import get_size_with_aspect_ratio_yolos

Make = Callable[[], Any]
SMALL = {"height": 48, "width": 64}
CROP = {"height": 32, "width": 40}
BOUND = {"shortest_edge": 80, "longest_edge": 133}
DRAWN = random.Random(0)
FRAMES = [
    *[(720, 1280), (1280, 720), (800, 1333), (1333, 800), (800, 800), (1, 4000), (427, 640), (480, 854)],
    *[(DRAWN.randint(40, 2200), DRAWN.randint(40, 2200)) for _ in range(38)],
]


@pytest.mark.parametrize(("shorter", "longest"), [(800, 1333), (512, 600), (80, 133)])
def test_sizes_of_detectors_are_the_librarys(shorter: int, longest: int) -> None:
    def sizes(rounding: Rounding) -> list[tuple[int, int]]:
        facts = Preprocessing(resize_px=shorter, max_px=longest, rounding=rounding)
        return [geometry(facts, *frame).model_hw for frame in FRAMES]

    # Of a row of pixels the library has nothing left.
    expected = [get_size_with_aspect_ratio(frame, shorter, longest) for frame in FRAMES]
    assert sizes("transformers") == [(max(1, height), max(1, width)) for height, width in expected]
    expected = [get_size_with_aspect_ratio_yolos(frame, shorter, longest) for frame in FRAMES]
    assert sizes("yolos") == [(max(16, height), max(16, width)) for height, width in expected]
    assert (
        len(
            [
                1
                for one, other in zip(sizes("transformers"), sizes("torchvision"), strict=True)
                if one != other
            ]
        )
        > 9
    )


PROCESSORS: list[tuple[str, Make]] = [
    ("stretched", lambda: hf.ViTImageProcessor(size=SMALL)),
    ("by Pillow", lambda: hf.ViTImageProcessorPil(size=SMALL, resample=3)),
    ("bicubic, shorter side, crop", lambda: hf.BitImageProcessor(size={"shortest_edge": 45}, crop_size=CROP)),
    ("crop larger than the picture", lambda: hf.DeiTImageProcessor(size=SMALL, crop_size=71)),
    ("no resize", lambda: hf.BitImageProcessor(do_resize=False, crop_size=CROP)),
    ("levels of 0..255", lambda: hf.ViTImageProcessor(size=SMALL, do_rescale=False, do_normalize=False)),
    (
        "mean of levels",
        lambda: hf.ViTImageProcessor(size=SMALL, do_rescale=False, image_mean=127.5, image_std=99),
    ),
    ("0..1 beside a mean", lambda: hf.RTDetrImageProcessor(size=SMALL)),
    ("bounded", lambda: hf.DetrImageProcessor(size=BOUND)),
    ("bounded, in steps of 16", lambda: hf.YolosImageProcessor(size=BOUND)),
    ("ConvNext's crop", lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 56}, crop_pct=0.9)),
    ("ConvNext's stretch", lambda: hf.ConvNextImageProcessor(size={"shortest_edge": 384})),
    ("PoolFormer's crop", lambda: hf.PoolFormerImageProcessor(size={"shortest_edge": 56}, crop_size=56)),
    (
        "PoolFormer's two sides",
        lambda: hf.PoolFormerImageProcessor(size={"height": 9, "width": 8}, crop_size=8),
    ),
    ("LeViT's margin", lambda: hf.LevitImageProcessor(size={"shortest_edge": 56}, crop_size=56)),
    ("BGR", lambda: hf.MobileViTImageProcessor(size={"shortest_edge": 45}, crop_size=CROP)),
    ("EfficientNet's second std", lambda: hf.EfficientNetImageProcessor(size=SMALL)),
    (
        "EfficientNet's offset",
        lambda: hf.EfficientNetImageProcessor(size=SMALL, rescale_factor=1 / 127.5, rescale_offset=True),
    ),
]


@pytest.mark.parametrize(("name", "make"), PROCESSORS, ids=[name for name, _ in PROCESSORS])
def test_pixels_are_the_librarys(name: str, make: Make) -> None:
    processor = make()
    facts = processor_pixels(processor, clips=False)
    for size_hw in ((123, 187), (190, 95), (77, 77)):
        picture = natural(*size_hw)
        expected = processor(picture[0], return_tensors="pt")["pixel_values"].float()
        found = prepare_on_cpu(picture, facts)
        assert found.shape == expected.shape
        levels = (found - expected).abs() * 255 * torch.tensor(facts.std).view(3, 1, 1)
        assert float(levels.max()) < (8 if "Pil" in type(processor).__name__ else 0.01)


@pytest.mark.parametrize(
    "make", [hf.VideoMAEImageProcessor, hf.VivitImageProcessor, hf.VideoMAEVideoProcessor]
)
def test_pixels_of_clips_are_the_librarys(make: Any) -> None:
    processor = make(size={"shortest_edge": 45}, crop_size=CROP)
    facts = processor_pixels(processor, clips=True)
    frames = natural(77, 99, count=4)
    expected = processor([list(frames)], return_tensors="pt")["pixel_values"][0]
    levels = (prepare_on_cpu(frames, facts) - expected).abs() * 255 * torch.tensor(facts.std).view(3, 1, 1)
    # Vivit's prepares by Pillow.
    assert float(levels.max()) < 1.1


def test_dali_makes_the_same_pixels_of_the_same_crop() -> None:
    """A centre crop of 455 of 115 px begins a column before torchvision's."""
    facts = Preprocessing(resize_px=(57, 92), crop_px=(32, 33), rounding="transformers")
    assert geometry(facts, 60, 90).crop_yxhw == (12, 29, 32, 33)
    assert geometry(Preprocessing(resize_px=(57, 92), crop_px=(32, 33)), 60, 90).crop_yxhw[1] == 30
    frames = natural(60, 90)
    on_dali = Preprocessor(facts, device="cpu", max_frames=1)(frames)
    np.testing.assert_allclose(on_dali, prepare_on_cpu(frames, facts), atol=1.1 / 255 / min(facts.std))


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda: hf.ViTImageProcessor(size=SMALL, resample=1), "ViTImageProcessor has resample = lanczos"),
        (lambda: hf.ViTImageProcessor(size=SMALL, resample=0), "resample = nearest"),
        (lambda: hf.ViTImageProcessorPil(size=SMALL, resample=4), "resample = box"),
        (lambda: hf.ViTImageProcessor(size={"max_height": 9, "max_width": 9}), "has size = "),
        (lambda: hf.RTDetrImageProcessor(do_pad=True, pad_size=SMALL), "has pad_size = "),
        (lambda: hf.TextNetImageProcessor(), "TextNetImageProcessor has size_divisor = 32"),
        (lambda: hf.Mask2FormerImageProcessor(), "has size_divisor = 32"),
        (lambda: hf.DPTImageProcessor(keep_aspect_ratio=True), "has keep_aspect_ratio = True"),
        (lambda: hf.DPTImageProcessor(ensure_multiple_of=32), "has ensure_multiple_of = 32"),
        (lambda: hf.EomtImageProcessor(do_split_image=True), "has do_split_image = True"),
        # Its crop is a share of the picture, which no field says.
        (lambda: hf.PerceiverImageProcessor(size=SMALL), "has steps that are not supported"),
        (lambda: hf.ImageGPTImageProcessor(clusters=[[0.0] * 3]), "has do_color_quantize = True"),
    ],
)
def test_what_a_processor_does_beyond_is_refused_by_name(make: Make, wrong: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        processor_pixels(make(), clips=False)
    assert wrong in caught.value.message
    assert caught.value.hint
