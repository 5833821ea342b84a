"""What a choice may say of a model: it goes before what the source says, and what cannot be is named."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from model_inference import Model
from pipelines.assembly import make_engine_room
from pipelines.models.spec import Clip, Preprocessing, Tiling
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.flags import parse_args
from tests.support.sources import error_of, spec_of


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("resnet5", {}, "closest: resnet50"),
        ("resnext99", {}, "--list-models lists all"),
        ("README.md", {}, "files end in .onnx, .xml, .pt2"),
        ("models.video.resnet50", {}, "torchvision has no model 'models.video.resnet50'"),
        ("resnet50", {"task": "detection"}, "resnet50 is a classification model, not detection"),
        ("resnet50", {"weights": "IMAGENET1K_V9"}, "one of: DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, random"),
        ("vgg16", {"weights": "IMAGENET1K_FEATURES"}, "vgg16 has no weights 'IMAGENET1K_FEATURES'"),
        ("resnet50", {"weights": "/no/such.pth"}, "no weights file /no/such.pth"),
        ("resnet50", {"weights": "random", "sha256": "00"}, "random weights are not a file"),
        ("resnet50", {"arch": "resnet18"}, "arch=resnet18 goes with a file of weights"),
        ("resnet50", {"clip_length": 8}, "resnet50 takes no clips: its task is classification"),
        ("mvit_v2_s", {"clip_length": 8}, "mvit_v2_s takes clips of 16 frames only, not 8"),
        ("", {}, "a model needs a source"),
        ("resnet50", {"labels": "/no/such.txt"}, "cannot read the labels file /no/such.txt"),
        (
            "resnet50",
            {"mean": (0.5, 0.5)},
            "mean is [0.5, 0.5] (allowed: one number, or one for each of three channels)",
        ),
        ("resnet50", {"std": 0}, "std[0] is 0 (allowed: a number above 0 and up to 10; for levels"),
        ("resnet50", {"std": (0.5, 0.5, -1.0)}, "std[2] is -1.0 (allowed: a number above 0 and up to 10"),
        ("resnet50", {"std": (math.nan,)}, "std[0] is NaN (allowed: a number above 0"),
        ("resnet50", {"mean": (math.inf,)}, "mean[0] is Infinity (allowed: a number from -1 to 2"),
        ("resnet50", {"mean": 127.5}, "mean[0] is 127.5 (allowed: a number from -1 to 2; for levels"),
        ("resnet50", {"pad_value": 300}, "pad_value is 300 (allowed: a whole number from 0 to 255)"),
        (
            "resnet50",
            {"resize_px": (10**30, 5)},
            "resize_px[0] is 1000000000000000000000000000000 (allowed: a whole number from 0 to 8192)",
        ),
        (
            "resnet50",
            {"resize_px": (10**9,)},
            "resize_px[0] is 1000000000 (allowed: a whole number from 0 to 8192)",
        ),
        (
            "resnet50",
            {"crop_px": (8193,)},
            "crop_px[0] is 8193 (allowed: a whole number from 1 to 8192)",
        ),
        (
            "resnet50",
            {"tile_px": (10**30,)},
            "tile_px[0] is 1000000000000000000000000000000 (allowed: a whole",
        ),
        (
            "resnet50",
            {"max_batch": 10**9},
            "max_batch is 1000000000 (allowed: a whole number from 0 to 1024)",
        ),
        ("resnet50", {"max_batch": -1}, "max_batch is -1 (allowed: a whole number from 0 to 1024)"),
        ("resnet50", {"score_threshold": math.nan}, "score_threshold is NaN (allowed: 0 to 1"),
        ("resnet50", {"score_threshold": 1.5}, "score_threshold is 1.5 (allowed: 0 to 1"),
        (
            "r3d_18",
            {"clip_length": 10**9},
            "clip_length is 1000000000 (allowed: a whole number from 0 to 1024)",
        ),
        ("r3d_18", {"clip_length": -4}, "clip_length is -4 (allowed: a whole number from 0 to 1024)"),
        ("r3d_18", {"clip_fps": math.inf}, "clip_fps is Infinity (allowed: a number from 0 to 1000)"),
        ("r3d_18", {"clip_fps": math.nan}, "clip_fps is NaN (allowed: a number from 0 to 1000)"),
        (
            "resnet50",
            {"resize_px": (1, 2, 3)},
            "resize_px is [1, 2, 3] (allowed: one number, or height and width)",
        ),
        ("resnet50", {"score_threshold": -0.5}, "score_threshold is -0.5 (allowed: 0 to 1"),
        ("resnet50", {"resize_px": (0, 64)}, "resize_px is [0, 64] (allowed: 0 alone: no resize)"),
        ("resnet50", {"max_px": 0}, "max_px is 0 (allowed: a whole number from 1 to 8192)"),
        ("resnet50", {"fit": "letterbox"}, "letterbox needs resize_px=(height, width)"),
        (
            "resnet50",
            {"tile_overlap_px": 3},
            "tile_overlap_px is 3 (allowed: less than tile_px, which is not",
        ),
        (
            "resnet50",
            {"tile_px": [64, 32], "tile_overlap_px": 32},
            "tile_overlap_px is 32 (allowed: less than tile_px, which is [64, 32])",
        ),
        ("resnet50", {"resize_px": [640]}, "resize_px is [640] (allowed: one number, or height and width)"),
        ("resnet50", {"crop_px": [640]}, "crop_px is [640] (allowed: one number, or height and width)"),
        ("resnet50", {"std": [0.5]}, "std is [0.5] (allowed: one number, or one for each of three"),
        ("/no/such.pt2", {}, "no model file /no/such.pt2"),
    ],
)
def test_what_cannot_be_is_named(source: str, options: dict[str, Any], message: str) -> None:
    assert message in error_of(source, **options)


@pytest.mark.parametrize(
    ("source", "option", "what"),
    [
        ("fasterrcnn_resnet50_fpn", "head=yolo_v8", "a model whose source describes it"),
        ("fasterrcnn_resnet50_fpn", "layout=NHWC", "a model whose source describes it"),
        ("fasterrcnn_resnet50_fpn", "channels=GRAY", "a model whose source describes it"),
        ("fasterrcnn_resnet50_fpn", "output=nothing", "a detector whose source describes it"),
        ("fasterrcnn_resnet50_fpn", "activation=sigmoid", "a model of the task detection"),
        ("fasterrcnn_resnet50_fpn", "normalise=false", "a model of the task detection"),
        ("fasterrcnn_resnet50_fpn", "multi_label=true", "a model of the task detection"),
        ("resnet18", "iou_threshold=0.5", "a model of the task classification"),
        ("resnet18", "head=yolo_v8", "a model whose source describes it"),
        ("resnet18", "normalise=true", "a model of the task classification"),
        ("fcn_resnet50", "multi_label=true", "a model of the task segmentation"),
        ("timm:resnet18", "layout=NCHW", "a model whose source describes it"),
    ],
)
def test_what_would_change_nothing_is_refused(source: str, option: str, what: str) -> None:
    name, _, text = option.partition("=")
    values: dict[str, Any] = {"true": True, "false": False, "0.5": 0.5}
    with pytest.raises(ModelUnavailable) as caught:
        spec_of(source, weights="random", **{name: values.get(text, text)})
    assert f"{option} has no meaning for {what}" in caught.value.message
    assert caught.value.hint == f"leave out --{name.replace('_', '-')}"


def test_what_changes_the_reading_of_any_source_stays() -> None:
    spec = spec_of("resnet18", weights="random", activation="sigmoid", multi_label=True, output="output")
    assert (spec.activation, spec.multi_label, spec.output) == ("sigmoid", True, "output")
    assert spec_of("fcn_resnet50", weights="random", activation="sigmoid", channels="BGR").activation


def test_options_go_before_what_the_weights_say() -> None:
    spec = spec_of(
        "squeezenet1_1",
        weights="random",
        precision="bf16",
        engine="compile",
        max_batch=3,
        score_threshold=0.25,
        resize_px=(64, 48),
        mean=(0.5,),
        std=(0.1, 0.2, 0.3),
        interpolation="nearest",
        channels="BGR",
        fit="letterbox",
        pad_value=114,
        tile_px=(640,),
        tile_overlap_px=32,
    )
    assert spec.preprocessing == Preprocessing(
        resize_px=(64, 48),
        mean=(0.5,) * 3,
        std=(0.1, 0.2, 0.3),
        interpolation="nearest",
        channels="BGR",
        fit="letterbox",
        pad_value=114,
    )
    assert (spec.precision, spec.engine, spec.max_batch, spec.score_threshold) == ("bf16", "compile", 3, 0.25)
    assert spec.tiling == Tiling(tile_px=(640, 640), overlap_px=32)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"resize_px": (300,)}, Preprocessing(resize_px=300, crop_px=(224, 224))),
        ({"resize_px": (300, 400)}, Preprocessing(resize_px=(300, 400))),
        ({"resize_px": (0,)}, Preprocessing(resize_px=None, crop_px=(224, 224))),
        ({"crop_px": (200,)}, Preprocessing(resize_px=256, crop_px=(200, 200))),
        ({"resize_px": (300,), "max_px": 400}, Preprocessing(resize_px=300, max_px=400, crop_px=(224, 224))),
    ],
)
def test_sizes_of_options(options: dict[str, Any], expected: Preprocessing) -> None:
    assert spec_of("squeezenet1_1", weights="random", **options).preprocessing == expected


def test_clips_of_options() -> None:
    assert spec_of("r3d_18", weights="random", clip_length=8).clip == Clip(length=8, fps=15)
    assert spec_of("mvit_v2_s", weights="random", clip_fps=5.0).clip == Clip(length=16, fps=5, fixed=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\ndog\n\n\n", ("cat", "dog")),
        ("\ufeffcat\r\nKäfer\r\n", ("cat", "Käfer")),
        ("one", ("one",)),
    ],
)
def test_labels_are_lines(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(text.encode())
    assert spec_of("squeezenet1_1", weights="random", labels=str(file)).labels == expected


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"a\n\nb", "has no label in line 2"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"a\nb\x1b[31m\n", "has in line 2 a label that is not printable"),
        (b"a\0b", "in line 1 a label that is not printable"),
        (b"a\x0bb\nc", "in line 1 a label that is not printable"),
        (b"a\n" + b"x" * 1001, "in line 2 a label that is longer than 1000 characters"),
        (b"a\n" * 100_001, "has 100001 labels, more than 100000"),
    ],
)
def test_wrong_labels_are_named(tmp_path: Path, data: bytes, message: str) -> None:
    file = tmp_path / "labels.txt"
    file.write_bytes(data)
    with pytest.raises(ModelUnavailable, match=message):
        spec_of("squeezenet1_1", weights="random", labels=str(file))


def test_labels_must_be_as_many_as_outputs(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("a\nb")
    with pytest.raises(ModelUnavailable, match="has 1000 outputs and 2 labels"):
        Model(spec_of("squeezenet1_1", weights="random", labels=str(file)), "cpu")
    message = error_of("ssdlite320_mobilenet_v3_large", weights="random", labels=str(file))
    assert "91 classes, the background included, and 2 labels" in message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "/no/such.txt"}, "cannot read the labels file /no/such.txt"),
        ({"fit": "letterbox"}, "letterbox needs resize_px=(height, width)"),
        ({"task": "action"}, 'not action (task = "classification")'),
    ],
)
def test_what_is_found_late_names_the_table_of_the_file_too(options: dict[str, Any], message: str) -> None:
    text = error_of("squeezenet1_1", weights="random", place="trivid.toml: model[1]", **options)
    assert text.startswith("trivid.toml: model[1]: ")
    assert message in text


def test_two_models_whose_task_only_their_sources_tell(tmp_path: Path) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text("[[model]]\nsource = 'resnet18'\n[[model]]\nsource = 'resnet34'\n")
    with pytest.raises(ModelUnavailable) as caught:
        make_engine_room(parse_args(["--settings", str(file), "--device", "cpu"], ""))
    assert f"{file}: model[1]: two models of task classification" in str(caught.value)
