"""Networks as graphs: what ONNX Runtime and OpenVINO make of them, and what they refuse."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator

from model_inference import Model
from pipelines.loading.agreement import deviation
from pipelines.loading.load import load_model
from pipelines.machine.threads import use_threads
from pipelines.models.export import ExportedRunner
from pipelines.models.openvino_runtime import OpenvinoGraph, core
from pipelines.models.outputs import BoxOutput
from pipelines.models.spec import Engine, ModelSpec, Precision, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.demo.specs import demo_specs
from pipelines.zoo.vision.adapters import adapt_detector
from tests.conftest import ROOT
from tests.support.toy_networks import (
    CLASSES,
    FIXED,
    FREE,
    GRAPHS,
    as_pixels,
    assert_same,
    boxes,
    counting,
    measuring,
    pooled,
    spec_of,
)

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")

pytestmark = pytest.mark.usefixtures("seeded")


def both(spec: ModelSpec, engine: Engine) -> tuple[Model, Model]:
    """The model by torch and as a graph."""
    exported = load_model(replace(spec, engine=engine), "cpu")
    assert exported.spec.engine == engine
    assert isinstance(exported.runner, ExportedRunner)
    return Model(spec, "cpu"), exported


@pytest.mark.parametrize("engine", GRAPHS)
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
    engine: Engine,
    capfd: pytest.CaptureFixture[str],
) -> None:
    plain, exported = both(spec_of(give, task, preprocessing=facts), engine)
    assert exported.outputs == plain.outputs
    for shape in shapes:
        pixels = torch.randn(shape)
        assert_same(plain(pixels), exported(pixels))
    assert capfd.readouterr() == ("", "")


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


@pytest.mark.parametrize("engine", GRAPHS)
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
    spec: Callable[[], ModelSpec], shapes: list[tuple[int, ...]], engine: Engine
) -> None:
    plain, exported = both(spec(), engine)
    for shape in shapes:
        pixels = torch.randn(shape)
        given, found = plain.compute(pixels), exported.compute(pixels)
        assert deviation(given, found) < 1e-3
        output = exported.read(given, pixels)
        assert_same(plain(pixels), output)
        assert isinstance(output, BoxOutput)
        assert len(output) == shape[0]


@pytest.mark.parametrize(
    ("engine", "give", "fields", "message"),
    [
        *[
            case
            for engine in GRAPHS
            for case in (
                (
                    engine,
                    boxes,
                    {"task": "detection"},
                    f"toy cannot run with engine {engine}: list is not an answer",
                ),
                (engine, counting, {}, f"toy in fp32 with {engine} (agrees|gives numbers)"),
                (
                    engine,
                    measuring,
                    {"preprocessing": FREE},
                    f"toy in fp32 with {engine} (agrees|gives numbers)",
                ),
            )
        ],
        ("onnxruntime", pooled, {"precision": "bf16"}, "computes in fp32, not in bf16"),
        ("openvino", pooled, {"precision": "fp16"}, "OpenVINO does not compute in fp16"),
    ],
)
def test_an_engine_that_is_asked_for_works_or_is_refused(
    engine: Engine, give: Callable[[Tensor, Tensor], Any], fields: dict[str, Any], message: str
) -> None:
    if fields.get("precision") == "fp16" and "FP16" in processor_can():
        pytest.skip("this processor computes in fp16")
    with pytest.raises(ModelUnavailable, match=message) as caught:
        load_model(spec_of(give, engine=engine, **fields), "cpu")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


def processor_can() -> list[str]:
    """What OpenVINO says that this processor computes in."""
    return core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")  # type: ignore[no-any-return]


def test_nobody_is_told_that_openvino_is_used(tmp_path: Path) -> None:
    """Not even where the package that tells is installed."""
    (tmp_path / "openvino_telemetry.py").write_text("raise SystemExit('told')")
    code = "import threading; from pipelines.models.openvino_runtime import core; core(); "
    code += "print(threading.active_count())"
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == [
        "openvino_telemetry.py"
    ]


@pytest.mark.skipif("BF16" not in processor_can(), reason="needs a processor that computes in bf16")
def test_openvino_computes_in_lower_precision_where_it_is_asked_to() -> None:
    spec, pixels = spec_of(pooled, engine="openvino"), torch.randn(2, 3, 32, 40)
    given = {}
    for precision in PRECISIONS:
        model = load_model(replace(spec, precision=precision), "cpu")
        given[precision] = model.compute(pixels)
    torch.testing.assert_close(given["bf16"], given["fp32"], atol=0.02, rtol=0.02)
    assert not torch.equal(given["bf16"], given["fp32"])


def test_openvino_answers_many_threads_at_once_as_it_does_one() -> None:
    model = load_model(spec_of(pooled, engine="openvino", thread_safe=True), "cpu", threads=2)
    batches = [torch.randn(count, 3, 32, 40) for count in (1, 3, 4, 2)] * 10
    alone = [model.compute(batch) for batch in batches]
    with ThreadPoolExecutor(2, initializer=use_threads, initargs=(1,)) as lanes:
        beside = list(lanes.map(model.compute, batches))
    for one, other in zip(alone, beside, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_what_openvino_does_not_take_is_said_in_a_line() -> None:
    with pytest.raises(RuntimeError, match=r"^Unable to read the model[^\n]*$"):
        OpenvinoGraph(b"no graph", "fp32")
    model = load_model(spec_of(pooled, engine="openvino"), "cpu")
    with pytest.raises(RuntimeError) as caught:
        model.compute(torch.randn(1, 4, 8, 8))
    assert "Exception from" not in str(caught.value)
    assert "\n" not in str(caught.value)


class Attentive(nn.Module):
    """Attention over the pixels of a coarse picture."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, pixels: Tensor) -> Any:
        tokens = self.body(pixels).flatten(2).transpose(1, 2)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1)


@pytest.mark.parametrize("engine", GRAPHS)
def test_attention_is_exported_and_stays_in_one_operator_for_torch(
    engine: Engine, capfd: pytest.CaptureFixture[str]
) -> None:
    network = Attentive()
    plain, exported = both(replace(spec_of(pooled), build=lambda: network), engine)
    pixels = torch.randn(3, 3, 32, 40)
    assert_same(plain(pixels), exported(pixels))
    assert torch.backends.mha.get_fastpath_enabled()
    assert capfd.readouterr() == ("", "")
