"""Engines of models: what ONNX Runtime makes of a loaded network, which engine `auto` takes, and what it leaves out."""

from __future__ import annotations

import logging
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

from model_inference import BoxOutput, Clip, LogitOutput, Model, ModelSpec, Preprocessing, TaskName
from pipelines.agreement import deviation
from pipelines.errors import ModelUnavailable
from pipelines.exported import ExportedRunner
from pipelines.loading import load_model
from pipelines.onnx_graph import has_cuda
from pipelines.runners import GraphRunner, TorchRunner, bucket_sizes
from pipelines.sources.choice import Engine
from pipelines.sources.demo import demo_specs
from pipelines.sources.detectors import adapt_detector

FIXED, FREE = Preprocessing(resize_px=(32, 40)), Preprocessing(resize_px=32)
CLASSES = 5


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    """Networks have the same random weights whatever ran before, and torch its threads afterwards."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)


class Headed(nn.Module):
    """A convolution, and whatever a function makes of its features and the pixels."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any], *, clips: bool = False) -> None:
        super().__init__()
        self.body = nn.Conv3d(3, CLASSES, 3, 2, 1) if clips else nn.Conv2d(3, CLASSES, 3, 2, 1)
        self.give = give

    def forward(self, pixels: Tensor) -> Any:
        return self.give(self.body(pixels), pixels)


def pooled(features: Tensor, _pixels: Tensor) -> Tensor:
    return features.flatten(2).mean(2)


def as_pixels(features: Tensor, pixels: Tensor) -> dict[str, Tensor]:
    size = pixels.shape[-2:]
    return {"out": nn.functional.interpolate(features, size, mode="bilinear"), "aux": features}


def sleepy(features: Tensor, pixels: Tensor) -> Tensor:
    """What a trace does not hold makes torch the slower one, wherever this runs."""
    time.sleep(0.01)
    return pooled(features, pixels)


def counting(features: Tensor, pixels: Tensor) -> Tensor:
    """A batch's size as a number, which a trace takes for a constant."""
    return pooled(features, pixels) + float(len(pixels))


def measuring(features: Tensor, pixels: Tensor) -> Tensor:
    """The same with the height."""
    return pooled(features, pixels) + float(pixels.shape[-2])


def spec_of(
    give: Callable[[Tensor, Tensor], Any], task: TaskName = "classification", **fields: Any
) -> ModelSpec:
    clip = Clip(length=4, fps=10) if task == "action" else None
    network = Headed(give, clips=clip is not None)
    fields = {"preprocessing": FIXED, "max_batch": 4, **fields}
    return ModelSpec(name="toy", task=task, build=lambda: network, source="test", clip=clip, **fields)


def both(spec: ModelSpec) -> tuple[Model, Model]:
    """The model by torch and by ONNX Runtime."""
    exported = load_model(ModelSpec(**{**fields_of(spec), "engine": "onnxruntime"}), "cpu")
    assert exported.spec.engine == "onnxruntime"
    assert isinstance(exported.runner, ExportedRunner)
    return Model(spec, "cpu"), exported


def fields_of(spec: ModelSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in ModelSpec.__dataclass_fields__}


def assert_same(one: Any, other: Any) -> None:
    """Outputs of the same kind, names and numbers."""
    assert type(one) is type(other)
    if isinstance(one, LogitOutput):
        torch.testing.assert_close(other.tensors, one.tensors, atol=1e-5, rtol=1e-4)
    else:
        torch.testing.assert_close(list(other.frames), list(one.frames), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("give", "task", "facts", "shapes"),
    [
        (pooled, "classification", FIXED, [(1, 3, 32, 40), (3, 3, 32, 40), (9, 3, 32, 40)]),
        (pooled, "classification", FREE, [(1, 3, 32, 56), (2, 3, 57, 33)]),
        (as_pixels, "segmentation", FREE, [(1, 3, 32, 56), (2, 3, 57, 33)]),
        (lambda x, _: (pooled(x, x), x), "classification", FIXED, [(3, 3, 32, 40)]),
        (lambda x, _: [pooled(x, x)], "classification", FIXED, [(3, 3, 32, 40)]),
        (pooled, "action", FIXED, [(1, 3, 4, 32, 40), (3, 3, 9, 32, 40)]),
        (pooled, "action", FREE, [(2, 3, 4, 32, 56), (1, 3, 6, 50, 32)]),
    ],
)
def test_an_exported_network_answers_like_torch(
    give: Callable[[Tensor, Tensor], Any],
    task: TaskName,
    facts: Preprocessing,
    shapes: list[tuple[int, ...]],
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain, exported = both(spec_of(give, task, preprocessing=facts))
    assert exported.outputs == plain.outputs
    for shape in shapes:
        pixels = torch.randn(shape)
        assert_same(plain(pixels), exported(pixels))
    assert capfd.readouterr() == ("", "")


def boxes(_features: Tensor, pixels: Tensor) -> list[dict[str, Tensor]]:
    """A box in each picture, from the same code that computes its layers."""
    one = {"boxes": torch.ones(1, 4), "labels": torch.ones(1, dtype=torch.int64), "scores": torch.ones(1)}
    return [one for _ in pixels]


class Levels(nn.Module):
    """A backbone of two levels, at 1/8 and 1/16."""

    out_channels: Any = 32

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 32, 7, 8, 3), nn.Conv2d(32, 32, 3, 2, 1)

    def forward(self, pixels: Tensor) -> OrderedDict[str, Tensor]:
        fine = self.first(pixels).relu()
        return OrderedDict(fine=fine, coarse=self.second(fine))


def ssd() -> nn.Module:
    backbone = Levels()
    backbone.out_channels = [32, 32]
    boxes = DefaultBoxGenerator([[2], [2]])
    return detection.ssd.SSD(backbone, boxes, (64, 64), CLASSES, score_thresh=0.0)  # type: ignore[no-any-return]


def retinanet() -> nn.Module:
    anchors = AnchorGenerator(((16,), (32,)), ((0.5, 1.0),) * 2)
    return detection.RetinaNet(Levels(), CLASSES, anchor_generator=anchors, score_thresh=0.0)  # type: ignore[no-any-return]


def fcos() -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,)), ((1.0,),) * 2)
    return detection.FCOS(Levels(), CLASSES, anchor_generator=anchors, score_thresh=0.0)  # type: ignore[no-any-return]


def detector_of(build: Callable[[], nn.Module], facts: Preprocessing) -> ModelSpec:
    network = adapt_detector(build())
    return ModelSpec(
        name="toy",
        task="detection",
        build=lambda: network,
        source="test",
        preprocessing=facts,
        max_batch=2,
    )


@pytest.mark.parametrize(
    ("spec", "shapes"),
    [
        (
            lambda: detector_of(ssd, Preprocessing(resize_px=(64, 64))),
            [(3, 3, 64, 64), (1, 3, 64, 64)],
        ),
        (lambda: detector_of(retinanet, FREE), [(2, 3, 70, 96), (1, 3, 64, 33)]),
        (lambda: detector_of(fcos, FREE), [(2, 3, 70, 96), (1, 3, 64, 33)]),
        (lambda: demo_specs()["detection"], [(2, 3, 160, 284), (1, 3, 213, 160)]),
    ],
    ids=["ssd", "retinanet", "fcos", "demo"],
)
def test_a_detector_of_one_stage_is_exported_without_the_choice_of_its_boxes(
    spec: Callable[[], ModelSpec], shapes: list[tuple[int, ...]]
) -> None:
    plain, exported = both(spec())
    for shape in shapes:
        pixels = torch.randn(shape)
        given, found = plain.compute(pixels), exported.compute(pixels)
        assert deviation(given, found) < 1e-3
        output = exported.read(given, pixels)
        assert_same(plain(pixels), output)
        assert isinstance(output, BoxOutput)
        assert len(output) == shape[0]


def test_an_engine_that_is_asked_for_works_or_is_refused() -> None:
    for spec, message in (
        (
            spec_of(boxes, "detection"),
            "toy cannot run by engine onnxruntime: list is no answer of tensors alone",
        ),
        (spec_of(counting), r"toy in fp32 by onnxruntime (agrees|gives numbers)"),
        (spec_of(measuring, preprocessing=FREE), r"toy in fp32 by onnxruntime (agrees|gives numbers)"),
        (spec_of(pooled, precision="bf16"), "computes in fp32, not in bf16"),
    ):
        with pytest.raises(ModelUnavailable, match=message) as caught:
            load_model(ModelSpec(**{**fields_of(spec), "engine": "onnxruntime"}), "cpu")
        assert caught.value.hint
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("give", "task", "engine", "line"),
    [
        (
            sleepy,
            "classification",
            "onnxruntime",
            r"toy: onnxruntime, [\d.]+ and [\d.]+ ms a frame, alone and in batches of 4 \(torch ",
        ),
        (
            sleepy,
            "action",
            "onnxruntime",
            r"toy: onnxruntime, [\d.]+ and [\d.]+ ms a clip, alone and in batches of 4 \(torch ",
        ),
        (counting, "classification", "torch", "toy: onnxruntime is left out: toy in fp32 by onnxruntime"),
        (pooled, "classification", None, r"toy: (torch|onnxruntime), [\d.]+ and [\d.]+ ms a frame"),
        (boxes, "detection", "torch", "toy: onnxruntime is left out: list is no answer of tensors alone"),
    ],
)
def test_auto_takes_the_fastest_that_agrees_and_says_so(
    give: Callable[[Tensor, Tensor], Any],
    task: TaskName,
    engine: Engine | None,
    line: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "trivid")
    model = load_model(spec_of(give, task, engine="auto"), "cpu")
    assert model.spec.engine in ((engine,) if engine else ("torch", "onnxruntime"))
    assert len(caplog.messages) == 1
    assert re.match(line, caplog.messages[0])
    shape = model.spec.example_shape(3)
    pixels = torch.randn(shape)
    assert_same(Model(spec_of_same(model), "cpu")(pixels), model(pixels))


def spec_of_same(model: Model) -> ModelSpec:
    return ModelSpec(**{**fields_of(model.spec), "engine": "torch"})


def test_a_model_has_the_threads_it_is_given() -> None:
    model = load_model(spec_of(pooled, engine="onnxruntime"), "cpu", threads=1)
    assert torch.get_num_threads() == 1
    assert isinstance(model.runner, ExportedRunner)
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
        with pytest.raises(ModelUnavailable, match="computes on the CPU only"):
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
    with pytest.raises(ModelUnavailable, match=r"cannot run by engine onnxruntime|differ from torch's"):
        load_model(replace(spec, build=network, engine="onnxruntime"), "cpu")
