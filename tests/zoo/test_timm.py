"""timm's networks: answers against timm's own transforms, weights from files and folders, what is refused."""

from __future__ import annotations

import io
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from model_inference import Model
from pipelines.assembly import make_pipeline
from pipelines.frames.resize import prepare_on_cpu
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import Preprocessing
from pipelines.protocol.answers import ClassificationAnswer
from pipelines.protocol.errors import ModelUnavailable
from pipelines.protocol.options import Options
from pipelines.settings.model import ModelTable
from pipelines.zoo.libraries.shared import checked_labels
from tests.support.pixels import natural
from tests.support.sources import error_of, spec_of

pytest.importorskip("timm", reason="the extra timm is not installed")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import timm as untyped

# Its annotations are few and partly wrong.
timm: Any = untyped

# The smallest of its kinds: 0.1 to 0.4 million weights.
SMALL = "test_vit"


def logits_of(spec: Any, pixels: torch.Tensor) -> torch.Tensor:
    output = Model(spec, "cpu")(pixels)
    assert isinstance(output, LogitOutput)
    return output.logits


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "baboon_1280px.jpg"),
        ("mobilenetv3_small_050", "monkey_1920px.jpg"),
        (SMALL, "baboon_1280px.jpg"),
    ],
)
def test_classes_and_probabilities_are_timms(
    name: str, file: str, shared_media: Path, tmp_path: Path
) -> None:
    # Noise that answers differently for each picture, as timm takes it from a file.
    network = spec_of(f"timm:{name}", weights="random").build()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    spec = spec_of(f"timm:{name}", weights=str(tmp_path / "weights.safetensors"), engine="torch", max_batch=1)
    photograph = (shared_media / file).read_bytes()
    pipeline = make_pipeline(spec, "cpu", limits=Limits(chunk_frames=4))
    parts = [*pipeline.run(photograph, Options(top_k=1000))]
    pipeline.batcher.close()
    answer = ClassificationAnswer.concatenate([one for one in parts if isinstance(one, ClassificationAnswer)])

    own = timm.create_model(name, checkpoint_path=str(tmp_path / "weights.safetensors")).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(own), is_training=False)
    with torch.inference_mode():
        picture = Image.open(io.BytesIO(photograph)).convert("RGB")
        expected = own(transform(picture)[None]).softmax(1)[0].numpy()
    found = np.empty(1000, np.float32)
    found[answer.class_id[0]] = answer.probability[0]
    assert expected.max() > 0.01
    assert answer.class_id[0, 0] == expected.argmax()
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", Preprocessing(resize_px=235, crop_px=(224, 224), interpolation="bicubic")),
        (
            "vit_tiny_patch16_224",
            Preprocessing(
                resize_px=248,
                crop_px=(224, 224),
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                interpolation="bicubic",
            ),
        ),
        ("dla34", Preprocessing(resize_px=256, crop_px=(224, 224))),
        (
            "volo_d4_448",
            Preprocessing(resize_px=389, crop_px=(448, 448), interpolation="bicubic"),
        ),
        (
            "convnext_tiny.fb_in22k_ft_in1k_384",
            Preprocessing(resize_px=(384, 384), crop_px=(384, 384), interpolation="bicubic"),
        ),
    ],
)
def test_pixels_are_those_of_its_configuration(name: str, expected: Preprocessing) -> None:
    assert spec_of(f"timm:{name}", weights="random").preprocessing == expected


def test_labels_are_imagenets_by_their_number() -> None:
    spec = spec_of("timm:resnet18")
    assert (spec.name, spec.task, len(spec.labels), spec.licence) == (
        "resnet18.a1_in1k",
        "classification",
        1000,
        "apache-2.0",
    )
    assert (spec.labels[0], spec.labels[372]) == ("tench, Tinca tinca", "baboon")
    of_22k = spec_of("timm:beit_base_patch16_224.in22k_ft_in22k").labels
    assert (len(of_22k), of_22k[0]) == (21841, "organism, being")


def test_a_network_without_classes_is_an_embedding() -> None:
    assert spec_of("timm:vit_small_patch14_dinov2").task == "embedding"
    spec = spec_of(f"timm:{SMALL}", weights="random", task="embedding")
    assert (spec.task, spec.labels) == ("embedding", ())
    network = spec.build()
    assert network(torch.rand(1, 3, 160, 160)).shape == (1, 64)
    # A tower of CLIP: are its 1024 numbers classes or features?
    assert "does not state its task" in error_of("timm:resnet50_clip.openai")
    assert spec_of("timm:resnet50_clip.openai", task="embedding").task == "embedding"


def weights_of(tmp_path: Path, classes: int, name: str = SMALL) -> tuple[Any, Path]:
    torch.manual_seed(1)
    network = timm.create_model(name, num_classes=classes).eval()
    path = tmp_path / "mine.pth"
    torch.save({"state_dict": network.state_dict()}, path)
    return network, path


def test_a_file_says_how_many_classes_there_are(tmp_path: Path, seeded: None) -> None:
    network, path = weights_of(tmp_path, 7)
    spec = spec_of(f"timm:{SMALL}", weights=str(path))
    assert (spec.task, spec.labels, spec.licence) == ("classification", (), "")
    assert spec.assumed == ("pixels are prepared as for timm's own weights of test_vit.r160_in1k",)
    pixels = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(spec, pixels), network(pixels), atol=1e-4, rtol=1e-3)
        features = spec_of(f"timm:{SMALL}", weights=str(path), task="embedding").build().eval()(pixels)
        torch.testing.assert_close(
            features, network.forward_head(network.forward_features(pixels), pre_logits=True)
        )


def test_weights_of_its_first_authors_are_renamed(tmp_path: Path, seeded: None) -> None:
    network = timm.create_model("test_convnext", num_classes=5).eval()
    first = {}
    for name, tensor in network.state_dict().items():
        new = re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)
        new = new.replace("stem.", "downsample_layers.0.").replace("blocks.", "").replace("conv_dw", "dwconv")
        new = new.replace("mlp.fc", "pwconv").replace("head.norm", "norm").replace("head.fc", "head")
        first[new] = tensor
    assert not network.state_dict().keys() <= first.keys()
    torch.save({"model": first}, tmp_path / "first.pth")
    spec = spec_of("timm:test_convnext", weights=str(tmp_path / "first.pth"))
    pixels = torch.rand(2, 3, 160, 160)
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(spec, pixels), network(pixels), atol=1e-4, rtol=1e-3)
    assert "is not the pinned file" in error_of(
        "timm:test_convnext", weights=str(tmp_path / "first.pth"), sha256="0" * 64
    )


def saved_folder(
    tmp_path: Path, texts: Any = None, names: Any = ("cat", "dog", "bird"), **pixels: Any
) -> Path:
    """A network of three classes, saved with timm's own function."""
    network = timm.create_model(SMALL, num_classes=3, pretrained_cfg_overlay={"license": "mit", **pixels})
    said = {"label_names": names, "label_descriptions": texts}
    folder = tmp_path / "saved"
    timm.models.save_for_hf(network, folder, model_config=said, safe_serialization=True)
    return folder


def test_a_folder_brings_labels_pixels_and_weights(tmp_path: Path, seeded: None) -> None:
    folder = saved_folder(tmp_path, mean=(0.1, 0.2, 0.3))
    spec = spec_of(f"timm:{folder}")
    assert (spec.name, spec.task, spec.labels) == (SMALL, "classification", ("cat", "dog", "bird"))
    assert (spec.preprocessing.mean, spec.licence, spec.assumed) == ((0.1, 0.2, 0.3), "mit", ())
    pixels = torch.rand(2, 3, 160, 160)
    own = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.inference_mode():
        torch.testing.assert_close(logits_of(spec, pixels), own(pixels), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("mode", "size"), [("center", (3, 96, 96)), ("squash", (3, 96, 128))])
@pytest.mark.parametrize("crop_pct", [0.9, 1.0, 1.15])
def test_pixels_are_timms(mode: str, size: tuple[int, ...], crop_pct: float, tmp_path: Path) -> None:
    folder = saved_folder(tmp_path, crop_mode=mode, input_size=size, crop_pct=crop_pct)
    facts = spec_of(f"timm:{folder}").preprocessing
    config = timm.create_model(f"local-dir:{folder}").pretrained_cfg
    transform = timm.data.create_transform(
        **timm.data.resolve_data_config(pretrained_cfg=config), is_training=False
    )
    for size_hw in ((123, 187), (190, 95)):
        picture = natural(*size_hw)
        difference = (prepare_on_cpu(picture, facts)[0] - transform(Image.fromarray(picture[0]))).abs()
        # timm prepares with Pillow, which rounds otherwise, and more so where a cubic curve overshoots.
        assert float(difference.max()) <= 8 / 255 / min(facts.std)
        assert float(difference.mean()) <= 0.5 / 255 / min(facts.std)


def test_descriptions_are_the_labels_where_there_are_any(tmp_path: Path) -> None:
    texts = {"cat": "domestic cat", "bird": "any bird"}
    labels = spec_of(f"timm:{saved_folder(tmp_path, texts)}").labels
    assert labels == ("domestic cat", "dog", "any bird")


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"crop_mode": "border"}, "needs crop_mode 'border', which is not supported"),
        ({"interpolation": "lanczos"}, "needs interpolation 'lanczos'"),
        ({"input_size": [1, 160, 160]}, "needs 1 channels"),
        ({"input_size": [3, 160, 200]}, "needs an input of 160x200 px that keeps the aspect"),
        ({"crop_pct": "x"}, "configuration of its pixels is wrong"),
        ({"std": [0, 0, 0]}, "configuration of its pixels is wrong"),
        ({"names": ["cat"]}, "has 1 labels for 3 classes"),
    ],
)
def test_a_folder_of_what_cannot_be_served_is_refused(
    fields: dict[str, Any], wrong: str, tmp_path: Path
) -> None:
    assert wrong in error_of(f"timm:{saved_folder(tmp_path, **fields)}")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("{", "is not timm's"),
        ("[]", "is not timm's"),
        ('{"model_type": "vit"}', "is not timm's"),
        ('{"architecture": "nothing"}', "timm has no model 'nothing'"),
        (
            '{"architecture": "test_vit", "pretrained_cfg": {}, "model_args": {"nonsense": 1}}',
            "timm cannot build test_vit",
        ),
    ],
)
def test_a_configuration_that_is_not_right_is_refused(text: str, wrong: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    save_file(timm.create_model(SMALL).state_dict(), tmp_path / "model.safetensors")
    if "cannot build" not in wrong:
        assert wrong in error_of(f"timm:{tmp_path}")
        return
    with pytest.raises(ModelUnavailable, match=wrong):
        spec_of(f"timm:{tmp_path}").build()


def test_a_folder_without_weights_downloads_none(tmp_path: Path) -> None:
    folder = saved_folder(tmp_path, hf_hub_id="somebody/else")
    (folder / "model.safetensors").unlink()
    assert f"no weights in {folder}" in error_of(f"timm:{folder}")
    assert spec_of(f"timm:{folder}", weights="random").labels == ("cat", "dog", "bird")


@pytest.mark.parametrize(
    ("source", "options", "wrong"),
    [
        ("timm:resnet81", {}, "timm has no model 'resnet81'; closest: resnet18, "),
        ("timm:", {}, "timm has no model ''"),
        ("timm:hf-hub:timm/resnet18", {}, "hf download OWNER/NAME --local-dir FOLDER"),
        ("timm:./nowhere", {}, "no config.json in nowhere"),
        ("timm:resnet18.nope", {}, "timm has no weights 'resnet18.nope' (one of: resnet18.a1_in1k, "),
        ("timm:resnet18", {"arch": "resnet18"}, "arch=resnet18 has no meaning for timm:resnet18"),
        ("timm:resnet18", {"weights": "nowhere.pth"}, "no weights file nowhere.pth"),
        ("timm:resnet18", {"weights": "random", "sha256": "0" * 64}, "random weights are not a file"),
        ("timm:resnet18", {"task": "detection"}, "is a classification model, not detection"),
        ("timm:efficientnet_b8", {}, "timm has no weights of efficientnet_b8"),
    ],
)
def test_what_is_not_there_is_refused(source: str, options: dict[str, Any], wrong: str) -> None:
    assert wrong in error_of(source, **options)


def test_downloaded_pickles_are_read_without_running_code(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, seeded: None
) -> None:
    network = timm.create_model(SMALL, num_classes=1000).eval()
    path, pixels = tmp_path / "pytorch_model.bin", torch.rand(2, 3, 160, 160)
    monkeypatch.setattr("pipelines.zoo.libraries.timm_models._hub_file", lambda _: path)
    torch.save(network.state_dict(), path)
    built = spec_of(f"timm:{SMALL}").build().eval()
    with torch.inference_mode():
        torch.testing.assert_close(built(pixels), network(pixels))
    assert "state_dict" not in vars(built)["pretrained_cfg"]
    torch.save({"model": network}, path)
    with pytest.raises(ModelUnavailable, match="not a state dict that can be read without running code"):
        spec_of(f"timm:{SMALL}").build()


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    _, path = weights_of(tmp_path, 5, "test_efficientnet")
    spec = spec_of(f"timm:{SMALL}", weights=str(path))
    with pytest.raises(ModelUnavailable, match="holds the weights of another network"):
        spec.build()


def test_without_a_network_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailable) as caught:
        spec_of("timm:resnet18").build()
    assert "cannot get the weights of resnet18.a1_in1k from the Hugging Face Hub" in caught.value.message
    assert "--weights FILE" in caught.value.hint
    assert "hf download timm/resnet18.a1_in1k --local-dir FOLDER" in caught.value.hint


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "uv sync --extra timm, or pip install timm" in error_of("timm:resnet18")


def test_folders_in_a_settings_file_are_beside_it(tmp_path: Path) -> None:
    def source(text: str) -> str:
        return ModelTable(source=text).settings(tmp_path, "here").source

    assert source("hf:vit") == f"hf:{tmp_path}/vit"
    assert source("timm:./vit") == f"timm:{tmp_path}/vit"
    assert source("timm:resnet18") == "timm:resnet18"


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [
        (("a",), "has 1 labels for 2 classes"),
        (("a", 3), "as label 1 a text that is a int"),
        (("a\n", "b"), "as label 0 a text that is not printable"),
    ],
)
def test_labels_that_cannot_be_shown_are_refused(labels: tuple[Any, ...], wrong: str) -> None:
    with pytest.raises(ModelUnavailable, match=wrong):
        checked_labels(labels, 2, "it")
    assert json.dumps(checked_labels(("a", "b"), 2, "it")) == '["a", "b"]'
