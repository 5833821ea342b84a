"""Files of other frameworks, and pickles of their classes: recognised without running them, and refused with
the way out. Knows no networks.
"""

from __future__ import annotations

import pickle
import re
import struct
from pathlib import Path

import torch

from pipelines.protocol.errors import ModelUnavailable

ONNX_OF_TF = "python -m tf2onnx.convert"
# By its ending: what a file is, and how the network in it comes to be served.
FORMATS = {
    ".engine": ("a TensorRT engine, made for one GPU", "serve the ONNX file that it was made from"),
    ".plan": ("a TensorRT engine, made for one GPU", "serve the ONNX file that it was made from"),
    ".trt": ("a TensorRT engine, made for one GPU", "serve the ONNX file that it was made from"),
    ".tflite": ("a TensorFlow Lite model", f"convert it: {ONNX_OF_TF} --tflite FILE --output model.onnx"),
    ".keras": ("a Keras model", f"convert it: {ONNX_OF_TF} --keras FILE --output model.onnx"),
    ".h5": ("a Keras model", f"convert it: {ONNX_OF_TF} --keras FILE --output model.onnx"),
    ".hdf5": ("a Keras model", f"convert it: {ONNX_OF_TF} --keras FILE --output model.onnx"),
    ".pb": (
        "a TensorFlow graph",
        f"convert it: {ONNX_OF_TF} --graphdef FILE --inputs NAME:0 --outputs NAME:0 --output model.onnx, "
        "or of a folder with saved_model.pb --saved-model FOLDER",
    ),
    ".mlpackage": ("a Core ML model", "export its network again, as ONNX: torch.onnx.export"),
    ".mlmodel": ("a Core ML model", "export its network again, as ONNX: torch.onnx.export"),
    ".caffemodel": ("a Caffe model", "convert it to ONNX, or to OpenVINO's .xml and .bin"),
    ".weights": ("a Darknet model", "convert it to ONNX, or to OpenVINO's .xml and .bin"),
    ".pdmodel": ("a Paddle model", "convert it: paddle2onnx --model_dir FOLDER --save_file model.onnx"),
    ".pdiparams": ("a Paddle model", "convert it: paddle2onnx --model_dir FOLDER --save_file model.onnx"),
}
# Whose classes a pickle of a whole network holds, by the names of their modules.
ULTRALYTICS = ("ultralytics.", "models.yolo.", "models.common.")
# What torch's unpickler says of the first global that it does not know.
GLOBAL = re.compile(r"GLOBAL ([\w.]+)")
MOST_NAMED = 4
# What torch raises at what is no such archive, or a pickle that cannot be taken apart.
DAMAGED = (
    *(ValueError, LookupError, TypeError, AttributeError, AssertionError, RuntimeError, EOFError),
    *(pickle.UnpicklingError, struct.error),
)


def refuse_format(path: Path) -> None:
    """Raise ModelUnavailable for a file of another framework, by its ending."""
    found = FORMATS.get(path.suffix.lower())
    if found is None and (path / "saved_model.pb").is_file():
        found = ("a TensorFlow model", f"convert it: {ONNX_OF_TF} --saved-model FILE --output model.onnx")
    if found:
        what, way_out = found
        raise ModelUnavailable(f"{path} is {what}, which is not served", hint=_with_path(way_out, path))


def refuse_unknown(source: str) -> None:
    """Raise ModelUnavailable for a path to a file or folder of no known kind, which names no network."""
    path = Path(source).expanduser()
    if path.is_dir() and ("/" in source or (path / "config.json").is_file()):
        raise ModelUnavailable(
            f"{path} is a folder, not a model file",
            hint=f"of transformers: hf:{source}; of timm: timm:{source}; else give the file in it",
        )
    if path.is_file() and ("/" in source or path.suffix):
        raise ModelUnavailable(
            f"{path} is not a model file of a known kind: it ends in {path.suffix!r}",
            hint="files end in .onnx, .xml, .pt2, .pt, .ts, .torchscript, .safetensors, .pth, .bin or .ckpt",
        )


def unreadable(path: Path, error: Exception) -> ModelUnavailable:
    """The error for a pickle that torch's own unpickler refused: which classes it holds, and the cure."""
    graph = path.with_suffix(".xml")
    if path.suffix.lower() == ".bin" and graph.is_file():
        return ModelUnavailable(f"{path} has the weights of OpenVINO's {graph.name}", hint=f"serve {graph}")
    names = _globals(path) or GLOBAL.findall(str(error))[:1]
    listed = ", ".join(names[:MOST_NAMED]) + (" and others" if len(names) > MOST_NAMED else "")
    of_ultralytics = [name for name in names if name.startswith(ULTRALYTICS)]
    if of_ultralytics:
        hint = "export it: yolo export model=FILE format=onnx"
        if not any(name.startswith("ultralytics.") for name in of_ultralytics):
            hint += "; or by the YOLOv5 or YOLOv7 that wrote it: python export.py --weights FILE"
        return ModelUnavailable(
            f"{path} is a pickle of Ultralytics' classes ({of_ultralytics[0]}), which only their code loads",
            hint=_with_path(hint, path),
        )
    text = f"{path} is not a state dict that can be read without running code from it"
    if any(name.startswith("torch.nn.modules.") for name in names):
        return ModelUnavailable(
            f"{text}: it is a whole network, of {listed}",
            hint="where its code is, save only its weights: torch.save(model.state_dict(), FILE)",
        )
    if names:
        return ModelUnavailable(
            f"{text}: it holds {listed}",
            hint="if you trust it, save only its weights, with the key that holds them: "
            "torch.save(torch.load(FILE, weights_only=False)['state_dict'], NEW)",
        )
    return ModelUnavailable(
        text, hint="save it with torch.save(model.state_dict(), FILE), or as .safetensors"
    )


def _globals(path: Path) -> list[str]:
    """Names of classes and functions in an archive of torch.save that it may not load, foreign ones first."""
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except DAMAGED:
        return []
    names = {"".join(one if one.isprintable() else "?" for one in name)[:100] for name in found}
    return sorted(names, key=lambda name: (name.startswith("torch."), name))


def _with_path(way_out: str, path: Path) -> str:
    return way_out.replace("FILE", str(path))
