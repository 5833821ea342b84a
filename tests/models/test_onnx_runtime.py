"""Outputs whose shapes the inputs do not decide, where outputs are bound to torch's own memory."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from pipelines.models.onnx_runtime import OnnxGraph, has_cuda


def saved(path: Path, rows: str) -> Path:
    """The places of what is not 0, `(M, 2)` of which M is called `rows`, and of each row its sum `(n, 1)`."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Transpose", ["found"], ["places"], perm=[1, 0]),
        helper.make_node("ReduceSum", ["x", "axes"], ["sums"], keepdims=1),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [
            helper.make_tensor_value_info("places", TensorProto.INT64, [rows, 2]),
            helper.make_tensor_value_info("sums", TensorProto.FLOAT, ["n", 1]),
        ],
        [helper.make_tensor("axes", TensorProto.INT64, [1], [1])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def pictures(device: str) -> list[Tensor]:
    """Of one shape, with 1, 3, 0 and 8 places."""
    given = [torch.zeros(2, 4) for _ in range(4)]
    for one, count in zip(given, (1, 3, 0, 8), strict=True):
        one.view(-1)[:count] = 2
    return [one.to(device) for one in given]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
# Some exporters call the number of boxes the batch.
@pytest.mark.parametrize("rows", ["m", "n"])
def test_pictures_of_one_shape_may_have_any_number_of_boxes(rows: str, device: str, tmp_path: Path) -> None:
    if device == "cuda" and not has_cuda():
        pytest.skip("ONNX Runtime has no CUDA provider")
    graph = OnnxGraph(saved(tmp_path / "toy.onnx", rows), torch.device(device))
    for one in pictures(device):
        outputs = graph._bound({"x": one})
        assert list(outputs) == ["places", "sums"]
        assert {tensor.device.type for tensor in outputs.values()} == {device}
        assert torch.equal(outputs["places"], one.nonzero())
        assert torch.equal(outputs["sums"], one.sum(1, keepdim=True))


def test_only_outputs_of_free_shapes_come_by_way_of_the_host(tmp_path: Path) -> None:
    graph = OnnxGraph(saved(tmp_path / "toy.onnx", "m"), torch.device("cpu"))
    assert graph._loose == {"places"}
