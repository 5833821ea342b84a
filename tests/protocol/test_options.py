"""Options at their border, and columns to tensors. Answers of every form: test_answers."""

from __future__ import annotations

import json
from typing import Any, get_args

import numpy as np
import pytest

from pipelines.protocol.answers import ANSWERS, SegmentationAnswer, answer_columns
from pipelines.protocol.columns import COMMON_COLUMNS, STREAM_COLUMNS, Column, to_tensors
from pipelines.protocol.errors import BY_CODE, InternalError, InvalidOptions, TrividError, from_json
from pipelines.protocol.options import (
    OPTION_FIELDS,
    OPTION_TYPES,
    STREAM_OPTIONS,
    Options,
    Scalar,
    parse_options,
)
from tests.support.toy_answers import answer

ALL = tuple(OPTION_FIELDS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"stride": 1, "overlay": "none", "mask": "rle", "class_id": -1}),
        ({"stride": "3"}, {"stride": 3}),
        ({"stride": 2.0}, {"stride": 2}),
        ({"start_s": 1, "end_s": "2.5"}, {"start_s": 1.0, "end_s": 2.5}),
        ({"overlay": "mp4", "style": "extract"}, {"overlay": "mp4", "style": "extract"}),
        ({"base64": "true"}, {"base64": True}),
        ({"base64": False}, {"base64": False}),
        (
            {"top_k": "3", "clip_length": 8.0, "tail": "repeat"},
            {"top_k": 3, "clip_length": 8, "tail": "repeat"},
        ),
        ({"fps": "2.5", "mask": "probability"}, {"fps": 2.5, "mask": "probability", "keyframes_only": False}),
        ({"keyframes_only": "1", "stride": 2}, {"keyframes_only": True, "fps": 0.0}),
        ({"task": "detection", "fps": 0, "keyframes_only": True}, {"task": "detection"}),
        ({"session": "token", "last_seq": "3", "base64": True, "stride": 1}, {"last_seq": 3, "credits": 0}),
    ],
)
def test_options_are_read_from_scalars_and_text(given: dict[str, Scalar], expected: dict[str, Any]) -> None:
    options = parse_options(given, allowed=ALL)
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": "red"}, "unknown option 'colour'.*allowed here: .*overlay"),
        ({"stride": "x"}, "stride='x' has the wrong type.*expected a whole number of 1 or more"),
        ({"stride": 1.5}, "stride=1.5 has the wrong type"),
        ({"stride": True}, "stride=True has the wrong type"),
        ({"stride": 0}, "stride=0 is out of range.*expected a whole number of 1 or more"),
        ({"alpha": 1.01}, "alpha=1.01 is out of range.*expected a number from 0 to 1"),
        ({"alpha": "nan"}, "alpha='nan' has the wrong type"),
        ({"overlay": "gif"}, "overlay='gif' is not known.*none, jpeg, mp4, raw"),
        ({"background": "red"}, "background='red' is not a colour.*RRGGBB"),
        ({"outline_px": 17}, "outline_px=17 is out of range.*0 to 16"),
        ({"class_name": 3}, "class_name=3 has the wrong type.*expected text"),
        ({"base64": "perhaps"}, "base64='perhaps' has the wrong type.*expected true or false"),
        ({"start_s": 2, "end_s": 2}, "end_s=2.0 is not after start_s=2.0"),
        ({"class_name": "cat", "class_id": 1}, "class_name and class_id are both set"),
        ({"class_name": "cat", "class_id": 0}, "class_name and class_id are both set"),
        ({"fps": 1, "keyframes_only": True}, "fps and keyframes_only are both set"),
        ({"fps": -1}, "fps=-1.0 is out of range.*0 to 1000"),
        ({"top_k": 0}, "top_k=0 is out of range.*1 to 1000"),
        ({"clip_length": 1025}, "clip_length=1025 is out of range"),
        ({"clip_stride": -1}, "clip_stride=-1 is out of range"),
        ({"tail": "keep"}, "tail='keep' is not known.*drop, pad, repeat"),
        ({"mask": "svg"}, "mask='svg' is not known.*none, rle, png, raw, probability"),
        ({"task": 1}, "task=1 has the wrong type"),
        ({"credits": 1001}, "credits=1001 is out of range.*0 to 1000"),
        ({"last_seq": 3}, "last_seq without a session"),
        ({"cancel": True}, "cancel without a session"),
        ({"session": "token", "stride": 2}, "option stride is set with a session"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Scalar], message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        parse_options(given, allowed=ALL)


def test_options_of_other_endpoints_are_unknown_and_presets_yield() -> None:
    with pytest.raises(InvalidOptions, match="allowed here: stride"):
        parse_options({"overlay": "jpeg"}, allowed=("stride",))
    with pytest.raises(InvalidOptions, match="here: stride; without the Python client also base64, cancel"):
        parse_options({"overlay": "jpeg"}, allowed=("cancel", "stride", "base64"))
    assert parse_options({}, allowed=("style",), preset={"style": "extract"}).style == "extract"
    assert (
        parse_options({"style": "redact"}, allowed=("style",), preset={"style": "extract"}).style == "redact"
    )


def test_every_error_has_a_code_of_its_own_and_crosses_the_wire() -> None:
    kinds = TrividError.__subclasses__()
    assert sorted(BY_CODE) == sorted(kind.code for kind in kinds)
    for kind in kinds:
        back = from_json(kind("what", hint="do").to_json())
        assert (type(back), back.message, back.hint) == (kind, "what", "do")
    assert from_json(InvalidOptions("x" * 1000).to_json()).message == "x" * 1000
    assert from_json(InvalidOptions("x" * 100_000).to_json()).message == "x" * 1000 + "…"
    assert [str(InvalidOptions("what", hint=hint)) for hint in ("", "do")] == ["what", "what (do)"]
    assert str(InvalidOptions("what (1)", hint="do")) == "what (1); do"
    assert str(InvalidOptions("what", hint="do (1)")) == "what; do (1)"
    unknown = from_json(json.dumps({"code": "new", "message": "m", "hint": ""}).encode())
    assert type(unknown) is InternalError
    assert "'new'" in unknown.message


def another_value(name: str) -> Scalar:
    """A value that is not the option's default, whatever its type."""
    default: Any = OPTION_FIELDS[name].default
    facts = OPTION_FIELDS[name].metadata
    if choices := get_args(OPTION_TYPES[name]):
        return str(next(choice for choice in choices if choice != default))
    if isinstance(default, bool):
        return not default
    if isinstance(default, str):
        return default.replace("0", "f") or "text"
    tried: tuple[float, ...] = (default + 1, 1, facts["low"])
    return next(value for value in tried if value != default and facts["low"] <= value <= facts["high"])


@pytest.mark.parametrize("name", OPTION_FIELDS)
def test_an_option_is_set_where_it_is_not_the_default(name: str) -> None:
    other = another_value(name)
    assert not Options().is_set(name)
    given: dict[str, Scalar] = {"session": "token"} if name in STREAM_OPTIONS else {}
    assert parse_options({**given, name: other}, allowed=ALL).is_set(name)


def test_rows_of_different_lengths_are_padded_and_error_rows_too() -> None:
    masks = [b"m\x000\x00"]
    rows = [answer([0], mask=masks).to_columns(), answer([1, 2, 3], mask=3 * masks).to_columns()]
    columns = answer_columns(SegmentationAnswer)
    tensors = to_tensors(columns, [*rows, {"error": np.array([b"{}"], object)}])
    assert tensors["class_pixels"].shape == (3, 3, 2)
    assert tensors["count"].tolist() == [[1], [3], [0]]
    assert tensors["mask"][0].tolist() == [*masks, b"", b""]
    assert tensors["error"].tolist() == [[b""], [b""], [b"{}"]]


def test_a_column_has_the_dimensions_that_it_says() -> None:
    with pytest.raises(ValueError, match="2 dimensions"):
        to_tensors([Column(name="x", dtype=np.int64, dims=("N",), help="")], [{"x": np.zeros((1, 1))}])


def test_every_option_and_column_says_what_it_is() -> None:
    assert all(field.metadata["help"] for field in OPTION_FIELDS.values())
    columns = [column for kind in ANSWERS.values() for column in answer_columns(kind)]
    assert all(column.help for column in (*columns, *COMMON_COLUMNS, *STREAM_COLUMNS))
    assert Options().end_s > 1e9
