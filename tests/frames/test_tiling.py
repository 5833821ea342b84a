"""Large frames in tiles, through the whole pipeline: maps are joined without seams, boxes given once."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.models.spec import ModelSpec, Preprocessing, Tiling
from pipelines.pipeline import Pipeline
from pipelines.protocol import rle
from pipelines.protocol.answers import DetectionAnswer, SegmentationAnswer
from pipelines.protocol.options import Options
from pipelines.rendering.encode import png

PLAIN = Preprocessing(resize_px=None, mean=(0, 0, 0), std=(1, 1, 1))
HEIGHT, WIDTH = 100, 170
TILING = Tiling(tile_px=(48, 64), overlap_px=20)


class Bright(nn.Module):
    """Two classes: dark and bright, pixel by pixel."""

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        level = pixels_nchw.mean(dim=1, keepdim=True) - 0.5
        return torch.cat([-level, level], dim=1) * 20


class Spots(nn.Module):
    """A box around all bright pixels that do not touch the picture's edge, if there are any."""

    def forward(self, pixels_nchw: Tensor) -> list[dict[str, Tensor]]:
        return [self._find(one) for one in pixels_nchw]

    def _find(self, pixels_chw: Tensor) -> dict[str, Tensor]:
        rows, columns = torch.nonzero(pixels_chw.mean(dim=0) > 0.5, as_tuple=True)
        found = len(rows) > 0
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if found else []
        height, width = pixels_chw.shape[1:]
        whole = found and box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height
        return {
            "boxes": torch.tensor([box] if whole else [], dtype=torch.float32).view(-1, 4),
            "labels": torch.ones(int(whole), dtype=torch.int64),
            "scores": torch.full((int(whole),), 0.9),
        }


def spec_of(network: nn.Module, tiling: Tiling | None, preprocessing: Preprocessing = PLAIN) -> ModelSpec:
    return ModelSpec(
        name="toy",
        task="segmentation" if isinstance(network, Bright) else "detection",
        build=lambda: network,
        source="test",
        labels=("dark", "bright"),
        preprocessing=preprocessing,
        tiling=tiling,
        max_batch=4,
    )


@contextmanager
def pipeline_of(spec: ModelSpec) -> Iterator[Pipeline]:
    pipeline = make_pipeline(spec, "cpu", limits=Limits(chunk_frames=8))
    yield pipeline
    pipeline.batcher.close()


def blobs(*places: tuple[int, int, int, int]) -> npt.NDArray[np.uint8]:
    """A dark picture with bright rectangles (top, left, height, width)."""
    grey = np.full((HEIGHT, WIDTH), 20, np.uint8)
    for top, left, height, width in places:
        grey[top : top + height, left : left + width] = 230
    return grey


def segment(spec: ModelSpec, grey: npt.NDArray[np.uint8], **options: str) -> npt.NDArray[np.uint8]:
    with pipeline_of(spec) as pipeline:
        (answer,) = pipeline.run(png(grey), Options(**options))  # type: ignore[arg-type]
    assert isinstance(answer, SegmentationAnswer)
    return rle.decode(answer.mask[0], (HEIGHT, WIDTH))


EVERYWHERE = blobs((3, 2, 30, 40), (30, 50, 40, 60), (80, 100, 20, 70), (60, 5, 39, 20), (0, 120, 25, 50))


@pytest.mark.parametrize("options", [{}, {"class_name": "bright"}])
def test_class_maps_of_tiles_are_joined_without_seams(options: dict[str, str]) -> None:
    np.testing.assert_array_equal(segment(spec_of(Bright(), TILING), EVERYWHERE, **options), EVERYWHERE > 128)


@pytest.mark.parametrize("fit", ["stretch", "letterbox"])
def test_tiles_that_are_resized_are_off_by_a_pixel_at_most(fit: Literal["stretch", "letterbox"]) -> None:
    facts = dataclasses.replace(PLAIN, resize_px=(96, 160), fit=fit)
    found = segment(spec_of(Bright(), TILING, facts), EVERYWHERE)
    wrong = found != (EVERYWHERE > 128)
    assert wrong.mean() < 0.02
    inner = EVERYWHERE > 128
    inner[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    assert found[1:-1, 1:-1][inner[1:-1, 1:-1]].all()


def test_how_probable_a_class_is_comes_as_a_picture() -> None:
    with pipeline_of(spec_of(Bright(), TILING)) as pipeline:
        (answer,) = pipeline.run(png(EVERYWHERE), Options(class_name="bright", mask="probability"))
    assert isinstance(answer, SegmentationAnswer)
    levels = np.asarray(Image.open(io.BytesIO(answer.mask[0])))
    assert levels.shape == (HEIGHT, WIDTH)
    assert levels[EVERYWHERE > 128].min() > 250
    assert levels[EVERYWHERE < 128].max() < 5


@pytest.mark.parametrize("place", [(10, 12, 8, 9), (34, 50, 12, 10), (70, 140, 10, 16), (40, 88, 15, 15)])
def test_a_box_that_several_tiles_see_is_given_once_in_source_pixels(
    place: tuple[int, int, int, int],
) -> None:
    top, left, height, width = place
    with pipeline_of(spec_of(Spots(), TILING)) as pipeline:
        (answer,) = pipeline.run(png(blobs(place)), Options())
    assert isinstance(answer, DetectionAnswer)
    np.testing.assert_allclose(answer.box, [[left, top, left + width, top + height]], atol=0.5)
