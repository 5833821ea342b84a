"""What real networks are found to be, from their files alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.models.graph import Graph, Port
from pipelines.models.heads.identify import Identified, check, identify
from pipelines.models.outputs import named_tensors
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.input_form import input_form
from pipelines.zoo.files.onnx_files import onnx_network, read_onnx
from pipelines.zoo.files.openvino_files import ir_network, read_ir

SIGMOIDS, POINTS = "453", ("456", "459")


def opened(path: Path) -> tuple[Graph, tuple[int, int] | None]:
    """A file's graph that can be run, and the size of its pixels."""
    if not path.is_file():
        pytest.skip(f"no {path}")
    is_ir = path.suffix == ".xml"
    graph = read_ir(path) if is_ir else read_onnx(path)
    form = input_form(graph, path.name)
    network: Any = ir_network(path, form) if is_ir else onnx_network(path, form)

    def run(pixels: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return dict(named_tensors(network(pixels)))

    return replace(graph, run=run), form.size_hw


def found_in(path: Path, **said: Any) -> Identified:
    graph, size_hw = opened(path)
    return identify(graph, size_hw=size_hw, **said)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("mobilenetv2-12-qdq.onnx", {"task": "classification", "activation": "softmax"}),
        ("deeplab_v3_mnv2_voc21.onnx", {"task": "segmentation", "channels_last": True}),
        ("osnet_x0_25_msmt17_batch.onnx", {"task": "embedding", "output": "output"}),
        ("emotion_mini_xception.onnx", {"task": "classification", "activation": "none", "output": "prob"}),
    ],
)
def test_what_a_file_is(shared_media: Path, file: str, expected: dict[str, Any]) -> None:
    found = found_in(shared_media / "models" / file)
    assert {name: getattr(found, name) for name in expected} == expected


def test_yolox(shared_media: Path) -> None:
    path = shared_media / "models" / "yolox_nano.onnx"
    graph, size_hw = opened(path)
    assert size_hw is not None
    found = identify(graph, size_hw=size_hw)
    head: Any = found.head
    assert (head.family, head.classes, head.decoded) == ("yolox", 80, False)
    assert check(head, graph, size_hw) == ()
    (dark,) = check(head, graph, size_hw, pixels=replace(head.pixels(size_hw), mean=(0, 0, 0), std=(1, 1, 1)))
    assert "--pixels" in dark
    with pytest.raises(ModelUnavailable, match="80 classes"):
        identify(graph, size_hw=size_hw, names=tuple(map(str, range(79))))


@pytest.mark.parametrize("names", [(), ("face",), ("background", "face")])
def test_faces(shared_media: Path, names: tuple[str, ...]) -> None:
    head: Any = found_in(shared_media / "models" / "version-RFB-320.onnx", names=names).head
    assert (head.family, head.unit, head.order, head.background) == ("boxes_scores", True, "xyxy", True)


def test_attributes_of_a_vehicle(shared_media: Path) -> None:
    path = shared_media / "models" / "vehicle-attributes-recognition-barrier-0039.xml"
    names = ("car", "bus", "truck", "van", "white", "gray", "yellow", "red", "green", "blue", "black")
    found = found_in(path, names=names, task="classification")
    assert {one.name: one.labels for one in found.attributes} == {"type": names[:4], "color": names[4:]}


def test_attributes_of_a_person(shared_media: Path) -> None:
    path = shared_media / "models" / "person-attributes-recognition-crossroad-0230.xml"
    names = ("is_male", "has_bag", "has_backpack", "has_hat", "has_longsleeves")
    names_of_all = (*names, "has_longpants", "has_longhair", "has_coat_jacket")
    found = found_in(path, names=names_of_all)
    assert (found.task, found.output, found.multi_label) == ("classification", SIGMOIDS, False)
    assert all(name in str(found.assumed) for name in POINTS)
    assert len(found_in(path).attributes) == 8 + 2 + 2


def test_an_untrained_detr_needs_the_number_of_names() -> None:
    """YOLOS of transformers has one more column than names: "no object"."""
    transformers = pytest.importorskip("transformers")
    size_hw = (64, 96)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = transformers.YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=[*size_hw],
            num_detection_tokens=30,
            num_labels=5,
        )
        network = transformers.YolosForObjectDetection(config).eval()

    def run(pixels: Tensor) -> dict[str, Tensor]:
        with torch.inference_mode():
            return {name: one for name, one in network(pixels).items() if isinstance(one, Tensor)}

    outputs = tuple(
        Port(name=name, dtype="float32", dims=tuple(one.shape))
        for name, one in run(torch.rand(1, 3, *size_hw)).items()
    )
    pixels = Port(name="pixel_values", dtype="float32", dims=(None, 3, *size_hw))
    graph = Graph(inputs=(pixels,), outputs=outputs, run=run)
    head: Any = identify(graph, size_hw=size_hw, names=tuple("abcde")).head
    assert (head.family, head.softmax, head.probabilities) == ("detr", True, False)
    with pytest.raises(ModelUnavailable, match="--labels"):
        identify(graph, size_hw=size_hw)
