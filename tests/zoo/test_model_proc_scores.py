"""Scores that a model-proc file has taken as they are: none is answered that lies outside 0..1."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.models.spec import ModelSpec, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.tasks.ranking import probabilities
from pipelines.zoo.model_proc import ModelProc, read_model_proc

LABEL: dict[str, Any] = {"converter": "label", "labels": ["a", "b"]}


@pytest.fixture
def read_proc(tmp_path: Path) -> Callable[..., ModelProc]:
    """Reads a file with these outputs."""

    def read(*outputs: dict[str, Any], **more: Any) -> ModelProc:
        file = tmp_path / "proc.json"
        file.write_text(json.dumps({**more, "output_postproc": outputs}))
        return read_model_proc(file)

    return read


class Lit(nn.Module):
    """Scores of grey pictures: of black ones, and what a level adds."""

    def __init__(self, black: tuple[float, ...], white: tuple[float, ...]) -> None:
        super().__init__()
        self.black, self.rise = torch.tensor(black), torch.tensor(white) - torch.tensor(black)

    def forward(self, pixels: Tensor) -> Tensor:
        level = pixels.mean(dim=(1, 2, 3)) / 255
        return self.black + level[:, None] * self.rise


def spec_of(proc: ModelProc, network: nn.Module, task: TaskName = "classification") -> ModelSpec:
    return ModelSpec(
        name="lit",
        task=task,
        build=lambda: network,
        source="test",
        labels=proc.labels,
        preprocessing=proc.preprocessing((8, 8), "lit"),
        activation=proc.activation,
        attributes=proc.attributes,
    )


@pytest.mark.parametrize(
    ("black", "white"), [((0.2, 0.5), (0.5, 10.2)), ((0.5, 0.5), (0.5, -0.01)), ((1.25, 0.5), (0.5, 0.5))]
)
def test_max_over_logits_is_refused(
    read_proc: Callable[..., ModelProc], black: tuple[float, ...], white: tuple[float, ...]
) -> None:
    """Noise in 0..1, which is nearly black to a model of levels up to 255, shows only the last."""
    proc = read_proc({**LABEL, "method": "max"})
    with pytest.raises(ModelUnavailable, match=r"lit gives numbers of .* no probabilities yet") as caught:
        Model(spec_of(proc, Lit(black, white)), "cpu")
    assert "--activation softmax" in (caught.value.hint or "")
    Model(spec_of(read_proc({**LABEL, "method": "softmax"}), Lit(black, white)), "cpu")


class Pair(nn.Module):
    """Two outputs, the second beyond 0..1."""

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        level = pixels.mean(dim=(2, 3))[:, :2] / 255
        return {"type": level, "colour": 3 - level}


def test_attributes_of_logits_are_refused(read_proc: Callable[..., ModelProc]) -> None:
    outputs = [{**LABEL, "method": "max", "layer_name": name} for name in ("type", "colour")]
    proc = read_proc(*outputs)
    with pytest.raises(ModelUnavailable, match="lit gives numbers of 2 to 3, so they are no") as caught:
        Model(spec_of(proc, Pair()), "cpu")
    assert '"method": "softmax"' in (caught.value.hint or "")


class Soft(nn.Module):
    """Both outputs within 0..1, as far as rounding goes."""

    def forward(self, pixels: Tensor) -> Tensor:
        return (1 + 5e-4) * (pixels.mean(dim=(2, 3))[:, :2] / 255).sigmoid().round()


def test_rounding_takes_no_probability_out_of_its_range(read_proc: Callable[..., ModelProc]) -> None:
    model = Model(spec_of(read_proc({**LABEL, "method": "max"}), Soft()), "cpu")
    assert probabilities(model(torch.full((1, 3, 8, 8), 255.0)), model.spec).tolist() == [[1.0, 1.0]]


def test_on_and_off_names_need_no_layer_where_there_is_one(read_proc: Callable[..., ModelProc]) -> None:
    proc = read_proc({"converter": "label", "method": "compound", "labels": ["hat", "", "bag", "no bag"]})
    spec = Model(spec_of(proc, Lit((0.1, 0.9), (0.9, 0.2))), "cpu").spec
    assert [(one.name, one.output) for one in spec.attributes] == [
        ("hat", "logits"),
        ("bag/no bag", "logits"),
    ]


class Brightness(nn.Module):
    """How bright and how dark pictures of 0..1 are."""

    def forward(self, pixels: Tensor) -> Tensor:
        bright = pixels.mean(dim=(1, 2, 3))
        return torch.stack([bright, 1 - bright], dim=1)


def test_max_over_scores_is_taken_as_it_is(read_proc: Callable[..., ModelProc]) -> None:
    """Only pictures count, not numbers that no picture has."""
    proc = read_proc({**LABEL, "method": "max"}, input_preproc=[{"params": {"range": [0.0, 1.0]}}])
    model = Model(spec_of(proc, Brightness()), "cpu")
    assert model.spec.activation == "none"
    assert probabilities(model(torch.full((1, 3, 8, 8), 0.75)), model.spec).tolist() == [[0.75, 0.25]]
