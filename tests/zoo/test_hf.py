"""Networks of transformers from a folder: answers against the library's own, and what is refused."""

from __future__ import annotations

import io
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model_inference import Model
from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import Clip, ModelSpec
from pipelines.protocol.answers import Answer, ClassificationAnswer, DetectionAnswer
from pipelines.protocol.options import Options
from tests.support import hf_networks as networks
from tests.support.hf_networks import NAMES, changed, saved
from tests.support.pixels import natural
from tests.support.sources import error_of, spec_of

AnswerT = TypeVar("AnswerT", bound=Answer)


@pytest.fixture(scope="module")
def hf() -> Any:
    """The library, which takes some seconds to import and warns of much."""
    pytest.importorskip("transformers", reason="the extra transformers is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

    return transformers


def served(spec: ModelSpec, medium: bytes, kind: type[AnswerT], **options: Any) -> AnswerT:
    pipeline = make_pipeline(spec, "cpu", limits=Limits(chunk_frames=4))
    try:
        parts = [one for one in pipeline.run(medium, Options(**options)) if isinstance(one, kind)]
        return kind.concatenate(parts)
    finally:
        pipeline.batcher.close()


def by_library(hf: Any, network: nn.Module, folder: Path, picture: Image.Image) -> Any:
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    with torch.inference_mode():
        return processor, network(**processor(images=picture, return_tensors="pt"))


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (networks.vit, "baboon_1280px.jpg"),
        (networks.vit, "monkey_1920px.jpg"),
        (networks.resnet, "monkey_1920px.jpg"),
    ],
)
def test_classes_and_probabilities_are_the_librarys(
    hf: Any, make: Callable[..., Any], file: str, shared_media: Path, tmp_path: Path
) -> None:
    photograph = (shared_media / file).read_bytes()
    network = saved(hf, make, tmp_path)
    spec = spec_of(f"hf:{tmp_path}", engine="torch")
    assert (spec.task, spec.labels) == ("classification", tuple(NAMES.values()))
    answer = served(spec, photograph, ClassificationAnswer, top_k=len(NAMES))
    picture = Image.open(io.BytesIO(photograph)).convert("RGB")
    _, outputs = by_library(hf, network, tmp_path, picture)
    expected = outputs.logits.softmax(1)[0].numpy()
    assert expected.max() - expected.min() > 0.05
    assert answer.class_id[0].tolist() == np.argsort(-expected).tolist()
    assert answer.class_name[0, 0] == NAMES[int(expected.argmax())]
    np.testing.assert_allclose(answer.probability[0], np.sort(expected)[::-1], atol=0.01)


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (networks.detr, "baboon_1280px.jpg"),
        (networks.detr, "monkey_1920px.jpg"),
        (networks.conditional_detr, "baboon_1280px.jpg"),
        (networks.yolos, "monkey_1920px.jpg"),
        (networks.rt_detr, "baboon_1280px.jpg"),
        (networks.rt_detr, "monkey_1920px.jpg"),
        (networks.rt_detr_v2, "baboon_1280px.jpg"),
    ],
)
def test_boxes_classes_and_scores_are_the_librarys(
    hf: Any, make: Callable[..., Any], file: str, shared_media: Path, tmp_path: Path
) -> None:
    photograph = (shared_media / file).read_bytes()
    network = saved(hf, make, tmp_path)
    picture = Image.open(io.BytesIO(photograph)).convert("RGB")
    processor, outputs = by_library(hf, network, tmp_path, picture)
    sizes = [(picture.height, picture.width)]
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)[0]
    scores = found["scores"].sort(descending=True).values
    # Between two scores that are well apart, so that rounding decides nothing.
    cut = int((scores[4:12] - scores[5:13]).argmax()) + 4
    assert scores[cut] - scores[cut + 1] > 1e-4
    threshold = float(scores[cut] + scores[cut + 1]) / 2
    spec = spec_of(f"hf:{tmp_path}", engine="torch")
    answer = served(spec, photograph, DetectionAnswer, score_threshold=threshold)

    expected = processor.post_process_object_detection(outputs, threshold=threshold, target_sizes=sizes)[0]
    order = expected["scores"].argsort(descending=True)
    assert len(order) == cut + 1
    limits = torch.tensor([picture.width, picture.height, picture.width, picture.height])
    boxes = expected["boxes"][order].clamp(min=torch.zeros(4), max=limits)
    np.testing.assert_allclose(answer.score, expected["scores"][order], atol=1e-3)
    assert sorted(answer.class_id.tolist()) == sorted(expected["labels"].tolist())
    assert same_boxes(answer, boxes, expected["labels"][order])


def same_boxes(answer: DetectionAnswer, boxes: Tensor, labels: Tensor) -> bool:
    """Each box has one of its class within half a pixel of a thousand; those of equal scores in any order."""
    close = np.abs(answer.box[:, None] - boxes.numpy()[None]).max(2) < 1.0
    same = close & (answer.class_id[:, None] == labels.numpy()[None])
    return bool(same.any(0).all() and same.any(1).all())


def test_a_segmenters_logits_are_the_librarys(hf: Any, tmp_path: Path) -> None:
    network = saved(hf, networks.segformer, tmp_path)
    spec = spec_of(f"hf:{tmp_path}")
    assert (spec.task, len(spec.labels)) == ("segmentation", len(NAMES))
    pixels = torch.rand(2, 3, 64, 64)
    output = Model(spec, "cpu")(pixels)
    assert isinstance(output, LogitOutput)
    with torch.inference_mode():
        coarse = network(pixels).logits
    expected = nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-3)


def test_clips_have_their_frames_where_the_library_wants_them(hf: Any, tmp_path: Path) -> None:
    network = saved(hf, networks.videomae, tmp_path)
    assert "does not state its clip rate" in error_of(f"hf:{tmp_path}")
    assert "takes clips of 4 frames only" in error_of(f"hf:{tmp_path}", clip_fps=8.0, clip_length=8)
    spec = spec_of(f"hf:{tmp_path}", clip_fps=8.0)
    assert (spec.task, spec.clip) == ("action", Clip(length=4, fps=8.0, fixed=True))
    frames = [natural(61, 80, count=1)[0] for _ in range(4)]
    frames = [np.roll(frame, 9 * place, axis=1) for place, frame in enumerate(frames)]
    processor = hf.AutoImageProcessor.from_pretrained(tmp_path)
    pixels = processor([frames], return_tensors="pt")["pixel_values"]
    output = Model(spec, "cpu")(pixels.transpose(1, 2))
    assert isinstance(output, LogitOutput)
    with torch.inference_mode():
        torch.testing.assert_close(output.logits, network(pixels).logits, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("softmax", False)),
        ({"problem_type": "single_label_classification"}, ("softmax", False)),
        ({"problem_type": "multi_label_classification"}, ("sigmoid", True)),
        ({"problem_type": "regression"}, ("none", False)),
        ({"id2label": {0: "plate"}, "label2id": {"plate": 0}}, ("sigmoid", False)),
    ],
)
def test_scores_are_made_as_in_the_librarys_pipelines(
    hf: Any, options: dict[str, Any], expected: tuple[str, bool], tmp_path: Path
) -> None:
    saved(hf, networks.vit, tmp_path, **options)
    spec = spec_of(f"hf:{tmp_path}")
    assert (spec.activation, spec.multi_label) == expected


def test_tensors_that_the_folder_lacks_are_an_error_and_not_noise(hf: Any, tmp_path: Path) -> None:
    hf.ViTModel(hf.ViTConfig(**networks.VIT, **networks.LABELS)).save_pretrained(tmp_path)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    assert "holds a ViTModel of transformers: only those for" in error_of(f"hf:{tmp_path}")
    spec = spec_of(f"hf:{changed(tmp_path, architectures=['ViTForImageClassification'])}")
    with pytest.raises(Exception, match=r"lacks 2 tensors .*classifier\.bias, classifier\.weight"):
        spec.build()


def test_weights_of_other_shapes_are_refused(hf: Any, tmp_path: Path) -> None:
    saved(hf, networks.vit, tmp_path)
    more = {str(number): str(number) for number in range(7)}
    spec = spec_of(f"hf:{changed(tmp_path, id2label=more, label2id=None)}")
    with pytest.raises(Exception, match="its weights cannot be loaded"):
        spec.build()


@pytest.fixture(scope="module")
def vit_folder(hf: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    saved(hf, networks.vit, folder)
    return folder


@pytest.fixture
def folder(vit_folder: Path, tmp_path: Path) -> Path:
    """One that a test may change."""
    for path in vit_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


CODE = {"AutoConfig": "own.OwnConfig", "AutoModelForImageClassification": "own.Own"}


def test_code_of_a_folder_never_runs(folder: Path) -> None:
    (folder / "own.py").write_text("raise SystemExit('it ran')\n")
    # A network of the library's own has no need of it.
    assert spec_of(f"hf:{changed(folder, auto_map=CODE)}").task == "classification"
    wrong = error_of(f"hf:{changed(folder, model_type='own')}")
    assert "model_type 'own', which this version of transformers does not know" in wrong
    assert "the code that the folder brings (auto_map) is not run" in wrong
    assert "own" not in sys.modules
    saved_processor = {"auto_map": {"AutoImageProcessor": "own.Own"}, "image_processor_type": "Own"}
    changed(folder, "preprocessor_config.json", **saved_processor)
    assert "its processor cannot be read" in error_of(f"hf:{changed(folder, model_type='vit')}")


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("ran",)


def test_a_pickle_is_read_without_running_it(folder: Path, monkeypatch: pytest.MonkeyPatch, hf: Any) -> None:
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    assert isinstance(Model(spec_of(f"hf:{folder}"), "cpu").outputs, tuple)
    monkeypatch.chdir(folder)
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"x": Hostile()}))
    spec = spec_of(f"hf:{folder}")
    with pytest.raises(Exception, match="its weights cannot be loaded"):
        spec.build()
    assert not (folder / "ran").exists()


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def written(name: str, text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(text)

    return write


def fields(file: str = "config.json", **values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        changed(folder, file, **values)

    return change


PIXELS = "preprocessor_config.json"


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (without("config.json"), "no config.json in"),
        (without("model.safetensors"), "has no weights"),
        (without(PIXELS), "does not say how pixels are prepared: no preprocessor_config.json"),
        (written("config.json", "{"), "config.json"),
        (written("config.json", "[]"), "config.json"),
        (written("config.json", "[" * 9999), "config.json"),
        (written(PIXELS, "{"), "its processor cannot be read"),
        (written("adapter_config.json", "{}"), "holds an adapter"),
        (fields(model_type="bert", architectures=["BertForMaskedLM"]), "holds a BertForMaskedLM"),
        (fields(model_type=None), "model_type ''"),
        (fields(num_labels=10**9, id2label=None, label2id=None), "num_labels"),
        (fields(id2label={"0": "a\nb", "1": "c", "2": "d", "3": "e"}), "as label 0 a text that is not print"),
        (fields(id2label={"x": "a"}), "its config.json cannot be read"),
        (fields(PIXELS, resample=1), "ViTImageProcessor has resample = lanczos"),
        (fields(PIXELS, do_split_image=True), "ViTImageProcessor has do_split_image = True"),
        (fields(PIXELS, image_mean="x"), "ViTImageProcessor"),
        (
            fields(PIXELS, size={"height": 10**6, "width": 10**6}),
            "ViTImageProcessor has a field that is wrong",
        ),
        (fields(PIXELS, size={"max_height": 64, "max_width": 64}), "ViTImageProcessor has size = "),
        (fields(PIXELS, image_processor_type="NoImageProcessor"), "its processor cannot be read"),
    ],
)
def test_a_folder_that_is_not_right_is_refused_by_name(
    damage: Callable[[Path], None], wrong: str, folder: Path
) -> None:
    damage(folder)
    assert wrong in error_of(f"hf:{folder}")


def test_options_that_mean_nothing_are_refused(folder: Path) -> None:
    assert "weights=random has no meaning for hf:" in error_of(f"hf:{folder}", weights="random")
    assert "arch=vit has no meaning" in error_of(f"hf:{folder}", arch="vit")
    assert "is not the pinned file" in error_of(f"hf:{folder}", sha256="0" * 64)
    assert "is a classification model, not detection" in error_of(f"hf:{folder}", task="detection")


def test_a_name_that_is_missing_is_a_number(folder: Path) -> None:
    names = {"0": "cat", "2": "bird", "3": "N/A", "7": "dog"}
    assert spec_of(f"hf:{changed(folder, id2label=names)}").labels == ("cat", "1", "bird", "N/A")


def test_the_licence_is_the_model_cards(folder: Path) -> None:
    (folder / "README.md").write_text("---\ntags: [a]\nlicense: apache-2.0\n---\nlicense: mit\n")
    assert spec_of(f"hf:{folder}").licence == "apache-2.0"
    (folder / "README.md").write_text("no fields\nlicense: mit\n")
    assert spec_of(f"hf:{folder}").licence == ""


def test_the_librarys_log_is_as_it_was(folder: Path, hf: Any) -> None:
    before = logging.getLogger("transformers").level
    Model(spec_of(f"hf:{folder}"), "cpu")
    assert logging.getLogger("transformers").level == before


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setitem(sys.modules, "transformers.models.auto.configuration_auto", None)
    wrong = error_of(f"hf:{tmp_path}")
    assert "transformers is not installed" in wrong
    assert "uv sync --extra transformers, or pip install transformers" in wrong
