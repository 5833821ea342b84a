"""Preprocessing against torchvision: its sizes, and its pixels to one level of 255."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from torch import Tensor

from pipelines.frames.dali import Graph, number_input, picture_input
from pipelines.frames.geometry import geometry
from pipelines.frames.preprocess import Preprocessor, prepare_frames
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import Cancelled, InternalError, InvalidMedia, ModelUnavailable
from tests.support.pixels import FORMS, letterboxed, levels_apart, natural, reference

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FCN = Preprocessing(resize_px=520)
RESNET = Preprocessing(resize_px=232, crop_px=(224, 224))
SIZES = [(361, 643), (643, 361), (720, 1280), (37, 29), (2, 3), (1, 1), (224, 224)]


def check(got: Tensor, expected: Tensor, preprocessing: Preprocessing) -> None:
    """One level at most; a few more on the rim of an uncropped picture, where DALI repeats pixels."""
    assert got.shape == expected.shape
    assert got.dtype == torch.float32
    apart = levels_apart(got.cpu(), expected, preprocessing)
    inner = apart if preprocessing.crop_px else apart[..., 1:-1, 1:-1]
    assert inner.max() < 1.01
    assert apart.max() < 18.01
    assert apart.mean() < 0.02


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("hw", SIZES)
@pytest.mark.parametrize("preprocessing", [FCN, RESNET], ids=["FCN", "ResNet"])
def test_pixels_are_torchvisions(device: str, hw: tuple[int, int], preprocessing: Preprocessing) -> None:
    pixels = natural(*hw)
    got = Preprocessor(preprocessing, device=device, max_frames=4)(pixels)
    assert got.device.type == device
    check(got, reference(preprocessing, pixels), preprocessing)


@pytest.mark.parametrize(
    "preprocessing",
    [
        Preprocessing(resize_px=64),
        Preprocessing(resize_px=None),
        Preprocessing(resize_px=None, crop_px=(31, 30)),
        Preprocessing(resize_px=(61, 200), crop_px=(50, 77)),
        Preprocessing(resize_px=100, interpolation="nearest"),
        Preprocessing(resize_px=100, crop_px=(90, 81), antialias=False),
    ],
    ids=["shorter side", "own size", "own size cropped", "both sides", "nearest", "no antialias"],
)
@pytest.mark.parametrize("hw", [(123, 211), (50, 40)])
def test_other_ways_to_resize_are_torchvisions_too(preprocessing: Preprocessing, hw: tuple[int, int]) -> None:
    pixels = natural(*hw, count=2)
    got = Preprocessor(preprocessing, device="cpu", max_frames=4)(pixels)
    apart = levels_apart(got, reference(preprocessing, pixels), preprocessing)
    inner = apart if preprocessing.crop_px else apart[..., 1:-1, 1:-1]
    assert inner.max() < 1.01


def test_bicubic_is_close_to_torchvisions() -> None:
    preprocessing = Preprocessing(resize_px=100, crop_px=(90, 90), interpolation="bicubic")
    pixels = natural(361, 243)
    apart = levels_apart(
        Preprocessor(preprocessing, device="cpu", max_frames=1)(pixels),
        reference(preprocessing, pixels),
        preprocessing,
    )
    assert apart.max() < 3.01
    assert apart.mean() < 0.2
    unsupported = dataclasses.replace(preprocessing, antialias=False)
    with pytest.raises(ModelUnavailable, match="bicubic"):
        Preprocessor(unsupported, device="cpu", max_frames=1)


@pytest.mark.parametrize("hw", [(70, 53), (53, 70), (300, 401), (8, 8), (97, 128)])
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("device", DEVICES)
def test_a_letterbox_keeps_the_aspect_and_is_padded(device: str, name: str, hw: tuple[int, int]) -> None:
    preprocessing = FORMS[name]
    pixels = natural(*hw, count=2)
    got = Preprocessor(preprocessing, device=device, max_frames=4)(pixels).cpu()
    assert got.shape == (2, 3, 96, 128)
    apart = levels_apart(got, letterboxed(preprocessing, pixels), preprocessing)
    assert apart.mean() < 0.4
    # The rest is rim.
    assert apart.quantile(0.95) < 1.01
    top, left, _, _ = geometry(preprocessing, *hw).crop_yxhw
    bars = [got[:, :, :-top], got[:, :, :, :-left]]
    for bar in bars:
        levels = bar * 255 * torch.tensor(preprocessing.std)[:, None, None]
        expected = preprocessing.pad_value - 255 * torch.tensor(preprocessing.mean)[:, None, None]
        assert torch.allclose(levels, expected.expand_as(levels), atol=1e-3)


@pytest.mark.parametrize("hw", [(5, 300), (300, 5), (20, 31), (31, 64), (1, 1), (63, 90)])
@pytest.mark.parametrize("resize_px", [None, 24, (30, 70)])
@pytest.mark.parametrize("device", DEVICES)
def test_a_crop_of_a_smaller_frame_is_padded_with_black(
    device: str, resize_px: Any, hw: tuple[int, int]
) -> None:
    preprocessing = Preprocessing(resize_px=resize_px, crop_px=(31, 64), pad_value=200)
    pixels = natural(*hw)
    got = Preprocessor(preprocessing, device=device, max_frames=2)(pixels).cpu()
    apart = levels_apart(got, reference(preprocessing, pixels), preprocessing)
    assert apart.mean() < 0.5
    assert (apart > 1.01).float().mean() < 0.1


@pytest.mark.parametrize("name", [*FORMS, "detector", "crop"])
def test_the_graph_of_clips_gives_the_same(name: str) -> None:
    """NVDEC's graph: frames FHWC of one size, windows as numbers, FCHW out."""
    others = {
        "detector": Preprocessing(resize_px=80, max_px=100, antialias=False, round_pixels=False),
        "crop": Preprocessing(resize_px=40, crop_px=(48, 48), channels="BGR"),
    }
    preprocessing = {**FORMS, **others}[name]
    pixels = natural(70, 91, count=3)
    shape = geometry(preprocessing, 70, 91)
    graph = Graph(
        lambda device: [
            prepare_frames(
                fn.external_source(name="clips", device=device, layout="FHWC"),
                shape,
                preprocessing,
                layout="FCHW",
            )
        ],
        device="cpu",
        max_samples=1,
    )
    (got,) = graph(clips=[pixels])
    assert torch.equal(got[0], Preprocessor(preprocessing, device="cpu", max_frames=4)(pixels))


def test_one_graph_serves_all_sizes_and_counts() -> None:
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=3)
    for count, hw in [(2, (300, 300)), (1, (233, 500)), (7, (120, 90)), (3, (300, 301))]:
        pixels = natural(*hw, count=count)
        check(preprocess(pixels), reference(RESNET, pixels), RESNET)


def test_earlier_results_stay_as_they_are() -> None:
    """Results share DALI's memory: a later run must not write into it."""
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=2)
    first = preprocess(natural(240, 320))
    copy = first.clone()
    for hw in [(240, 320), (260, 320), (240, 320)]:
        preprocess(255 - natural(*hw))
    assert torch.equal(first, copy)


def test_frames_may_be_read_only_strided_or_tensors() -> None:
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=4)
    pixels = natural(250, 260, count=2)
    expected = preprocess(pixels)
    frozen = pixels.copy()
    frozen.flags.writeable = False
    flipped = np.ascontiguousarray(pixels[:, :, ::-1])[:, :, ::-1]
    for same in (frozen, flipped, torch.from_numpy(pixels)):
        assert torch.equal(preprocess(same), expected)


def test_after_an_error_the_next_frames_are_right() -> None:
    preprocess = Preprocessor(RESNET, device="cpu", max_frames=2)
    pixels = natural(240, 320)
    expected = preprocess(pixels)
    half_fed = {"frames": [pixels[0]], "start": [np.zeros(2, np.float32)], "end": [np.ones(2, np.float32)]}
    with pytest.raises(InternalError, match="DALI failed: ") as caught:
        preprocess._graph(**half_fed, size=[np.full(3, 9, np.float32)])
    assert "/" not in caught.value.message
    assert torch.equal(preprocess(pixels), expected)
    with pytest.raises(InternalError, match="batch size"):
        preprocess._graph(frames=[pixels[0]] * 3)
    assert torch.equal(preprocess(pixels), expected)


def test_result_n_belongs_to_input_n_after_errors_cancellations_and_idling() -> None:
    """Each sample carries its number; whatever went wrong before, a call answers with its own."""
    graph = Graph(
        lambda device: [fn.resize(picture_input("frames", device), size=number_input("size"))],
        device="cpu",
        max_samples=4,
    )

    def asked(number: int, count: int) -> list[int]:
        samples = [np.full((8, 8, 3), (number + place) % 256, np.uint8) for place in range(count)]
        (pixels,) = graph(frames=samples, size=[np.full(2, 4, np.float32)] * count)
        return [int(level) for level in pixels[:, 0, 0, 0]]

    def cancelled() -> Iterator[np.ndarray[Any, Any]]:
        yield np.zeros((8, 8, 3), np.uint8)
        raise Cancelled("the client left")

    random = np.random.default_rng(1)
    for number in range(120):
        trouble = random.choice(
            ["none", "error in the run", "error before it", "half fed", "cancelled", "idle"]
        )
        if trouble == "error in the run":
            with pytest.raises(InternalError):
                graph(frames=[np.zeros((8, 8, 3), np.uint8)], size=[np.full(3, 9, np.float32)])
        elif trouble == "error before it":
            with pytest.raises(InternalError):
                graph(frames=[np.zeros((8, 8, 3), np.uint8)] * 5)
        elif trouble == "half fed":
            with pytest.raises((InternalError, IndexError)):
                graph(frames=[np.zeros((8, 8, 3), np.uint8)])
        elif trouble == "cancelled":
            with pytest.raises(Cancelled):
                graph(frames=list(cancelled()), size=[np.full(2, 4, np.float32)])
        elif trouble == "idle":
            time.sleep(0.01)
        count = 1 + number % 4
        assert asked(number, count) == [(number + place) % 256 for place in range(count)], (number, trouble)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 8, 8), np.uint8),
        np.zeros((0, 8, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 4), np.uint8),
        np.zeros((1, 8, 8, 3), np.float32),
        torch.zeros(1, 8, 8, 3),
    ],
)
def test_frames_of_another_form_are_refused(pixels: Any) -> None:
    with pytest.raises(InvalidMedia, match="uint8"):
        Preprocessor(FCN, device="cpu", max_frames=1)(pixels)


@pytest.mark.gpu
def test_frames_on_the_gpu_are_prepared_as_those_on_the_host() -> None:
    preprocess = Preprocessor(FCN, device="cuda", max_frames=4)
    pixels = natural(240, 320, count=3)
    on_gpu = preprocess(torch.from_numpy(pixels).cuda())
    assert torch.equal(on_gpu, preprocess(pixels))
    apart = levels_apart(on_gpu.cpu(), Preprocessor(FCN, device="cpu", max_frames=4)(pixels), FCN)
    assert apart.max() < 1.01
