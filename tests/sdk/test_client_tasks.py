"""The client and its command line with every task: what is asked for, printed and saved. No Triton needed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import client as program
from client import Client
from pipelines.protocol.answers import ActionAnswer, Answer, ClassificationAnswer, DetectionAnswer
from pipelines.protocol.columns import text_column
from pipelines.protocol.errors import InvalidOptions, ModelUnavailable
from tests.support.stub_server import STATUS, GrpcStub, Reply, StubServer, event, unary
from tests.support.toy_answers import answer, attributes, detected, embedded, ranked


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as running:
        yield running


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"v")
    return path


def test_a_task_that_is_not_served_is_named_with_what_is(stub: StubServer) -> None:
    served: dict[str, Any] = {task: {"labels": []} for task in ("detection", "action")}
    stub.status({**STATUS, "models": served})
    with Client(stub.url) as client:
        for ask in (client.segment, client.segment_stream, client.classify, client.classify_stream):
            with pytest.raises(InvalidOptions, match=r"no model for \w+ion \(it serves detection, action\)"):
                ask(b"")
        stub.serve(detected())
        assert len(client.detect(b"")) == 2
        with pytest.raises(ModelUnavailable, match="404"):
            client.recognize(b"")  # said to be served, and gone meanwhile
    asked = [name for seen in stub.seen if (name := seen.path.split("/")[3]) != "status"]
    assert asked == ["detection", "action"]


def test_options_are_typed_messages_over_grpc() -> None:
    with GrpcStub() as stub, Client(stub.url) as client:
        stub.serve(detected())
        client.detect(b"media", class_name="猫", stride=2, fps=2.5, keyframes_only=False)
        list(client.detect_stream(b"media", fps="5"))
    _status, one, many = stub.seen
    assert (one.model_name, many.model_name) == ("detection", "detection_stream")
    assert one.parameters["class_name"].string_param == "猫"
    assert one.parameters["stride"].int64_param == 2
    assert one.parameters["fps"].string_param == "2.5"
    assert one.parameters["keyframes_only"].WhichOneof("parameter_choice") == "bool_param"
    assert many.raw_input_contents == [b"\x05\0\0\0media"]


# What each task's stub is asked with, answers in two parts, and what is printed of them.
TASKS: dict[str, tuple[list[Answer], list[str], str]] = {
    "classification": (
        [
            ranked(ClassificationAnswer, [0], final=False, overlay=[b"O"]),
            ranked(ClassificationAnswer, [5], overlay=[b"P"]),
        ],
        ["classes", "classes", "mean_classes"],
        "2 frames, 猫 Kätzchen 75.00 %, dog 25.00 % (stub)",
    ),
    "action": (
        [ranked(ActionAnswer, [4], final=False, overlay=[b"O"]), ranked(ActionAnswer, [])],
        ["classes", "mean_classes"],
        "1 clip, 猫 Kätzchen 75.00 %, dog 25.00 % (stub)",
    ),
    "detection": (
        [
            detected([0], final=False, overlay=[b"O"], keypoints=2),
            detected([2], overlay=[b"P"], mask=[b"M", b"N"], keypoints=2),
        ],
        ["boxes", "boxes"],
        "2 frames, 2 boxes, 猫0 1, 猫1 1 (stub)",
    ),
    "segmentation": (
        [
            answer([0], final=False, overlay=[b"O"], mask=[b"M"]),
            answer([3], overlay=[b"P"], mask=[b"N"]),
        ],
        ["class_pixels", "class_pixels"],
        "2 frames, cat 25.0 % (stub)",
    ),
    "embedding": (
        [embedded([0], final=False), embedded([5])],
        ["embedding", "embedding"],
        "2 frames, vectors of 3 numbers (stub)",
    ),
}


def test_what_a_second_model_says_is_told(
    stub: StubServer, medium: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = attributes(2)
    told["attribute_value"][0] = ""  # of a box that it was not asked about
    stub.serve(detected([2], models=("breeds",), **told))
    asked = ["--url", stub.url, "--task", "detection", "--video-paths", str(medium), "--classify", "breeds"]
    assert program.main([*asked, "--json"]) == 0
    (line,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    first, second = line["boxes"]
    assert not {"predicted_class", "probability", "attributes"} & first.keys()
    assert (second["predicted_class"], second["probability"]) == ("Rasse é 1", 1)
    assert second["attributes"] == {"Farbe ü": {"value": "rot é", "probability": 0.75}}
    assert program.main(asked) == 0
    assert "1 frame, 2 boxes, 猫0 1, 猫1 (Rasse é 1) 1" in capsys.readouterr().out
    assert stub.seen[-1].head["classify"] == "breeds"


@pytest.mark.parametrize("protocol", [StubServer, GrpcStub])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_lines(
    task: str, protocol: type[StubServer | GrpcStub], medium: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, contents, summary = TASKS[task]
    with protocol() as stub:
        stub.serve(*parts)
        asked = ["--url", stub.url, "--task", task, "--video-paths", str(medium)]
        assert program.main(asked) == 0
        assert capsys.readouterr().out == f"{medium}: {summary}\n"
        assert program.main([*asked, "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(contents)
    for line, content in zip(lines, contents, strict=True):
        assert line["file"] == str(medium)
        assert content in line
        of_frame = content != "mean_classes"
        assert ("frame_index" in line, "decoder" in line) == (of_frame, of_frame)


def test_attributes_have_their_lines(
    stub: StubServer, medium: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of classes only those that count."""
    few: dict[str, Any] = {
        "class_id": np.array([[7, -1]]),
        "class_name": np.array([["cat", ""]], object),
        "probability": np.array([[0.75, 0]], np.float32),
    }
    stub.serve(ranked(ClassificationAnswer, [4], **few, **attributes(1)))
    asked = ["--url", stub.url, "--task", "classification", "--image-paths", str(medium)]
    assert program.main([*asked, "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["classes"] == [{"class_id": 7, "class_name": "cat", "probability": 0.75}]
    assert line["attributes"]["Farbe ü"] == {"value": "rot é", "probability": 0.75}
    assert program.main(asked) == 0
    assert "1 frame, Farbe ü: rot é, hat:  (stub)" in capsys.readouterr().out


@pytest.mark.parametrize("first", TASKS)
def test_without_a_task_it_is_the_servers_first(
    first: str, stub: StubServer, medium: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later_versions = "depth"
    models: dict[str, Any] = {name: {} for name in (later_versions, first, *TASKS)}
    stub.status({**STATUS, "models": models})
    stub.serve(*TASKS[first][0])
    assert program.main(["--url", stub.url, "--video-paths", str(medium)]) == 0
    assert TASKS[first][2] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("models", "flags", "code", "said"),
    [
        (["detection"], ["--task", "action"], 2, "no model for action (it serves detection)"),
        ([], [], 3, "error: the server serves no task that this client knows"),
        (["depth"], [], 3, "error: the server serves no task that this client knows"),
    ],
)
def test_a_task_that_is_not_served(
    models: list[str],
    flags: list[str],
    code: int,
    said: str,
    stub: StubServer,
    medium: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub.status({**STATUS, "models": {name: {} for name in models}})
    assert program.main(["--url", stub.url, *flags, "--video-paths", str(medium)]) == code
    err = capsys.readouterr().err
    assert (said in err, len(err.splitlines())) == (True, 1)
    assert program.main(["--url", stub.url, "--info"]) == 0  # which needs no model


NAMED: dict[str, Any] = {
    "gate": {"task": "classification", "labels": []},
    "cars": {"task": "classification", "labels": []},
    "boats": {"task": "detection", "labels": []},
}


def test_a_model_is_asked_by_its_name(stub: StubServer, medium: Path) -> None:
    stub.status({**STATUS, "models": NAMED})
    told = ranked(ClassificationAnswer)
    stub.infer(unary(told), "cars")
    stub.stream(Reply(chunks=[event(told, seq=0)]), "cars")
    stub.infer(unary(detected()), "boats")
    with Client(stub.url) as client:
        assert client.classify(medium, model="cars", top_k=2).class_name[0, 1] == "dog"
        assert [len(one) for one in client.classify_stream(medium, model="cars")] == [2]
        assert isinstance(client.ask_model("cars", medium, top_k=1), ClassificationAnswer)
        assert [len(one) for one in client.ask_model_stream("cars", medium)] == [2]
        assert len(client.detect(medium)) == 2  # the only one of its task
        assert isinstance(client.ask_model("boats", medium), DetectionAnswer)
    asked = [seen.path.split("/")[3] for seen in stub.seen]
    assert asked == ["status", "cars", "cars_stream", "cars", "cars_stream", "boats", "boats"]
    assert stub.seen[1].head["parameters"] == {"top_k": 2}


def test_a_model_is_asked_by_its_name_over_grpc() -> None:
    with GrpcStub() as stub, Client(stub.url) as client:
        stub.serve(detected())
        client.detect(b"media", model="detection", stride=2)
    assert stub.seen[-1].model_name == "detection"
    assert {*stub.seen[-1].parameters} == {"stride"}


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (
            lambda client: client.classify(b"", model="gat"),
            "no model 'gat'; it serves gate (classification), cars (classification), boats (detection)",
        ),
        (lambda client: client.ask_model("gat", b""), "no model 'gat'; it serves gate"),
        (lambda client: client.detect(b"", model="gate"), "gate is for classification, not for detection"),
        (lambda client: client.classify(b""), "several models for classification (name one: gate, cars)"),
        (lambda client: client.classify_stream(b""), "several models for classification (name one: gate"),
        (lambda client: client.segment(b""), "no model for segmentation; it serves gate (classification)"),
    ],
)
def test_it_has_to_be_clear_which_model(stub: StubServer, ask: Callable[[Client], Any], said: str) -> None:
    stub.status({**STATUS, "models": NAMED})
    with Client(stub.url) as client, pytest.raises(InvalidOptions, match=re.escape(said)):
        ask(client)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--model", "cars"], 0, "75.00 %"),
        (["--model", "cars", "--task", "classification"], 0, "75.00 %"),
        (["--task", "detection"], 0, "1 box"),
        ([], 3, "404"),  # the first, which the stub has not
        (["--model", "gat"], 2, "the server has no model 'gat'; it serves gate (classification), cars"),
        (["--model", "cars", "--task", "detection"], 2, "the model cars is for classification, not for"),
        (["--task", "classification"], 2, "several models for classification (name one: gate, cars)"),
        (["--model", "late"], 3, "late is for depth, which this client does not know"),
    ],
)
def test_the_program_takes_the_name_of_a_model(
    flags: list[str],
    code: int,
    said: str,
    stub: StubServer,
    medium: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub.status({**STATUS, "models": NAMED | {"late": {"task": "depth"}}})
    stub.infer(unary(ranked(ClassificationAnswer)), "cars")
    stub.infer(unary(detected()), "boats")
    assert program.main(["--url", stub.url, *flags, "--image-paths", str(medium)]) == code
    out = capsys.readouterr()
    assert said in out.out + out.err
    assert len(out.err.splitlines()) == (code > 0)


@pytest.mark.parametrize(
    ("task", "flags", "files"),
    [
        ("classification", ["--dump-images"], ["0_overlay.jpg", "5_overlay.jpg"]),
        ("action", ["--dump-images"], ["4_overlay.jpg"]),
        (
            "detection",
            ["--dump-images"],
            ["0_overlay.jpg", "2_000_mask.png", "2_001_mask.png", "2_overlay.jpg"],
        ),
        (
            "segmentation",
            ["--dump-images", "--mask", "probability"],
            ["0_overlay.jpg", "0_probability.png", "3_overlay.jpg", "3_probability.png"],
        ),
        ("classification", ["--originals"], ["0_original.jpg", "5_original.jpg"]),
        ("action", ["--originals", "--clip-stride", "2", "--top-k", "1"], ["4_original.jpg"]),
        (
            "detection",
            ["--originals", "--stride", "2", "--keyframes-only"],
            ["0_original.jpg", "2_original.jpg"],
        ),
        (
            "segmentation",
            ["--originals", "--keyframes-only", "false"],
            ["0_original.jpg", "3_original.jpg"],
        ),
    ],
)
def test_every_task_has_its_files(
    task: str, flags: list[str], files: list[str], stub: StubServer, medium: Path, tmp_path: Path
) -> None:
    stub.serve(*TASKS[task][0])
    out = tmp_path / "out"
    asked = ["--url", stub.url, "--task", task, "--video-paths", str(medium), "--output", str(out)]
    assert program.main([*asked, *flags]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["a.jsonl", *(f"a_00000{name}" for name in files)]
    sent = [seen.head for seen in stub.seen if "media" in seen.head]
    assert all(("mask" in head) == (task in ("detection", "segmentation")) for head in sent)
    flag = "false" if "false" in flags else "true" if "--keyframes-only" in flags else None
    assert sent[0].get("keyframes_only") == flag
    for plain in sent[1:]:
        assert (plain["overlay"], plain["alpha"], plain.get("mask", "none")) == ("jpeg", "0", "none")
        assert "top_k" not in plain
        for name in ("stride", "keyframes_only", "clip_stride"):  # the same frames
            assert plain.get(name) == sent[0].get(name)


def test_an_option_that_a_task_does_not_take_is_the_servers_to_refuse(
    stub: StubServer, medium: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = {"error": text_column(InvalidOptions("unknown option 'mask'").to_json())}
    stub.infer(unary(refusal, ClassificationAnswer), "classification")
    asked = ["--url", stub.url, "--task", "classification", "--image-paths", str(medium), "--mask", "png"]
    assert program.main([*asked, "--output", str(medium.parent / "out")]) == 2
    assert capsys.readouterr().err == f"error: {medium}: unknown option 'mask'\n"
    assert stub.seen[-1].head["parameters"] == {"mask": "png"}
