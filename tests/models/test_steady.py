"""A network must answer a picture alike again, in any company, and with as many numbers as it has names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.spec import Attribute, Head, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from tests.models.test_model import means, spec_of

DRAWS = "toy answers the same picture differently each time"
MIXES = "toy answers a picture differently beside other pictures"


class Trained(nn.Module):
    """Layers that stay in training mode, as in an export from it."""

    def __init__(self, *last: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(1)
        first = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.layers = nn.Sequential(*first, *last, nn.Linear(8, 3))
        if last:
            self.layers[1].eval()

    def train(self, _mode: bool = True) -> Trained:
        return self

    def forward(self, pixels: Tensor) -> Any:
        return self.layers(pixels)


def drawn_rows(pixels: Tensor) -> Tensor:
    return torch.rand(len(pixels), 6, 7)


def mixed_rows(pixels: Tensor) -> Tensor:
    return means(pixels).mean() * torch.ones(len(pixels), 6, 7)


@pytest.mark.parametrize(
    ("give", "task", "head", "reason"),
    [
        (Trained(nn.Dropout(0.5)), "classification", None, DRAWS),
        (lambda pixels: means(pixels) + torch.rand(1), "embedding", None, DRAWS),
        (lambda pixels: pixels + torch.rand(1), "segmentation", None, DRAWS),
        (lambda clips: means(clips) * torch.rand(1), "action", None, DRAWS),
        (drawn_rows, "detection", YoloV5(), DRAWS),
        (Trained(), "classification", None, MIXES),
        (lambda pixels: means(pixels) - means(pixels).mean(0), "classification", None, MIXES),
        (lambda pixels: means(pixels).softmax(0), "embedding", None, MIXES),
        (lambda pixels: means(pixels).cumsum(0), "classification", None, MIXES),
        (lambda pixels: (pixels - pixels.mean(0)).argmax(1), "segmentation", None, MIXES),
        (mixed_rows, "detection", YoloV5(), MIXES),
    ],
)
def test_a_network_in_training_mode_is_refused(
    give: Callable[[Tensor], Any] | nn.Module, task: TaskName, head: Head | None, reason: str
) -> None:
    with pytest.raises(ModelUnavailable, match=reason) as caught:
        Model(spec_of(give, task, head=head), "cpu")
    assert "model.eval() before the export" in (caught.value.hint or "")


@pytest.mark.parametrize("last", [[nn.Dropout(0.5)], []])
def test_so_is_an_export_from_it(last: list[nn.Module], tmp_path: Path) -> None:
    program = torch.export.export(
        Trained(*last), (torch.rand(2, 3, 32, 32),), dynamic_shapes=({0: torch.export.Dim("b")},)
    )
    torch.export.save(program, tmp_path / "trained.pt2")
    spec = resolve(
        ModelSettings(source=str(tmp_path / "trained.pt2"), task="classification"), allow_code=True
    )
    with pytest.raises(ModelUnavailable, match=r"as (dropout|batch norm) does in training mode"):
        Model(spec, "cpu")


def test_pictures_that_are_batches_of_their_own_have_no_company() -> None:
    Model(spec_of(Trained(), "classification", max_batch=1), "cpu")


@pytest.mark.parametrize(
    ("give", "task", "head"),
    [
        # Rounding that differs from batch to batch, and integers whose scale is the batch's.
        (lambda pixels: means(pixels) + 1e-6 * pixels.mean(), "classification", None),
        (lambda pixels: means(pixels) + 1e-3 * pixels.mean(), "classification", None),
        # Boxes of one score, in any order.
        (lambda pixels: torch.rand(6, 7).sort(0).values.expand(len(pixels), 6, 7) * 0, "detection", YoloV5()),
        # Rows that name their picture.
        (lambda pixels: torch.zeros(3, 7), "detection", EndToEnd(form="picture")),
    ],
)
def test_rounding_is_no_reason(give: Callable[[Tensor], Any], task: TaskName, head: Head | None) -> None:
    Model(spec_of(give, task, head=head), "cpu")


def wide(pixels: Tensor) -> Tensor:
    """A column more for each 32 columns of pixels."""
    return torch.cat([means(pixels)] * (pixels.shape[-1] // 32), 1)


@pytest.mark.parametrize(
    ("give", "task", "fields"),
    [
        (wide, "classification", {}),
        (wide, "embedding", {}),
        (lambda pixels: pixels[:, [0, 1, 2] * (pixels.shape[-1] // 32)], "segmentation", {}),
        (
            lambda pixels: {"logits": means(pixels), "more": wide(pixels)},
            "classification",
            {"attributes": (Attribute(name="a", output="more", labels=("x", "y"), start=1, stop=3),)},
        ),
        (
            lambda pixels: [
                {
                    "boxes": torch.ones(1, 4),
                    "labels": torch.ones(1),
                    "scores": torch.ones(1),
                    "keypoints": torch.ones(1, pixels.shape[-1] // 32, 3),
                }
                for _ in pixels
            ],
            "detection",
            {},
        ),
    ],
)
def test_an_answer_of_another_width_is_refused(
    give: Callable[[Tensor], Any], task: TaskName, fields: dict[str, Any]
) -> None:
    model = Model(spec_of(give, task, **fields), "cpu")
    model(torch.zeros(1, 3, 32, 40))
    with pytest.raises(ModelUnavailable, match=r"toy gives .* for its first picture"):
        model(torch.zeros(1, 3, 32, 64))


def test_keypoints_without_names_of_their_own_are_refused() -> None:
    def give(pixels: Tensor) -> list[dict[str, Tensor]]:
        one = {"boxes": torch.ones(1, 4), "labels": torch.ones(1), "scores": torch.ones(1)}
        return [{**one, "keypoints": torch.ones(1, 17, 3)}] * len(pixels)

    with pytest.raises(ModelUnavailable, match="toy has 17 keypoints and 2 names"):
        Model(spec_of(give, "detection", keypoint_names=("nose", "tail")), "cpu")
