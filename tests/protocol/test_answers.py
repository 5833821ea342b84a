"""Answers of every form: over the wire in both shapes and protocols, joined, and refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import pytest

from client import Client
from pipelines.protocol.answers import (
    ANSWERS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
    answer_columns,
)
from pipelines.protocol.columns import stacked_bytes, to_tensors
from pipelines.protocol.kserve import read_columns, read_json
from tests.support.stub_server import GrpcStub, StubServer, event
from tests.support.toy_answers import answer, attributes, detected, embedded, ranked

AnswerT = TypeVar("AnswerT", bound=Answer)
JPEGS, FILM = [b"\xff\x00", b"\x00"], b"\x00film\x00"

FORMS: dict[str, Answer] = {
    "segmentation": answer(mask=[b"\x00a\x00", b"b"], overlay=JPEGS, video=FILM, decoder_reason="weil"),
    "segmentation, counts alone": answer([5]),
    "segmentation, no frame": answer([]),
    "classification": ranked(ClassificationAnswer, [0, 2, 9], overlay=[*JPEGS, b"x"], video=FILM),
    "classification, not the last": ranked(ClassificationAnswer, [4], final=False),
    "classification, no frame": ranked(ClassificationAnswer, []),
    "classification with attributes": ranked(ClassificationAnswer, [0, 2], **attributes(2)),
    "classification with attributes, one frame": ranked(ClassificationAnswer, [3], **attributes(1)),
    "classification with attributes, no frame": ranked(ClassificationAnswer, [], **attributes(0)),
    "embedding": embedded([0, 3, 7]),
    "embedding, one frame": embedded([1], final=False),
    "embedding, no frame": embedded([]),
    "action": ranked(ActionAnswer, [0, 16], overlay=JPEGS),
    "action, no clip": ranked(ActionAnswer, [], video=FILM, final=False),
    "detection": detected([0, 1, 2], overlay=[*JPEGS, b"x"]),
    "detection, one box": detected([1]),
    "detection, no box": detected([0], video=FILM),
    "detection, no frame": detected([]),
    "detection with masks": detected([3], mask=[b"\x00", b"\x89PNG", b"raw\x00"]),
    "detection with one keypoint": detected([1, 2], keypoints=1),
    "detection with keypoints": detected([3, 1], keypoints=17, mask=[b"m"] * 4),
    "detection with keypoints, one box": detected([0, 1], keypoints=3),
    "detection with keypoints, no box": detected([0], keypoints=3),
    "detection with a second model": detected([3, 1], models=("gate ü",), **attributes(4)),
    "detection with second models, one box": detected([1], models=("a", "b"), keypoints=2, **attributes(1)),
    "detection with a second model, no attributes": detected([2], models=("a",)),
    "detection with a second model, no box": detected([0], models=("a",), **attributes(0)),
}


def assert_same(got: Answer, given: Answer) -> None:
    """The same form, values and dtypes; how long the dimensions of nothing are does not matter."""
    assert type(got) is type(given)
    for entry in fields(given):
        one, other = getattr(got, entry.name), getattr(given, entry.name)
        if isinstance(other, np.ndarray) and other.size:
            assert one.dtype == other.dtype, entry.name
            np.testing.assert_array_equal(one, other, err_msg=entry.name)
        elif entry.metadata["join"] == "rows" and not isinstance(other, bytes):
            assert (len(one), list(one)) == (len(other), list(other)), entry.name
        else:
            assert (type(one), one) == (type(other), other), entry.name


def through_tensors(given: AnswerT) -> AnswerT:
    columns = answer_columns(type(given))
    tensors = to_tensors(columns, [given.to_columns()])
    assert tensors.keys() == {column.name for column in columns}
    # Triton knows no tensor without elements, and it is told each shape beforehand.
    for column in columns:
        assert 0 not in tensors[column.name].shape
        sizes = zip(tensors[column.name].shape[1:], column.shape, strict=True)
        assert all(told in (-1, size) for size, told in sizes), column.name
    return type(given).from_columns(read_columns(columns, tensors))


def through_json(given: AnswerT) -> AnswerT:
    told = json.loads(event(given).removeprefix(b"data: "))
    columns = answer_columns(type(given))
    return type(given).from_columns(read_columns(columns, read_json(columns, told)))


@pytest.mark.parametrize("through", [through_tensors, through_json])
@pytest.mark.parametrize("given", FORMS.values(), ids=FORMS)
def test_every_form_crosses_the_wire(given: Answer, through: Callable[[Answer], Answer]) -> None:
    got = through(given)
    assert_same(got, given)
    assert (len(got), got.width_px, got.height_px) == (len(given.frame_index), 3, 2)
    assert got.nbytes == given.nbytes
    assert_same(through(got), given)  # what was read can be sent on


@pytest.fixture(params=[StubServer, GrpcStub])
def stub(request: pytest.FixtureRequest) -> Iterator[StubServer | GrpcStub]:
    with request.param() as running:
        yield running


@pytest.mark.parametrize(
    "name",
    [
        *("segmentation", "classification", "action", "detection with keypoints"),
        "detection with a second model",
    ],
)
def test_every_task_over_both_protocols(name: str, stub: StubServer | GrpcStub) -> None:
    last = FORMS[name]
    first = replace(last, final=False, video=b"head")
    stub.serve(first, last)
    whole = type(last).concatenate([first, last])
    with Client(stub.url) as client:
        one: dict[str, Callable[..., Answer]] = {
            "segmentation": client.segment,
            "classification": client.classify,
            "detection": client.detect,
            "action": client.recognize,
        }
        many: dict[str, Callable[..., Iterator[Answer]]] = {
            "segmentation": client.segment_stream,
            "classification": client.classify_stream,
            "detection": client.detect_stream,
            "action": client.recognize_stream,
        }
        assert_same(one[last.task](b"media", top_k=3), whole)
        got = list(many[last.task](b"media"))
        assert_same(client.ask(type(last), b"media", {}), whole)
    assert len(got) == 2
    assert_same(got[0], first)
    assert_same(got[1], last)


def test_rows_of_one_request_are_padded_to_the_longest() -> None:
    parts = [detected([2], keypoints=3), detected([0, 1], keypoints=3), detected([])]
    columns, rows = answer_columns(DetectionAnswer), [part.to_columns() for part in parts]
    tensors = to_tensors(columns, rows)
    assert tensors["box"].shape == (3, 2, 4)
    assert tensors["count"].tolist() == [[1], [2], [0]]
    assert tensors["box_count"].tolist() == [[2], [1], [0]]
    for row, part in enumerate(parts):
        assert_same(
            DetectionAnswer.from_columns({name: tensor[row] for name, tensor in tensors.items()}), part
        )
    assert stacked_bytes(columns, rows) > 0


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (ClassificationAnswer, ["frame_index", "pts_s", "class_id", "class_name", "probability"]),
        (ActionAnswer, ["frame_index", "last_frame_index", "last_pts_s", "class_id", "class_name"]),
    ],
)
def test_ranked_parts_join(kind: type[ClassificationAnswer] | type[ActionAnswer], rows: list[str]) -> None:
    """Rows stand one behind the other, and the last part has the mean of all."""
    parts: list[Any] = [
        ranked(kind, [0, 1], final=False, video=b"a", overlay=JPEGS),
        ranked(kind, [], final=False, video=b"b"),
        ranked(kind, [2], mean_class_id=np.array([0, 7]), video=b"c", overlay=[b"z"]),
    ]
    whole = kind.concatenate(parts)
    for name in rows:
        expected = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(getattr(whole, name), expected, err_msg=name)
    assert (whole.video, whole.overlay, whole.final) == (b"abc", [*JPEGS, b"z"], True)
    assert whole.mean_class_id.tolist() == [0, 7]
    assert kind.concatenate(parts[:1]) is parts[0]


@pytest.mark.parametrize("keypoints", [0, 3])
@pytest.mark.parametrize("frames", [([0], [2, 1]), ([3], [0]), ([0], [0]), ([], [])])
def test_parts_with_boxes_join(frames: tuple[list[int], list[int]], keypoints: int) -> None:
    parts = [
        detected(some, keypoints=keypoints, mask=[b"m%d" % place for place in range(sum(some))])
        for some in frames
    ]
    # A part without boxes comes out of the wire with other empty dimensions than one that was made.
    whole = DetectionAnswer.concatenate([through_tensors(parts[0]), parts[1]])
    assert whole.frame_index.tolist() == [*frames[0], *frames[1]]
    boxes = sum(frames[0]) + sum(frames[1])
    assert whole.box_frame_index.tolist() == [one for some in frames for one in some for _ in range(one)]
    assert (len(whole.box), len(whole.mask), len(whole.class_name)) == (boxes, boxes, boxes)
    assert len(whole.keypoint) == len(whole.keypoint_score) == (boxes if keypoints else 0)
    assert_same(through_tensors(whole), whole)


def test_parts_with_a_second_model_join() -> None:
    """Also where it was asked about nothing in the first part."""
    first = detected([0], final=False, models=("a",), **attributes(0))
    whole = DetectionAnswer.concatenate(
        [through_tensors(first), detected([2], models=("a",), **attributes(2))]
    )
    assert (len(whole.box), whole.classified_by, whole.attribute_value.shape) == (2, ("a",), (2, 2))
    assert whole.predicted_class.tolist() == ["", "Rasse é 1"]
    assert_same(through_tensors(whole), whole)


POINTS = np.zeros((3, 1, 3), np.float32)


@pytest.mark.parametrize(
    ("given", "changes"),
    [
        (answer(), {"pts_s": np.zeros(3)}),
        (answer(), {"class_pixels": np.zeros((0, 2), np.int64)}),
        (answer(), {"mask": [b""]}),
        (answer(), {"overlay": [b"", b"", b""]}),
        (answer([]), {"overlay": [b""]}),
        (ranked(ClassificationAnswer), {"class_name": np.empty((1, 2), object)}),
        (ranked(ActionAnswer), {"last_pts_s": np.zeros(0)}),
        (detected([3]), {"score": np.zeros(2, np.float32)}),
        (detected([3]), {"box": np.zeros((1, 4), np.float32)}),
        (detected([3]), {"mask": [b"", b""]}),
        (detected([3], keypoints=1), {"keypoint": POINTS[:2]}),
        (detected([3], keypoints=1), {"keypoint": POINTS[:0]}),  # there are names, so there are points
        (detected([3]), {"keypoint": POINTS[:2]}),
        (detected([3], models=("a",)), {"predicted_class": np.empty(0, object)}),
        (detected([3], **attributes(3)), {"attribute_value": np.empty((0, 2), object)}),
    ],
)
def test_columns_that_disagree_cannot_be_made(given: Answer, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"columns disagree: .*'{next(iter(changes))}'"):
        replace(given, **changes)


@pytest.mark.parametrize("kind", ANSWERS.values(), ids=ANSWERS)
def test_a_form_is_told_by_its_columns(kind: type[Answer]) -> None:
    columns = answer_columns(kind)
    names = [column.name for column in columns]
    assert ANSWERS[kind.task] is kind
    assert len(set(names)) == len(names)
    assert {"count", "final", "error", "decoder"} <= set(names)
    assert ("box_count" in names) == (kind is DetectionAnswer)
    assert all(column.help for column in columns)
    assert {column.name for column in columns if column.binary} == {"overlay", "video", "mask"} & set(names)
    # Of each dimension that varies one column has nothing else, by which flat JSON finds its shapes.
    alone = {column.dims[0] for column in columns if len(column.dims) == 1}
    assert {dim for column in columns for dim in column.dims if isinstance(dim, str)} <= alone


def test_texts_that_are_none_raise() -> None:
    columns = to_tensors(answer_columns(SegmentationAnswer), [answer().to_columns()])
    row = {name: tensor[0] for name, tensor in columns.items()}
    with pytest.raises(UnicodeDecodeError):
        SegmentationAnswer.from_columns({**row, "decoder": np.array([b"\xff"], object)})
