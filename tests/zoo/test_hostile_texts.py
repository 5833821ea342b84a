"""Texts made to do harm: files that never end or fill the memory, and no numbers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipelines.settings.file import read_settings_file
from pipelines.settings.reading import WrongInput
from tests.zoo.test_saved_models import error_of


def test_pipes_are_not_waited_for(tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    assert "is not a file" in error_of("squeezenet1_1", weights="random", labels=pipe)
    assert "is not a file" in error_of("squeezenet1_1", weights="random", model_proc=pipe)
    with pytest.raises(WrongInput, match="it is not a file"):
        read_settings_file(Path(pipe))
    for name in ("pipe.pt2", "pipe.onnx", "pipe.pth", "pipe.safetensors"):
        os.mkfifo(tmp_path / name)
        assert "no model file" in error_of(tmp_path / name, arch="squeezenet1_1")


def test_settings_and_labels_that_are_huge_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate((16 << 20) + 1)
    with pytest.raises(WrongInput, match="is larger than 16 MB"):
        read_settings_file(tmp_path / "huge")
    text = error_of("squeezenet1_1", weights="random", labels=str(tmp_path / "huge"))
    assert "is larger than 16 MB" in text


@pytest.mark.parametrize("text", ["clip_fps = nan", "clip_fps = inf", "score_threshold = nan"])
def test_settings_that_are_no_numbers_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(f'[[model]]\nsource = "r3d_18"\n{text}\n')
    name = text.partition(" = ")[0]
    with pytest.raises(WrongInput, match=rf"model\[0\]\.{name} is (NaN|Infinity) \(allowed: .*\d to \d"):
        read_settings_file(file)
    file.write_text('[[model]]\nsource = "r3d_18"\n[model.preprocessing]\nmean = [nan, 0.5, 0.5]\n')
    with pytest.raises(WrongInput, match=r"preprocessing\.mean\[0\] is NaN \(allowed: a number from -1 to 2"):
        read_settings_file(file)
