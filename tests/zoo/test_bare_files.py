"""Files as exporters write them, served as they are: what is answered, or the line that says why not."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import resnet18

from model_inference import Model
from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.protocol.answers import ClassificationAnswer, DetectionAnswer, SegmentationAnswer
from pipelines.protocol.errors import ModelUnavailable
from pipelines.protocol.options import Options
from tests.support.sources import error_of, spec_of

SIDE = 64
Give = Callable[[Tensor], Any]


class Given(nn.Module):
    def __init__(self, give: Give) -> None:
        super().__init__()
        self.give = give

    def forward(self, pixels: Tensor) -> Any:
        return self.give(pixels)


def exported(
    path: Path, give: Give, *names: str, dtype: torch.dtype = torch.float32, nhwc: bool = False
) -> Path:
    pixels = torch.zeros((1, SIDE, SIDE, 3) if nhwc else (1, 3, SIDE, SIDE)).to(dtype)
    network = Given(give).eval()
    if path.suffix == ".pt2":
        torch.export.save(torch.export.export(network, (pixels,)), path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(network, (pixels,), path, output_names=names or ("out",), dynamo=False)
    return path


def answer_of(path: Path, picture: Any, **options: Any) -> Any:
    pipeline = make_pipeline(spec_of(str(path), allow_code=True, **options), "cpu", limits=Limits())
    encoded = io.BytesIO()
    Image.fromarray(picture).save(encoded, "PNG")
    found = pipeline.task.answer.concatenate(list(pipeline.run(encoded.getvalue(), Options())))
    pipeline.batcher.close()
    return found


def half_red() -> Any:
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    picture[:, : SIDE // 4, 0] = 255
    return picture


def named(folder: Path, *labels: str) -> str:
    path = folder / "labels.txt"
    path.write_text("\n".join(labels))
    return str(path)


def numbers(pixels: Tensor) -> Tensor:
    """2 where it is red, else 0."""
    return torch.stack([0.5 - pixels[:, 0], 0 * pixels[:, 0], pixels[:, 0] - 0.5], 1).argmax(1)


@pytest.mark.parametrize(
    ("give", "labels", "name"),
    [
        (numbers, (), "2"),
        (lambda pixels: numbers(pixels).float(), (), "2"),
        (lambda pixels: numbers(pixels).float(), ("ground", "sky", "red"), "red"),
        (lambda pixels: torch.sigmoid(20 * (pixels[:, 0] - 0.5)), (), "0"),
        (lambda pixels: 20 * (pixels[:, 0] - 0.5), ("red",), "red"),
    ],
)
def test_maps_of_numbers_and_of_one_class(
    tmp_path: Path, give: Give, labels: tuple[str, ...], name: str
) -> None:
    said = {"labels": named(tmp_path, *labels)} if labels else {}
    found = answer_of(exported(tmp_path / "map.onnx", give), half_red(), **said)
    assert isinstance(found, SegmentationAnswer)
    pixels = dict(zip(found.class_names, found.class_pixels[0].tolist(), strict=True))
    assert pixels[name] == SIDE * SIDE // 4
    assert pixels[found.class_names[0]] == SIDE * SIDE * 3 // 4


def test_a_threshold_of_the_file_is_for_labels_of_which_several_are_true(tmp_path: Path) -> None:
    """The winner of a choice is answered however sure it is."""
    path = exported(tmp_path / "sure.onnx", lambda pixels: (pixels.mean((2, 3)) / 9).softmax(1))
    model = onnx.load(path)
    model.metadata_props.add(key="model_info confidence_threshold", value="0.45")
    onnx.save(model, path)
    found = answer_of(path, half_red())
    assert isinstance(found, ClassificationAnswer)
    assert (found.class_id[0, 0], found.class_name[0, 0]) == (0, "0")
    assert spec_of(str(path), multi_label=True).score_threshold == 0.45


def test_all_labels_that_may_be_true_at_once_are_answered(tmp_path: Path) -> None:
    def give(pixels: Tensor) -> Tensor:
        return torch.sigmoid(4 * pixels.mean((2, 3)) - 2)

    picture = np.full((SIDE, SIDE, 3), (255, 0, 0), np.uint8)
    found = answer_of(exported(tmp_path / "labels.onnx", give), picture)
    assert isinstance(found, ClassificationAnswer)
    by_class = dict(zip(found.class_id[0].tolist(), found.probability[0].tolist(), strict=True))
    assert by_class == pytest.approx({0: 0.881, 1: 0.119, 2: 0.119}, abs=0.001)


def test_a_program_of_bytes_is_fed_with_bytes(tmp_path: Path) -> None:
    def give(pixels: Tensor) -> Tensor:
        return pixels.float().mean((1, 2)) / 51

    path = exported(tmp_path / "bytes.pt2", give, dtype=torch.uint8, nhwc=True)
    found = answer_of(path, np.full((8, 8, 3), (255, 0, 51), np.uint8), task="classification")
    assert found.class_id[0].tolist() == [0, 2, 1]
    expected = torch.tensor([5.0, 1, 0]).softmax(0).tolist()
    assert found.probability[0].tolist() == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("suffix", ["onnx", "pt2"])
def test_scores_that_a_sum_has_made_are_scores(tmp_path: Path, suffix: str) -> None:
    """Boxes of 8 px on a grid; a cell's score is how red it is, and a little more."""
    at = torch.stack(torch.meshgrid(*[torch.arange(0.0, SIDE, 8)] * 2, indexing="xy"), -1).reshape(1, -1, 2)

    def give(pixels: Tensor) -> tuple[Tensor, Tensor]:
        cells = functional.avg_pool2d(pixels, 8).flatten(2).transpose(1, 2)
        boxes = torch.cat([at, at + 8], 2) / SIDE
        return boxes + 0 * cells[..., :1], cells * 0.8 + 0.1

    path = exported(tmp_path / f"cells.{suffix}", give, "boxes", "scores")
    found = answer_of(path, half_red(), labels=named(tmp_path, "red", "green", "blue"))
    assert isinstance(found, DetectionAnswer)
    assert set(found.class_name) == {"red"}
    assert len(found.score) == 16
    assert found.score.tolist() == pytest.approx([0.9] * 16, abs=0.01)


@pytest.mark.parametrize(
    ("give", "options", "says"),
    [
        (
            lambda pixels: pixels.mean((2, 3)),
            {},
            r"gives out float32 \(1, 3\); .*classification=.* \(or embedding",
        ),
        (lambda pixels: pixels * 2, {}, r"gives out float32 \(1, 3, 64, 64\); .*--model segmentation="),
        (lambda pixels: pixels.mean((2, 3)).argmax(1), {}, r"gives out int64 \(1\); .*export it with scores"),
        (lambda pixels: pixels.mean((2, 3)), {"labels": 2}, r"there are 2 labels"),
        (lambda pixels: pixels.flatten(2), {"head": "yolo_v5"}, r"none of its outputs is of that form"),
    ],
)
def test_what_cannot_be_told_names_what_there_is(
    tmp_path: Path, give: Give, options: dict[str, Any], says: str
) -> None:
    path = exported(tmp_path / "what.onnx", give)
    if count := options.get("labels"):
        options = {**options, "labels": named(tmp_path, *map(str, range(count)))}
    assert re.search(says, error_of(str(path), **options))


@pytest.mark.parametrize(
    ("options", "activation"),
    [({}, "softmax"), ({"multi_label": True}, "sigmoid"), ({"activation": "none"}, "none")],
)
def test_logits_of_torchvision_are_no_probabilities_even_if_all_are_near_0(
    tmp_path: Path, options: dict[str, Any], activation: str
) -> None:
    """As those of a last layer of zeros, with which its ViT begins."""
    network = resnet18(num_classes=4)
    nn.init.zeros_(network.fc.weight)
    nn.init.zeros_(network.fc.bias)
    torch.save(network.state_dict(), tmp_path / "new.pth")
    spec = spec_of(str(tmp_path / "new.pth"), arch="resnet18", **options)
    assert Model(spec, "cpu").spec.activation == activation


def test_another_size_than_the_only_one_is_refused(tmp_path: Path) -> None:
    path = exported(tmp_path / "fixed.onnx", lambda pixels: pixels.mean((2, 3)))
    text = error_of(str(path), task="classification", resize_px=(32, 32))
    assert "fixed takes only pixels of 64x64, not of 32x32" in text
    assert "--resize-px" in text
    assert spec_of(str(path), task="classification", resize_px=(64, 64)).preprocessing.fixed_hw == (64, 64)


class Pair(nn.Module):
    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return (one - other).mean((2, 3))


def test_a_program_of_two_pictures_is_refused_by_its_inputs(tmp_path: Path) -> None:
    pixels = torch.zeros(1, 3, SIDE, SIDE)
    torch.export.save(torch.export.export(Pair(), (pixels, pixels)), tmp_path / "pair.pt2")
    with pytest.raises(ModelUnavailable, match=r"one float32 .*; other float32 .*: it needs one input"):
        spec_of(str(tmp_path / "pair.pt2"), allow_code=True, task="classification")


def test_a_side_that_no_picture_has_is_refused(tmp_path: Path) -> None:
    import onnx

    path = exported(tmp_path / "huge.onnx", lambda pixels: pixels.mean((2, 3)))
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 100_000
    onnx.save(graph, path)
    assert "a side of 100000 px is not in 1 to 8192" in error_of(str(path), task="classification")
