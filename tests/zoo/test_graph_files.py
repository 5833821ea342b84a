"""What a file shows of its network, and how its input is made of the pixels that all models share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pipelines.models.graph import Graph, Port
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.input_form import InputForm, input_form
from pipelines.zoo.files.model_info import info_preprocessing
from pipelines.zoo.files.onnx_files import onnx_network, read_onnx
from pipelines.zoo.files.openvino_files import ir_network, read_ir
from pipelines.zoo.files.operators import exported_operators, script_operators

PIXELS = torch.rand(3, 3, 4, 6, generator=torch.Generator().manual_seed(1))
LEVELS = 255 * PIXELS
GREY = (PIXELS * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def graph_of(*dims: int | None, dtype: str = "float32", more: tuple[Port, ...] = ()) -> Graph:
    return Graph(inputs=(Port(name="x", dtype=dtype, dims=dims), *more), outputs=())


@pytest.mark.parametrize(
    ("graph", "options", "expected"),
    [
        (graph_of(None, 3, 4, 6), {}, InputForm(size_hw=(4, 6))),
        (graph_of(2, 4, 6, 3), {}, InputForm(layout="NHWC", batch=2, size_hw=(4, 6))),
        (graph_of(None, None, None, 3), {}, InputForm(layout="NHWC")),
        (graph_of(None, 1, 4, 6), {}, InputForm(channels=1, size_hw=(4, 6))),
        (
            graph_of(None, 4, 6, 1, dtype="uint8"),
            {},
            InputForm(layout="NHWC", channels=1, dtype="uint8", size_hw=(4, 6)),
        ),
        (graph_of(None, 3, 4, 3), {}, InputForm(size_hw=(4, 3))),
        (graph_of(None, 3, 4, 3), {"layout": "NHWC"}, InputForm(layout="NHWC", size_hw=(3, 4))),
        (graph_of(None, None, None, None), {}, InputForm()),
        (
            graph_of(None, None, None, None),
            {"layout": "NHWC", "grey": True},
            InputForm(layout="NHWC", channels=1),
        ),
        (graph_of(1, 3, 8, 4, 6), {}, InputForm(layout="NCTHW", batch=1, size_hw=(4, 6))),
        (graph_of(1, 8, 3, 4, 6), {}, InputForm(layout="NTCHW", batch=1, size_hw=(4, 6))),
        (graph_of(1, 8, 4, 6, 3), {}, InputForm(layout="NTHWC", batch=1, size_hw=(4, 6))),
    ],
)
def test_the_form_of_an_input_is_seen(graph: Graph, options: dict[str, Any], expected: InputForm) -> None:
    assert input_form(graph, "toy", **options) == expected


@pytest.mark.parametrize(
    ("graph", "options", "says"),
    [
        (graph_of(None, 5, 4, 6), {}, "has neither 3 channels nor 1 (5 as NCHW, 6 as NHWC)"),
        (graph_of(None, 4, 6, 3), {"layout": "NCHW"}, "has neither 3 channels nor 1 (4 as NCHW)"),
        (graph_of(None, 3, 4, 6), {"grey": True}, "has three channels, not one"),
        (graph_of(None, 3, 4, 6, dtype="int8"), {}, "is none of float32, float16, uint8"),
        (graph_of(None, 128), {}, "takes x float32 (?, 128); gives : it needs one input of pixels"),
        (
            graph_of(1, 3, 4, 6, more=(Port(name="text", dtype="int64", dims=(1, 77)),)),
            {},
            "text int64 (1, 77)",
        ),
    ],
)
def test_an_input_that_pixels_do_not_fit_is_named(graph: Graph, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        input_form(graph, "toy", **options)
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    ("form", "pixels", "expected"),
    [
        (InputForm(), PIXELS, PIXELS),
        (InputForm(layout="NHWC"), PIXELS, PIXELS.permute(0, 2, 3, 1)),
        (InputForm(channels=1), PIXELS, GREY),
        (InputForm(dtype="float16"), PIXELS, PIXELS.half()),
        (InputForm(dtype="uint8", layout="NHWC"), LEVELS, LEVELS.round().to(torch.uint8).permute(0, 2, 3, 1)),
    ],
)
def test_pixels_take_the_form(form: InputForm, pixels: torch.Tensor, expected: torch.Tensor) -> None:
    (given,) = form.batches(pixels)
    torch.testing.assert_close(given, expected)
    assert given.is_contiguous()


def test_a_batch_is_cut_into_pieces_and_the_last_is_filled_up() -> None:
    pieces = list(InputForm(batch=2).batches(PIXELS))
    assert [len(piece) for piece in pieces] == [2, 2]
    torch.testing.assert_close(pieces[1], PIXELS[[2, 2]])


@pytest.mark.parametrize(
    ("port", "row"),
    [
        (Port(name="orig_target_sizes", dtype="int64", dims=(None, 2)), [6, 4]),
        (Port(name="im_shape", dtype="float32", dims=(1, 2)), [4.0, 6.0]),
        (Port(name="scale_factor", dtype="float32", dims=(1, 2)), [1.0, 1.0]),
        (Port(name="image_info", dtype="float32", dims=(1, 3)), [4.0, 6.0, 1.0]),
    ],
)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_inputs_that_only_repeat_the_size_are_given(port: Port, row: list[float], layout: str) -> None:
    dims = (None, 3, 4, 6) if layout == "NCHW" else (None, 4, 6, 3)
    form = input_form(graph_of(*dims, more=(port,)), "toy")
    (piece,) = form.batches(PIXELS[:2])
    given = form.extra(piece)[port.name]
    assert given.tolist() == [row, row]
    assert str(given.dtype) == f"torch.{port.dtype}"


def save_onnx(path: Path, dims: list[int | str], nodes: list[Any], outputs: list[str], dtype: int) -> Path:
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3, 1, 1) / 10, "w")
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", dtype, dims)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [weight],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_an_onnx_file_shows_ports_and_operators(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[0, 3, 1, 2]),
        node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        node("Conv", ["f", "w"], ["c"]),
        node("Softmax", ["c"], ["s"], axis=1),
        node("Identity", ["s"], ["scores"]),
        node("Sigmoid", ["c"], ["g"]),
        node("Concat", ["c", "g"], ["both"], axis=1),
    ]
    path = save_onnx(tmp_path / "toy.onnx", ["b", 4, 6, 3], nodes, ["scores", "both"], TensorProto.UINT8)
    graph = read_onnx(path)
    assert graph.inputs == (Port(name="x", dtype="uint8", dims=(None, 4, 6, 3)),)
    assert [port.operator for port in graph.outputs] == ["softmax", "conv+sigmoid"]
    outputs = onnx_network(path)(LEVELS)
    weight = torch.arange(12, dtype=torch.float32).view(4, 3, 1, 1) / 10
    expected = nn.functional.conv2d(LEVELS.round(), weight).softmax(dim=1)
    torch.testing.assert_close(outputs["scores"], expected)


def save_ir(path: Path, info: dict[str, str] | None = None) -> Path:
    """Means of the channels, through a softmax and through a sigmoid, the outputs without names."""
    import openvino
    from openvino import opset8

    x = opset8.parameter([1, 3, 4, 6], np.float32, name="x")
    means = opset8.reduce_mean(x, np.array([2, 3]), keep_dims=False)
    outputs = [opset8.softmax(means, 1), opset8.unsqueeze(opset8.sigmoid(means), np.array([2]))]
    model = openvino.Model([opset8.result(one) for one in outputs], [x], "toy")
    for key, value in (info or {}).items():
        model.set_rt_info(value, ["model_info", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    return path


def test_an_openvino_file_shows_ports_and_operators_and_runs(tmp_path: Path) -> None:
    path = save_ir(tmp_path / "toy.xml", {"model_type": "Classification", "labels": "a b c"})
    graph = read_ir(path)
    assert [port.operator for port in graph.outputs] == ["softmax", "sigmoid"]
    assert graph.inputs[0].dims == (1, 3, 4, 6)
    assert graph.metadata["model_info labels"] == "a b c"
    outputs = ir_network(path, input_form(graph, "toy"))(PIXELS)
    means = PIXELS.mean(dim=(2, 3))
    torch.testing.assert_close(outputs[graph.outputs[0].name], means.softmax(dim=1))
    torch.testing.assert_close(outputs[graph.outputs[1].name], means.sigmoid()[..., None])


def test_an_openvino_file_without_its_weights_or_damaged_is_refused(tmp_path: Path) -> None:
    path = save_ir(tmp_path / "toy.xml")
    path.with_suffix(".bin").unlink(missing_ok=True)
    with pytest.raises(ModelUnavailable, match=r"needs its weights beside it: no file toy\.bin"):
        read_ir(path)
    path.with_suffix(".bin").write_bytes(b"")
    path.write_text("<net version='7'></net>")
    with pytest.raises(ModelUnavailable, match="OpenVINO cannot read it") as caught:
        read_ir(path)
    assert "\n" not in str(caught.value)


INFO = Preprocessing(resize_px=(4, 6), mean=(0,) * 3, std=(1 / 255,) * 3, antialias=False)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        (
            {
                "reverse_input_channels": "YES",
                "scale_values": "255",
                "resize_type": "fit_to_window_letterbox",
                "pad_value": "114",
            },
            Preprocessing(
                resize_px=(4, 6), fit="letterbox", mean=(0,) * 3, std=(1,) * 3, antialias=False, pad_value=114
            ),
        ),
        (
            {"mean_values": "[123.675, 116.28, 103.53]", "scale_values": "51 51 51"},
            replace(INFO, mean=(0.485, 0.456, 0.406), std=(0.2,) * 3, channels="BGR"),
        ),
        (
            # The graph subtracts, divides and turns colours itself: it takes BGR levels.
            {
                "embedded_processing": "True",
                "mean_values": "123.675 116.28 103.53",
                "scale_values": "51",
                "reverse_input_channels": "True",
            },
            replace(INFO, mean=(0.0,) * 3, std=(1 / 255,) * 3, channels="BGR"),
        ),
        (
            {"resize_type": "fit_to_window"},
            Preprocessing(
                resize_px=(4, 6),
                fit="letterbox_top_left",
                mean=(0,) * 3,
                std=(1 / 255,) * 3,
                antialias=False,
                channels="BGR",
            ),
        ),
    ],
)
def test_model_info_says_how_pixels_are_prepared(info: dict[str, str], expected: Preprocessing) -> None:
    metadata = {f"model_info {key}": text for key, text in info.items()}
    found = info_preprocessing(metadata, (4, 6))
    assert found is not None
    torch.testing.assert_close(torch.tensor(found.mean), torch.tensor(expected.mean).float())
    torch.testing.assert_close(torch.tensor(found.std), torch.tensor(expected.std).float())
    for name in ("resize_px", "fit", "channels", "pad_value", "antialias", "crop_px"):
        assert getattr(found, name) == getattr(expected, name), name


class Ends(nn.Module):
    """A classifier whose outputs are computed by several operators."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = self.head(pixels.mean((2, 3)))
        return logits.softmax(1)[:, :2], torch.sigmoid(logits).unsqueeze(2), logits.reshape(-1, 2, 2)


def test_programs_show_what_computes_their_outputs() -> None:
    network = Ends().eval()
    program = torch.export.export(network, (PIXELS,))
    assert exported_operators(program) == ["softmax", "sigmoid", "gemm"]
    with pytest.warns(DeprecationWarning, match="trace"):
        script = torch.jit.trace(network, PIXELS)  # type: ignore[no-untyped-call]
    assert script_operators(script) == ["softmax", "sigmoid", "gemm"]
