"""DL Streamer's model-proc files: what they say of pixels and answers, and every field that may be wrong."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from pipelines.zoo.model_proc import read_model_proc

PROC: dict[str, Any] = {
    "json_schema_version": "2.2.0",
    "input_preproc": [
        {
            "format": "image",
            "layer_name": "data",
            "precision": "FP32",
            "params": {
                "resize": "no-aspect-ratio",
                "color_space": "RGB",
                "range": [0.0, 1.0],
                "mean": [0.485, 0.456, 0.406],
                "std": [0.229, 0.224, 0.225],
            },
        }
    ],
    "output_postproc": [
        {"converter": "label", "method": "softmax", "labels": ["cat", "dog"], "threshold": 0.25}
    ],
}
BYTES: dict[str, Any] = {"mean": (0.0,) * 3, "std": (1 / 255,) * 3, "antialias": False}


def proc_file(folder: Path, params: Any, output: Any = None) -> Path:
    whole = json.loads(json.dumps(PROC))
    if params == []:
        whole["input_preproc"] = []
    else:
        whole["input_preproc"][0]["params"] = params
    whole["output_postproc"] = [output] if output else []
    file = folder / "proc.json"
    file.write_text(json.dumps(whole))
    return file


def test_a_model_proc_file_says_pixels_and_answers(tmp_path: Path) -> None:
    file = tmp_path / "proc.json"
    file.write_text(json.dumps(PROC))
    choice = ModelSettings(source="squeezenet1_1", weights="random", model_proc=str(file))
    spec = resolve(choice, allow_code=False)
    assert spec.preprocessing == Preprocessing(resize_px=(224, 224), antialias=False)
    assert (spec.labels, spec.score_threshold, spec.activation) == (("cat", "dog"), 0.25, "softmax")
    other = resolve(choice.model_copy(update={"resize_px": (64,), "channels": "BGR"}), allow_code=False)
    assert other.preprocessing == replace(spec.preprocessing, resize_px=(64, 64), channels="BGR")


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ([], Preprocessing(resize_px=(224, 200), channels="BGR", **BYTES)),
        (
            {"resize": "aspect-ratio"},
            Preprocessing(resize_px=(224, 200), fit="letterbox_truncated", channels="BGR", **BYTES),
        ),
        (
            {"resize": "aspect-ratio", "crop": "central"},
            Preprocessing(
                resize_px=(252, 225), fit="letterbox_truncated", crop_px=(224, 200), channels="BGR", **BYTES
            ),
        ),
        (
            {"resize": "aspect-ratio-pad"},
            Preprocessing(resize_px=(224, 200), fit="letterbox_top_left", channels="BGR", **BYTES),
        ),
        ({"crop": "central"}, Preprocessing(resize_px=None, crop_px=(224, 200), channels="BGR", **BYTES)),
        ({"resize": "no"}, Preprocessing(resize_px=None, crop_px=(224, 200), channels="BGR", **BYTES)),
        (
            {"resize": "no-aspect-ratio", "padding": {"stride_x": 8, "stride_y": 4}},
            Preprocessing(resize_px=(216, 184), crop_px=(224, 200), channels="BGR", **BYTES),
        ),
        (
            {"padding": {"stride": 8}},
            Preprocessing(resize_px=(208, 184), crop_px=(224, 200), channels="BGR", **BYTES),
        ),
        (
            {"resize": "aspect-ratio", "padding": {"fill_value": [114, 114, 114]}, "color_space": "RGB"},
            Preprocessing(resize_px=(224, 200), fit="letterbox_truncated", pad_value=114, **BYTES),
        ),
        (
            {"mean": [127.5] * 3, "std": [63.75] * 3},
            Preprocessing(
                resize_px=(224, 200), channels="BGR", mean=(0.5,) * 3, std=(0.25,) * 3, antialias=False
            ),
        ),
        (
            {"range": [-1.0, 1.0]},
            Preprocessing(
                resize_px=(224, 200), channels="BGR", mean=(0.5,) * 3, std=(0.5,) * 3, antialias=False
            ),
        ),
    ],
)
def test_pixels_of_a_model_proc_file(tmp_path: Path, params: Any, expected: Preprocessing) -> None:
    assert read_model_proc(proc_file(tmp_path, params)).preprocessing((224, 200), "model") == expected


@pytest.mark.parametrize(
    ("params", "output", "message"),
    [
        (
            {"resize": "big"},
            None,
            "input_preproc[0].params.resize is \"big\" (allowed: 'no', 'no-aspect-ratio', 'aspect-rat",
        ),
        ({"crop": "top_left"}, None, 'input_preproc[0].params.crop is "top_left" (allowed: central)'),
        ({"color_space": "GRAYSCALE"}, None, "params.color_space is \"GRAYSCALE\" (allowed: 'RGB' or 'BGR')"),
        ({"range": [1]}, None, "input_preproc[0].params.range[1] is missing"),
        ({"range": [1, 0]}, None, "params.range is [1, 0] (allowed: a lower and a higher number)"),
        ({"mean": [1, 2, "x"]}, None, 'params.mean[2] is "x" (allowed: a number from -1e+06 to'),
        ({"std": [1, 2, 0]}, None, "params.std[2] is 0 (allowed: a number from 1e-06 to 1e+06)"),
        ({"std": [1, 2, -1]}, None, "params.std[2] is -1"),
        ({"std": [1, 2, float("nan")]}, None, "params.std[2] is NaN"),
        ({"mean": [float("inf"), 0, 0]}, None, "params.mean[0] is Infinity"),
        ({"mean": [10**400, 0, 0]}, None, "params.mean[0] is 1000"),
        ({"range": [0, float("nan")]}, None, "params.range[1] is NaN"),
        ({"padding": {"stride_x": 10**30}}, None, "padding.stride_x is 1000"),
        ({"padding": {"fill_value": [300, 300, 300]}}, None, "padding.fill_value[0] is 300"),
        ({"a\n\x1b[2J": 1}, None, "input_preproc[0].params.'a\\n\\x1b[2J' is unknown (allowed: resize"),
        ({}, {"labels": ["a\nb"]}, "output_postproc[0].labels[0] is "),
        ({}, {"labels": ["\x9b31m"]}, "output_postproc[0].labels[0] is "),
        ({}, {"labels": ["x" * 1001]}, "output_postproc[0].labels[0] is "),
        ({}, {"labels": ["x"] * 100_001}, "allowed: at most 100000 of them"),
        ({}, {"labels-file": "/etc/passwd"}, "a file in the model-proc file's folder or below"),
        ({}, {"labels-file": "../labels.txt"}, "a file in the model-proc file's folder or below"),
        ({}, {"labels-file": "a/../../labels.txt"}, "a file in the model-proc file's folder or below"),
        ({}, {"labels-file": "a\0b"}, "a file in the model-proc file's folder or below"),
        (
            {"colour_space": "RGB"},
            None,
            "input_preproc[0].params.colour_space is unknown (did you mean color_space? allowed: resize",
        ),
        (
            {"padding": {"strides": 8}},
            None,
            "input_preproc[0].params.padding.strides is unknown (did you mean stride?",
        ),
        ({"padding": {"stride_x": -1}}, None, "padding.stride_x is -1"),
        ({"padding": {"stride": 8, "stride_x": 4}}, None, "it has stride, and stride_x or stride_y too"),
        ({"padding": {"fill_value": [1, 2, 3]}}, None, "padding.fill_value is [1, 2, 3]"),
        (
            {},
            {"method": "median"},
            'output_postproc[0].method is "median" (allowed: softmax, max, compound, multi',
        ),
        ({}, {"converter": "yolo_v99"}, 'output_postproc[0].converter is "yolo_v99" (allowed: label, '),
        ({}, {"converter": ["label"]}, 'output_postproc[0].converter is ["label"]'),
        ({}, {"converter": "yolo_v3"}, "it has 0 numbers as anchors, but yolo_v3 needs pairs"),
        ({}, {"threshold": 2}, "output_postproc[0].threshold is 2 (allowed: a number from 0 to 1)"),
        ({}, {"labels": [1]}, "output_postproc[0].labels[0] is 1 (allowed: a printable text of"),
        ({}, {"labels": "none.txt"}, 'output_postproc[0].labels is "none.txt" (allowed: a list of texts'),
    ],
)
def test_a_wrong_field_of_a_model_proc_file_is_named(
    tmp_path: Path, params: Any, output: Any, message: str
) -> None:
    file = proc_file(tmp_path, params, output)
    with pytest.raises(ModelUnavailable) as caught:
        read_model_proc(file)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", r"the whole is \[\]"),
        ('{"json_schema_version": "1.0"}', "json_schema_version is"),
        ('{"input_preproc": [{}, {}]}', "networks of several inputs are not served"),
    ],
)
def test_what_is_no_model_proc_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "proc.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=message):
        read_model_proc(tmp_path / "proc.json")


def test_labels_of_a_model_proc_file_may_be_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("cat\ndog\n")
    file = proc_file(tmp_path, [], {"labels-file": "labels.txt", "method": "max"})
    proc = read_model_proc(file)
    assert (proc.labels, proc.activation, proc.score_threshold) == (("cat", "dog"), "none", -1)


def test_a_labels_file_may_lie_below_and_must_be_printable(tmp_path: Path) -> None:
    (tmp_path / "names").mkdir()
    file = proc_file(tmp_path, [], {"labels-file": "names/labels.txt"})
    (tmp_path / "names" / "labels.txt").write_bytes(b"cat\r\ndog\r\n")
    assert read_model_proc(file).labels == ("cat", "dog")
    (tmp_path / "names" / "labels.txt").write_bytes(b"cat\n\x1b[31mdog\n")
    with pytest.raises(ModelUnavailable, match="printable labels"):
        read_model_proc(file)


@pytest.mark.parametrize("what", ["model-proc", "labels"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, what: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    file = proc_file(tmp_path, [], {"labels-file": "pipe"}) if what == "labels" else tmp_path / "pipe"
    with pytest.raises(ModelUnavailable, match=r"is not a file|a readable file"):
        read_model_proc(file)


def test_a_model_proc_file_that_is_huge_or_of_bytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(ModelUnavailable, match="is larger than 16 MB"):
        read_model_proc(tmp_path / "huge.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelUnavailable, match="is not UTF-8 text"):
        read_model_proc(tmp_path / "bytes.json")


def test_pixels_that_no_network_takes_are_an_error_of_the_file(tmp_path: Path) -> None:
    proc = read_model_proc(proc_file(tmp_path, {"mean": [1e6, 0, 0]}))
    with pytest.raises(ModelUnavailable, match=r"model, as its model-proc file has it: mean \("):
        proc.preprocessing((64, 64), "model")
