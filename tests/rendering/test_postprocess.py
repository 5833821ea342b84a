"""Postprocessing against numpy and torch: class maps, counts, and each style's pictures to 1 of 255."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from pipelines.frames.geometry import Geometry, geometry
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import InternalError
from pipelines.rendering.dali_graphs import palette
from pipelines.rendering.postprocess import (
    ClassScores,
    Postprocessor,
    Rendered,
    RenderStyle,
    whole_frame,
    with_margins,
)
from pipelines.telemetry.counters import Telemetry

CLASSES = 5
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SIZES = [((40, 71), (90, 160)), ((52, 52), (37, 29)), ((26, 64), (131, 322)), ((24, 30), (24, 30))]
Array = npt.NDArray[Any]


def whole(model_hw: tuple[int, int], source_hw: tuple[int, int]) -> Geometry:
    return geometry(Preprocessing(resize_px=model_hw), *source_hw)


def frames(count: int, source_hw: tuple[int, int], seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(0, 256, (count, *source_hw, 3), dtype=np.uint8)


def blobs(count: int, model_hw: tuple[int, int], seed: int = 0) -> Array:
    """Class maps with regions of several pixels, as a network makes them."""
    coarse = np.random.default_rng(seed).integers(0, CLASSES, (count, 5, 6)).astype(np.uint8)
    return nearest(coarse, model_hw)


def hills(count: int, model_hw: tuple[int, int], seed: int = 0) -> Array:
    """Smooth probabilities around a half."""
    coarse = torch.from_numpy(np.random.default_rng(seed).random((count, 1, 4, 5), dtype=np.float32))
    return functional.interpolate(coarse, model_hw, mode="bilinear")[:, 0].numpy()


def nearest(maps_nhw: Array, hw: tuple[int, int]) -> Array:
    rows = [(2 * i + 1) * maps_nhw.shape[1] // (2 * hw[0]) for i in range(hw[0])]
    columns = [(2 * i + 1) * maps_nhw.shape[2] // (2 * hw[1]) for i in range(hw[1])]
    return maps_nhw[:, rows][:, :, columns]


def outline(maps_nhw: Array, width_px: int) -> Array:
    height, width = maps_nhw.shape[1:]
    padded = np.pad(maps_nhw, ((0, 0), (width_px, width_px), (width_px, width_px)), mode="edge")
    differs = np.zeros(maps_nhw.shape, bool)
    for y, x in ((0, width_px), (2 * width_px, width_px), (width_px, 0), (width_px, 2 * width_px)):
        differs |= padded[:, y : y + height, x : x + width] != maps_nhw
    return differs & (maps_nhw > 0)


def overlaid(pixels: Array, maps_nhw: Array, alpha: float, outline_px: int) -> Array:
    inside = maps_nhw[..., None] > 0
    blended = pixels * (1 - alpha) + palette(CLASSES)[maps_nhw] * alpha
    drawn = np.where(inside, blended, pixels)
    return np.where(outline(maps_nhw, outline_px)[..., None], 255, drawn) if outline_px else drawn


def render(
    pixels: Array | None,
    scores: ClassScores,
    shape: Geometry,
    style: RenderStyle | None,
    *,
    device: str = "cpu",
    max_frames: int = 4,
) -> Rendered:
    post = Postprocessor(device=device, max_frames=max_frames, classes=CLASSES)
    return post(pixels, on(scores, device), shape, style)


def on(scores: ClassScores, device: str) -> ClassScores:
    if scores.class_map_nhw is not None:
        return ClassScores(class_map_nhw=scores.class_map_nhw.to(device))
    return ClassScores(
        probability_nhw=scores.values_nhw.to(device), class_id=scores.class_id, threshold=scores.threshold
    )


def all_classes(maps_nhw: Array) -> ClassScores:
    return ClassScores(class_map_nhw=torch.from_numpy(maps_nhw))


def one_class(probability_nhw: Array, class_id: int = 3, threshold: float = 0.5) -> ClassScores:
    values = torch.from_numpy(probability_nhw)
    return ClassScores(probability_nhw=values, class_id=class_id, threshold=threshold)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model_hw", "source_hw"), SIZES)
def test_class_maps_are_the_nearest_model_pixels(
    device: str, model_hw: tuple[int, int], source_hw: tuple[int, int]
) -> None:
    maps = blobs(3, model_hw)
    rendered = render(None, all_classes(maps), whole(model_hw, source_hw), None, device=device)
    expected = nearest(maps, source_hw)
    np.testing.assert_array_equal(rendered.class_map_nhw, expected)
    counts = [np.bincount(one.ravel(), minlength=CLASSES) for one in expected]
    np.testing.assert_array_equal(rendered.class_pixels, counts)
    assert rendered.class_map_nhw.dtype == np.uint8
    assert rendered.class_pixels.dtype == np.int64
    assert rendered.pixels_nhwc is None


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model_hw", "source_hw"), SIZES)
def test_a_class_is_where_its_resized_probability_is_above_the_threshold(
    device: str, model_hw: tuple[int, int], source_hw: tuple[int, int]
) -> None:
    probability = hills(3, model_hw)
    rendered = render(
        None, one_class(probability, threshold=0.6), whole(model_hw, source_hw), None, device=device
    )
    resized = functional.interpolate(torch.from_numpy(probability)[:, None], source_hw, mode="bilinear")[:, 0]
    sure = (resized - 0.6).abs().numpy() > 1e-5
    inside = resized.numpy() > 0.6
    np.testing.assert_array_equal(rendered.class_map_nhw[sure], np.where(inside, 3, 0)[sure])
    np.testing.assert_array_equal(rendered.class_pixels[:, 3], (rendered.class_map_nhw == 3).sum(axis=(1, 2)))
    assert (rendered.class_pixels.sum(axis=1) == np.prod(source_hw)).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("model_hw", "source_hw"), SIZES)
@pytest.mark.parametrize(("alpha", "outline_px"), [(0.5, 2), (0.3, 0), (1.0, 1)])
def test_overlays_blend_each_class_and_outline_it(
    device: str, model_hw: tuple[int, int], source_hw: tuple[int, int], alpha: float, outline_px: int
) -> None:
    pixels, maps = frames(3, source_hw), blobs(3, model_hw)
    style = RenderStyle(style="overlay", alpha=alpha, outline_px=outline_px)
    rendered = render(pixels, all_classes(maps), whole(model_hw, source_hw), style, device=device)
    assert rendered.pixels_nhwc is not None
    expected = overlaid(pixels, nearest(maps, source_hw), alpha, outline_px)
    assert np.abs(rendered.pixels_nhwc - expected).max() <= 1.0
    np.testing.assert_array_equal(rendered.class_map_nhw, nearest(maps, source_hw))


@pytest.mark.parametrize("style", ["overlay", "extract", "redact"])
@pytest.mark.parametrize("scores", ["all", "one"])
def test_background_keeps_its_pixels_or_turns_black(style: Any, scores: str) -> None:
    """Whatever the class map says is background; classes lie in a corner, so that most is never drawn."""
    model_hw, source_hw = (40, 60), (121, 181)
    corner = np.zeros((2, *model_hw), np.uint8)
    corner[0, 3:12, 5:20] = 2
    corner[1, 8:15, 5:33] = 3
    probability = (corner > 0).astype(np.float32)
    given = all_classes(corner) if scores == "all" else one_class(probability, class_id=2)
    pixels = frames(2, source_hw)
    rendered = render(pixels, given, whole(model_hw, source_hw), RenderStyle(style=style, outline_px=0))
    assert rendered.pixels_nhwc is not None
    inside = rendered.class_map_nhw > 0
    assert 0.02 < inside.mean() < 0.2
    kept = np.zeros_like(pixels) if style == "extract" else pixels
    np.testing.assert_array_equal(rendered.pixels_nhwc[~inside], kept[~inside])
    drawn, source = rendered.pixels_nhwc[inside].astype(float), pixels[inside]
    if style == "extract":
        np.testing.assert_array_equal(drawn, source)
    if style == "overlay":
        tint = palette(CLASSES)[rendered.class_map_nhw[inside]]
        assert np.abs(drawn - (0.5 * source + 0.5 * tint)).max() <= 1.0


def test_a_redacted_class_cannot_be_told_from_its_pixels() -> None:
    """Fine stripes within the class are gone, blocks of one colour are left; all else is as it was."""
    source_hw = (320, 640)
    pixels = frames(2, source_hw)
    pixels[:, :, ::2] = 255 - pixels[:, :, 1::2]
    inside = np.zeros((2, *source_hw), np.uint8)
    inside[:, 70:250, 100:420] = 1
    rendered = render(pixels, all_classes(inside), whole(source_hw, source_hw), RenderStyle(style="redact"))
    assert rendered.pixels_nhwc is not None
    np.testing.assert_array_equal(rendered.pixels_nhwc[inside == 0], pixels[inside == 0])
    blocks = rendered.pixels_nhwc[:, 80:240, 112:416].reshape(2, 10, 16, 19, 16, 3).astype(int)
    assert np.ptp(blocks, axis=(2, 4)).max() == 0
    means = pixels[:, 80:240, 112:416].reshape(2, 10, 16, 19, 16, 3).mean(axis=(2, 4))
    assert np.abs(blocks[:, :, 0, :, 0] - means).max() < 20


def test_a_large_frame_has_as_few_blocks_as_a_small_one() -> None:
    source_hw = (64, 2560)
    pixels, everywhere = frames(1, source_hw), np.ones((1, *source_hw), np.uint8)
    rendered = render(
        pixels, all_classes(everywhere), whole(source_hw, source_hw), RenderStyle(style="redact")
    )
    assert rendered.pixels_nhwc is not None
    assert len(np.unique(rendered.pixels_nhwc.reshape(-1, 3), axis=0)) <= 40


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_frames_without_a_class_and_overlays_without_opacity_are_untouched(alpha: float) -> None:
    pixels, shape = frames(2, (30, 40)), whole((20, 20), (30, 40))
    maps = np.full((2, 20, 20), 0 if alpha else 3, np.uint8)
    rendered = render(pixels, all_classes(maps), shape, RenderStyle(style="overlay", alpha=alpha))
    assert rendered.pixels_nhwc is not None
    np.testing.assert_array_equal(rendered.pixels_nhwc, pixels)
    assert rendered.class_pixels[:, 0 if alpha else 3].tolist() == [1200, 1200]


def test_outside_of_the_crop_is_background() -> None:
    shape = geometry(Preprocessing(resize_px=20, crop_px=(20, 20)), 40, 80)
    rendered = render(None, all_classes(np.full((1, 20, 20), 4, np.uint8)), shape, None)
    assert (rendered.class_map_nhw[0, :, 20:60] == 4).all()
    assert rendered.class_pixels[0].tolist() == [1600, 0, 0, 0, 1600]


@pytest.mark.parametrize("kind", ["all", "one"])
@pytest.mark.parametrize(
    ("source_hw", "resize_px", "crop_px"),
    [((40, 300), 20, (16, 12)), ((7, 300), 64, (50, 40)), ((200, 9), 40, (40, 40)), ((90, 70), 30, (44, 40))],
)
def test_the_margins_of_a_crop_are_as_wide_as_they_are_seen(
    source_hw: tuple[int, int], resize_px: int, crop_px: tuple[int, int], kind: str
) -> None:
    """Answers are those of scores with all of the resized frame around them."""
    shape = geometry(Preprocessing(resize_px=resize_px, crop_px=crop_px), *source_hw)
    scores = all_classes(blobs(2, crop_px) % 3 + 1) if kind == "all" else one_class(hills(2, crop_px) ** 0.1)
    padded = whole_frame(scores.values_nhw, shape)
    all_around = Geometry(
        source_hw=source_hw, resized_hw=shape.resized_hw, crop_yxhw=(0, 0, *padded.shape[1:])
    )
    padded_scores = all_classes(padded.numpy()) if kind == "all" else one_class(padded.numpy())
    found, expected = render(None, scores, shape, None), render(None, padded_scores, all_around, None)
    assert (found.class_map_nhw == expected.class_map_nhw).all()
    assert found.class_map_nhw.any()


def test_a_long_narrow_frame_takes_no_more_than_the_crop() -> None:
    shape = geometry(Preprocessing(resize_px=256, crop_px=(224, 224)), 1, 30_000)
    assert math.prod(shape.resized_hw) > 1e9
    rendered = render(None, all_classes(np.full((1, 224, 224), 4, np.uint8)), shape, None)
    assert rendered.class_pixels[0, 4] <= 1
    values, _ = with_margins(torch.ones(1, 224, 224), shape)
    assert values.numel() < 2 << 20


@pytest.mark.parametrize("background", [(0, 0, 0), (10, 200, 30)])
def test_an_extracted_class_stands_on_the_background_asked_for(background: tuple[int, int, int]) -> None:
    model_hw, source_hw = (24, 40), (73, 121)
    maps, pixels = blobs(2, model_hw), frames(2, source_hw)
    style = RenderStyle(style="extract", background=background)
    rendered = render(pixels, all_classes(maps), whole(model_hw, source_hw), style)
    inside = nearest(maps, source_hw)[..., None] > 0
    assert rendered.pixels_nhwc is not None
    np.testing.assert_array_equal(
        rendered.pixels_nhwc, np.where(inside, pixels, np.array(background, np.uint8))
    )


def test_the_background_may_be_the_class() -> None:
    """As in the seed's example: the background alone, everything else black."""
    probability = np.zeros((1, 8, 8), np.float32)
    probability[:, :4] = 1
    pixels, shape = frames(1, (8, 8)), whole((8, 8), (8, 8))
    rendered = render(pixels, one_class(probability, class_id=0), shape, RenderStyle(style="extract"))
    assert rendered.pixels_nhwc is not None
    np.testing.assert_array_equal(rendered.pixels_nhwc[0, :4], pixels[0, :4])
    assert not rendered.pixels_nhwc[0, 4:].any()
    assert rendered.class_pixels[0].tolist() == [32, 0, 0, 0, 0]


def test_more_frames_than_fit_into_a_run_are_rendered_in_several() -> None:
    model_hw, source_hw = (20, 30), (40, 50)
    pixels, maps, shape = frames(7, source_hw), blobs(7, model_hw), whole(model_hw, source_hw)
    style = RenderStyle(style="overlay")
    many = render(pixels, all_classes(maps), shape, style, max_frames=3)
    single = render(pixels, all_classes(maps), shape, style, max_frames=7)
    np.testing.assert_array_equal(many.class_map_nhw, single.class_map_nhw)
    np.testing.assert_array_equal(many.class_pixels, single.class_pixels)
    assert many.pixels_nhwc is not None
    assert single.pixels_nhwc is not None
    np.testing.assert_array_equal(many.pixels_nhwc, single.pixels_nhwc)


def test_one_postprocessor_takes_sizes_and_styles_in_turn() -> None:
    post = Postprocessor(device="cpu", max_frames=4, classes=CLASSES)
    for turn in range(2):
        for model_hw, source_hw in SIZES:
            maps, pixels = blobs(2, model_hw, seed=turn), frames(2, source_hw, seed=turn)
            for alpha in (0.25, 0.75):
                style = RenderStyle(style="overlay", alpha=alpha)
                rendered = post(pixels, all_classes(maps), whole(model_hw, source_hw), style)
                expected = overlaid(pixels, nearest(maps, source_hw), alpha, 2)
                assert rendered.pixels_nhwc is not None
                assert np.abs(rendered.pixels_nhwc - expected).max() <= 1.0


class OnGpu:
    """What torch's tensors on a GPU look like to `on_host`."""

    is_cuda = True

    def __init__(self, pixels: Array) -> None:
        self._pixels, self.shape = pixels, pixels.shape

    def __len__(self) -> int:
        return len(self._pixels)

    def cpu(self) -> Array:
        return self._pixels


def test_pictures_that_leave_the_gpu_are_counted() -> None:
    telemetry, pixels = Telemetry(), frames(3, (4, 6))
    post = Postprocessor(device="cpu", max_frames=4, classes=CLASSES, telemetry=telemetry)
    assert post.on_host(pixels) is pixels
    assert "copies" not in telemetry.snapshot()
    on_gpu: Any = OnGpu(pixels)
    assert np.array_equal(post.on_host(on_gpu), pixels)
    assert telemetry.snapshot()["copies"] == {"pictures_from_gpu": 3}


def test_scores_of_successive_batches_join() -> None:
    maps = blobs(5, (6, 7))
    joined = ClassScores.concatenate([all_classes(maps[:2]), all_classes(maps[2:])])
    np.testing.assert_array_equal(joined.values_nhw, maps)
    parts = [one_class(hills(n, (6, 7)), class_id=4, threshold=0.7) for n in (1, 2)]
    alone = ClassScores.concatenate(parts)
    assert (len(alone), alone.kind, alone.class_id, alone.threshold) == (3, "one", 4, 0.7)
    assert ClassScores.concatenate(parts[:1]) is parts[0]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"class_map_nhw": torch.zeros(1, 2, 2), "probability_nhw": torch.zeros(1, 2, 2), "class_id": 1},
        {"probability_nhw": torch.zeros(1, 2, 2)},
    ],
)
def test_scores_are_of_one_kind(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"takes either|needs the class"):
        ClassScores(**given)


@pytest.mark.parametrize(
    ("pixels_hw", "maps_hw", "message"),
    [
        ((9, 10), (4, 5), r"pixels_nhwc is \(1, 9, 10, 3\), expected \(1, 8, 10, 3\)"),
        (None, (4, 5), "pixels_nhwc is None"),
        ((8, 10), (5, 4), r"scores are \(5, 4\) pixels, the geometry says \(4, 5\)"),
    ],
)
def test_arguments_that_disagree_are_named(
    pixels_hw: tuple[int, int] | None, maps_hw: tuple[int, int], message: str
) -> None:
    pixels = None if pixels_hw is None else frames(1, pixels_hw)
    with pytest.raises(InternalError, match=message):
        render(pixels, all_classes(blobs(1, maps_hw)), whole((4, 5), (8, 10)), RenderStyle(style="extract"))


def test_colours_are_apart() -> None:
    colours = palette(21).astype(int)
    assert colours[0].tolist() == [0, 0, 0]
    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2) + 999 * np.eye(21, dtype=int)
    assert distances.min() > 30
