"""What a model-proc file's converters become: heads and named attributes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.frames.geometry import geometry
from pipelines.models.graph import Graph, Port
from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.region import Region
from pipelines.models.heads.ssd import Ssd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.heads.yolox import Yolox
from pipelines.models.spec import Activation, Attribute, Head, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.model_proc import ModelProc, read_model_proc

AB = ["a", "b"]
ANCHORS = [10, 14, 23, 27, 37, 58, 81, 82]
GRID = {"anchors": ANCHORS, "classes": 3}


@pytest.fixture
def read_proc(tmp_path: Path) -> Callable[..., ModelProc]:
    """Reads a file with these outputs."""

    def read(*outputs: dict[str, Any], **more: Any) -> ModelProc:
        file = tmp_path / "proc.json"
        file.write_text(json.dumps({**more, "output_postproc": outputs}))
        return read_model_proc(file)

    return read


def graph_of(**dims: tuple[int | None, ...]) -> Graph:
    ports = tuple(Port(name=name, dtype="float32", dims=shape) for name, shape in dims.items())
    return Graph(inputs=(), outputs=ports)


ROWS: dict[str, Any] = {"iou_threshold": 0.4, "class_agnostic": True}


@pytest.mark.parametrize(
    ("output", "graph", "expected"),
    [
        ({"converter": "detection_output"}, None, Ssd()),
        ({"converter": "tensor_to_bbox_ssd", "layer_name": "out"}, None, Ssd(output="out")),
        ({"converter": "boxes_labels"}, None, Ssd(boxes="boxes", labels="labels")),
        ({"converter": "tensor_to_bbox_atss"}, None, Ssd(boxes="boxes", labels="labels")),
        ({"converter": "ssd"}, None, Ssd(boxes="boxes", labels="labels")),
        ({"converter": "boxes"}, None, Ssd(boxes="boxes")),
        (
            {"converter": "boxes_scores", "do_cls_softmax": True, "labels": AB},
            None,
            BoxesScores(unit=True, order="xywh", classes=2, activation="softmax", iou_threshold=None),
        ),
        ({"converter": "detection"}, None, Boxes()),
        (
            {"converter": "detection"},
            graph_of(boxes=(None, 4), labels=(None,), scores=(None,)),
            Boxes(),
        ),
        ({"converter": "detection"}, graph_of(found=(1, 1, 200, 7)), Ssd(output="found")),
        ({"converter": "detection"}, graph_of(found=(100, 5)), Ssd(boxes="found")),
        ({"converter": "yolo_v7", "labels": AB}, None, YoloV5(classes=2, **ROWS)),
        (
            {"converter": "yolo_v7", "layer_name": "out", "iou_threshold": 0.3},
            None,
            YoloV5(output="out", iou_threshold=0.3, class_agnostic=True),
        ),
        ({"converter": "yolo_x", "classes": 3}, None, Yolox(classes=3, **ROWS)),
        ({"converter": "yolo_v8", "labels": AB}, None, YoloV8(classes=2, **ROWS)),
        ({"converter": "YOLOv8"}, None, YoloV8(**ROWS)),
        ({"converter": "yolo_v11", "labels": AB}, None, YoloV8(classes=2, **ROWS)),
        ({"converter": "yolo_v8_seg"}, None, YoloV8(output="boxes", prototypes="masks", **ROWS)),
        (
            {"converter": "yolo_v8_seg", "labels": AB},
            graph_of(output0=(1, 38, 2100), output1=(1, 32, 80, 80)),
            YoloV8(classes=2, output="output0", prototypes="output1", **ROWS),
        ),
        ({"converter": "yolo_x"}, graph_of(a=(1, 2), b=(1, 9, 8)), Yolox(output="b", **ROWS)),
        ({"converter": "yolo_v7"}, graph_of(a=(1, 2), b=(1, 9, 8)), YoloV5(output="b", **ROWS)),
        ({"converter": "yolo_v10"}, graph_of(b=(None, None, 6)), EndToEnd(output="b")),
        ({"converter": "detection_output"}, graph_of(b=(1, 1, 200, 7)), Ssd(output="b")),
        ({"converter": "yolo_v8_pose"}, None, YoloV8(classes=1, keypoints=(17, 3), **ROWS)),
        (
            {"converter": "yolo_v11_pose", "point_names": ["x", "y"]},
            None,
            YoloV8(classes=1, keypoints=(2, 3), **ROWS),
        ),
        (
            {"converter": "yolo_v8_pose"},
            graph_of(out=(1, 4 + 1 + 5 * 3, 2100)),
            YoloV8(classes=1, output="out", keypoints=(5, 3), **ROWS),
        ),
        ({"converter": "yolo_v10", "layer_name": "out"}, None, EndToEnd(output="out")),
        ({"converter": "yolo_v26_seg"}, None, EndToEnd(output="boxes", prototypes="masks")),
        (
            {"converter": "yolo_v26_pose"},
            graph_of(out=(1, 300, 57)),
            EndToEnd(output="out", keypoints=(17, 3)),
        ),
        (
            {"converter": "tensor_to_bbox_yolo_v3", **GRID, "masks": [2, 3, 0, 1]},
            None,
            Region(
                version="yolo_v3", classes=3, anchors=(*ANCHORS,), masks=(2, 3, 0, 1), class_agnostic=True
            ),
        ),
        (
            {"converter": "yolo_v2", **GRID, "cells_number_x": 13, "cells_number_y": 7, "iou_threshold": 0.2},
            None,
            Region(
                version="yolo_v2",
                classes=3,
                anchors=(*ANCHORS,),
                cells_hw=(7, 13),
                iou_threshold=0.2,
                class_agnostic=True,
            ),
        ),
        (
            {
                "converter": "yolo_v5",
                "anchors": ANCHORS,
                "labels": AB,
                "cells_number": 9,
                "do_cls_softmax": True,
                "output_sigmoid_activation": True,
                "layer_names": ["p", "q"],
            },
            None,
            Region(
                version="yolo_v5",
                classes=2,
                anchors=(*ANCHORS,),
                cells_hw=(9, 9),
                outputs=("p", "q"),
                sigmoid=True,
                softmax=True,
                class_agnostic=True,
            ),
        ),
    ],
)
def test_a_converter_of_boxes_is_a_head(
    read_proc: Callable[..., ModelProc], output: dict[str, Any], graph: Graph | None, expected: Head
) -> None:
    proc = read_proc(output)
    assert (proc.task, proc.has_head, proc.head(graph)) == ("detection", True, expected)
    assert proc.attributes == ()


@pytest.mark.parametrize(
    "converter", ["yolo_v7", "yolo_x", "yolo_v8", "yolo_v8_seg", "yolo_v10", "detection"]
)
def test_a_network_without_such_an_output_is_named(
    read_proc: Callable[..., ModelProc], converter: str
) -> None:
    with pytest.raises(ModelUnavailable, match=f'"{converter}" of the model-proc file') as caught:
        read_proc({"converter": converter}).head(graph_of(logits=(1, 1000)))
    assert "logits float32 (1, 1000)" in (caught.value.hint or "")


@pytest.mark.parametrize(("converter", "names"), [("boxes", ["x"]), ("boxes_labels", ["boxes", "x"])])
def test_names_that_a_converter_has_are_checked(
    read_proc: Callable[..., ModelProc], converter: str, names: list[str]
) -> None:
    proc = read_proc({"converter": converter})
    proc.check_layers(["boxes", "labels"])
    with pytest.raises(ModelUnavailable, match='reads the output "') as caught:
        proc.check_layers(names)
    assert f"it gives {', '.join(names)}" in (caught.value.hint or "")


def test_corners_with_width_and_height_become_boxes(read_proc: Callable[..., ModelProc]) -> None:
    head = read_proc({"converter": "boxes_scores"}).head()
    assert head is not None
    outputs = {"boxes": torch.tensor([[[0.1, 0.2, 0.3, 0.4]]]), "scores": torch.tensor([[[0.1, 0.8]]])}
    (found,) = head(outputs, (100, 200))
    torch.testing.assert_close(found["boxes"], torch.tensor([[20.0, 20.0, 80.0, 60.0]]))
    assert found["labels"].tolist() == [1]


LABEL: dict[str, Any] = {"converter": "label", "labels": AB}


@pytest.mark.parametrize(
    ("outputs", "task", "activation", "multi_label", "threshold", "labels"),
    [
        ([{**LABEL, "method": "max"}], "classification", "none", False, -1, AB),
        ([{**LABEL, "method": "softmax", "threshold": 0.3}], "classification", "softmax", False, 0.3, AB),
        ([{**LABEL, "method": "multi", "threshold": 0.4}], "classification", "none", True, 0.4, AB),
        ([{**LABEL, "method": "softmax_multi"}], "classification", "softmax", True, -1, AB),
        ([LABEL], "classification", None, False, -1, AB),
        ([{**LABEL, "converter": "tensor_to_label"}], "classification", None, False, -1, AB),
        ([{**LABEL, "converter": "Classification"}], "classification", None, False, -1, AB),
        ([{"converter": "raw_data_copy"}], None, None, False, -1, []),
        ([{"converter": "raw_data_copy", "format": "cosine_distance"}], "embedding", None, False, -1, []),
        (
            [{**LABEL, "method": "max", "threshold": 0.9}, {"converter": "boxes", "threshold": 0.2}],
            "detection",
            None,
            False,
            0.2,
            [],
        ),
        ([], None, None, False, -1, []),
    ],
)
def test_a_label_is_a_classifiers_answer(
    read_proc: Callable[..., ModelProc],
    outputs: list[dict[str, Any]],
    task: TaskName | None,
    activation: Activation | None,
    multi_label: bool,
    threshold: float,
    labels: list[str],
) -> None:
    proc = read_proc(*outputs)
    said = (proc.task, proc.activation, proc.multi_label, proc.score_threshold, [*proc.labels])
    assert said == (task, activation, multi_label, threshold, labels)
    assert not proc.attributes
    assert proc.has_head == (proc.head() is not None) == (task == "detection")


def test_what_is_beside_a_label_or_boxes_is_left_out_aloud(read_proc: Callable[..., ModelProc]) -> None:
    text = {"converter": "tensor_to_text", "layer_name": "age", "text_scale": 100.0, "text_precision": 0}
    proc = read_proc(text, {**LABEL, "layer_name": "sex"})
    assert (proc.task, proc.labels, proc.output) == ("classification", ("a", "b"), "sex")
    assert proc.assumed == ('output "age" is left out: numbers as text are not answered',)
    proc.check_layers(["sex"])
    assert proc.left_out(["age", "sex"]) == ()
    (words,) = proc.left_out(["age", "sex", "map", "vector"])
    assert words.startswith("the outputs map, vector are left out")
    assert read_proc(LABEL).left_out(["map", "vector"]) == ()
    proc = read_proc(text, {"converter": "boxes"}, {**LABEL, "attribute_name": "kind"})
    assert [words.split(":")[0] for words in proc.assumed] == [
        'output "age" is left out',
        'label "kind" is left out',
    ]


def test_on_and_off_names_are_attributes(read_proc: Callable[..., ModelProc]) -> None:
    names = ["M: ", "F: ", "hat", "", "", "", "", "bare"]
    output = {"converter": "label", "method": "compound", "layer_name": "453", "labels": names}
    parts: dict[str, Any] = {"output": "453", "activation": "none"}
    assert read_proc(output).attributes == (
        Attribute(name="M/F", labels=("M: ", "F: "), start=0, stop=1, **parts),
        Attribute(name="hat", labels=("hat", "not hat"), start=1, stop=2, **parts),
        Attribute(name="bare", labels=("not bare", "bare"), start=3, stop=4, **parts),
    )
    assert {one.threshold for one in read_proc({**output, "threshold": 0.7}).attributes} == {0.7}
    assert (read_proc(output).labels, read_proc(output).output) == ((), "")


def test_several_labels_are_attributes(read_proc: Callable[..., ModelProc]) -> None:
    proc = read_proc(
        {**LABEL, "method": "max", "layer_name": "type"},
        {**LABEL, "method": "softmax", "layer_name": "c", "attribute_name": "colour"},
        {"converter": "label", "method": "multi", "labels": ["hat"], "layer_name": "m", "threshold": 0.6},
    )
    assert proc.attributes == (
        Attribute(name="type", output="type", labels=("a", "b"), activation="none"),
        Attribute(name="colour", output="c", labels=("a", "b"), activation="softmax"),
        Attribute(
            name="hat",
            output="m",
            labels=("hat", "not hat"),
            start=0,
            stop=1,
            activation="none",
            threshold=0.6,
        ),
    )
    assert (proc.task, proc.multi_label, proc.score_threshold) == ("classification", False, -1)
    with pytest.raises(ModelUnavailable, match='reads the output "c", which the network does not have'):
        proc.check_layers(["type", "m", "d"])


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([{"converter": "text"}], "(allowed: a label or boxes too, since text without them is not served)"),
        ([{"converter": "mask_rcnn"}], '"mask_rcnn" (allowed: '),
        ([{"converter": "rotated_detection"}], "out of scope: masks of a second stage"),
        ([{"converter": "yolo_v8_obb"}], "out of scope: oriented boxes"),
        ([{"converter": "YOLOv8-OBB"}], "out of scope: oriented boxes"),
        ([{"converter": "tensor_to_keypoints_hrnet"}], "out of scope: points in heat maps"),
        ([{"converter": "boxes"}, {"converter": "yolo_v7"}], "a model has one converter of boxes"),
        ([LABEL, LABEL], "label has no layer_name, as each of several outputs needs it"),
        ([{**LABEL, "layer_name": "y"}, {"converter": "label", "layer_name": "x"}], "x has no labels"),
        (
            [{**LABEL, "layer_name": "x"}, {**LABEL, "layer_name": "y", "method": "softmax_multi"}],
            "y has the method softmax_multi, which only one output may have",
        ),
        ([{**LABEL, "layer_names": ["x", "y"], "layer_name": "x"}], "may have only one of them"),
        (
            [{**LABEL, "layer_name": one, "attribute_name": "kind"} for one in AB],
            "more than one attribute is called kind",
        ),
        ([{**LABEL, "method": "compound", "labels": ["x"]}], "it has 1 labels, but compound needs two"),
        ([{"converter": "label", "method": "compound"}], "it has 0 labels, but compound needs two"),
        ([{"converter": "yolo_x", "classes": 3, "labels": AB}], "it has 3 classes, and only 2 labels"),
        ([{"converter": "yolo_v2", "anchors": ANCHORS}], "yolo_v2 needs classes or labels"),
        ([{"converter": "yolo_v2", **GRID, "anchors": [1, 2, 3]}], "it has 3 numbers as anchors"),
        ([{"converter": "yolo_v2", **GRID, "bbox_number_on_cell": 3}], "a cell has 3 boxes"),
        ([{"converter": "yolo_v3", **GRID, "masks": [0, 1, 2, 4]}], "do not number 4 anchors"),
        ([{"converter": "yolo_v3", **GRID, "masks": [0]}], "do not number 4 anchors"),
        ([{"converter": "yolo_v3", **GRID, "cells_number_x": 3}], "cells_number_x and cells_number_y"),
        ([{"converter": "yolo_v3", **GRID, "iou_threshold": 2}], "output_postproc[0].iou_threshold is 2"),
        ([{**LABEL, "method": ["max"]}], 'method is ["max"]'),
    ],
)
def test_outputs_that_make_no_sense_are_named(
    read_proc: Callable[..., ModelProc], outputs: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        read_proc(*outputs)
    assert message in str(caught.value)


@pytest.mark.parametrize("version", ["2.0.0", "2.1.0", "2.2.0"])
def test_older_schemas_are_read(read_proc: Callable[..., ModelProc], version: str) -> None:
    assert read_proc(LABEL, json_schema_version=version).labels == ("a", "b")


def test_classes_that_are_fewer_than_labels_count(read_proc: Callable[..., ModelProc]) -> None:
    assert read_proc({"converter": "yolo_x", "classes": 1, "labels": AB}).labels == ("a",)


def test_a_file_of_labels_is_not_needed_where_others_are_given(tmp_path: Path) -> None:
    file = tmp_path / "proc.json"
    file.write_text(json.dumps({"output_postproc": [{**LABEL, "labels": "/no/such/file"}]}))
    with pytest.raises(ModelUnavailable, match="no/such/file"):
        read_model_proc(file)
    assert read_model_proc(file, label_files=False).labels == ()


@pytest.mark.parametrize(
    ("resize", "region"), [("aspect-ratio", (-7, 0, 48, 64)), ("aspect-ratio-pad", (0, 0, 48, 64))]
)
def test_sides_that_keep_their_aspect_are_truncated(
    read_proc: Callable[..., ModelProc], resize: str, region: tuple[int, ...]
) -> None:
    """100 of 190 px become 33.7 of 64, not 34."""
    facts = read_proc(input_preproc=[{"params": {"resize": resize}}]).preprocessing((48, 64), "model")
    shape = geometry(facts, 100, 190)
    assert (shape.resized_hw, shape.crop_yxhw) == ((33, 64), region)
