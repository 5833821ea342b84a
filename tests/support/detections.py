"""Oracles for the heads of detectors: ONNX Runtime's own suppression, frames of real films, drawn outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from torch import Tensor
from torchvision.ops import box_iou

Found = Sequence[Mapping[str, Tensor]]


@cache
def _suppressor() -> onnxruntime.InferenceSession:
    """The operator NonMaxSuppression for boxes of centre and size, class by class."""
    helper, proto = onnx.helper, onnx.TensorProto
    inputs: dict[str, tuple[int, list[int | None]]] = {
        "boxes": (proto.FLOAT, [None, None, 4]),
        "scores": (proto.FLOAT, [None, None, None]),
        "most": (proto.INT64, [1]),
        "iou": (proto.FLOAT, [1]),
        "least": (proto.FLOAT, [1]),
    }
    graph = helper.make_graph(
        [helper.make_node("NonMaxSuppression", list(inputs), ["kept"], center_point_box=1)],
        "suppression",
        [helper.make_tensor_value_info(name, *form) for name, form in inputs.items()],
        [helper.make_tensor_value_info("kept", proto.INT64, [None, 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def suppressed(
    box_na4: Tensor, score_nak: Tensor, iou_threshold: float, least: float = 0.01
) -> list[list[tuple[int, int]]]:
    """What ONNX Runtime leaves of each picture: (row, class), best first, of equal scores the first row.

    Args:
        box_na4: cx, cy, w, h.
        score_nak: a row counts for its best class only.
    """
    best = score_nak == score_nak.amax(dim=2, keepdim=True)
    first = best & (best.cumsum(dim=2) == 1)
    score_nka = (score_nak * first).transpose(1, 2).contiguous()
    feeds = {
        "boxes": box_na4.contiguous().numpy(),
        "scores": score_nka.numpy(),
        "most": np.array([box_na4.shape[1]], np.int64),
        "iou": np.array([iou_threshold], np.float32),
        "least": np.array([least], np.float32),
    }
    (kept,) = _suppressor().run(None, feeds)
    rows: list[list[tuple[int, int]]] = [[] for _ in box_na4]
    for picture, label, row in kept.tolist():
        rows[picture].append((row, label))
    return [
        sorted(one, key=lambda row: (-float(score_nka[number, row[1], row[0]]), row[0]))
        for number, one in enumerate(rows)
    ]


def drawn_boxes(
    pictures: int, rows: int, generator: torch.Generator, size_hw: tuple[int, int] = (64, 96)
) -> Tensor:
    """Boxes `(N, A, 4)` of cx, cy, w, h in pixels, many of which overlap or reach out."""
    height, width = size_hw
    scale = torch.tensor([width, height, width / 2, height / 2])
    return torch.rand(pictures, rows, 4, generator=generator) * scale + torch.tensor([0.0, 0.0, 1.0, 1.0])


def drawn_scores(pictures: int, rows: int, classes: int, generator: torch.Generator) -> Tensor:
    """Scores `(N, A, K)` of 0..1, of which few are high; some are equal."""
    scores = torch.rand(pictures, rows, classes, generator=generator) ** 3
    return (scores * 200).round() / 200


def assert_equal(one: Found, other: Found, atol: float = 0.0) -> None:
    """The same detections in the same order, picture by picture."""
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name].cpu(), theirs[name].cpu(), rtol=0, atol=atol)


def found_in(found: Mapping[str, Tensor], label: int, box_4: Sequence[float]) -> float:
    """The best score of a box of that class that overlaps `box_4` by half; 0 without any."""
    same = (found["labels"] == label) & (
        box_iou(found["boxes"], torch.tensor([box_4], dtype=torch.float32))[:, 0] >= 0.5
    )
    return float(found["scores"][same].amax()) if same.any() else 0.0


def film_frame(path: Path, number: int) -> npt.NDArray[np.uint8]:
    """A frame of a film, RGB `(1, H, W, 3)`, counted from 0."""
    with av.open(str(path)) as container:
        for place, frame in enumerate(container.decode(video=0)):
            if place == number:
                return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)[None]
    raise IndexError(number)
