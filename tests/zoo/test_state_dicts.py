"""State dicts as people save them: containers, prefixes, older names, and what a file cannot say."""

from __future__ import annotations

import argparse
import collections
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.fitting import class_count, fit, load_state
from pipelines.zoo.files.state import read_checkpoint, read_state
from pipelines.zoo.vision.architectures import known_weights, shapes_of
from tests.support.sources import error_of, spec_of

State = dict[str, Tensor]
ONE, TWO = {"w": torch.ones(2)}, {"w": torch.full((2,), 2.0)}


def saved(path: Path, what: object) -> Path:
    torch.save(what, path)
    return path


def squeezenet(classes: int = 3) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        network: nn.Module = models.squeezenet1_1(weights=None, num_classes=classes)
    return network.eval()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (ONE, ""),
        ({"epoch": 3, "state_dict": ONE, "best": torch.tensor(0.9)}, ""),
        ({"pytorch-lightning_version": "2.5", "state_dict": ONE, "hyper_parameters": {"lr": 0.1}}, ""),
        ({"model": {"state_dict": ONE}, "optimizer": {"state": {0: TWO}}}, ""),
        ({"module": ONE, "n_averaged": torch.tensor(7)}, ""),
        ({**ONE, "n_averaged": torch.tensor(7), "classes": ["a"]}, ""),
        ({"model_ema": ONE}, ""),
        ({"state_dict": TWO, "model_ema": ONE}, "the averaged weights under model_ema"),
        ({"model": TWO, "ema": {"module": ONE, "updates": 5}}, "not those under model"),
        ({"ema": None, "model": ONE}, ""),
        ({"ema": 0.999, "params": TWO, "params_ema": ONE}, "params_ema"),
        ({"ema": {"decay": 0.9}, "network": {"net": ONE}}, ""),
    ],
)
def test_checkpoints_are_searched_for_their_weights(tmp_path: Path, what: object, said: str) -> None:
    found = read_checkpoint(saved(tmp_path / "w.ckpt", what))
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {"w": [1.0, 1.0]}
    assert (said in " ".join(found.notes)) if said else found.notes == ()


def test_parts_saved_apart_are_one_state_dict(tmp_path: Path) -> None:
    what = {"body": {"a.w": torch.ones(1)}, "head": {"w": torch.ones(1)}, "epoch": 3}
    assert [*read_state(saved(tmp_path / "w.pt", what))] == ["body.a.w", "head.w"]


def test_a_checkpoint_that_holds_itself_ends(tmp_path: Path) -> None:
    what: dict[str, Any] = {"epoch": 1}
    what["model"] = what
    with pytest.raises(ModelUnavailable, match="holds a dict, not a state dict"):
        read_state(saved(tmp_path / "w.pth", what))


def test_a_tensor_of_more_numbers_than_the_file_has_is_refused(tmp_path: Path) -> None:
    many = torch.ones(1).expand(1 << 30, 4)
    with pytest.raises(ModelUnavailable, match=r"w is \(1073741824, 4\), more than the file holds"):
        read_state(saved(tmp_path / "w.pth", {"w": many}))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)


PARTS = st.lists(st.sampled_from(["module", "_orig_mod", "model", "net", "backbone", "0"]), max_size=4)


@given(parts=PARTS, counters=st.booleans(), extra=st.sampled_from([(), ("loss.weight",), ("optimizer.0.a",)]))
@settings(deadline=None, max_examples=40)
def test_a_prefix_is_taken_off_where_then_all_names_fit(
    parts: list[str], counters: bool, extra: tuple[str, ...]
) -> None:
    state = {name: tensor for name, tensor in Net().state_dict().items() if counters or "num_b" not in name}
    prefix = "".join(f"{part}." for part in parts)
    others = {name: torch.ones(1) for name in extra}
    network = Net()
    found = fit(
        [*network.state_dict()], {**{prefix + key: one for key, one in state.items()}, **others}, Path("w")
    )
    unused = load_state(network, found.tensors, Path("w"))
    assert {*found.outside, *unused} == {*extra}
    for name, tensor in state.items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_compiled_parts_have_their_own_names() -> None:
    state = {name.replace("body.", "body._orig_mod."): one for name, one in Net().state_dict().items()}
    assert {*fit([*Net().state_dict()], state, Path("w")).tensors} == {*Net().state_dict()}


@pytest.mark.parametrize(("other", "served"), [("ema_model.", "ema_model."), ("model_ema.module.",) * 2])
def test_of_two_networks_the_average_is_served(other: str, served: str) -> None:
    first, second = Net().state_dict(), Net().state_dict()
    both = {**{f"net.{k}": one for k, one in first.items()}, **{other + k: one for k, one in second.items()}}
    found = fit([*first], both, Path("w"))
    assert torch.equal(found.tensors["head.weight"], second["head.weight"])
    assert served in found.notes[0]
    twice = {key.replace(other, "teacher."): one for key, one in both.items()}
    with pytest.raises(ModelUnavailable, match=r"2 networks that fit: under net\. and teacher\."):
        fit([*first], twice, Path("w"))


def older(name: str) -> str:
    """A tensor's name in torchvision's first files."""
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name)
    name = re.sub(r"rpn\.head\.conv\.0\.0\.", "rpn.head.conv.", name)
    name = re.sub(r"(inner_blocks|layer_blocks)\.(\d)\.0\.", r"\1.\2.", name)
    name = re.sub(r"mask_head\.(\d)\.0\.", lambda one: f"mask_head.mask_fcn{int(one[1]) + 1}.", name)
    name = re.sub(r"(_head\.conv)\.(\d)\.0\.", lambda one: f"{one[1]}.{2 * int(one[2])}.", name)
    layers = {"0": "linear_1", "3": "linear_2"}
    return re.sub(r"(encoder_layer_\d+\.mlp)\.([03])\.", lambda one: f"{one[1]}.{layers[one[2]]}.", name)


FAMILIES = (
    *("maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "densenet121", "vit_b_32", "mnasnet0_5"),
    *("fcos_resnet50_fpn", "ssd300_vgg16", "ssdlite320_mobilenet_v3_large", "keypointrcnn_resnet50_fpn"),
    *("lraspp_mobilenet_v3_large", "deeplabv3_mobilenet_v3_large", "squeezenet1_0", "regnet_y_400mf"),
    *("swin_t", "r3d_18", "efficientnet_b0", "inception_v3"),
)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_loads_without_counters_under_older_names_and_with_other_classes(name: str) -> None:
    state = {
        f"model.{older(key)}": tensor
        for key, tensor in shapes_of(name, 13).state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    known = len(known_weights(name)[0].meta["categories"])
    expected = shapes_of(name, known).state_dict()
    found = fit([*expected], state, Path("w"))
    assert class_count(expected, known, found.tensors) == 13
    network = shapes_of(name, 13)
    with pytest.warns(UserWarning, match="non-meta") if "batches" in str([*expected]) else nothing():
        assert load_state(network, found.tensors, Path("w")) == ()


def nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_deeper_network_is_another() -> None:
    state = shapes_of("resnet101", 5).state_dict()
    with pytest.raises(ModelUnavailable, match=r"unknown tensors: \d+, e\.g\. layer3\.6"):
        load_state(shapes_of("resnet50", 5), state, Path("w"))


def test_quantized_weights_are_not_taken_for_numbers() -> None:
    state = {name: tensor.to(torch.int8) for name, tensor in Net().state_dict().items()}
    with pytest.raises(ModelUnavailable, match=r"body\.0\.weight is of torch\.int8, expected torch\.float32"):
        load_state(Net(), state, Path("w"))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors"])
def test_a_state_dict_answers_whatever_its_ending(tmp_path: Path, suffix: str) -> None:
    network = squeezenet()
    state = {f"model.{name}": tensor for name, tensor in network.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(
        {"state_dict": state, "epoch": 1}, path
    )
    pixels = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(spec_of(str(path)).build().eval()(pixels), network(pixels))


def test_what_is_left_over_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = {**squeezenet().state_dict(), "criterion.weight": torch.ones(3)}
    spec = spec_of(str(saved(tmp_path / "w.pth", state)), arch="squeezenet1_1")
    assert spec.assumed == ("tensors without use: 1, e.g. criterion.weight",)
    assert "criterion.weight" in caplog.text
    spec.build()


@pytest.mark.parametrize(
    ("what", "named", "cure"),
    [
        ({"args": argparse.Namespace(lr=1)}, "argparse.Namespace", "torch.save(torch.load("),
        ({"best": np.float64(0.5)}, "multiarray.scalar", "['state_dict']"),
        ({"log": collections.defaultdict(list)}, "collections.defaultdict", "torch.save(torch.load("),
        ({"where": Path("x")}, "pathlib", "torch.save(torch.load("),
        ({"model": squeezenet()}, "torchvision.models.squeezenet.SqueezeNet", "model.state_dict()"),
    ],
)
def test_what_is_not_plain_data_is_named_with_the_cure(
    tmp_path: Path, what: dict[str, Any], named: str, cure: str
) -> None:
    text = error_of(str(saved(tmp_path / "w.pth", {"state_dict": ONE, **what})))
    assert named in text
    assert cure in text


def googlenet(path: Path, classes: int) -> Path:
    network = models.googlenet(weights=None, num_classes=classes, aux_logits=False, init_weights=False)
    return saved(path, network.state_dict())


@pytest.mark.parametrize(
    ("file", "classes", "options", "expected", "assumed"),
    [
        ("own.pth", 5, {}, False, True),
        ("own.pth", 5, {"transform_input": True}, True, False),
        ("googlenet-1378be20.pth", 1000, {}, True, False),
        ("googlenet-1378be20.pth", 5, {}, False, True),
    ],
)
def test_whether_googlenet_undoes_torchvisions_mean(
    tmp_path: Path, file: str, classes: int, options: dict[str, Any], expected: bool, assumed: bool
) -> None:
    spec = spec_of(str(googlenet(tmp_path / file, classes)), arch="googlenet", **options)
    network: Any = spec.build()
    assert network.transform_input is expected
    assert any(
        "transform_input is false" in text and "--transform-input" in text for text in spec.assumed
    ) is (assumed)


def test_options_of_state_dicts_are_refused_where_they_mean_nothing(tmp_path: Path) -> None:
    path = str(saved(tmp_path / "w.pth", squeezenet().state_dict()))
    assert "transform_input has no meaning for squeezenet1_1" in error_of(path, transform_input=False)
    assert "norm_eps=0.001 is for frozen norms" in error_of(path, norm_eps=0.001)
    for source in ("googlenet", "math:floor"):
        text = error_of(source, transform_input=True, allow_code=True)
        assert f"transform_input=True has no meaning for {source}" in text


def frozen_retinanet() -> tuple[State, nn.Module]:
    """RetinaNet's tensors without counters, and its backbone with torchvision's own frozen norms."""
    network = models.detection.retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
    state = {name: one for name, one in network.state_dict().items() if "num_batches" not in name}
    state["backbone.body.bn1.running_var"].uniform_(1e-6, 1e-4)
    frozen: Any = resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, norm_layer=FrozenBatchNorm2d, returned_layers=[2, 3, 4]
    ).body
    start = "backbone.body."
    frozen.load_state_dict({name[len(start) :]: one for name, one in state.items() if name.startswith(start)})
    return state, frozen.eval()


def test_norms_that_were_frozen_have_the_epsilon_of_training(tmp_path: Path) -> None:
    state, frozen = frozen_retinanet()
    path = str(saved(tmp_path / "w.pth", state))
    pixels = torch.randn(1, 3, 64, 64) * 1e-2
    choices: tuple[tuple[dict[str, Any], float], ...] = (({}, 0.0), ({"norm_eps": 1e-5}, 1e-5))
    for options, eps in choices:
        spec = spec_of(path, arch="retinanet_resnet50_fpn", **options)
        assert any("epsilon of 0" in text and "--norm-eps" in text for text in spec.assumed) is (not options)
        for module in frozen.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = eps
        network: Any = spec.build().eval()
        with torch.inference_mode():
            first = network.network.backbone.body(pixels)["0"]
            expected = frozen(pixels)["0"]
        torch.testing.assert_close(first, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


def test_other_detectors_have_torchvisions_epsilon(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    network = models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    state = {key: one.half() for key, one in network.state_dict().items() if "num_batches" not in key}
    spec = spec_of(str(saved(tmp_path / "w.pth", state)), arch=name)
    assert "frozen norms have torchvision's epsilon, 1e-5" in spec.assumed
    found = {module.eps for module in spec.build().modules() if isinstance(module, nn.BatchNorm2d)}
    assert found == {1e-5}


def test_counters_that_are_there_are_of_norms_that_learned(tmp_path: Path) -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    network = models.get_model(name, weights=None, weights_backbone=None, num_classes=4)
    path = str(saved(tmp_path / "w.pth", network.state_dict()))
    assert spec_of(path, arch=name).assumed == ()
    assert "norm_eps=0 is for frozen norms" in error_of(path, arch=name, norm_eps=0.0)


def test_a_vision_transformer_of_other_pictures(tmp_path: Path) -> None:
    network = models.vit_b_32(weights=None, num_classes=3, image_size=96).half()
    spec = spec_of(str(saved(tmp_path / "w.pth", network.state_dict())))
    assert (spec.name, spec.preprocessing.fixed_hw, spec.preprocessing.resize_px) == (
        "vit_b_32",
        (96, 96),
        96,
    )
    assert any("of 96 px" in text for text in spec.assumed)
