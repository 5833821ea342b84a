"""`.onnx` files as networks of any batch, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from model_inference import Model
from pipelines.models.heads.boxes import Boxes
from pipelines.models.outputs import BoxOutput, LogitOutput
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.models.torch_runtime import headed
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.facts import MODEL_FACTS_KEY, facts_to_json, spec_from_facts
from pipelines.zoo.files.onnx_files import onnx_network, read_onnx

PLAIN = ModelSpec(
    name="plain",
    task="classification",
    build=nn.Identity,
    source="test",
    labels=("Katze", "犬", 'a "quoted" label'),
    preprocessing=Preprocessing(resize_px=256, crop_px=(224, 192)),
)

Dims = Sequence[int | str]


def save(
    path: Path,
    dims: Dims,
    *,
    nodes: Sequence[onnx.NodeProto] = (),
    outputs: Sequence[str] = ("logits",),
    dtype: int = TensorProto.FLOAT,
    more_inputs: Sequence[str] = (),
    metadata: dict[str, str] | None = None,
) -> Path:
    """A file of a graph over `pixels`; without `nodes` its logits are the channels' means."""
    graph = helper.make_graph(
        list(nodes) or [helper.make_node("ReduceMean", ["pixels", "spatial"], ["logits"], keepdims=0)],
        "toy",
        [helper.make_tensor_value_info(name, dtype, dims) for name in ("pixels", *more_inputs)],
        [
            helper.make_tensor_value_info(name, TensorProto.INT64 if name == "labels" else dtype, None)
            for name in outputs
        ],
        [
            numpy_helper.from_array(np.arange(2, len(dims), dtype=np.int64), "spatial"),
            numpy_helper.from_array(np.array([0, 1, 3], dtype=np.int64), "all_but_rows"),
            numpy_helper.from_array(np.array(0.5, dtype=np.float32), "half"),
            numpy_helper.from_array(np.array([1, 4], dtype=np.int64), "four"),
            numpy_helper.from_array(np.array([-1], dtype=np.int64), "flat"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, metadata or {})
    onnx.save(model, path)
    return path


def rows_detector(path: Path) -> Path:
    """A detector of one picture: each row of pixels brighter than a half is a box (y, y, y, y) of score y."""
    node = helper.make_node
    nodes = [
        node("ReduceMax", ["pixels", "all_but_rows"], ["brightest"], keepdims=0),
        node("Greater", ["brightest", "half"], ["bright"]),
        node("NonZero", ["bright"], ["rows"]),
        node("Reshape", ["rows", "flat"], ["labels"]),
        node("Cast", ["labels"], ["scores"], to=TensorProto.FLOAT),
        node("Transpose", ["rows"], ["columns"], perm=[1, 0]),
        node("Tile", ["columns", "four"], ["wide"]),
        node("Cast", ["wide"], ["boxes"], to=TensorProto.FLOAT),
    ]
    return save(path, (1, 3, 8, 8), nodes=nodes, outputs=("boxes", "scores", "labels"))


def pixels(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("batch", ["N", 1, 2, 4])
@pytest.mark.parametrize("size", [(8, 6), (4, 8, 6)], ids=["pictures", "clips"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_goes_through_a_file_of_one_batch(
    tmp_path: Path, batch: int | str, size: tuple[int, ...], count: int
) -> None:
    network = onnx_network(save(tmp_path / "toy.onnx", (batch, 3, *size)))
    given = pixels(count, 3, *size)
    answer = network.to(torch.device("cpu"))(given)
    assert isinstance(answer, dict)
    torch.testing.assert_close(answer["logits"], given.flatten(2).mean(2))


def test_half_precision_input_is_cast(tmp_path: Path) -> None:
    network = onnx_network(save(tmp_path / "half.onnx", ("N", 3, 8, 8), dtype=TensorProto.FLOAT16))
    given = pixels(2, 3, 8, 8)
    answer = network(given)
    assert isinstance(answer, dict)
    torch.testing.assert_close(answer["logits"].float(), given.flatten(2).mean(2), atol=2e-3, rtol=0)


def test_facts_and_fixed_sizes_are_read_from_the_file(tmp_path: Path) -> None:
    text = facts_to_json(PLAIN)
    path = save(tmp_path / "toy.onnx", ("N", 3, 8, "w"), metadata={MODEL_FACTS_KEY: text, "other": "x"})
    assert read_onnx(path).metadata.get(MODEL_FACTS_KEY) == text
    assert read_onnx(path).inputs[0].dims == (None, 3, 8, None)
    assert read_onnx(save(tmp_path / "bare.onnx", (1, 3, 8, 8))).metadata == {}


def test_a_file_alone_makes_a_model(tmp_path: Path) -> None:
    text = facts_to_json(PLAIN)
    path = save(tmp_path / "toy.onnx", (1, 3, 224, 192), metadata={MODEL_FACTS_KEY: text})
    spec = spec_from_facts(
        read_onnx(path).metadata.get(MODEL_FACTS_KEY) or "",
        build=lambda: onnx_network(path),
        source="toy",
        file=path,
    )
    model = Model(spec, "cpu")
    given = pixels(3, 3, 224, 192)
    output = model(given)
    assert isinstance(output, LogitOutput)
    torch.testing.assert_close(output.logits, given.flatten(2).mean(2))
    assert model.spec.labels == PLAIN.labels


def test_a_detector_answers_picture_by_picture_even_with_nothing(tmp_path: Path) -> None:
    path = rows_detector(tmp_path / "rows.onnx")
    given = torch.zeros(3, 3, 8, 8)
    given[0, 1, [2, 5], 3] = 1.0
    given[2, 0, 7, 0] = 1.0
    frames = headed(Boxes(), onnx_network(path)(given), (8, 8))
    assert [frame["scores"].tolist() for frame in frames] == [[5.0, 2.0], [], [7.0]]
    assert [tuple(frame["boxes"].shape) for frame in frames] == [(2, 4), (0, 4), (1, 4)]
    spec = ModelSpec(
        name="rows",
        task="detection",
        build=lambda: onnx_network(path),
        source="toy",
        head=Boxes(),
        preprocessing=Preprocessing(resize_px=(8, 8)),
    )
    output = Model(spec, "cpu")(given)
    assert isinstance(output, BoxOutput)
    assert len(output) == 3


def two_inputs(path: Path) -> Path:
    nodes = [helper.make_node("Add", ["pixels", "other"], ["logits"])]
    return save(path, ("N", 3, 8, 8), nodes=nodes, more_inputs=["other"])


def sequence_output(path: Path) -> Path:
    save(path, ("N", 3, 8, 8), nodes=[helper.make_node("SequenceConstruct", ["pixels"], ["logits"])])
    model = onnx.load(path)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("logits", TensorProto.FLOAT, None))
    onnx.save(model, path)
    return path


def truncated(path: Path) -> Path:
    save(path, ("N", 3, 8, 8))
    path.write_bytes(path.read_bytes()[:-20])
    return path


def no_onnx(path: Path) -> Path:
    path.write_bytes(b"\x80\x04 this is no model" * 20)
    return path


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path, "no such file"),
        (no_onnx, "not readable as ONNX"),
        (truncated, "not readable as ONNX"),
        (lambda path: save(path, ("N", 3, 8)), "takes pixels float32 (?, 3, 8); gives logits"),
        (lambda path: save(path, ("N", 8, 8, 5)), "input pixels float32 (?, 8, 8, 5) has neither 3 channels"),
        (lambda path: save(path, (1, 3, 4, 4, 4, 4)), "needs one input of pixels of rank 4, or 5 for clips"),
        (
            lambda path: save(path, ("N", 3, 8, 8), dtype=TensorProto.DOUBLE),
            "float64 (?, 3, 8, 8) is none of",
        ),
        (two_inputs, "takes pixels float32 (?, 3, 8, 8); other float32 (?, 3, 8, 8); gives"),
        (sequence_output, "output logits is seq(tensor(float)), not a tensor"),
    ],
)
def test_files_that_are_no_such_network_are_refused(
    tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    path = make(tmp_path / "model.onnx")
    with pytest.raises(ModelUnavailable) as caught:
        onnx_network(path)
    assert says in caught.value.message
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_pixels_of_another_size_are_an_error_of_the_model(tmp_path: Path) -> None:
    path = save(tmp_path / "toy.onnx", ("N", 3, 8, 8))
    spec = ModelSpec(
        name="toy",
        task="classification",
        build=lambda: onnx_network(path),
        source="toy",
        preprocessing=Preprocessing(resize_px=(16, 16)),
    )
    with pytest.raises(ModelUnavailable, match=r"toy does not take pixels \(2, 3, 16, 16\)"):
        Model(spec, "cpu")


def test_outputs_that_forget_the_batch_are_an_error(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "all_but_rows"], ["means"], keepdims=1),
        helper.make_node("Flatten", ["means"], ["logits"]),
    ]
    path = save(tmp_path / "one.onnx", ("N", 3, 8, 8), nodes=nodes)
    spec = ModelSpec(
        name="toy",
        task="classification",
        build=lambda: onnx_network(path),
        source="toy",
        preprocessing=Preprocessing(resize_px=(8, 8)),
    )
    with pytest.raises(ModelUnavailable, match="toy gives 1 rows of logits for a batch of 2"):
        Model(spec, "cpu")
