"""Batches of networks whose outputs have no row for each picture: whose boxes are whose."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from model_inference import Model
from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.ssd import Ssd
from pipelines.models.outputs import BoxOutput
from pipelines.models.spec import Head
from pipelines.models.torch_runtime import Pieces, headed
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.graph_network import Outputs, joined
from pipelines.zoo.files.input_form import InputForm
from pipelines.zoo.files.onnx_files import onnx_network
from tests.support.sources import spec_of
from tests.zoo.test_bare_files import exported, named
from tests.zoo.test_onnx_files import save

SIDE = 64


def lists(path: Path, batch: int | str = "N", dtype: int = TensorProto.FLOAT, level: float = 0.5) -> Path:
    """Boxes (D, 4), labels (D,), scores (D,): one for each bright point of the first channel, in row order.

    A score is the row's part of the height.
    """
    node = helper.make_node
    nodes = [
        node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        node("Split", ["levels"], ["red", "rest"], axis=1),
        node("Greater", ["red", "level"], ["bright"]),
        node("NonZero", ["bright"], ["found"]),
        node("Transpose", ["found"], ["place"], perm=[1, 0]),
        node("Cast", ["place"], ["places"], to=TensorProto.FLOAT),
        node("Gather", ["places", "yx"], ["corner"], axis=1),
        node("Add", ["corner", "eight"], ["far"]),
        node("Concat", ["corner", "far"], ["boxes"], axis=1),
        node("Gather", ["place", "zero"], ["labels"], axis=1),
        node("Gather", ["places", "two"], ["row"], axis=1),
        node("Div", ["row", "side"], ["scores"]),
    ]
    values = {
        "level": np.float32(level),
        "yx": np.array([3, 2]),
        "eight": np.float32(8),
        "zero": np.array(1),
        "two": np.array(2),
        "side": np.float32(SIDE),
    }
    kinds = {"boxes": TensorProto.FLOAT, "labels": TensorProto.INT64, "scores": TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("pixels", dtype, [batch, 3, SIDE, SIDE])],
        [
            helper.make_tensor_value_info(name, kind, ["D", 4] if name == "boxes" else ["D"])
            for name, kind in kinds.items()
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    # The two last channels are one part of the split.
    graph.node[1].input.append("parts")
    graph.initializer.append(numpy_helper.from_array(np.array([1, 2]), "parts"))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def points(*rows: int, value: float = 1.0) -> torch.Tensor:
    """Pictures with one bright point each, in that row; below 0: none."""
    pixels = torch.zeros(len(rows), 3, SIDE, SIDE)
    for picture, row in enumerate(rows):
        if row >= 0:
            pixels[picture, 0, row, 16] = value
    return pixels


def rows_of(model: Model, pixels: torch.Tensor) -> list[list[float]]:
    output = model(pixels)
    assert isinstance(output, BoxOutput)
    return [frame["boxes"][:, 1].tolist() for frame in output.frames]


def test_a_network_of_one_list_of_boxes_is_run_one_picture_at_a_time(tmp_path: Path) -> None:
    spec = spec_of(str(lists(tmp_path / "lists.onnx")))
    said = [text for text in spec.assumed if "one picture at a time" in text]
    assert said == ["run one picture at a time: its outputs have no row for each picture"]
    model = Model(spec, "cpu")
    assert rows_of(model, points(20, -1, 40)) == [[20], [], [40]]
    assert rows_of(model, points(20, 30, 40)) == [[20], [30], [40]]


def test_one_box_in_each_picture_is_no_row_for_each_picture(tmp_path: Path) -> None:
    model = Model(spec_of(str(lists(tmp_path / "lists.onnx", 1)), max_batch=4), "cpu")
    assert rows_of(model, points(20, 30, 40)) == [[20], [30], [40]]
    network = onnx_network(tmp_path / "lists.onnx")
    frames = headed(Boxes(), network(points(20, 30, 40)), (SIDE, SIDE))
    assert [frame["boxes"][:, 1].tolist() for frame in frames] == [[20], [30], [40]]


def test_boxes_of_two_pictures_in_one_list_are_refused(tmp_path: Path) -> None:
    spec = spec_of(str(lists(tmp_path / "lists.onnx", 2)), max_batch=4)
    with pytest.raises(ModelUnavailable, match=r"reads 1 pictures in the outputs for 2"):
        Model(spec, "cpu")(points(20, 30, 40))


NUMBERED: list[tuple[Head, list[int]]] = [
    (EndToEnd(output="rows", form="picture"), [0, 1, 2, 3, 4, 5, 6]),
    (Ssd(output="rows"), [0, 5, 6, 1, 2, 3, 4]),
]


@pytest.mark.parametrize(("head", "order"), NUMBERED)
def test_pieces_that_end_in_pictures_without_boxes_keep_their_length(head: Head, order: list[int]) -> None:
    row = torch.tensor([[0, 0.0, 0.0, 0.5, 0.5, 1, 0.9]])
    second = row.clone()
    second[:, 5] = 2
    runs: list[Outputs] = [{"rows": one[:, order]} for one in (row, second)]
    frames = headed(head, joined(runs, 7, InputForm(batch=4, apart=True)), (SIDE, SIDE))
    assert [frame["labels"].tolist() for frame in frames] == [[1], [], [], [], [2], [], []]


def test_a_picture_beyond_its_piece_is_refused() -> None:
    rows = torch.tensor([[5, 0.0, 0.0, 0.5, 0.5, 1, 0.9]])
    with pytest.raises(ModelUnavailable, match="reads 6 pictures in the outputs for 4"):
        headed(EndToEnd(form="picture"), Pieces([{"rows": rows}], 4, 4), (SIDE, SIDE))


def test_a_detector_of_bytes_is_fed_with_bytes(tmp_path: Path) -> None:
    path = lists(tmp_path / "bytes.onnx", 1, TensorProto.UINT8, level=100)
    spec = spec_of(str(path))
    assert spec.preprocessing.std == (1 / 255, 1 / 255, 1 / 255)
    assert rows_of(Model(spec, "cpu"), points(20, value=200.0)) == [[20]]


def test_a_program_that_was_traced_with_one_picture_is_run_so_and_says_it(tmp_path: Path) -> None:
    class Fixed(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.reshape(1, 3, SIDE * SIDE).mean(2)

    path = tmp_path / "traced.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Fixed(), torch.zeros(1, 3, SIDE, SIDE)).save(path)  # type: ignore[no-untyped-call]
    spec = spec_of(str(path), allow_code=True, task="classification", resize_px=(SIDE, SIDE))
    assert any(text.startswith("run one picture at a time: it does not take two (") for text in spec.assumed)
    assert len(Model(spec, "cpu")(points(1, 2, 3))) == 3


def test_clips_of_a_free_batch_stay_in_a_batch(tmp_path: Path) -> None:
    path = save(tmp_path / "clips.onnx", ("N", 3, 4, 8, 8))
    spec = spec_of(str(path), task="action", clip_length=4, clip_fps=2.0)
    network = spec.build()
    assert spec.max_batch == 8
    assert not [text for text in spec.assumed if "at a time" in text]
    assert len(network(torch.zeros(3, 3, 4, 8, 8))["logits"]) == 3


@pytest.mark.parametrize(("said", "finds"), [({}, False), ({"std": (1 / 255,) * 3}, True)])
def test_what_is_tried_is_fed_as_the_user_says(tmp_path: Path, said: dict[str, Any], finds: bool) -> None:
    def give(pixels: torch.Tensor) -> torch.Tensor:
        scores = (pixels.mean((1, 2, 3), keepdim=True)[..., 0] / 255).expand(1, 2, 84)
        return torch.cat([torch.full((1, 4, 84), 30.0) + 0 * scores[:, :1], scores], 1)

    path = exported(tmp_path / "dense.onnx", give)
    spec = spec_of(str(path), head="yolo_v8", labels=named(tmp_path, "a", "b"), **said)
    assert any("nothing is found" in text for text in spec.assumed) != finds
