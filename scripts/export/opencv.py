"""Lets OpenCV's DNN module read an exported file and compares its answers with torch's."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch
from torch import Tensor

from scripts.export.checks import Agreement, Sample, compare, worst

REASON_CHARS = 140
FAILURES = (cv2.error, ValueError)


def check_opencv(path: Path, known: Sequence[Sample]) -> tuple[Agreement | None, str]:
    """How OpenCV's answers agree, and a note: how the file had to be read, or why it could not be.

    A file with free dimensions that OpenCV refuses is tried once more with these fixed.
    """
    cv2.setLogLevel(0)
    cv2.setNumThreads(torch.get_num_threads())
    notes = []
    try:
        agreement = _agreement(path, known)
    except FAILURES as error:
        notes.append(f"only with all sizes fixed: {_reason(error)}")
        try:
            agreement = _folded_agreement(path, known[:1])
        except FAILURES as folded_error:
            return None, _reason(folded_error)
    if known[0].pixels.ndim == 5:
        notes.append("layers unfused")
    if not agreement.good:
        notes.append(f"differs, top-1 equal {100 * agreement.top1:.1f} %")
    return agreement, "; ".join(notes)


def _agreement(path: Path, known: Sequence[Sample]) -> Agreement:
    network = cv2.dnn.readNetFromONNX(str(path))
    if known[0].pixels.ndim == 5:
        # Its convolutions in three dimensions have no code for what it would fuse into them.
        network.enableFusion(False)
    agreements = []
    for one in known:
        if not isinstance(one.answer, Tensor):
            raise ValueError("its answers are boxes of any number")
        network.setInput(one.pixels.numpy())
        agreements.append(compare(torch.from_numpy(network.forward()), one.answer, one.pixels))
    return worst(agreements)


def _folded_agreement(path: Path, known: Sequence[Sample]) -> Agreement:
    """Of a copy that takes only the shape of `known`; what follows from it is computed beforehand."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 3
    plain = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for name, size in zip(plain.get_inputs()[0].shape, known[0].pixels.shape, strict=True):
        if isinstance(name, str):
            options.add_free_dimension_override_by_name(name, size)
    with tempfile.TemporaryDirectory() as folder:
        folded = Path(folder) / "folded.onnx"
        options.optimized_model_filepath = str(folded)
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return _agreement(folded, known)


def _reason(error: Exception) -> str:
    """The innermost message of OpenCV's, without its paths and line numbers."""
    text = " ".join(str(error).split())
    node = re.search(r"> Node \[(\w+)@", text)
    said = text.rpartition("error: ")[2].partition(" in function ")[0]
    return f"{f'{node[1]}: ' if node else ''}{said}"[:REASON_CHARS]
