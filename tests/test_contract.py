"""Options at their border, and columns to tensors and back."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from pipelines.contract import (
    COMMON_COLUMNS,
    OPTION_FIELDS,
    Column,
    Options,
    Scalar,
    parse_options,
    to_tensors,
)
from pipelines.errors import BY_CODE, InternalError, InvalidOptions, TrividError, from_json
from pipelines.results import SEGMENTATION_COLUMNS, SegmentationAnswer

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
    ],
)
def test_options_are_read_from_scalars_and_text(given: dict[str, Scalar], expected: dict[str, Any]) -> None:
    options = parse_options(given, allowed=ALL)
    assert {name: getattr(options, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"colour": "red"}, "unknown option 'colour'.*allowed here: .*overlay"),
        ({"stride": "x"}, "stride='x' has the wrong type.*expected int"),
        ({"stride": 1.5}, "stride=1.5 has the wrong type"),
        ({"stride": True}, "stride=True has the wrong type"),
        ({"stride": 0}, "stride=0 is out of range"),
        ({"alpha": 1.01}, "alpha=1.01 is out of range.*0 to 1"),
        ({"alpha": "nan"}, "alpha='nan' has the wrong type"),
        ({"overlay": "gif"}, "overlay='gif' is not known.*none, jpeg, mp4, raw"),
        ({"background": "red"}, "background='red' is no colour.*RRGGBB"),
        ({"outline_px": 17}, "outline_px=17 is out of range.*0 to 16"),
        ({"class_name": 3}, "class_name=3 has the wrong type.*expected text"),
        ({"base64": "perhaps"}, "base64='perhaps' has the wrong type"),
        ({"start_s": 2, "end_s": 2}, "end_s=2.0 is not after start_s=2.0"),
        ({"class_name": "cat", "class_id": 1}, "both set"),
    ],
)
def test_wrong_options_are_named(given: dict[str, Scalar], message: str) -> None:
    with pytest.raises(InvalidOptions, match=message):
        parse_options(given, allowed=ALL)


def test_options_of_other_endpoints_are_unknown_and_presets_yield() -> None:
    with pytest.raises(InvalidOptions, match="allowed here: stride"):
        parse_options({"overlay": "jpeg"}, allowed=("stride",))
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
    unknown = from_json(json.dumps({"code": "new", "message": "m", "hint": ""}).encode())
    assert type(unknown) is InternalError
    assert "'new'" in unknown.message


def answer(count: int, **values: Any) -> SegmentationAnswer:
    fields: dict[str, Any] = {
        "frame_index": np.arange(count),
        "pts_s": np.arange(count) / 10,
        "class_names": ("background", "star"),
        "class_pixels": np.arange(2 * count).reshape(count, 2),
        "height_px": 4,
        "width_px": 6,
        "mask": [b"m\x00%d\x00" % number for number in range(count)],
        "decoder": "pyav",
        "decoder_reason": "device is cpu",
    }
    return SegmentationAnswer(**{**fields, **values})


@pytest.mark.parametrize("count", [0, 1, 3])
def test_answers_survive_the_wire(count: int) -> None:
    sent = answer(count, overlay=[b"\xff\x00"] * count, video=b"v\x00", final=True)
    tensors = to_tensors(SEGMENTATION_COLUMNS, [sent.to_columns()])
    assert all(0 not in tensor.shape for tensor in tensors.values())
    back = SegmentationAnswer.from_columns({name: tensor[0] for name, tensor in tensors.items()})
    for name in ("frame_index", "pts_s", "class_pixels"):
        np.testing.assert_array_equal(getattr(back, name), getattr(sent, name))
    assert (back.mask, back.overlay, back.video) == (sent.mask, sent.overlay, b"v\x00")
    assert (back.class_names, back.decoder, back.final) == (sent.class_names, "pyav", True)


def test_rows_of_different_lengths_are_padded_and_error_rows_too() -> None:
    rows = [answer(1).to_columns(), answer(3).to_columns(), {"error": np.array([b"{}"], object)}]
    tensors = to_tensors(SEGMENTATION_COLUMNS, rows)
    assert tensors["class_pixels"].shape == (3, 3, 2)
    assert tensors["count"].tolist() == [[1], [3], [0]]
    assert tensors["mask"][0].tolist() == [b"m\x000\x00", b"", b""]
    assert tensors["error"].tolist() == [[b""], [b""], [b"{}"]]


def test_columns_that_disagree_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="columns disagree"):
        answer(2, pts_s=np.zeros(3))
    with pytest.raises(ValueError, match="mask has 1 entries for 2 frames"):
        answer(2, mask=[b""])
    with pytest.raises(ValueError, match="2 dimensions"):
        to_tensors([Column(name="x", dtype=np.int64, dims=("N",), help="")], [{"x": np.zeros((1, 1))}])


def test_parts_concatenate_in_order() -> None:
    whole = SegmentationAnswer.concatenate([answer(2, video=b"a"), answer(1, video=b"b", final=True)])
    assert (len(whole), whole.video, whole.final) == (3, b"ab", True)
    assert whole.frame_index.tolist() == [0, 1, 0]


def test_every_option_and_column_says_what_it_is() -> None:
    assert all(field.metadata["help"] for field in OPTION_FIELDS.values())
    assert all(column.help for column in (*SEGMENTATION_COLUMNS, *COMMON_COLUMNS))
    assert Options().end_s > 1e9
