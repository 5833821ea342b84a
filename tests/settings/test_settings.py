"""The command line and the settings file: which models, and what is said of them; what is wrong is named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.settings.flags import DEFAULT_MODEL, parse_args
from pipelines.settings.model import ModelSettings
from pipelines.settings.server import Settings
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
        ("--model detecton=a", "there is no task 'detecton', only classification, detection, "),
        ("--model classification=", "expected [TASK=]SOURCE"),
        ("--demo --model resnet50", "--demo brings its own models"),
        ("--demo --weights random", "--demo brings its own weights: leave out --weights"),
        ("--model classification=a --model action=b --labels l.txt", "--labels l.txt: for which model?"),
        ("--model classification=a --model action=b --sha256 00", "write --sha256 TASK=VALUE"),
        ("--model classification=a --model action=b --arch detection=c", "no --model has task detection"),
        ("--weights random --weights DEFAULT", "--weights twice for the same model"),
        ("--precision int8", "--precision is \"int8\" (allowed: 'fp32', 'fp16' or 'bf16')"),
        (
            "--engine action=jit --model action=r3d_18",
            "--engine is \"jit\" (allowed: 'auto', 'torch', 'compile'",
        ),
        (
            "--http-port 8001",
            "the command line is wrong: --http-port, --grpc-port and --metrics-port must differ",
        ),
        ("--http-port 65536", "--http-port is 65536 (allowed: a whole number from 1 to 65535)"),
        ("--max-queue 1_0", '--max-queue is "1_0" (allowed: a whole number from 1 to 2147483647)'),
        ("--device tpu", "--device is \"tpu\" (allowed: 'auto', 'cpu' or 'cuda')"),
        (
            "--max-media-mb 4000",
            "--max-media-mb is 4000 (allowed: 1 to 2047; the most that a Triton message holds)",
        ),
        ("--settings /no/such.toml", "cannot read the settings file /no/such.toml"),
        ("--settings=", "cannot read the settings file .: it is not a file"),
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
            std=(0.5, 0.5, 0.5),
            antialias=False,
            channels="BGR",
            place=f"{file}: model[0]",
        ),
        ModelSettings(
            source=str(tmp_path / "models/detector.onnx"),
            task="detection",
            tile_px=(640, 640),
            tile_overlap_px=64,
            place=f"{file}: model[1]",
        ),
    )


def test_the_command_line_goes_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text(WHOLE)
    assert parse("--settings", str(file), "--model", "r3d_18").models == (ModelSettings(source="r3d_18"),)
    first, second = parse("--settings", str(file), "--weights", "classification=random").models
    assert (first.weights, second.weights) == ("random", "")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[server]\nhtpp_port = 1",
            "server.htpp_port is unknown (did you mean http_port? allowed: demo, allow_code",
        ),
        ("[servers]", "servers is unknown (did you mean server? allowed: server, model)"),
        ('[server]\nhttp_port = "1"', 'server.http_port is "1" (allowed: a whole number from 1 to 65535)'),
        ("[server]\nallow_code = 1", "server.allow_code is 1 (allowed: true or false)"),
        ("[server]\nhttp_port = 0", "server.http_port is 0 (allowed: a whole number from 1 to 65535)"),
        ('[server]\ndevice = "tpu"', "server.device is \"tpu\" (allowed: 'auto', 'cpu' or 'cuda')"),
        ("server = 1", "server is 1 (allowed: a table of fields)"),
        ("[model]\nsource = 'x'", "model is one table, not a list of them (write [[model]])"),
        ("[[model]]\ntask = 'action'", 'model[0].source is missing (e.g. source = "resnet50")'),
        ("[[model]]\nsource = 'x'\ntask = 'pose'", "model[0].task is \"pose\" (allowed: 'classification',"),
        (
            "[[model]]\nsource = 'x'\nlabel = 'y'",
            "model[0].label is unknown (did you mean labels? allowed: source,",
        ),
        (
            "[[model]]\nsource = 'x'\nresize_px = 1",
            "model[0] is wrong: resize_px belongs in [model.preprocessing]",
        ),
        (
            "[[model]]\nsource = 'x'\nengine = 'jit'",
            "model[0].engine is \"jit\" (allowed: 'auto', 'torch', 'compile'",
        ),
        (
            "[[model]]\nsource = 'x'\nmax_batch = 1.5",
            "model[0].max_batch is 1.5 (allowed: a whole number from 0 to 1024)",
        ),
        ("[[model]]\nsource = 1", "model[0].source is 1 (allowed: a name or a file, such as"),
        (
            "[[model]]\nsource = 'x'\npreprocessing = 1",
            "model[0].preprocessing is 1 (allowed: a table of fields)",
        ),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\nresize_px = 'big'",
            'model[0].preprocessing.resize_px is "big" (allowed: one number, or height and width)',
        ),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\nmean = [true, 0, 0]",
            "model[0].preprocessing.mean[0] is true (allowed: a number from -1 to 2",
        ),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\nstd = 0",
            "model[0].preprocessing.std[0] is 0 (allowed: a number above 0",
        ),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\nresize_px = [640]",
            "model[0].preprocessing.resize_px is [640] (allowed: one number, or height and width)",
        ),
        (
            "[[model]]\nsource = 'x'\ntask = 'action'\n[[model]]\nsource = 'y'\ntask = 'action'",
            "model[1]: two models of task action: x and y",
        ),
        (
            "[server]\ndemo = true\n[[model]]\nsource = 'x'",
            "model[0]: demo brings its own models: leave out [[model]] or demo",
        ),
        (
            "[[model]]\nsource = 'x'\n[[model]]\nsource = 'y'\n[model.preprocessing]\nmean = [0.5, 1]",
            "model[1].preprocessing.mean is [0.5, 1] (allowed: one number, or one for each",
        ),
        (
            "[[model]]\nsource = 'x'\n[model.preprocessing]\ngamma = 2",
            "model[0].preprocessing.gamma is unknown",
        ),
        ("[[model]]\nsource = ''", 'model[0].source is "" (allowed: a name or a file, such as "resnet50" or'),
        ("[server]\nmax_queue = 0x" + "f" * 5000, "server.max_queue is more than can be shown"),
        (
            "[server]\nhost = 1979-05-27",
            'server.host is "1979-05-27" (allowed: an address or a name, as text)',
        ),
        ("[server]\nhost = ''", 'server.host is "" (allowed: an address'),
        ('[server]\n"a\\u001b[2J" = 1', r"server.'a\x1b[2J' is unknown"),
        ("x = " + "[" * 100 + "]" * 100, "x is unknown"),
        ("x = " + "[" * 100_000, "toml is not TOML"),
        ("[server", "toml is not TOML"),
    ],
)
def test_a_wrong_settings_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text(text)
    assert message in error_of(capsys, "--settings", str(file))


def test_demo_models_do_not_silently_replace_those_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trivid.toml"
    file.write_text(WHOLE)
    assert "demo brings its own models: leave out" in error_of(capsys, "--settings", str(file), "--demo")


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
