"""Numbers that are not finite: they never rank, spoil no mean and no JSON, and the frame is marked."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model_inference import Model
from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.detr import Detr
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.region import Region
from pipelines.models.heads.ssd import Ssd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.outputs import BoxOutput, LogitOutput
from pipelines.models.spec import Attribute, Clip, Head, ModelSpec, TaskName
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import (
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.errors import ModelUnavailable
from pipelines.protocol.options import Options
from pipelines.sdk.report import row_lines
from tests.models.test_model import means, spec_of
from tests.support import media, toy_stages
from tests.support.toy_boxes import DOG, PERSON, ask, seen

NAN, INF = float("nan"), float("inf")
DARK = 2  # the number of the black frame
FRAMES = 5


def clip() -> bytes:
    """Grey frames, of which one is black."""
    levels = [0 if place == DARK else 128 for place in range(FRAMES)]
    pictures = [np.full((32, 40, 3), level, np.uint8) for level in levels]
    return media.clip(pictures=pictures, width=40, height=32)


def spoilt(give: Callable[[Tensor], Tensor], value: float) -> Callable[[Tensor], Tensor]:
    """The same, with one number that is not finite in the rows of black pictures."""

    def spoil(pixels: Tensor) -> Tensor:
        found = give(pixels).clone()
        for row, one in enumerate(pixels):
            if one.mean() < -1.5:
                found[(row, *[-1] * (found.ndim - 1))] = value
        return found

    return spoil


def answer_of(spec: ModelSpec, **options: Any) -> Answer:
    pipeline = make_pipeline(spec, "cpu", limits=Limits(chunk_frames=2))
    parts = list(pipeline.run(clip(), Options(**options)))
    pipeline.batcher.close()
    for line in row_lines("file", whole := type(parts[0]).concatenate(parts)):
        json.loads(line, parse_constant=pytest.fail)
    return whole


def marks(answer: Answer) -> list[int]:
    return [int(place) for place in np.flatnonzero(answer.not_finite)]


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_a_frame_without_finite_scores_has_no_class(value: float, activation: Any) -> None:
    def give(pixels: Tensor) -> Tensor:
        return means(pixels).softmax(1) if activation == "none" else means(pixels)

    spec = spec_of(spoilt(give, value), "classification", labels=("a", "b", "c"), activation=activation)
    answer = answer_of(spec, top_k=2)
    assert isinstance(answer, ClassificationAnswer)
    assert marks(answer) == [DARK]
    assert answer.class_id[DARK].tolist() == [-1, -1]
    assert answer.class_name[DARK].tolist() == ["", ""]
    assert answer.probability[DARK].tolist() == [0, 0]
    good = np.delete(answer.probability, DARK, axis=0)
    np.testing.assert_allclose(answer.mean_probability, good.mean(axis=0), atol=1e-6)
    assert (np.delete(answer.class_id, DARK, axis=0) >= 0).all()


def test_a_medium_of_no_finite_frame_has_no_mean() -> None:
    black = media.clip(pictures=[np.zeros((32, 40, 3), np.uint8)] * 2, width=40, height=32)
    for task in ("classification", "embedding"):
        pipeline = make_pipeline(spec_of(spoilt(means, NAN), task), "cpu", limits=Limits())
        (answer,) = pipeline.run(black, Options())
        pipeline.batcher.close()
        assert marks(answer) == [0, 1]
        if isinstance(answer, ClassificationAnswer):
            assert set(answer.mean_class_id.tolist()) == {-1}
        assert not any(mean_of(answer))
        assert len(list(row_lines("file", answer))) == 2


def mean_of(answer: Answer) -> list[float]:
    mean = answer.mean_probability if isinstance(answer, ClassificationAnswer) else answer.mean_embedding  # type: ignore[attr-defined]
    return [float(one) for one in mean]


def test_attributes_are_not_known_then() -> None:
    def give(pixels: Tensor) -> dict[str, Tensor]:
        return {"colour": means(pixels), "wet": spoilt(lambda one: means(one)[:, :1], NAN)(pixels)}

    attributes = (
        Attribute(name="colour", output="colour", labels=("red", "green", "blue")),
        Attribute(name="wet", output="wet", labels=("yes", "no"), activation="sigmoid"),
    )
    answer = answer_of(spec_of(give, "classification", attributes=attributes))
    assert isinstance(answer, ClassificationAnswer)
    assert marks(answer) == [DARK]
    assert answer.attribute_value[DARK].tolist() == ["", ""]
    assert answer.attribute_probability[DARK].tolist() == [0, 0]
    assert answer.class_id[DARK, 0] == -1
    assert all(answer.attribute_value[0])


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize("normalise", [True, False])
def test_a_vector_that_is_not_finite_is_zeros(value: float, normalise: bool) -> None:
    answer = answer_of(spec_of(spoilt(means, value), "embedding", normalise=normalise))
    assert isinstance(answer, EmbeddingAnswer)
    assert marks(answer) == [DARK]
    assert not answer.embedding[DARK].any()
    np.testing.assert_allclose(answer.mean_embedding, answer.embedding[0], atol=1e-5)


def test_a_long_vector_keeps_its_direction() -> None:
    answer = answer_of(spec_of(lambda pixels: 1e30 * (means(pixels) + 5), "embedding"))
    assert isinstance(answer, EmbeddingAnswer)
    np.testing.assert_allclose(np.linalg.norm(answer.embedding, axis=1), 1, atol=1e-5)
    assert marks(answer) == []


def test_a_clip_with_it_has_no_class() -> None:
    def give(clips: Tensor) -> Tensor:
        found = means(clips)
        # Clips are of two frames here.
        found[[bool((one.mean(dim=(0, 2, 3)) < -1.5).any()) for one in clips]] = NAN
        return found

    spec = replace(spec_of(give, "action", labels=("a", "b", "c")), clip=Clip(length=2, fps=10))
    answer = answer_of(spec, clip_stride=2, fps=10)
    assert isinstance(answer, ActionAnswer)
    assert marks(answer) == [DARK // 2]
    assert set(answer.class_id[DARK // 2].tolist()) == {-1}
    assert np.isfinite(answer.mean_probability).all()
    assert answer.mean_probability.any()


@pytest.mark.parametrize("coarse", [1, 4])
@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "options",
    [{}, {"class_name": "b"}, {"class_name": "a"}, {"mask": "probability"}, {"score_threshold": 0.1}],
)
def test_pixels_without_finite_scores_are_of_no_class(
    options: dict[str, Any], value: float, coarse: int
) -> None:
    """Of a hole in the middle nothing is answered; the pixels around it are answered as ever."""

    def give(pixels: Tensor, hole: bool) -> Tensor:
        grid = pixels[:, :, ::coarse, ::coarse]
        scores = torch.stack([0 * grid[:, 0], 0 * grid[:, 0] + 2, 0 * grid[:, 0] - 1], 1)
        if hole:
            height, width = scores.shape[2:]
            scores[grid[:, 0].mean(dim=(1, 2)) < -1.5, 1, height // 2, width // 2] = value
        return scores

    holed, whole = (
        answer_of(
            spec_of(functools.partial(give, hole=hole), "segmentation", labels=("a", "b", "c")),
            **{"mask": "raw", **options},
        )
        for hole in (True, False)
    )
    assert isinstance(holed, SegmentationAnswer)
    assert isinstance(whole, SegmentationAnswer)
    assert (marks(holed), marks(whole)) == ([DARK], [])
    assert (np.delete(holed.class_pixels, DARK, 0) == np.delete(whole.class_pixels, DARK, 0)).all()
    assert holed.mask[0] == whole.mask[0]
    if options.get("mask") or options.get("class_name") == "a":
        return
    missing = whole.class_pixels[DARK, 1] - holed.class_pixels[DARK, 1]
    assert 0 < missing <= (3 * coarse) ** 2
    holes = np.frombuffer(holed.mask[DARK], np.uint8).reshape(32, 40) == 0
    assert holes.sum() == missing
    assert holes[16, 20]


def test_holes_of_class_maps_are_background() -> None:
    def give(pixels: Tensor) -> Tensor:
        numbers = 2.0 + 0 * pixels[:, 0]
        numbers[pixels.mean(dim=(1, 2, 3)) < -1.5, 0, :3] = NAN
        return numbers

    answer = answer_of(spec_of(give, "segmentation", labels=("a", "b", "c")))
    assert isinstance(answer, SegmentationAnswer)
    assert marks(answer) == [DARK]
    assert answer.class_pixels[DARK].tolist() == [3, 0, 32 * 40 - 3]


@pytest.mark.parametrize(
    "bad",
    [
        seen((5, 6, NAN, 30, 1, 0.9), DOG),
        seen((5, 6, INF, 30, 1, 0.9), DOG),
        seen((5, 6, 25, 30, 1, NAN), DOG),
        seen((5, 6, 25, 30, 1, INF), DOG),
        seen(PERSON, DOG, keypoints=torch.tensor([[[NAN, 1, 1]], [[2, 3, 1]]])),
        seen(PERSON, DOG, keypoints=torch.tensor([[[3.4e38, 1, 1]], [[2, 3, 1]]])),
        seen(PERSON, DOG, masks=torch.stack([torch.full((1, 5, 5), NAN), torch.zeros(1, 5, 5)])),
        seen(PERSON, DOG) | {"labels": torch.tensor([NAN, 2.0])},
    ],
)
def test_an_object_that_is_not_finite_is_left_out(bad: dict[str, Tensor]) -> None:
    answer = ask(bad, bad, slices=1)
    assert marks(answer) == [0, 1]
    assert answer.class_name.tolist() == ["dog", "dog"]
    assert all(np.isfinite(column).all() for column in (answer.box, answer.score, answer.keypoint))
    good = {name: tensor[1:] for name, tensor in bad.items()}
    mixed = ask(good, bad, slices=1)
    assert marks(mixed) == [1]


def rows_of(value: float) -> Iterator[tuple[Head, dict[str, Tensor]]]:
    """Of each head the outputs for two pictures of an object; the second has another one, with that score."""
    box = torch.tensor([[[9.0, 9, 4, 4], [9, 9, 4, 4]]] * 2)
    score = torch.tensor([[[0.8, 0.1], [0.1, 0.0]], [[0.8, 0.1], [0.1, value]]])
    sure = torch.ones(2, 2, 1)
    yield YoloV5(), {"output": torch.cat([box, sure, score], 2)}
    yield YoloV8(), {"output": torch.cat([box, score], 2).transpose(1, 2)}
    yield BoxesScores(unit=False), {"boxes": box + torch.tensor([0, 0, 9, 9]), "scores": score}
    yield Detr(probabilities=True), {"pred_boxes": box / 40, "logits": score}
    one = torch.tensor([[0.8, 0], [0.8, value]])
    corners = box + torch.tensor([0, 0, 9, 9])
    yield Boxes(iou_threshold=0.5), {"boxes": corners, "scores": one, "labels": torch.zeros(2, 2).long()}
    yield EndToEnd(), {"output": torch.cat([corners, one[..., None], 0 * one[..., None]], 2)}
    numbers = torch.tensor([[0.0, 0], [1, 1]])
    rows = torch.cat([numbers[..., None], 0 * numbers[..., None], one[..., None], corners / 40], 2)
    yield Ssd(output="rows"), {"rows": rows.reshape(1, 1, 4, 7)}
    grid = torch.cat([torch.full((2, 4), 0.5), one[:, :1], score[:, 0]], 1).reshape(2, 7, 1, 1)
    spoilt_grid = torch.cat([grid, grid], 3)
    spoilt_grid[1, 4, 0, 1] = value
    yield Region(version="yolo_v2", anchors=(1.0, 1.0)), {"grid": spoilt_grid}


@pytest.mark.parametrize("value", [NAN, INF])
def test_heads_leave_out_what_is_not_finite_and_nothing_else(value: float) -> None:
    for head, outputs in rows_of(value):
        spec = spec_of(spoil_outputs(outputs), "detection", head=head)
        found = Model(spec, "cpu")(torch.zeros(2, 3, 32, 40))
        assert isinstance(found, BoxOutput)
        assert list(found.not_finite) == [False, True], head.family
        first, second = found.frames
        assert len(second["scores"]) >= 1, head.family
        assert bool(second["scores"].isfinite().all()), head.family
        assert torch.equal(first["scores"][:1], second["scores"][:1]), head.family


def spoil_outputs(outputs: dict[str, Tensor]) -> Callable[[Tensor], dict[str, Tensor]]:
    """These outputs for zeros; for other pictures the first's twice, which is finite."""

    def give(pixels: Tensor) -> dict[str, Tensor]:
        if not pixels.any():
            return outputs
        if len(next(iter(outputs.values()))) == 1:  # rows of several pictures
            return {name: one.nan_to_num(0.1, 0.1) for name, one in outputs.items()}
        return {name: one[:1].expand(len(pixels), *one.shape[1:]) for name, one in outputs.items()}

    return give


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_second_model_says_nothing_of_such_a_box(value: float) -> None:
    table: dict[str, Pipeline] = {}

    def give(pixels: Tensor) -> Tensor:
        found = means(pixels)
        found[-1, 0] = value if len(found) > 2 else 0
        return found

    toy_stages.pipeline_of(toy_stages.detector(), "detection", table)
    spec = spec_of(give, "classification", labels=("a", "b", "c"))
    toy_stages.pipeline_of(replace(spec, max_batch=64), "kind", table)
    medium = media.clip(frames=3, width=160, height=120)
    (answer,) = table["detection"].run(medium, Options(classify="kind", score_threshold=0.1))
    for one in table.values():
        one.batcher.close()
    assert isinstance(answer, DetectionAnswer)
    assert marks(answer) == [2]
    assert answer.predicted_class[-1] == ""
    assert answer.probability[-1] == 0
    assert all(answer.predicted_class[:-1])


@pytest.mark.parametrize("task", ["classification", "segmentation", "embedding"])
def test_the_bare_model_gives_what_the_network_gave(task: TaskName) -> None:
    give = (lambda pixels: pixels) if task == "segmentation" else means
    output = Model(spec_of(spoilt(give, NAN), task), "cpu")(torch.full((1, 3, 32, 40), -2.0))
    assert isinstance(output, LogitOutput)
    assert bool(output.logits.isnan().any())


def test_probabilities_are_told_by_finite_pictures() -> None:
    """For black a network may divide by zero; its other numbers still show that they are probabilities."""
    spec = spec_of(spoilt(lambda pixels: means(pixels).softmax(1), NAN), "classification")
    assert Model(spec, "cpu").spec.activation == "none"


def test_a_detector_of_nothing_finite_is_refused() -> None:
    def give(pixels: Tensor) -> dict[str, Tensor]:
        return {"output": torch.full((len(pixels), 6, 7), NAN)}

    with pytest.raises(ModelUnavailable, match="not finite"):
        Model(spec_of(give, "detection", head=YoloV5()), "cpu")
