"""Engines of models: which `auto` takes, what it leaves out, and by how many threads they are called."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.loading.load import load_model
from pipelines.models.export import ExportedRunner
from pipelines.models.onnx_runtime import OnnxGraph, has_cuda
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import Engine, Preprocessing, TaskName
from pipelines.models.torch_runtime import GraphRunner, TorchRunner, bucket_sizes
from pipelines.protocol.errors import ModelUnavailable
from tests.support.toy_networks import (
    FIXED,
    FREE,
    GRAPHS,
    as_pixels,
    assert_same,
    boxes,
    counting,
    pooled,
    sleepy,
    spec_of,
)

pytestmark = pytest.mark.usefixtures("seeded")


# Wider than what engines are proved on, narrower than what they are compared on.
WIDE_PX = 300
OF_EACH = r"[\d.]+ and [\d.]+ ms per {unit}, singly and in batches of [24] \("


@pytest.mark.parametrize(
    ("give", "task", "engines", "line"),
    [
        (sleepy, "classification", GRAPHS, "toy: (onnxruntime|openvino), " + OF_EACH.format(unit="frame")),
        (sleepy, "action", GRAPHS, "toy: (onnxruntime|openvino), " + OF_EACH.format(unit="clip")),
        (pooled, "classification", ("torch", *GRAPHS), r"toy: \w+, " + OF_EACH.format(unit="frame")),
        (counting, "classification", ("torch",), r"toy: (\w+) is left out: toy in fp32 with \1"),
        (boxes, "detection", ("torch",), r"toy: \w+ is left out: list is not an answer of tensors only"),
    ],
)
def test_auto_takes_the_fastest_that_agrees_and_says_so(
    give: Callable[[Tensor, Tensor], Any],
    task: TaskName,
    engines: tuple[Engine, ...],
    line: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trivid")
    model = load_model(spec_of(give, task, engine="auto"), "cpu")
    assert model.spec.engine in engines
    assert len(caplog.messages) == (len(GRAPHS) if "left out" in line else 1)
    assert all(re.match(line, message) for message in caplog.messages)
    pixels = torch.randn(model.spec.example_shape(3))
    assert_same(Model(replace(model.spec, engine="torch"), "cpu")(pixels), model(pixels))


def test_an_engine_that_fails_on_other_pixels_is_left_out(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not the fastest, though it is done at once."""

    def fail(graph: Any, pixels: Tensor) -> Any:
        if pixels.shape[-1] > WIDE_PX:
            raise RuntimeError("too wide")
        return call(graph, pixels)

    call = OnnxGraph.__call__
    monkeypatch.setattr(OnnxGraph, "__call__", fail)
    model = load_model(spec_of(sleepy, engine="auto", preprocessing=Preprocessing(resize_px=224)), "cpu")
    assert model.spec.engine == "openvino"
    assert "toy: onnxruntime is left out: too wide" in caplog.text


def test_auto_takes_the_fastest_in_another_precision_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "trivid")
    model = load_model(spec_of(sleepy, engine="auto", precision="bf16"), "cpu")
    if "left out" in caplog.text:  # a processor without bf16
        assert model.spec.engine == "torch"
        assert "openvino is left out: OpenVINO does not compute in bf16 on this processor" in caplog.text
    else:
        assert model.spec.engine == "openvino"


def test_what_cannot_run_in_a_precision_is_refused() -> None:
    def only_float32(features: Tensor, pixels: Tensor) -> Tensor:
        if features.dtype != torch.float32:
            raise RuntimeError("only float32")
        return pooled(features, pixels)

    with pytest.raises(ModelUnavailable, match="toy cannot run in bf16: only float32"):
        load_model(spec_of(only_float32, engine="torch", precision="bf16"), "cpu")


def test_a_model_has_the_threads_it_is_given() -> None:
    model = load_model(spec_of(pooled, engine="onnxruntime"), "cpu", threads=1)
    assert torch.get_num_threads() == 1
    assert isinstance(model.runner, ExportedRunner)
    assert isinstance(model.runner.graph, OnnxGraph)
    assert model.runner.graph.session.get_session_options().intra_op_num_threads == 1


@pytest.mark.parametrize(
    ("fields", "lanes"),
    [
        ({}, 1),
        ({"thread_safe": True}, 2),
        ({"thread_safe": True, "precision": "bf16"}, 2),
        ({"engine": "onnxruntime"}, 2),
    ],
)
def test_a_lane_for_each_core_where_several_threads_may_call(fields: dict[str, Any], lanes: int) -> None:
    assert load_model(spec_of(pooled, **{"engine": "torch", **fields}), "cpu", threads=2).lanes == lanes


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cuda_graphs_answer_as_torch_and_keep_no_answer(precision: Any) -> None:
    spec, device = spec_of(pooled), torch.device("cuda")
    model = Model(spec, "cuda")
    assert isinstance(model.runner, TorchRunner)
    plain = TorchRunner(model.runner.layers, device, precision=precision)
    graphs = GraphRunner(plain, [spec.example_shape(count) for count in bucket_sizes(4)], device)
    assert graphs.buckets == (1, 2, 4)
    batches = [torch.randn(count, 3, 32, 40) for count in (1, 3, 4, 2, 4)] + [torch.randn(2, 3, 16, 24)]
    model.run_by(plain)
    expected = [model(batch) for batch in batches]
    model.run_by(graphs)
    for one, other in zip(expected, [model(batch) for batch in batches], strict=True):
        assert isinstance(one, LogitOutput)
        assert isinstance(other, LogitOutput)
        torch.testing.assert_close(other.logits, one.logits, atol=1e-3, rtol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("engine", ["auto", "torch"])
@pytest.mark.parametrize("facts", [FIXED, FREE], ids=["fixed", "free"])
def test_a_model_on_a_gpu_answers_as_on_the_cpu(engine: Any, facts: Preprocessing) -> None:
    for spec in (
        spec_of(pooled, engine=engine, preprocessing=facts),
        spec_of(as_pixels, "segmentation", engine=engine),
    ):
        model = load_model(spec, "cuda")
        pixels = torch.randn(3, 3, 32, 40)
        found = model(pixels.cuda())
        assert isinstance(found, LogitOutput)
        assert found.logits.is_cuda
        expected = Model(spec, "cpu")(pixels)
        assert isinstance(expected, LogitOutput)
        torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=2e-3, rtol=1e-2)


@pytest.mark.gpu
def test_onnxruntime_computes_on_a_gpu_where_it_can() -> None:
    spec = spec_of(as_pixels, "segmentation", preprocessing=FREE, engine="onnxruntime")
    if not has_cuda():
        with pytest.raises(ModelUnavailable, match="computes only on the CPU"):
            load_model(spec, "cuda")
        return
    model = load_model(spec, "cuda")
    for shape in ((1, 3, 32, 56), (2, 3, 57, 33), (2, 3, 57, 33)):
        pixels = torch.randn(shape)
        found, expected = model(pixels.cuda()), Model(spec, "cpu")(pixels)
        assert isinstance(found, LogitOutput)
        assert isinstance(expected, LogitOutput)
        assert found.logits.is_cuda
        torch.testing.assert_close(found.logits.cpu(), expected.logits, atol=2e-3, rtol=1e-2)


class OwnNames(nn.Module):
    """Has attributes of its own that mean something else elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes, self.engine = 4, nn.Identity()

    def forward(self, pixels: Tensor) -> Tensor:
        return pooled(pixels, pixels)


class OwnBoxes(nn.Module):
    """A detector in two steps, whose second is not safe for threads."""

    def maps(self, pixels: Tensor) -> dict[str, Tensor]:
        return {"levels": pixels * 2}

    def boxes(self, maps: dict[str, Tensor], _size_px: tuple[int, int]) -> list[dict[str, Tensor]]:
        frames = boxes(maps["levels"], maps["levels"])
        return [{**frame, "boxes": torch.tensor([[0.0, 0, 8, 8]])} for frame in frames]

    def forward(self, pixels: Tensor) -> list[dict[str, Tensor]]:
        return self.boxes(self.maps(pixels), (0, 0))


def test_code_of_users_is_called_by_one_thread() -> None:
    own = load_model(replace(spec_of(pooled, engine="torch"), build=OwnNames), "cpu", threads=2)
    assert (own.lanes, own.spec.engine) == (1, "torch")
    for safe, lanes in ((False, 1), (True, 2)):
        spec = replace(spec_of(pooled, "detection", engine="onnxruntime", thread_safe=safe), build=OwnBoxes)
        model = load_model(spec, "cpu", threads=2)
        assert (model.runner.lanes, model.lanes) == (2, lanes)


class FramesInParts(nn.Module):
    """Takes clips of any length, but a trace of it has the length of its example within."""

    def forward(self, clips: Tensor) -> Tensor:
        return clips.sum(dim=(2, 3, 4)) / float(clips.shape[2])


class FixedLength(FramesInParts):
    def forward(self, clips: Tensor) -> Tensor:
        assert clips.shape[2] == 4, "Guard failed: x.size()[2] == 4"
        return super().forward(clips)


@pytest.mark.parametrize(("network", "fixed"), [(FramesInParts, False), (FixedLength, True)])
def test_clips_of_another_length_are_right_or_refused(network: type[nn.Module], fixed: bool) -> None:
    spec = spec_of(pooled, "action", engine="auto")
    model = load_model(replace(spec, build=network), "cpu")
    assert model.spec.clip is not None
    assert model.spec.clip.fixed == fixed
    if fixed:
        demanded = load_model(replace(spec, build=network, engine="onnxruntime"), "cpu")
        assert demanded.spec.clip == model.spec.clip
        return
    assert model.spec.engine == "torch"
    with pytest.raises(
        ModelUnavailable, match=r"cannot run with engine onnxruntime|differ from those of torch"
    ):
        load_model(replace(spec, build=network, engine="onnxruntime"), "cpu")
