"""Detectors that are known and not served, by names and shapes of their outputs, and what to do instead."""

from __future__ import annotations

from torch import Tensor

from pipelines.models.heads.identify import values
from pipelines.models.heads.identify.candidate import ANCHORS, cells, of_rank, operators, shown
from pipelines.models.heads.identify.evidence import UNIT, Evidence
from pipelines.protocol.errors import ModelUnavailable

# Of TensorRT's plugin, which other runtimes do not have.
EFFICIENT_NMS = frozenset({"num_dets", "det_boxes", "det_scores", "det_classes"})
PADDLE_INPUTS = frozenset({"scale_factor", "im_shape"})
UNIVERSAL = frozenset({"masks_queries_logits", "pred_masks"})
# NanoDet's numbers of a box: distributions over 8 distances for each of 4 sides.
DISTANCES = 32
# What computes a map of classes, and no grid.
CLASSES = frozenset({"softmax", "argmax"})


def refuse_oriented(evidence: Evidence) -> None:
    """Raise ModelUnavailable for boxes with an angle, whatever a user says: no head would see it."""
    if evidence.facts.unserved == "obb":
        wrong = "it finds oriented boxes (its metadata say task obb), which are not served"
        raise ModelUnavailable(wrong, hint="use a model of the task detect")


def refuse_known(evidence: Evidence) -> None:
    """Raise ModelUnavailable for a network that no head reads."""
    for known in (
        _by_facts,
        _efficient_nms,
        _paddle,
        _universal,
        _nanodet,
        _yolo_masks,
        _undecoded,
        _fastest_det,
    ):
        known(evidence)


def _by_facts(evidence: Evidence) -> None:
    if kind := evidence.facts.unserved:
        wrong = f"its metadata say that it is of type {kind}, which is not served"
        raise ModelUnavailable(wrong, hint="if that is wrong, say --head, or --model TASK=FILE")


def _efficient_nms(evidence: Evidence) -> None:
    names = {port.name for port in evidence.graph.outputs}
    by_plugin = any("efficientnms" in one for port in evidence.graph.outputs for one in operators(port))
    if names >= EFFICIENT_NMS or by_plugin:
        wrong = "it ends in EfficientNMS, a plugin of TensorRT that no engine here has"
        raise ModelUnavailable(wrong, hint="export it without NMS, or with NMS for ONNX Runtime")


def _paddle(evidence: Evidence) -> None:
    if PADDLE_INPUTS & {port.name for port in evidence.graph.inputs}:
        what = "a detector of PaddleDetection (PicoDet, PP-YOLOE) with its post-processing"
        wrong = f"it is {what}; it {evidence.graph}"
        hint = "export it without post-processing, as boxes (N, A, 4) and scores (N, A, K)"
        raise ModelUnavailable(wrong, hint=hint)


def _universal(evidence: Evidence) -> None:
    names = {port.name for port in evidence.outputs}
    if found := sorted(UNIVERSAL & names):
        wrong = f"it gives a mask for each query ({found[0]}), as Mask2Former does; that is not served"
        raise ModelUnavailable(wrong, hint="export a model that gives logits (N, K, h, w)")


def _nanodet(evidence: Evidence) -> None:
    """`(N, A, K + 32)`; unlike a score, a distance has no bounds."""
    for port in evidence.outputs:
        if port.name.startswith("dis_pred_stride"):
            raise _is_nanodet(f"{port.name} {shown(port.dims)}")
    for port in of_rank(evidence.outputs, 3):
        rows, columns = port.dims[1:]
        if rows not in cells(evidence.size_hw) or columns is None or columns <= DISTANCES:
            continue
        seen = [run[port.name][0] for run in evidence.on_pictures(UNIT)]
        if all(map(_ends_in_distances, seen)) if seen else evidence.matches(columns - DISTANCES):
            what = f"{columns - DISTANCES} classes and 4 distributions"
            raise _is_nanodet(f"{port.name} {shown(port.dims)}: {what}")


def _ends_in_distances(rows: Tensor) -> bool:
    return values.are_scores(rows[:, :-DISTANCES]) and not values.are_scores(rows[:, -DISTANCES:])


def _is_nanodet(what: str) -> ModelUnavailable:
    hint = "export it with its boxes decoded: boxes (N, A, 4) and scores (N, A, K)"
    return ModelUnavailable(f"{what}, is NanoDet's output, which is not served", hint=hint)


def _yolo_masks(evidence: Evidence) -> None:
    height, width = evidence.size_hw or (0, 0)
    maps = [port for port in of_rank(evidence.outputs, 4) if port.dims[2:] == (height // 4, width // 4)]
    for port in of_rank(evidence.outputs, 3):
        if maps and port.dims[1] in cells(evidence.size_hw, ANCHORS):
            wrong = f"{port.name} {shown(port.dims)} and {maps[0].name} are masks of YOLOv5 or v7: not served"
            raise ModelUnavailable(wrong, hint="use a detector, or a segmentation model of YOLOv8 or later")


def _undecoded(evidence: Evidence) -> None:
    """`(N, 3, h/s, w/s, 5 + K)` or `(N, B · (5 + K), h/s, w/s)`, nothing decoded beside it."""
    if any(port.dims[1] in cells(evidence.size_hw, ANCHORS) for port in of_rank(evidence.outputs, 3)):
        return
    grids = list(of_rank(evidence.outputs, 5))
    maps = [port for port in of_rank(evidence.outputs, 4) if None not in port.dims[1:]]
    sides = {port.dims[2:] for port in maps}
    channels = {port.dims[1] for port in maps}
    halving = len(maps) > 1 and len(sides) == len(maps) and len(channels) == 1
    if grids or (halving and all(not (one or 1) % ANCHORS and (one or 0) > 5 * ANCHORS for one in channels)):
        shapes = ", ".join(f"{port.name} {shown(port.dims)}" for port in grids or maps)
        wrong = f"{shapes}: grids of a YOLO that are not decoded, and its anchors are not in the file"
        hint = "export it with decoded boxes, or give its anchors in a --model-proc file"
        raise ModelUnavailable(wrong, hint=hint)


def _fastest_det(evidence: Evidence) -> None:
    """One map of 1/16 of the size: FastestDet's, unless it has as many channels as there are classes."""
    if len(evidence.outputs) != 1 or evidence.size_hw is None:
        return
    for port in of_rank(evidence.outputs, 4):
        height, width = evidence.size_hw
        if operators(port) and operators(port) <= CLASSES:
            return
        coarse = port.dims[2:] in ((height // 16, width // 16), (height // 32, width // 32))
        if coarse and height >= 64 and (port.dims[1] or 0) > 5 and not evidence.matches(port.dims[1] or 0):
            what = "a map of classes, or a grid of FastestDet or YOLOv2, which is not served"
            wrong = f"{port.name} {shown(port.dims)} may be {what}"
            hint = "for a map of classes say --model segmentation=FILE; else export it with decoded boxes"
            raise ModelUnavailable(wrong, hint=hint)
