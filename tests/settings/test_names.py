"""Models by name: which names there may be, what a flag says of which model, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.assembly import make_engine_room
from pipelines.models.spec import TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.sdk.client import STATUS
from pipelines.serving.endpoint_table import ENDPOINT_TABLE
from pipelines.settings.flags import parse_args
from pipelines.settings.model import ModelSettings
from pipelines.settings.names import TASKS, served_names
from pipelines.tasks import TASKS as TASK_TABLE

LONGEST = "a" + "b" * 40
TWO = ("--model", "gate:classification=a", "--model", "cars:classification=b")


def parse(*flags: str) -> tuple[ModelSettings, ...]:
    return parse_args(flags, "manual").models


def error_of(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse(*flags)
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "task", "source"),
    [
        ("gate:classification=resnet50", "gate", "classification", "resnet50"),
        ("front-gate_2:detection=my.onnx", "front-gate_2", "detection", "my.onnx"),
        (f"{LONGEST}:=my.onnx", LONGEST, None, "my.onnx"),
        ("gate:=package.nets:make", "gate", None, "package.nets:make"),
        ("gate:=hf:folder", "gate", None, "hf:folder"),
        ("gate:action=models/a=b.pt2", "gate", "action", "models/a=b.pt2"),
        ("detection:=my.onnx", "detection", None, "my.onnx"),
        ("hf:detection=hf:folder", "hf", "detection", "hf:folder"),
        # A part of a source that happens to have both signs.
        ("hf:a=b", "", None, "hf:a=b"),
        ("hf:my/folder=2", "", None, "hf:my/folder=2"),
        ("timm:vit.a=b", "", None, "timm:vit.a=b"),
        ("./gate:=b.onnx", "", None, "./gate:=b.onnx"),
        ("torch.hub:owner/name:a=b:entry", "", None, "torch.hub:owner/name:a=b:entry"),
    ],
)
def test_a_name_stands_left_of_the_first_equals_sign(
    text: str, name: str, task: str | None, source: str
) -> None:
    (model,) = parse("--model", text)
    assert (model.name, model.task, model.source) == (name, task, source)


TAKEN = (
    *("models", "streams", "events", "recordings", "rules", "sinks", "session", "status", "stats"),
    *(
        "dali_preprocess",
        "dali_postprocess",
        "resnet101",
        "ResNet101",
        "torch_gate",
        "gate_stream",
        "_stream",
    ),
    *("Gate", "1st", "-gate", "a.b", "a b", "gäte", f"{LONGEST}c"),
)


@pytest.mark.parametrize("name", TAKEN)
def test_a_name_that_is_none_or_taken_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'[[model]]\nsource = "x"\nname = "{name}"')
    assert "a letter first; not torch_" in error_of(capsys, f"--model={name}:classification=x")
    assert "a.toml: model[0].name is" in error_of(capsys, "--settings", str(file))


@pytest.mark.parametrize("name", sorted({*ENDPOINT_TABLE, STATUS} - {*TASKS}))
def test_no_name_is_that_of_another_endpoint(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Triton's names differ in more than their case."""
    assert "name is" in error_of(capsys, "--model", f"{name.lower()}:=x")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model a:classification=x --model a:detection=y", "two models have the name a: x and y"),
        ("--model a:=x --model a:=x", "two models have the name a: x and x"),
        (
            "--model classification=x --model classification=x",
            "two models of task classification: x and x; only one may be without a name of its own "
            "(name the other: --model NAME:classification=SOURCE",
        ),
        ("--model detection:classification=x", "x is for classification, and cannot have the name detection"),
        ("--model :classification=x", "expected [TASK=]SOURCE or NAME:[TASK]=SOURCE"),
        ("--model gate:=", "expected [TASK=]SOURCE or NAME:[TASK]=SOURCE"),
        ("--model gate:clasification=x", "there is no task 'clasification', only classification, detection"),
        ("--model gate=x", "there is no task 'gate', only classification"),
        ("--model gate=x", "(a name has a colon after it: gate:=x)"),
    ],
)
def test_wrong_names_are_explained(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert message in error_of(capsys, *flags.split())


def test_a_flag_is_for_a_name_or_a_task_or_all() -> None:
    flags = ["--labels", "gate=l.txt", "--precision", "classification=bf16", "--precision", "cars=fp16"]
    flags += ["--weights", "random", "--engine", "cars=torch"]
    first, second = parse(*TWO, *flags)
    assert (first.labels, first.precision, first.weights, first.engine) == ("l.txt", "bf16", "random", "auto")
    assert (second.labels, second.precision, second.weights, second.engine) == ("", "fp16", "random", "torch")


def test_a_name_goes_before_a_task_of_the_same_word() -> None:
    flags = ["--model", "classification=a", "--model", "gate:classification=b"]
    first, second = parse(*flags, "--labels", "classification=l.txt")
    assert (first.labels, second.labels) == ("l.txt", "")


def test_a_flag_finds_models_of_a_settings_file_by_name(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text('[[model]]\nsource = "x"\nname = "gate"\n[[model]]\nsource = "y"\nname = "cars"')
    first, second = parse("--settings", str(file), "--output", "gate=a=b:0")
    assert (first.name, first.output, second.name, second.output) == ("gate", "a=b:0", "cars", "")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--labels l.txt", "--labels l.txt: for which model? write --labels NAME=VALUE"),
        ("--arch classification=x", "--arch classification=x: for which model? write --arch NAME=VALUE"),
        ("--labels gat=l.txt", "there is no task 'gat' and no model of that name, only gate, cars, classif"),
        ("--labels gat=l.txt", "(if all of it is the value, write TASK=gat=l.txt)"),
        ("--labels detection=l.txt", "--labels detection=l.txt: no --model has task detection"),
        ("--labels gate=a --labels gate=b", "--labels twice for the same model: gate=a and gate=b"),
    ],
)
def test_a_flag_for_no_model_is_refused(capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert message in error_of(capsys, *TWO, *flags.split())


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--resize-px 416", (416,)),
        ("--resize-px 64x96", (64, 96)),
        ("--resize-px 0", (0,)),
        ("--iou-threshold 0.5", 0.5),
        ("--iou-threshold 1", 1.0),
        ("--norm-eps 1e-5", 1e-5),
        ("--multi-label true", True),
        ("--normalise false", False),
        ("--transform-input classification=true", True),
    ],
)
def test_texts_of_flags_become_values(flag: str, value: object) -> None:
    (model,) = parse("--model", "classification=x", *flag.split())
    name = flag.split()[0].removeprefix("--").replace("-", "_")
    assert getattr(model, name) == value


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--resize-px big", '--resize-px is "big" (allowed: one number, or height and width)'),
        ("--resize-px 64x", '--resize-px is "64x" (allowed: one number, or height and width)'),
        ("--resize-px 1x2x3", "--resize-px is [1, 2, 3] (allowed: one number, or height and width)"),
        ("--resize-px -1", '--resize-px is "-1" (allowed: one number, or height and width)'),
        ("--iou-threshold half", '--iou-threshold is "half" (allowed: a number from 0 to 1)'),
        ("--iou-threshold 50", "--iou-threshold is 50.0 (allowed: a number from 0 to 1)"),
        ("--iou-threshold nan", "--iou-threshold is NaN (allowed: a number from 0 to 1)"),
        ("--multi-label yes", '--multi-label is "yes" (allowed: true or false)'),
        ("--head yolo", "--head is \"yolo\" (allowed: 'boxes', "),
    ],
)
def test_a_text_that_is_no_value_is_named(
    capsys: pytest.CaptureFixture[str], flag: str, message: str
) -> None:
    name, text = flag.split()
    assert message in error_of(capsys, "--model", "x", f"{name}={text}")


def test_names_follow_tasks_that_are_found_later() -> None:
    found: list[TaskName | None] = ["classification", "detection", "classification"]
    models = [ModelSettings(source="a"), ModelSettings(source="b"), ModelSettings(source="c", name="gate")]
    assert served_names(models, found) == ["classification", "detection", "gate"]
    assert served_names(models, [None, None, None]) == ["", "", "gate"]
    assert set(TASK_TABLE) <= set(TASKS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model resnet18 --model resnet34", "two models of task classification: resnet18 and resnet34"),
        ("--model detection:=resnet18", "resnet18 is for classification, and cannot have the name detection"),
    ],
)
def test_what_sources_tell_is_checked_before_anything_is_loaded(flags: str, message: str) -> None:
    settings = parse_args([*flags.split(), "--weights", "random", "--device", "cpu"], "")
    with pytest.raises(ModelUnavailable, match=message):
        make_engine_room(settings)
