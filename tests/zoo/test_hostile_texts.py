"""Texts made to do harm: expressions that would take long, files that never end or fill the memory, no
numbers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.settings.file import WrongSettings, read_settings_file
from pipelines.zoo.files.expressions import is_arithmetic
from tests.zoo.test_saved_models import error_of


@pytest.mark.parametrize(
    "text",
    [
        "9**9**9**9",
        "Pow(9, Pow(9, 9))",
        "Pow(Pow(9, 4), 4)",
        "((9**4)**4)**4",
        "Pow(b=9, e=9999999)",
        "9**5",
        "2**s0",
        "s0**L['x'].size()[0]",
        "1 << 10**9",
        "1 << 9999999999",
        str(1 << 64),
        "-" * 900 + "1",
        "-" * 19_000 + "1",
        "1+" * 3000 + "1",
        "1j",
        "1 in (1,)",
    ],
)
def test_expressions_that_would_take_long_are_refused(text: str) -> None:
    assert not is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        "s0**2 + 1",
        "Pow(Symbol('s1', positive=True, integer=True), Integer(-1))",
        "Pow(Symbol('s1'), Rational(1, 2))",
        "L['x'].size()[2] >= 2",
        "Mod(s0, 32) == 0 and not s1 < -9223372036854775808",
        "(s0**2) * (s1**2)",
    ],
)
def test_expressions_of_sizes_pass(text: str) -> None:
    assert is_arithmetic(text)


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    assert "is no file" in error_of("squeezenet1_1", weights="random", labels=pipe)
    assert "is no file" in error_of("squeezenet1_1", weights="random", model_proc=pipe)
    with pytest.raises(WrongSettings, match="it is no file"):
        read_settings_file(Path(pipe), {})
    for name in ("pipe.pt2", "pipe.onnx", "pipe.pth", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        assert "no model file" in error_of(tmp_path / name, arch="squeezenet1_1")


def test_settings_and_labels_that_are_huge_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(WrongSettings, match="is larger than 16 MB"):
        read_settings_file(tmp_path / "huge", {})
    text = error_of("squeezenet1_1", weights="random", labels=str(tmp_path / "huge"))
    assert "is larger than 16 MB" in text


@pytest.mark.parametrize("text", ["clip_fps = nan", "clip_fps = inf", "score_threshold = nan"])
def test_settings_that_are_no_numbers_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[[model]]\nsource = "r3d_18"\n{text}\n')
    with pytest.raises(WrongSettings, match="expected a number"):
        read_settings_file(file, {})
    file.write_text('[[model]]\nsource = "r3d_18"\n[model.preprocessing]\nmean = [nan, 0.5, 0.5]\n')
    with pytest.raises(WrongSettings, match="expected a number"):
        read_settings_file(file, {})
