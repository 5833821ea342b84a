"""A state dict's network is found by its tensors, and torchvision's own files by their names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor
from torchvision import models

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.protocol.answers import ClassificationAnswer
from pipelines.protocol.options import Options
from pipelines.zoo.vision.architectures import names, shapes_of
from pipelines.zoo.vision.recognition import candidates, network_table
from tests.support.sources import error_of, spec_of
from tests.zoo.test_state_dicts import older, saved, squeezenet

REMEDY = "python -m scripts.reference.networks writes it anew"
SOME = (
    *(
        "resnet18",
        "resnet50",
        "wide_resnet50_2",
        "resnext50_32x4d",
        "mobilenet_v2",
        "densenet121",
        "vit_b_32",
    ),
    *("vgg11_bn", "squeezenet1_0", "regnet_x_400mf", "googlenet", "mnasnet1_3", "convnext_tiny", "swin_v2_t"),
    *(
        "maskrcnn_resnet50_fpn",
        "retinanet_resnet50_fpn",
        "ssd300_vgg16",
        "deeplabv3_resnet50",
        "fcn_resnet50",
    ),
    *("r3d_18", "mvit_v2_s"),
)


def test_the_table_is_of_the_torchvision_that_is_installed() -> None:
    table = network_table()
    assert table.torchvision == torchvision.__version__.partition("+")[0], REMEDY
    assert sorted(name for found in table.networks.values() for name in found) == sorted(names()), REMEDY


@pytest.mark.parametrize("name", SOME)
def test_networks_are_told_by_their_tensors(name: str) -> None:
    state = shapes_of(name, 17).state_dict()
    assert candidates(state) == (name,), REMEDY
    odd: dict[str, Tensor] = {
        f"module.net.{older(key)}": one for key, one in state.items() if "num_batches" not in key
    }
    assert candidates({**odd, "criterion.weight": torch.ones(3)}) == (name,)
    without_one = {key: one for key, one in odd.items() if key != next(iter(odd))}
    assert candidates(without_one) == ()


def test_a_backbone_without_its_last_layer_is_no_classifier() -> None:
    state = shapes_of("fasterrcnn_resnet50_fpn_v2", 17).state_dict()
    assert candidates({key: one for key, one in state.items() if key.startswith("backbone.")}) == ()


def test_networks_that_only_their_pictures_tell_apart_are_asked_for(tmp_path: Path) -> None:
    first, second = "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_mobilenet_v3_large_fpn"
    network = models.get_model(first, weights=None, weights_backbone=None, num_classes=91)
    state = {key: one.half() for key, one in network.state_dict().items() if "num_batches" not in key}
    text = error_of(str(saved(tmp_path / "own.pth", state)))
    assert f"may be of {first} or {second}" in text
    assert f"--arch {first} or --arch {second}" in text
    # Torchvision's own names of files tell them.
    for file, name, shorter_px in (
        ("fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth", first, 320),
        ("fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth", second, 800),
    ):
        os.replace(next(tmp_path.iterdir()), tmp_path / file)
        spec = spec_of(str(tmp_path / file))
        assert (spec.name, spec.preprocessing.resize_px, len(spec.labels)) == (name, shorter_px, 91)
        assert spec.assumed == (f"torchvision's {name}, by its tensors",)


@pytest.mark.parametrize(
    ("file", "resize_px", "assumed"),
    [
        ("mobilenet_v2-b0353104.pth", 256, False),
        ("mobilenet_v2-7ebf99e0.pth", 232, False),
        ("mobilenet_v2-7ebf99e0 (1).safetensors.pth", 232, False),
        ("own.pth", 256, True),
    ],
)
def test_the_name_of_a_file_tells_which_transform_is_its_own(
    tmp_path: Path, file: str, resize_px: int, assumed: bool
) -> None:
    state = models.mobilenet_v2(weights=None).state_dict()
    spec = spec_of(str(saved(tmp_path / file, state)), arch="mobilenet_v2")
    assert spec.preprocessing.resize_px == resize_px
    assert any(f"resize_px {resize_px}" in text for text in spec.assumed) is assumed


def test_tensors_of_no_known_network_are_named(tmp_path: Path) -> None:
    state = squeezenet().state_dict()
    state.pop("features.0.weight")
    text = error_of(str(saved(tmp_path / "own.pth", state)))
    assert "is a state dict (51 tensors: features.0.bias, " in text
    assert "--arch resnet50" in text


def test_a_real_file_answers_as_torchvision_without_a_flag(shared_media: Path) -> None:
    path = shared_media / "models" / "mobilenet_v2_torchvision_fp16.pth"
    if not path.is_file():
        pytest.skip(f"no {path}")
    spec = spec_of(str(path), engine="torch")
    assert (spec.name, spec.task, spec.labels[372]) == ("mobilenet_v2", "classification", "baboon")
    pipeline = make_pipeline(spec, "cpu", limits=Limits())
    network = models.mobilenet_v2(weights=None).eval()
    network.load_state_dict(torch.load(path, weights_only=True))
    prepare = models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    for file in ("baboon_1280px.jpg", "monkey_1920px.jpg"):
        (answer,) = pipeline.run((shared_media / file).read_bytes(), Options(top_k=3))
        assert isinstance(answer, ClassificationAnswer)
        with torch.inference_mode(), Image.open(shared_media / file) as picture:
            scores = network(prepare(picture.convert("RGB"))[None]).softmax(1)[0]
        assert answer.class_name[0].tolist()[:2] == ["baboon", "macaque"]
        for number, probability in zip(answer.class_id[0], answer.probability[0], strict=True):
            assert abs(float(scores[number]) - probability) < 0.01
