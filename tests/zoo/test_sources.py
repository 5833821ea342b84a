"""Where models come from: torchvision's names, what their weights say, and state dicts of one's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_inference import Model
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import Clip, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.demo.specs import demo_specs
from pipelines.zoo.vision.architectures import names
from pipelines.zoo.vision.models import list_models
from tests.conftest import free_ports
from tests.support.sources import error_of, spec_of


def network_of(name: str, classes: int) -> nn.Module:
    from torchvision import models

    torch.manual_seed(3)
    options = {} if name in ("squeezenet1_1", "shufflenet_v2_x0_5", "r3d_18") else {"weights_backbone": None}
    network: nn.Module = models.get_model(name, weights=None, num_classes=classes, **options)
    return network.eval()


@pytest.mark.parametrize(
    ("source", "name", "task", "classes"),
    [
        ("resnet50", "resnet50", "classification", 1000),
        ("torchvision.models.resnet50", "resnet50", "classification", 1000),
        ("torchvision.models.resnet.resnet50", "resnet50", "classification", 1000),
        ("models.video.r3d_18", "r3d_18", "action", 400),
        (
            "torchvision.models.detection.ssdlite320_mobilenet_v3_large",
            "ssdlite320_mobilenet_v3_large",
            "detection",
            91,
        ),
        ("segmentation.fcn_resnet101", "fcn_resnet101", "segmentation", 21),
    ],
)
def test_names_and_import_paths_say_their_task(source: str, name: str, task: str, classes: int) -> None:
    spec = spec_of(source, weights="random")
    assert (spec.name, spec.task, len(spec.labels)) == (name, task, classes)
    assert "RANDOM WEIGHTS (noise" in spec.source


def test_every_name_of_torchvisions_is_served_or_says_why_not() -> None:
    from torchvision import models

    served = names()
    assert len(served) >= 80
    left_out = set(models.list_models()) - set(served)
    assert {name.split("_")[0] for name in left_out} == {"quantized", "raft"}
    for name in sorted(left_out):
        assert "quantized" in error_of(name) or "optical flow" in error_of(name)


def test_the_list_of_models_says_task_size_classes_and_licence() -> None:
    rows = {row.split()[0]: row for row in list_models()}
    assert len(rows) == len(names()) + 1
    assert rows["resnet50"].split() == ["resnet50", "classification", "224x224", "1000", "-"]
    assert "800 (shorter side), at most 1333  " in rows["fasterrcnn_resnet50_fpn"]
    assert "224x224, 16 frames at 7.5/s" in rows["mvit_v2_s"]
    assert rows["vit_h_14"].endswith("https://github.com/facebookresearch/SWAG/blob/main/LICENSE")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("resnet50", Preprocessing(resize_px=232, crop_px=(224, 224))),
        ("swin_v2_t", Preprocessing(resize_px=260, crop_px=(256, 256), interpolation="bicubic")),
        ("lraspp_mobilenet_v3_large", Preprocessing(resize_px=520)),
        (
            "r3d_18",
            Preprocessing(
                resize_px=(128, 171),
                crop_px=(112, 112),
                mean=(0.43216, 0.394666, 0.37645),
                std=(0.22803, 0.22145, 0.216989),
                antialias=False,
            ),
        ),
        (
            "ssdlite320_mobilenet_v3_large",
            Preprocessing(
                resize_px=(320, 320), mean=(0.5,) * 3, std=(0.5,) * 3, antialias=False, round_pixels=False
            ),
        ),
    ],
)
def test_preprocessing_comes_from_the_weights(source: str, expected: Preprocessing) -> None:
    assert spec_of(source).preprocessing == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("r3d_18", Clip(length=16, fps=15)),
        ("s3d", Clip(length=128, fps=15)),
        ("swin3d_t", Clip(length=32, fps=15)),
        ("mvit_v2_s", Clip(length=16, fps=7.5, fixed=True)),
        ("mvit_v1_b", Clip(length=16, fps=7.5, fixed=True)),
    ],
)
def test_clips_come_from_the_weights_documentation(source: str, expected: Clip) -> None:
    assert spec_of(source).clip == expected


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_random_weights_are_seeded_and_tell_pictures_apart(name: str) -> None:
    before = torch.get_rng_state()
    first, second = (spec_of(name, weights="random").build().eval() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    pictures = torch.randn(3, 3, 7, 7, generator=torch.Generator().manual_seed(5))
    pixels = nn.functional.interpolate(pictures, size=(224, 224), mode="bilinear")
    with torch.inference_mode():
        logits = first(pixels)
        assert torch.equal(logits, second(pixels))
    assert logits.isfinite().all()
    assert 0.3 < float((logits - logits.mean(0)).std()) < 30
    assert not any(module.training for module in first.modules())


def test_last_layers_that_start_from_zero_are_woken() -> None:
    network = spec_of("vit_b_32", weights="random").build()
    with torch.inference_mode():
        logits = network.eval()(torch.zeros(1, 3, 224, 224))
    assert float(logits.std()) > 0.3


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "r3d_18", "ssdlite320_mobilenet_v3_large"])
def test_models_with_random_weights_answer(name: str) -> None:
    spec = (
        spec_of(name, weights="random", clip_length=8)
        if name == "r3d_18"
        else spec_of(name, weights="random")
    )
    outputs = {facts.name: facts.dims for facts in Model(spec, "cpu").outputs}
    assert outputs in (
        {"out": (21, None, None)},
        {"logits": (400,)},
        {"boxes": (None, 4), "labels": (None,), "scores": (None,)},
    )


def test_offline_without_weights_the_error_names_the_ways_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = f"http://127.0.0.1:{free_ports(1)[0]}"
    for name, value in (("TORCH_HOME", str(tmp_path)), ("https_proxy", closed), ("http_proxy", closed)):
        monkeypatch.setenv(name, value)
    for sha256 in ("", "00"):
        spec = spec_of("squeezenet1_1", sha256=sha256)
        with pytest.raises(ModelUnavailable, match="cannot download the weights of squeezenet1_1") as caught:
            spec.build()
        for way_out in ("--weights FILE", str(tmp_path), "--demo"):
            assert way_out in str(caught.value)


def test_weights_in_the_cache_are_checked_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    cached = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir(parents=True)
    cached.write_bytes(b"others")
    with pytest.raises(ModelUnavailable, match="expected sha256 00, found 01db91d0"):
        spec_of("squeezenet1_1", sha256="00").build()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("form", ["source", "weights"])
def test_a_state_dict_of_ones_own_with_other_classes(tmp_path: Path, suffix: str, form: str) -> None:
    network = network_of("squeezenet1_1", classes=10)
    file = tmp_path / f"own{suffix}"
    save_file(network.state_dict(), file) if suffix == ".safetensors" else torch.save(
        network.state_dict(), file
    )
    spec = (
        spec_of(str(file), arch="squeezenet1_1")
        if form == "source"
        else spec_of("squeezenet1_1", weights=str(file))
    )
    assert spec.labels == ()
    model = Model(spec, "cpu")
    assert model.spec.labels == tuple(map(str, range(10)))
    pixels = torch.randn(1, 3, 224, 224)
    answer = model(pixels)
    assert isinstance(answer, LogitOutput)
    with torch.inference_mode():
        torch.testing.assert_close(answer.logits, network(pixels))


@pytest.mark.parametrize(
    ("name", "classes", "key"),
    [
        ("lraspp_mobilenet_v3_large", 5, "state_dict"),
        ("r3d_18", 7, "model"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", 4, ""),
        ("ssdlite320_mobilenet_v3_large", 6, ""),
        ("retinanet_resnet50_fpn", 3, ""),
    ],
)
def test_classes_are_counted_in_every_kind_of_head(tmp_path: Path, name: str, classes: int, key: str) -> None:
    state = network_of(name, classes).state_dict()
    file = tmp_path / "own.pth"
    torch.save({key: state} if key else state, file)
    spec = spec_of(name, weights=str(file))
    assert spec.labels == ()
    built = spec.build().state_dict()
    assert {tuple(tensor.shape) for tensor in built.values()} == {tuple(one.shape) for one in state.values()}


def test_a_detector_without_batch_norms_has_random_weights_too() -> None:
    network = spec_of("ssd300_vgg16", weights="random").build().eval()
    with torch.inference_mode():
        (frame,) = network(torch.randn(1, 3, 300, 300))
    assert frame["boxes"].shape[1] == 4


def test_weights_of_another_network_are_named(tmp_path: Path) -> None:
    file = tmp_path / "own.pth"
    state = network_of("squeezenet1_1", classes=10).state_dict()
    torch.save(state, file)
    said = (
        r"weights of another network: missing tensors: \d+, e\.g\. .*; unknown tensors: \d+, e\.g\. features"
    )
    with pytest.raises(ModelUnavailable, match=said):
        spec_of("shufflenet_v2_x0_5", weights=str(file)).build()
    torch.save({name: state[name] for name in [*state][1:]}, file)
    with pytest.raises(
        ModelUnavailable, match=r"network: missing tensors: 1, e\.g\. features\.0\.weight \(c"
    ):
        spec_of("squeezenet1_1", weights=str(file)).build()
    state["features.0.weight"] = torch.zeros(1)
    torch.save(state, file)
    with pytest.raises(ModelUnavailable, match=r"features.0.weight is \(1,\), expected \(64, 3, 3, 3\)"):
        spec_of("squeezenet1_1", weights=str(file)).build()


def test_training_heads_may_be_there_or_not(tmp_path: Path) -> None:
    from torchvision import models

    network = models.get_model("googlenet", weights=None, num_classes=1000, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    built = spec_of("googlenet", weights=str(tmp_path / "own.pth")).build()
    assert not [name for name in built.state_dict() if name.startswith("aux")]


def test_demo_models_answer() -> None:
    specs = demo_specs()
    assert "segmentation" in specs
    for task, spec in specs.items():
        assert spec.task == task
        assert spec.labels
        Model(spec, "cpu")
