"""What model files say of themselves: it comes back as it was written, and what is wrong with it is named."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import nn

from pipelines.models.spec import Clip, ModelSpec, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.facts import facts_to_json, spec_from_facts

SPECS = {
    "classification": ModelSpec(
        name="plain",
        task="classification",
        build=nn.Identity,
        source="test",
        labels=("Katze", "犬", 'a "quoted" label'),
        preprocessing=Preprocessing(resize_px=256, crop_px=(224, 192)),
        licence="BSD-3-Clause",
    ),
    "every field": ModelSpec(
        name="boxed",
        task="detection",
        build=nn.Identity,
        source="test",
        preprocessing=Preprocessing(
            resize_px=(320, 416),
            fit="letterbox",
            mean=(0.0, 0.25, 0.1),
            std=(1.0, 0.5, 1 / 3),
            interpolation="bicubic",
            antialias=False,
            round_pixels=False,
            channels="BGR",
            pad_value=114,
        ),
        keypoint_names=("nose", "left eye"),
    ),
    "longer side": ModelSpec(
        name="sided",
        task="segmentation",
        build=nn.Identity,
        source="test",
        preprocessing=Preprocessing(resize_px=800, max_px=1333, interpolation="nearest"),
    ),
    "clips": ModelSpec(
        name="clips",
        task="action",
        build=nn.Identity,
        source="test",
        preprocessing=Preprocessing(resize_px=None),
        clip=Clip(length=16, fps=12.5, fixed=True),
        activation="none",
    ),
}


def facts(**changed: object) -> dict[str, Any]:
    """The facts of a plain classifier, some of them changed; None takes one out."""
    base = json.loads(facts_to_json(SPECS["classification"]))
    return {name: value for name, value in {**base, **changed}.items() if value is not None}


def preprocessing(**changed: object) -> dict[str, Any]:
    return facts(preprocessing={**facts()["preprocessing"], **changed})


def read(text: str) -> ModelSpec:
    return spec_from_facts(text, build=nn.Identity, source="test", file="model.onnx")


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_facts_come_back_as_they_were(spec: ModelSpec) -> None:
    assert read(facts_to_json(spec)) == spec


def test_fields_with_a_default_may_be_missing() -> None:
    text = '{"version": 1, "name": "x", "task": "segmentation", "preprocessing": {"resize_px": [64, 96]}}'
    assert read(text).preprocessing == Preprocessing(resize_px=(64, 96))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[" * 975 + "]" * 975, "trivid"),
        ("[]", "trivid is [] (allowed: a table of fields;"),
        ("{}", "trivid.version is missing"),
        (json.dumps(facts(version=2)), "trivid.version is 2 (allowed: 1; write it again"),
        (json.dumps(facts(version="1")), 'trivid.version is "1" (allowed: 1;'),
        (json.dumps(facts(version=1.0)), "trivid.version is 1.0 (allowed: 1;"),
        (json.dumps(facts(version=True)), "trivid.version is true (allowed: 1;"),
        (
            json.dumps(facts(task="captions")),
            "trivid.task is \"captions\" (allowed: 'classification', 'detection'",
        ),
        (json.dumps(facts(task=["detection"])), "trivid.task"),
        (
            json.dumps({**facts(), "name": None}),
            "trivid.name is null (allowed: a printable text of at most 1000 characters;",
        ),
        (json.dumps(facts(labels="cat")), 'trivid.labels is "cat" (allowed: a list;'),
        (json.dumps(facts(labels=["cat", 3])), "trivid.labels[1] is 3 (allowed: a printable text"),
        (json.dumps(facts(probabilities=1)), "trivid.probabilities is 1 (allowed: true or false;"),
        (json.dumps(facts(colour="red")), "trivid.colour is unknown (allowed: version, name"),
        (json.dumps(facts(task="action")), "trivid.clip is wrong: a model has clip facts"),
        (
            json.dumps(facts(task="action", clip={"length": 0, "fps": 5})),
            "trivid.clip is wrong",
        ),
        (json.dumps(facts(task="action", clip={"length": 8})), "trivid.clip.fps is missing"),
        (json.dumps(facts(preprocessing=None)), "trivid.preprocessing is missing"),
        (json.dumps(facts(preprocessing=[])), "trivid.preprocessing is [] (allowed: a table of fields;"),
        (
            json.dumps(preprocessing(resize_px=[1, 2, 3])),
            "trivid.preprocessing.resize_px is [1, 2, 3] (allowed: a whole number or at most 2 of them;",
        ),
        (
            json.dumps(preprocessing(resize_px=[1, "x"])),
            'trivid.preprocessing.resize_px[1] is "x" (allowed: a',
        ),
        (json.dumps(preprocessing(resize_px="x")), "(allowed: a whole number or a list;"),
        (json.dumps(preprocessing(resize_px=True)), "trivid.preprocessing.resize_px is true (allowed: a"),
        (
            json.dumps(preprocessing(resize_px=-1)),
            "trivid.preprocessing is wrong: resize_px: a side of -1 px is not in 1 to 8192",
        ),
        (json.dumps(preprocessing(mean=[0.5])), "trivid.preprocessing.mean[1] is missing"),
        (
            json.dumps(preprocessing(mean=[float("nan"), 0, 0])),
            "trivid.preprocessing.mean[0] is NaN (allowed: a number;",
        ),
        (json.dumps(preprocessing(std=[1, 1, 0])), "trivid.preprocessing is wrong: std ("),
        (json.dumps(preprocessing(std=[1, 1, 10**400])), "trivid.preprocessing.std[2] is 1000"),
        (
            json.dumps(preprocessing(pad_value=256)),
            "trivid.preprocessing is wrong: pad_value 256 is not in 0 to 255",
        ),
        (
            json.dumps(preprocessing(fit="letterbox")),
            "trivid.preprocessing is wrong: letterbox",
        ),
        *[
            (json.dumps(preprocessing(**{name: value})), f"trivid.preprocessing is wrong: {name}")
            for name, value in [
                ("resize_px", 10**9),
                ("resize_px", 8193),
                ("resize_px", [10**30, 5]),
                ("resize_px", [20_000, 20_000]),
                ("crop_px", [10**6, 1]),
                ("crop_px", [0, 1]),
                ("max_px", 10**9),
                ("pad_value", 300),
                ("mean", [10**30 * 2, 0, 0]),
                ("mean", [1e30, 0, 0]),
                ("std", [1, 1, -1]),
                ("std", [0, 0, 0]),
            ]
        ],
        (json.dumps(preprocessing(std=[1, 1, float("inf")])), "trivid.preprocessing.std[2] is Infinity"),
        *[
            (json.dumps(facts(task="action", clip=clip)), f"trivid.clip{says}")
            for says, clip in [
                (" is wrong: clips of 1000000000 frames", {"length": 10**9, "fps": 1}),
                (" is wrong: clips of 1 frames at 1e+29 a second", {"length": 1, "fps": 1e29}),
                (" is wrong: clips of 1025 frames", {"length": 1025, "fps": 1}),
                (" is wrong: clips of 1 frames at 0", {"length": 1, "fps": 0}),
                (" is wrong: clips of 1000", {"length": 10**30, "fps": 1}),
                (".fps is 1000", {"length": 1, "fps": 10**400}),
            ]
        ],
        *[
            (json.dumps(facts(**{name: value})), f"trivid.{name}{'[0]' * isinstance(value, list)} is")
            for name, value in [
                ("name", "a\nb\x1b[31m"),
                ("name", "x" * 1001),
                ("licence", "\x9b31m"),
                ("labels", ["a\nb", "c"]),
                ("labels", ["\x00"]),
                ("labels", ["\u202egnp.exe"]),
                ("labels", ["x" * 1001]),
                ("keypoint_names", ["\x7f"]),
            ]
        ],
        (json.dumps(facts(labels=["x"] * 100_001)), "(allowed: at most 100000 of them;"),
        (json.dumps(facts(labels=["\ud800"])), "trivid is not JSON: "),
        (json.dumps(facts(labels=["\ud800"]), ensure_ascii=False), "trivid is not JSON: "),
        (json.dumps(facts(**{"a\n\x1b[2J": 1})), r"trivid.'a\n\x1b[2J' is unknown"),
        (
            json.dumps(preprocessing(gamma=2.2)),
            "trivid.preprocessing.gamma is unknown (allowed: resize_px, max_px",
        ),
    ],
)
def test_wrong_facts_are_named(text: str, says: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        read(text)
    assert says in str(caught.value)
    assert caught.value.message.startswith("model.onnx: ")
    assert str(caught.value).isprintable()
    assert caught.value.hint
