"""Detection without a network: what counts, and where it lies on the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import resize_boxes, resize_keypoints

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View, geometry
from pipelines.models.outputs import BoxOutput
from pipelines.models.spec import Preprocessing
from pipelines.protocol.answers import DetectionAnswer
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.boxes import MAX_OBJECTS, Found
from pipelines.tasks.detection import TASK, Detection
from pipelines.tasks.painter import Painter
from tests.support.toy_boxes import (
    DOG,
    FAINT,
    HEIGHT,
    LABELS,
    PERSON,
    WHOLE,
    WIDTH,
    Array,
    Row,
    ask,
    batch,
    masks,
    seen,
    spec,
    tile,
)


def test_boxes_come_in_source_pixels_with_their_frames() -> None:
    answer = ask(seen(PERSON, DOG), seen(), seen(DOG), pictures=batch(3, first=7))
    assert answer.frame_index.tolist() == [7, 8, 9]
    assert answer.box_frame_index.tolist() == [7, 7, 9]
    assert answer.box.tolist() == [[10, 12, 50, 60], [60, 20, 120, 80], [60, 20, 120, 80]]
    assert answer.score.tolist() == pytest.approx([0.9, 0.6, 0.6])
    assert answer.class_id.tolist() == [1, 2, 2]
    assert answer.class_name.tolist() == ["person", "dog", "dog"]
    assert answer.size.tolist() == [HEIGHT, WIDTH]
    assert answer.final
    assert (answer.mask, answer.overlay, answer.video, answer.keypoint_names) == ([], [], b"", ())
    assert [column.dtype for column in (answer.box, answer.score, answer.class_id)] == [
        np.float32,
        np.float32,
        np.int64,
    ]


@pytest.mark.parametrize("count", [0, 1, 100])
def test_an_answer_crosses_the_wire(count: int) -> None:
    answer = ask(seen(*[DOG] * count), seen(), mask="none")
    again = DetectionAnswer.from_columns(answer.to_columns())
    assert len(again.box) == count
    assert np.array_equal(again.box, answer.box)
    assert again.class_name.tolist() == ["dog"] * count


COUNTS: list[tuple[dict[str, Any], float, list[float]]] = [
    ({}, -1, [0.9, 0.6]),
    ({}, 0.7, [0.9]),
    ({}, 0.0, [0.9, 0.6, 0.3]),
    ({"score_threshold": 0.0}, 0.7, [0.9, 0.6, 0.3]),
    # What counts is above the threshold, not at it.
    ({"score_threshold": 0.9}, -1, []),
    ({"class_id": 1, "score_threshold": 0.1}, -1, [0.9, 0.3]),
    ({"class_name": "dog"}, -1, [0.6]),
    ({"class_name": "dog, person"}, -1, [0.9, 0.6]),
    ({"class_name": "traffic light"}, -1, []),
    ({"class_name": "N/A"}, -1, []),
]


@pytest.mark.parametrize(("options", "of_spec", "expected"), COUNTS)
def test_what_counts(options: dict[str, Any], of_spec: float, expected: list[float]) -> None:
    answer = ask(seen(PERSON, DOG, FAINT), model=spec(score_threshold=of_spec), **options)
    assert answer.score.tolist() == pytest.approx(expected)


def test_a_name_may_be_that_of_several_classes() -> None:
    rows: list[Row] = [(*PERSON[:4], number, 0.9) for number in range(6)]
    assert ask(seen(*rows), class_name="N/A").class_id.tolist() == [4, 5]


UNKNOWN: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"class_name": "cat"}, LABELS, "unknown class_name 'cat'.*knows: __background__, person"),
    ({"class_name": "dog,cat"}, LABELS, "unknown class_name 'cat'"),
    ({"class_id": 6}, LABELS, "class_id=6 is out of range 0 to 5"),
    ({"class_name": "dog"}, (), "unknown class_name 'dog'.*have no names: use class_id"),
    ({"class_name": "dog"}, tuple(map(str, range(1203))), "98, 99 and 1103 more"),
]


@pytest.mark.parametrize(("options", "labels", "match"), UNKNOWN)
def test_unknown_classes_are_refused(options: dict[str, Any], labels: tuple[str, ...], match: str) -> None:
    with pytest.raises(InvalidOptions, match=match):
        Detection(spec(labels=labels), Options(**options))


@pytest.mark.parametrize("labels", [(), LABELS[:2]])
def test_classes_without_a_name_go_by_their_number(labels: tuple[str, ...]) -> None:
    answer = ask(seen((*PERSON[:4], 77, 0.9)), model=spec(labels=labels), overlay="raw")
    assert answer.class_name.tolist() == ["77"]
    assert not labels or ask(seen(PERSON), model=spec(labels=()), class_id=1).class_id.tolist() == [1]


def test_a_box_of_no_numbers_is_left_out() -> None:
    rows: list[Row] = [(np.nan, 0, 9, 9, 1, 0.9), (0, 0, np.inf, 9, 1, 0.9), (0, 0, 9, 9, 1, np.nan), DOG]
    assert ask(seen(*rows), overlay="raw").class_name.tolist() == ["dog"]


@pytest.mark.parametrize("source_hw", [(1080, 1920), (37, 41), (480, 640)])
def test_boxes_are_resized_as_torchvision_does(source_hw: tuple[int, int]) -> None:
    shape = geometry(Preprocessing(resize_px=800, max_px=1333), *source_hw)
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((50, 2, 2)), axis=1) * np.array(shape.resized_hw)[::-1]
    rows = torch.from_numpy(corners.reshape(-1, 4)).float()
    frame = {"boxes": rows, "labels": torch.ones(50, dtype=torch.int64), "scores": torch.ones(50)}
    view = View(top_px=0, left_px=0, geometry=shape)
    answer = ask(frame, views=[view], pictures=batch(1, 0, *source_hw))
    expected = resize_boxes(rows, list(shape.resized_hw), list(source_hw))
    assert np.array_equal(answer.box, expected.numpy())


def test_a_letterbox_is_taken_away() -> None:
    """Of 128 x 96 in 64 x 64 the frame is 64 x 48, with 8 rows of bars above and below."""
    shape = geometry(Preprocessing(resize_px=(64, 64), fit="letterbox"), HEIGHT, WIDTH)
    rows: list[Row] = [(10, 18, 30, 38, 1, 0.9), (0, 0, 64, 64, 2, 0.8), (10, 1, 20, 7, 1, 0.7)]
    answer = ask(seen(*rows), views=[View(top_px=0, left_px=0, geometry=shape)], overlay="raw")
    # The second is cut at the frame; the third lies in a bar.
    assert answer.box.tolist() == [[20, 20, 60, 60], [0, 0, WIDTH, HEIGHT]]


def test_tiles_give_each_object_once() -> None:
    views = [tile(0, 0), tile(0, 40)]
    # Two frames of each view. The object of the first frame lies in both tiles, at 44..60 of the frame.
    left = [seen((22, 5, 30, 15, 1, 0.8), (1, 1, 9, 9, 2, 0.7)), seen((0, 0, 10, 10, 1, 0.9))]
    right = [seen((2, 5, 10.5, 15, 1, 0.95), (2, 5, 10, 15, 2, 0.6)), seen()]
    for slices in (1, 3, 4):
        answer = ask(*left, *right, views=views, slices=slices)
        assert answer.box_frame_index.tolist() == [0, 0, 0, 1]
        # The best of the two stays; what has another class, or lies elsewhere, stays too.
        assert answer.box.tolist() == [[44, 10, 61, 30], [2, 2, 18, 18], [44, 10, 60, 30], [0, 0, 20, 20]]
        assert answer.score.tolist() == pytest.approx([0.95, 0.7, 0.6, 0.9])


def widths_of(boxes_d4: Array) -> list[str]:
    return [f"{right - left:g} px" for left, _, right, _ in boxes_d4.tolist()]


class Sized:
    """A second model that says how wide objects are."""

    models: tuple[str, ...] = ("sized",)
    attribute_names: tuple[str, ...] = ("area",)

    def __call__(self, frames: FrameBatch, found: Sequence[Found]) -> list[Found]:
        assert len(frames) == len(found)
        return [
            replace(
                one,
                predicted_d=np.array(widths_of(one.box_d4), object),
                probability_d=one.score_d / 2,
                attribute_da=np.full((len(one), 1), "wide", object),
                attribute_probability_da=np.ones((len(one), 1), np.float32),
            )
            for one in found
        ]


def answers_with_and_without(
    *frames: dict[str, Tensor], views: Sequence[View], count: int
) -> tuple[DetectionAnswer, DetectionAnswer]:
    post, pictures = Postprocessor(device="cpu", max_frames=4, classes=len(LABELS)), batch(count)
    made = []
    for second in (None, Sized()):
        job = Detection(spec(keypoint_names=("nose",)), Options(overlay="raw"), second)
        parts = [job.read(BoxOutput(frames))]
        given = job.complete(pictures, parts, views)
        made.append(job.answer(pictures, *given, post, final=True))
    return made[0], made[1]


@pytest.mark.parametrize("tiled", [False, True])
def test_a_second_model_is_asked_about_the_objects_as_answered(tiled: bool) -> None:
    """Each once, in the frame's pixels; whatever else is said of them stays as it is."""
    extra = {"masks": masks(2), "keypoints": torch.rand(2, 1, 3) * 20}
    none = {"masks": masks(0), "keypoints": torch.empty(0, 1, 3)}
    looks = [seen((22, 5, 30, 15, 1, 0.8), DOG, **extra), seen(**none)]
    if tiled:
        looks += [seen((2, 5, 10.5, 15, 1, 0.95), (2, 5, 10, 15, 2, 0.6), **extra), seen(**none)]
    views = [tile(0, 0), tile(0, 40)] if tiled else [WHOLE]
    plain, told = answers_with_and_without(*looks, views=views, count=2)
    assert (told.classified_by, told.attribute_names) == (("sized",), ("area",))
    widths = widths_of(told.box)
    assert told.predicted_class.tolist() == widths
    np.testing.assert_array_equal(told.probability, told.score / 2)
    assert told.attribute_value.tolist() == [["wide"]] * len(widths)
    for name in ("box", "score", "class_id", "keypoint", "keypoint_score", "box_frame_index"):
        np.testing.assert_array_equal(getattr(told, name), getattr(plain, name), err_msg=name)
    assert told.mask == plain.mask
    # Pictures tell it too; of a frame without objects they are the same.
    assert [one == other for one, other in zip(told.overlay, plain.overlay, strict=True)] == [False, True]


CAPTIONS: list[tuple[str, list[str], str]] = [
    ("", [], "person 0.90"),
    ("tall", [], "person 0.90, tall 0.25"),
    ("tall", ["", "red"], "person 0.90, red"),
    ("tall", ["old", "red"], "person 0.90, old, red"),
]


@pytest.mark.parametrize(("predicted", "values", "expected"), CAPTIONS)
def test_captions_of_boxes(predicted: str, values: list[str], expected: str) -> None:
    found = replace(
        Found.concatenate(Detection(spec(), Options()).read(BoxOutput([seen(PERSON)]))),
        predicted_d=np.array([predicted], object),
        probability_d=np.array([0.25], np.float32),
        attribute_da=np.array([values], object),
        attribute_probability_da=np.ones((1, len(values)), np.float32),
    )
    assert Painter.of(Options(), LABELS).captions(found) == [expected]


def test_one_view_keeps_all_that_a_model_gives() -> None:
    assert len(ask(seen(PERSON, PERSON)).box) == 2


def test_keypoints_come_in_source_pixels() -> None:
    points = torch.rand(2, 17, 3) * torch.tensor([64.0, 48.0, 1.0])
    points[..., 2] = 1
    sure = torch.randn(2, 17)
    names = tuple(f"joint {number}" for number in range(17))
    frame = seen(PERSON, FAINT, keypoints=points, keypoints_scores=sure)
    empty = seen(keypoints=points[:0], keypoints_scores=sure[:0])
    answer = ask(frame, empty, model=spec(keypoint_names=names), overlay="raw")
    expected = resize_keypoints(points[:1], [HEIGHT // 2, WIDTH // 2], [HEIGHT, WIDTH])
    assert np.array_equal(answer.keypoint, expected.numpy())
    assert np.array_equal(answer.keypoint_score, sure[:1].numpy())
    assert answer.keypoint_names == names
    again = DetectionAnswer.from_columns(answer.to_columns())
    assert np.array_equal(again.keypoint, answer.keypoint)
    # Without names, numbers; without scores, whether a point is visible.
    nameless = ask(seen(PERSON, keypoints=points[:1]))
    assert nameless.keypoint_names == tuple(map(str, range(17)))
    assert np.array_equal(nameless.keypoint_score, np.ones((1, 17), np.float32))


def test_an_answer_to_no_frames() -> None:
    job = Detection(spec(keypoint_names=("nose",)), Options())
    post = Postprocessor(device="cpu", max_frames=4, classes=len(LABELS))
    answer = job.answer(None, [], [], post, final=True)
    assert answer.final
    assert (len(answer), len(answer.box), answer.keypoint.shape) == (0, 0, (0, 1, 3))
    some = ask(seen(PERSON, keypoints=torch.ones(1, 1, 3)), model=spec(keypoint_names=("nose",)))
    assert len(DetectionAnswer.concatenate([answer, some]).keypoint) == 1
    assert DetectionAnswer.from_columns(answer.to_columns()).class_name.tolist() == []


def test_many_objects() -> None:
    rng = np.random.default_rng(0)
    corners = np.sort(rng.random((100, 2, 2)) * [64, 48], axis=1).reshape(-1, 4)
    rows: list[Row] = [(*map(float, box), 1 + row % 5, 0.99) for row, box in enumerate(corners)]  # type: ignore[misc]
    answer = ask(seen(*rows, masks=masks(100)), overlay="jpeg")
    assert (len(answer.box), len(answer.mask), len(answer.overlay)) == (100, 100, 1)


@pytest.mark.parametrize("tiled", [False, True])
def test_of_too_many_objects_the_best_are_answered(tiled: bool) -> None:
    count = MAX_OBJECTS + 200
    scores = np.random.default_rng(0).permutation(np.linspace(0.6, 0.9, count))
    # Side by side in what a tile shows, 600 in each.
    spots = [(row % 600 % 32, row % 600 // 32) for row in range(count)]
    rows: list[Row] = [(x, y, x + 1, y + 1, 1, one) for (x, y), one in zip(spots, scores, strict=True)]
    if tiled:
        answer = ask(seen(*rows[: count // 2]), seen(*rows[count // 2 :]), views=[tile(0, 0), tile(0, 64)])
        expected = np.sort(scores)[: -MAX_OBJECTS - 1 : -1]
    else:
        answer = ask(seen(*rows))
        expected = scores[scores >= np.sort(scores)[-MAX_OBJECTS]]
    assert answer.score == pytest.approx(expected)


def test_what_is_read_keeps_nothing_of_the_batch() -> None:
    """What counts is copied, so that the rest of a batch's outputs can go."""
    frame = seen(PERSON, FAINT, masks=masks(2))
    (found,) = Detection(spec(), Options()).read(BoxOutput([frame]))
    assert isinstance(found, Found)
    assert found.mask_d1mm is not None
    frame["boxes"].zero_()
    frame["masks"].zero_()
    assert found.box_d4.tolist() == [list(PERSON[:4])]
    assert found.mask_d1mm.any()


def test_the_task_tells_of_its_options_and_tensors() -> None:
    assert TASK.answer is DetectionAnswer
    assert set(TASK.options) <= set(Options.__dataclass_fields__)
    assert TASK.tiles
    assert [column.name for column in TASK.model_outputs] == ["boxes", "scores", "labels", "box_count"]
