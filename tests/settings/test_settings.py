"""The command line and the settings file: which models, and what is said of them; what is wrong is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.settings.flags import DEFAULT_MODEL, Settings, parse_args
from pipelines.settings.model import ModelSettings
from tests.conftest import ROOT

WHOLE = """
[server]
device = "cpu"
http_port = 9000
allow_code = true

[[model]]
source = "resnet50"
task = "classification"
weights = "own.pth"
labels = "labels.txt"
engine = "onnxruntime"
max_batch = 4
score_threshold = 0.5

[model.preprocessing]
resize_px = 256
crop_px = [224, 200]
mean = [0.5, 0, 0.25]
std = 0.5
antialias = false
channels = "BGR"

[[model]]
source = "models/detector.onnx"
task = "detection"
[model.preprocessing]
tile_px = 640
tile_overlap_px = 64
"""


def parse(*flags: str) -> Settings:
    return parse_args(flags, "manual")


def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*flags)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_without_a_model_the_default_one_is_served() -> None:
    settings = parse()
    assert settings.models == (DEFAULT_MODEL,)
    assert not settings.allow_code
    assert not settings.list_models


def test_a_model_for_each_task() -> None:
    models = parse(
        "--model", "classification=resnet50", "--model", "detection=./x=y.onnx", "--engine", "detection=torch"
    ).models
    assert [(model.task, model.source) for model in models] == [
        ("classification", "resnet50"),
        ("detection", "./x=y.onnx"),
    ]
    assert [model.engine for model in models] == ["auto", "torch"]


@pytest.mark.parametrize(
    ("text", "task", "source"),
    [
        ("resnet50", None, "resnet50"),
        ("torchvision.models.resnet50", None, "torchvision.models.resnet50"),
        ("action=r3d_18", "action", "r3d_18"),
        ("models/a=b.pt2", None, "models/a=b.pt2"),
        ("classification=package.nets:make", "classification", "package.nets:make"),
        ("torch.hub:owner/name:main:entry", None, "torch.hub:owner/name:main:entry"),
    ],
)
def test_task_and_source_of_a_model(text: str, task: str | None, source: str) -> None:
    (model,) = parse("--model", text).models
    assert (model.task, model.source) == (task, source)


def test_flags_of_models_go_to_all_or_to_one_task() -> None:
    flags = ["--model", "classification=resnet18", "--model", "action=r3d_18", "--weights", "random"]
    flags += ["--weights", "action=KINETICS400_V1", "--labels", "classification=l.txt", "--precision", "bf16"]
    first, second = parse(*flags).models
    assert (first.weights, first.labels, first.precision) == ("random", "l.txt", "bf16")
    assert (second.weights, second.labels, second.precision) == ("KINETICS400_V1", "", "bf16")


def test_a_flag_for_a_task_finds_the_only_model_whose_task_is_not_said() -> None:
    (model,) = parse("--model", "resnet18", "--labels", "classification=l.txt", "--arch", "x").models
    assert (model.task, model.labels, model.arch) == ("classification", "l.txt", "x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model classification=a --model classification=b", "two models of task classification: a and b"),
        (
            "--model detecton=a",
            "there is no task 'detecton', only classification, detection, segmentation, action",
        ),
        ("--model classification=", "expected [TASK=]SOURCE"),
        ("--demo --model resnet50", "--demo brings its own models"),
        ("--demo --weights random", "--demo brings its own weights: leave --weights out"),
        ("--model classification=a --model action=b --labels l.txt", "--labels l.txt: for which model?"),
        ("--model classification=a --model action=b --sha256 00", "write --sha256 TASK=VALUE"),
        ("--model classification=a --model action=b --arch detection=c", "no --model has task detection"),
        ("--weights random --weights DEFAULT", "--weights twice for the same model"),
        ("--precision int8", "--precision int8: expected one of fp32, fp16, bf16"),
        ("--engine action=jit --model action=r3d_18", "--engine jit: expected one of auto, torch, compile"),
        ("--http-port 8001", "must differ"),
        ("--max-media-mb 4000", "a message of Triton's holds at most 2047"),
        ("--settings /no/such.toml", "cannot read the settings file /no/such.toml"),
    ],
)
def test_a_wrong_command_line_is_named(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert message in error_of(capsys, *flags.split())


def test_a_settings_file_says_all_that_flags_do(tmp_path: Path) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text(WHOLE)
    settings = parse("--settings", str(file), "--http-port", "9100")
    assert (settings.device, settings.http_port, settings.allow_code) == ("cpu", 9100, True)
    assert settings.models == (
        ModelSettings(
            source="resnet50",
            task="classification",
            weights=str(tmp_path / "own.pth"),
            labels=str(tmp_path / "labels.txt"),
            engine="onnxruntime",
            max_batch=4,
            score_threshold=0.5,
            resize_px=(256,),
            crop_px=(224, 200),
            mean=(0.5, 0, 0.25),
            std=(0.5,),
            antialias=False,
            channels="BGR",
        ),
        ModelSettings(
            source=str(tmp_path / "models/detector.onnx"),
            task="detection",
            tile_px=(640,),
            tile_overlap_px=64,
        ),
    )


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text(WHOLE)
    assert parse("--settings", str(file), "--model", "r3d_18").models == (ModelSettings(source="r3d_18"),)
    assert parse("--settings", str(file), "--demo").models == ()
    first, second = parse("--settings", str(file), "--weights", "classification=random").models
    assert (first.weights, second.weights) == ("random", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[server]\nhtpp_port = 1", "unknown key server.htpp_port; did you mean http_port?"),
        ("[servers]", "unknown key servers; did you mean server?"),
        ('[server]\nhttp_port = "1"', "server.http_port is '1', expected a whole number"),
        ("[server]\nallow_code = 1", "server.allow_code is 1, expected true or false"),
        ("[server]\nhttp_port = 0", "[server] http_port = 0: '0' is no port"),
        ('[server]\ndevice = "tpu"', "[server] device = 'tpu': expected one of auto, cpu, cuda"),
        ("server = 1", "expected a table: [server]"),
        ("[model]\nsource = 'x'", "expected [[model]]"),
        ("[[model]]\ntask = 'action'", "a [[model]] has no source"),
        ("[[model]]\nsource = 'x'\ntask = 'pose'", "model.task is 'pose', expected one of classification"),
        ("[[model]]\nsource = 'x'\nlabel = 'y'", "unknown key model.label; did you mean labels?"),
        ("[[model]]\nsource = 'x'\nresize_px = 1", "model.resize_px belongs into [model.preprocessing]"),
        (
            "[[model]]\nsource = 'x'\nengine = 'jit'",
            "model.engine is 'jit', expected one of auto, torch, compile",
        ),
        ("[[model]]\nsource = 'x'\nmax_batch = 1.5", "model.max_batch is 1.5, expected a whole number"),
        ("[[model]]\nsource = 1", "model.source is 1, expected a text"),
        ("[[model]]\nsource = 'x'\npreprocessing = 1", "model.preprocessing is 1, expected a table"),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\nresize_px = 'big'",
            "model.preprocessing.resize_px is 'big', expected whole numbers",
        ),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\nmean = [true]",
            "model.preprocessing.mean is true, expected numbers",
        ),
        ("[server", "is no TOML"),
    ],
)
def test_a_wrong_settings_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text(text)
    assert message in error_of(capsys, "--settings", str(file))


def test_help_tells_of_every_flag_and_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse("--help")
    text = capsys.readouterr().out
    for flag in (
        "--model",
        "--weights",
        "--model-proc",
        "--sha256",
        "--allow-code",
        "--list-models",
        "--settings",
    ):
        assert flag in text
    assert "[model.preprocessing]" in text


def test_settings_are_read_without_torch() -> None:
    code = "import sys, pipelines.settings.flags; "
    code += "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
