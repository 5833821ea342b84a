"""Sigmoids, several labels at once, named attributes and class maps, from pixels to answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.models.spec import Attribute, ModelSpec, Preprocessing, TaskName
from pipelines.pipeline import Pipeline
from pipelines.protocol import rle
from pipelines.protocol.answers import ClassificationAnswer, SegmentationAnswer
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options
from pipelines.sdk.report import Summary, row_lines
from pipelines.serving.answerers import ModelStage
from tests.support import media

SIDE_PX = 32


class Given(nn.Module):
    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, pixels: Tensor) -> Any:
        return self.give(pixels)


@contextmanager
def served(give: Callable[[Tensor], Any], task: TaskName, **fields: Any) -> Iterator[Pipeline]:
    spec = ModelSpec(
        name="toy",
        task=task,
        build=lambda: Given(give),
        source="test",
        preprocessing=Preprocessing(resize_px=(SIDE_PX, SIDE_PX), mean=(0, 0, 0), std=(1, 1, 1)),
        **fields,
    )
    pipeline = make_pipeline(spec, "cpu", limits=Limits())
    yield pipeline
    pipeline.batcher.close()


def png(pixels_hwc: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels_hwc).save(out, "PNG")
    return out.getvalue()


def grey(level: int) -> bytes:
    return png(np.full((SIDE_PX, SIDE_PX, 3), level, np.uint8))


def half() -> bytes:
    """White on the left, black on the right."""
    pixels = np.zeros((SIDE_PX, SIDE_PX, 3), np.uint8)
    pixels[:, : SIDE_PX // 2] = 255
    return png(pixels)


def opened(png: bytes) -> Any:
    """Levels 0..255 of a grey picture."""
    return np.asarray(Image.open(io.BytesIO(png)))


def classes(pipeline: Pipeline, medium: bytes, **options: Any) -> ClassificationAnswer:
    (answer,) = pipeline.run(medium, Options(**options))
    assert isinstance(answer, ClassificationAnswer)
    return answer


def segments(pipeline: Pipeline, medium: bytes, **options: Any) -> SegmentationAnswer:
    (answer,) = pipeline.run(medium, Options(**options))
    assert isinstance(answer, SegmentationAnswer)
    return answer


def logits(pixels: Tensor) -> Tensor:
    """(N, 3) of a grey: of 153 of 255, 2, 4 and -2."""
    level = pixels.mean(dim=(1, 2, 3))
    return 20 * torch.stack([level - 0.5, level - 0.4, 0.5 - level], 1)


SIGMOIDS = 1 / (1 + np.exp(-np.array([2.0, 4.0, -2.0])))


def test_sigmoids_are_shown_as_they_are() -> None:
    with served(lambda pixels: logits(pixels).sigmoid(), "classification") as pipeline:
        answer = classes(pipeline, grey(153))
        assert answer.class_id.tolist() == [[1, 0, 2]]
        np.testing.assert_allclose(answer.probability[0], SIGMOIDS[[1, 0, 2]], atol=1e-5)
        above = classes(pipeline, grey(153), score_threshold=0.9)
    assert above.class_id.tolist() == [[1, -1, -1]]
    assert above.class_name.tolist() == [["1", "", ""]]
    assert above.probability[0, 1:].tolist() == [0, 0]
    assert (above.mean_class_id.tolist(), above.mean_class_name) == ([1, -1, -1], ("1", "", ""))


@pytest.mark.parametrize("activation", [None, "sigmoid"])
def test_of_several_labels_all_above_the_threshold_are_answered(activation: Any) -> None:
    many = {"multi_label": True, "activation": activation, "labels": tuple("abc")}
    with served(logits, "classification", **many) as pipeline:
        answer = classes(pipeline, grey(153))
        one = classes(pipeline, grey(153), top_k=1)
        all_of_them = classes(pipeline, grey(153), score_threshold=0)
    assert answer.class_name.tolist() == [["b", "a", ""]]
    np.testing.assert_allclose(answer.probability[0, :2], SIGMOIDS[[1, 0]], atol=1e-5)
    assert one.class_name.tolist() == [["b"]]
    assert all_of_them.class_name.tolist() == [["b", "a", "c"]]
    (line, *_), summary = list(row_lines("a.png", answer)), Summary()
    summary.add(answer)
    assert ('"c"' in line.split('"attributes"')[0], '"b"' in line) == (False, True)
    assert "a: yes" in str(summary)


def test_more_labels_than_top_k_are_answered_where_all_count() -> None:
    def many(pixels: Tensor) -> Tensor:
        return torch.cat([logits(pixels)] * 4, 1)

    with served(many, "classification", multi_label=True) as pipeline:
        assert (classes(pipeline, grey(255)).class_id >= 0).sum() == 8


def test_one_column_is_a_probability() -> None:
    def one(pixels: Tensor) -> Tensor:
        return logits(pixels)[:, :1]

    with served(one, "classification") as pipeline:
        answer = classes(pipeline, grey(0))
        assert answer.probability.shape == (1, 1)
        assert answer.probability[0, 0] == pytest.approx(1 / (1 + np.exp(10)), rel=1e-4)
    with served(one, "classification", labels=("dark", "bright")) as pipeline:
        answer = classes(pipeline, grey(0))
    assert answer.class_name.tolist() == [["dark", "bright"]]
    np.testing.assert_allclose(answer.probability.sum(), 1)


# Named attributes.


def vehicle(pixels: Tensor) -> dict[str, Tensor]:
    rows = logits(pixels)
    return {"type": rows[:, :2, None, None].softmax(1), "color": rows[..., None, None].softmax(1)}


def test_attributes_are_answered_by_name() -> None:
    with served(vehicle, "classification", labels=("car", "bus", "red", "green", "blue")) as pipeline:
        answer = classes(pipeline, grey(153))
        pictures = [classes(pipeline, grey(153), overlay="raw", alpha=one).overlay[0] for one in (0, 0.5)]
        stage = ModelStage(pipeline)
        bare = next(stage.answer({"pixels": np.ones((3, SIDE_PX, SIDE_PX), np.float32)}, Options()))
    assert answer.attribute_names == ("type", "color")
    assert answer.attribute_value.tolist() == [["bus", "green"]]
    expected = [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-2) + np.exp(-6))]
    np.testing.assert_allclose(answer.attribute_probability[0], expected, atol=1e-5)
    assert answer.class_name.tolist() == [["bus", "car"]]
    assert pictures[0] != pictures[1]
    assert {"type", "color"} < set(bare)
    assert [column.dims for column in stage.outputs] == [(2,), (3,)]
    assert '"attributes": {"type": {"value": "bus"' in next(row_lines("a.png", answer))
    summary = Summary()
    summary.add(answer)
    assert str(summary) == "1 frame, type: bus, color: green (pillow)"


def test_flags_have_a_value_on_both_sides_of_their_threshold() -> None:
    flags = tuple(
        Attribute(
            name=name,
            output="logits",
            labels=(name, f"no {name}"),
            start=place,
            stop=place + 1,
            activation="sigmoid",
            threshold=threshold,
        )
        for place, (name, threshold) in enumerate([("hat", 0.9), ("bag", 0.5)])
    )
    with served(logits, "classification", attributes=flags) as pipeline:
        answer = classes(pipeline, grey(153))
    assert answer.attribute_value.tolist() == [["no hat", "bag"]]
    np.testing.assert_allclose(answer.attribute_probability[0], [1 - SIGMOIDS[0], SIGMOIDS[1]], atol=1e-5)
    assert answer.class_name.tolist() == [["bag", "hat"]]
    np.testing.assert_allclose(answer.probability[0], SIGMOIDS[[1, 0]], atol=1e-5)


def test_classes_may_have_attributes_beside_them() -> None:
    part = Attribute(name="sign", output="other", labels=("plus", "minus"), start=1)

    def give(pixels: Tensor) -> dict[str, Tensor]:
        return {"logits": logits(pixels), "other": logits(pixels)}

    with served(give, "classification", labels=tuple("abc"), attributes=(part,)) as pipeline:
        answer = classes(pipeline, grey(153))
        nothing = classes(pipeline, media.clip(frames=2), start_s=0.05, keyframes_only=True)
        assert nothing.attribute_value.size == 0
    assert (answer.class_name[0, 0], answer.attribute_value[0, 0]) == ("b", "plus")
    assert answer.probability[0].sum() == pytest.approx(1)
    assert answer.attribute_probability[0, 0] == pytest.approx(1 / (1 + np.exp(-6)), abs=1e-5)


# Pixels.


def column(pixels: Tensor) -> Tensor:
    return 20 * (pixels.mean(1, keepdim=True) - 0.5)


@pytest.mark.parametrize(
    "give",
    [
        column,
        lambda pixels: column(pixels)[:, 0],
        lambda pixels: column(pixels).sigmoid(),
        lambda pixels: column(pixels).permute(0, 2, 3, 1),
        lambda pixels: torch.cat([-column(pixels), column(pixels)], 1).sigmoid(),
        lambda pixels: (column(pixels) > 0).long(),
        lambda pixels: (column(pixels) > 0)[:, 0],
    ],
)
@pytest.mark.parametrize("named", [{}, {"class_name": "cat"}, {"class_id": 1}])
def test_a_class_and_the_background(give: Callable[[Tensor], Tensor], named: dict[str, Any]) -> None:
    with served(give, "segmentation", labels=("background", "cat")) as pipeline:
        answer = segments(pipeline, half(), **named)
        ground = segments(pipeline, half(), class_id=0, overlay="raw", style="extract")
    assert (answer.class_names, answer.class_pixels.tolist()) == (("background", "cat"), [[512, 512]])
    decoded = rle.decode(answer.mask[0], (SIDE_PX, SIDE_PX))
    assert decoded[:, : SIDE_PX // 2].all()
    assert not decoded[:, SIDE_PX // 2 :].any()
    assert ground.class_pixels[0, 0] == 512
    assert list(row_lines("a.png", answer))


@pytest.mark.parametrize(
    ("options", "pixels"), [({}, 512), ({"score_threshold": 0.05}, 1024), ({"score_threshold": 0.999}, 0)]
)
def test_one_column_has_a_threshold(options: dict[str, Any], pixels: int) -> None:
    def soft(pixels: Tensor) -> Tensor:
        return column(pixels) / 4

    with served(soft, "segmentation") as pipeline:
        assert segments(pipeline, half(), **options).class_pixels[0, 1] == pixels
        level = segments(pipeline, half(), mask="probability").mask[0]
    found = opened(level) / 255
    np.testing.assert_allclose(found[:, [0, -1]].mean(0), 1 / (1 + np.exp([-2.5, 2.5])), atol=0.01)


def planes(pixels: Tensor) -> Tensor:
    """(N, 3, h, w): of white 3, 1 and -1; of black -1, 1 and 0."""
    level = pixels.mean(1)
    return torch.stack([4 * level - 1, torch.ones_like(level), -level], 1)


@pytest.mark.parametrize(
    ("activation", "sure"),
    [
        ("softmax", lambda rows: np.exp(rows) / np.exp(rows).sum(axis=0)),
        ("sigmoid", lambda rows: 1 / (1 + np.exp(-rows))),
    ],
)
def test_the_probability_of_a_class_is_by_its_activation(activation: Any, sure: Any) -> None:
    expected = sure(np.array([[3.0, -1], [1, 1], [-1, 0]]))
    with served(planes, "segmentation", activation=activation, labels=tuple("abc")) as pipeline:
        masks = [
            segments(pipeline, half(), mask="probability", **named).mask[0]
            for named in ({}, {"class_name": "a"}, {"class_name": "c"})
        ]
        few = segments(pipeline, half(), score_threshold=0.8).class_pixels[0].tolist()
    ends = [opened(mask)[:, [0, -1]].mean(0) / 255 for mask in masks]
    np.testing.assert_allclose(ends, [[expected[0, 0], expected[1, 1]], expected[0], expected[2]], atol=0.01)
    # The left side is "a", whatever the threshold; the right is "b" if it is sure enough.
    assert few == [1024, 0, 0]


# Class maps.


def numbers(pixels: Tensor) -> Tensor:
    """3 for white, 0 for black."""
    return (3 * pixels.mean(1).clamp(0, 1)).round().long()


def test_class_maps_are_answered_without_probabilities() -> None:
    with served(numbers, "segmentation", labels=tuple("abcd")) as pipeline:
        whole = segments(pipeline, half(), overlay="raw")
        one = segments(pipeline, half(), class_name="d", overlay="raw", style="extract")
        two = segments(pipeline, half(), class_name="b, d")
        other = segments(pipeline, half(), class_name="b, c")
        ground = segments(pipeline, half(), class_id=0)
        for options, said in (
            ({"score_threshold": 0.5}, "score_threshold=0.5"),
            ({"mask": "probability"}, "mask=probability"),
        ):
            with pytest.raises(InvalidOptions, match=f"{said}: toy gives class maps without") as caught:
                segments(pipeline, half(), **options)
            assert caught.value.hint
        stage = ModelStage(pipeline)
        bare = next(stage.answer({"pixels": np.ones((3, SIDE_PX, SIDE_PX), np.float32)}, Options()))
    for answer in (whole, one, two):
        assert answer.class_pixels.tolist() == [[512, 0, 0, 512]]
    assert other.class_pixels.tolist() == [[1024, 0, 0, 0]]
    assert ground.class_pixels[0, 0] == 512
    assert stage.outputs[0].dims == (1, "h", "w")
    assert (bare["logits"] == 3).all()


def test_numbers_without_a_name_are_nothing() -> None:
    def void(pixels: Tensor) -> Tensor:
        return numbers(pixels) * 85  # 255 for white

    with served(void, "segmentation", labels=tuple("abcd")) as pipeline:
        assert segments(pipeline, half()).class_pixels.tolist() == [[1024, 0, 0, 0]]
