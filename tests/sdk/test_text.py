"""Names, labels and numbers as text: one line, valid JSON, and the same bytes back."""

from __future__ import annotations

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.protocol.answers import ClassificationAnswer, EmbeddingAnswer
from pipelines.sdk.console import OutputLost, Screen
from pipelines.sdk.files import Dump
from pipelines.sdk.report import Summary, row_lines
from pipelines.sdk.text import as_json, fitting, one_line
from tests.support.toy_answers import answer, ranked

# Bytes of names that end lines, steer terminals or turn the direction of writing; and those that do not.
NAMES = [
    *(b"caf\xe9.png", b"\xff\xfe", b"a\nb.png", b"a\rb", b"\x1b[2J\x1b]0;x\x07", b"\x7f", b"\xc2\x9b31m"),
    *(
        "\u2028x\u2029".encode(),
        "\u202egnp.exe".encode(),
        "\u2066x".encode(),
        b"\\u000a",
        b'"',
        b"\xed\xb3\xa9",
    ),
]
PLAIN = ["café 猫.png", "Ä\u0308", "👩\u200d💻.png", "a b", "\u3000"]
ENCODINGS = ["utf-8", "ascii", "latin-1", "cp1252", "utf-16", "shift_jis", None]


@pytest.mark.parametrize("name", NAMES)
def test_any_bytes_are_a_line_of_json_that_gives_them_back(name: bytes, tmp_path: Path) -> None:
    text = os.fsdecode(name)
    (line,) = row_lines(text, answer([0]))
    assert line == one_line(line)
    assert len(line.splitlines()) == 1
    for encoding in ENCODINGS:
        shown = fitting(line, encoding).encode(encoding or "utf-8").decode(encoding or "utf-8")
        assert os.fsencode(json.loads(shown)["file"]) == name
    with Dump(tmp_path / text, text, overlay="none", mask="none") as dump:
        dump.write(answer([0]), [line])
    (folder,) = os.listdir(os.fsencode(tmp_path))
    assert (folder, os.listdir(os.fsencode(tmp_path / text))) == (name, [name + b".jsonl"])


@pytest.mark.parametrize("text", PLAIN)
def test_letters_stay(text: str) -> None:
    assert one_line(text) == text
    assert fitting(text, "utf-8") == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
@pytest.mark.parametrize("name", NAMES)
def test_a_screen_shows_any_name_in_any_encoding(name: bytes, encoding: str) -> None:
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict") for _ in range(2)]
    text = f"{os.fsdecode(name)}: 猫"
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        screen = Screen(1)
        screen.say(text)
        screen.complain(ValueError(text))
        screen.close()
    for stream in streams:
        shown = stream.buffer.getvalue().decode(encoding)
        assert shown.count("\n") == 1
        assert shown[:-1].isprintable()


class Full(io.StringIO):
    """A stream whose disk is full."""

    def write(self, _text: str) -> int:
        raise OSError(28, "No space left on device")


def test_streams_that_take_nothing() -> None:
    with contextlib.redirect_stdout(Full()), contextlib.redirect_stderr(Full()):
        screen = Screen(1)
        screen.complain(ValueError("nobody hears it"))
        with pytest.raises(OutputLost, match="stdout: No space left on device"):
            screen.say("text")
        screen.close()
    with contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):  # as Python has closed ones
        screen = Screen(1)
        screen.say("text")
        screen.complain(ValueError("text"))
        screen.close()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"a": [1.5, float("nan"), -float("inf")], "b": {"c": (float("inf"),)}},
            '{"a": [1.5, null, null], "b": {"c": [null]}}',
        ),
        (float("nan"), "null"),
        ({"é": True}, '{"é": true}'),
    ],
)
def test_json_has_no_numbers_that_are_not_finite(value: Any, expected: str) -> None:
    assert as_json(value) == expected


def test_answers_that_are_not_finite() -> None:
    bad = np.array([np.nan, np.inf], np.float32)
    marks = np.array([1, 0], np.uint8)
    given = EmbeddingAnswer(
        frame_index=np.arange(2),
        pts_s=np.array([np.nan, 0.1]),
        size=np.array([2, 3]),
        not_finite=marks,
        decoder="stub",
        final=True,
        embedding=np.stack([bad, np.ones(2, np.float32)]),
        mean_embedding=bad,
    )
    first, second = (json.loads(line, parse_constant=pytest.fail) for line in row_lines("f", given))
    assert (first["pts_s"], first["embedding"], first["not_finite"]) == (None, [None, None], 1)
    assert (second["embedding"], "not_finite" in second) == ([1.0, 1.0], False)
    summary = Summary()
    summary.add(given)
    summary.add(given)
    assert str(summary) == "4 frames, vectors of 2 numbers, 2 without finite numbers (stub)"
    ranks = ranked(ClassificationAnswer, [0], probability=bad[None], mean_probability=bad)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in row_lines("f", ranks)]
    assert [one["probability"] for one in lines[0]["classes"]] == [None, None]


@pytest.mark.parametrize("size", [1, 3 << 20])
def test_a_full_disk_names_the_file(size: int, tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").symlink_to("/dev/full")
    with (
        pytest.raises(OSError, match=r"No space left on device: .*s\.jsonl"),
        Dump(tmp_path, "s", overlay="none", mask="none") as dump,
    ):
        dump.write(answer([0]), ["x" * size])
