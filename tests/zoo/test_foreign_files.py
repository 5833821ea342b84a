"""Files of other frameworks are recognised without running them, and refused with the way out."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.sources import error_of
from tests.zoo.test_saved_models import save_script


def pickled(path: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint with a network of a class `module.name`, which afterwards is nowhere."""
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        dotted = ".".join(parts[:count])
        monkeypatch.setitem(sys.modules, dotted, types.ModuleType(dotted))
    made = type(name, (nn.Module,), {"__module__": module})
    setattr(sys.modules[module], name, made)
    torch.save({"epoch": -1, "model": made(), "ema": None}, path)
    for count in range(1, len(parts) + 1):
        monkeypatch.delitem(sys.modules, ".".join(parts[:count]))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("ultralytics.nn.tasks", "DetectionModel"),
        ("ultralytics.nn.tasks", "SegmentationModel"),
        ("models.yolo", "Model"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"arch": "resnet50"}, {"allow_code": True}])
def test_an_ultralytics_file_is_refused_with_the_command_that_exports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, name: str, options: dict[str, object]
) -> None:
    path = tmp_path / "best.pt"
    pickled(path, module, name, monkeypatch)
    text = error_of(str(path), **options)
    assert f"{path} is a pickle of Ultralytics' classes ({module}.{name})" in text
    assert f"yolo export model={path} format=onnx" in text
    assert ("export.py --weights" in text) is (module == "models.yolo")


def test_the_weights_of_an_openvino_model_go_with_its_graph(tmp_path: Path) -> None:
    (tmp_path / "m.bin").write_bytes(b"\x00\x01" * 99)
    (tmp_path / "m.xml").touch()
    assert f"serve {tmp_path / 'm.xml'}" in error_of(str(tmp_path / "m.bin"))


def test_a_program_is_one_whatever_its_ending(tmp_path: Path) -> None:
    for file in ("m.pth", "m.bin", "m.ckpt"):
        save_script(tmp_path / file)
        assert "is a program, which can run code" in error_of(str(tmp_path / file))


@pytest.mark.parametrize(
    ("file", "what", "way_out"),
    [
        ("m.engine", "TensorRT", "ONNX file"),
        ("m.plan", "TensorRT", "ONNX file"),
        ("m.tflite", "TensorFlow Lite", "tf2onnx.convert --tflite {path}"),
        ("M.TFLITE", "TensorFlow Lite", "tf2onnx.convert --tflite {path}"),
        ("m.mlpackage", "Core ML", "torch.onnx.export"),
        ("m.mlmodel", "Core ML", "torch.onnx.export"),
        ("m.pb", "TensorFlow", "tf2onnx.convert --graphdef {path}"),
        ("m.keras", "Keras", "tf2onnx.convert --keras {path}"),
        ("m.h5", "Keras", "tf2onnx.convert --keras {path}"),
        ("folder", "TensorFlow", "tf2onnx.convert --saved-model {path}"),
    ],
)
def test_other_frameworks_files_are_refused_with_the_way_out(
    tmp_path: Path, file: str, what: str, way_out: str
) -> None:
    path = tmp_path / file
    if file == "folder":
        path.mkdir()
        (path / "saved_model.pb").touch()
    text = error_of(str(path))
    assert f"{path} is a {what}" in text
    assert way_out.format(path=path) in text
    if file != "folder":
        assert f"{path} is a {what}" in error_of("resnet50", weights=str(path))


def test_files_of_no_known_kind_and_folders_are_told_from_names_of_networks(tmp_path: Path) -> None:
    (tmp_path / "m.param").touch()
    assert "is not a model file of a known kind: it ends in '.param'" in error_of(str(tmp_path / "m.param"))
    assert f"hf:{tmp_path}" in error_of(str(tmp_path))
    assert "torchvision has no model" in error_of("m.param")
