"""A model is what its first pass shows: outputs, labels, and faults that name what does not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from model_inference import Model
from pipelines.loading.agreement import agreeing, deviation
from pipelines.loading.load import LEAST_AGREEMENT, load_model
from pipelines.models.outputs import BoxOutput, LogitOutput
from pipelines.models.spec import Clip, ModelSpec, Preprocessing, TaskName
from pipelines.models.torch_runtime import bucket_of, bucket_sizes, padded
from pipelines.protocol.errors import ModelUnavailable

FACTS = Preprocessing(resize_px=(32, 40))


class Given(nn.Module):
    """Answers whatever a function makes of the pixels."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.give = give

    def forward(self, pixels: Tensor) -> Any:
        return self.give(pixels)


def spec_of(give: Callable[[Tensor], Any] | nn.Module, task: TaskName, **fields: Any) -> ModelSpec:
    network = give if isinstance(give, nn.Module) else Given(give)
    return ModelSpec(
        name="toy",
        task=task,
        build=lambda: network,
        source="test",
        preprocessing=FACTS,
        clip=Clip(length=4, fps=10) if task == "action" else None,
        **fields,
    )


def means(pixels: Tensor) -> Tensor:
    """Logits (N, 3): the mean of each channel."""
    return pixels.flatten(2).mean(dim=2)


def boxes(pixels: Tensor) -> list[dict[str, Tensor]]:
    """As many boxes in each picture as its number in the batch."""
    return [
        {"boxes": torch.ones(n, 4), "labels": torch.ones(n, dtype=torch.int64), "scores": torch.ones(n)}
        for n in range(len(pixels))
    ]


@pytest.mark.parametrize(
    ("give", "task", "outputs"),
    [
        (means, "classification", {"logits": (3,)}),
        (means, "action", {"logits": (3,)}),
        (lambda pixels: pixels, "segmentation", {"logits": (3, None, None)}),
        (
            lambda pixels: {"out": pixels, "aux": pixels},
            "segmentation",
            {"out": (3, None, None), "aux": (3, None, None)},
        ),
        (
            lambda pixels: (means(pixels), pixels),
            "classification",
            {"logits": (3,), "logits_1": (3, None, None)},
        ),
        (boxes, "detection", {"boxes": (None, 4), "labels": (None,), "scores": (None,)}),
    ],
)
def test_outputs_are_found_by_a_first_pass(
    give: Callable[[Tensor], Any], task: TaskName, outputs: dict[str, tuple[int | None, ...]]
) -> None:
    model = Model(spec_of(give, task), "cpu")
    assert {facts.name: facts.dims for facts in model.outputs} == outputs
    assert model.spec.labels == (() if task == "detection" else ("0", "1", "2"))


@pytest.mark.parametrize(
    ("give", "task", "labels", "message"),
    [
        (means, "segmentation", (), r"toy gives logits \(2, 3\), task segmentation needs \(N, K, h, w\)"),
        (lambda pixels: pixels, "classification", (), r"task classification needs \(N, K\)"),
        (means, "detection", (), "toy gives a Tensor, task detection needs a list of boxes"),
        (boxes, "classification", (), "toy gives a list, task classification"),
        (lambda pixels: [{"boxes": pixels}], "detection", (), "needs a list of boxes, labels and scores"),
        (means, "classification", ("a", "b"), "toy has 3 outputs and 2 labels"),
        (nn.Linear(7, 3), "classification", (), r"toy does not take pixels \(2, 3, 32, 40\)"),
        (nn.Conv2d(3, 3, 3), "action", (), r"toy does not take pixels \(2, 3, 4, 32, 40\)"),
        (nn.Conv3d(3, 3, 3), "segmentation", (), "task segmentation"),
    ],
)
def test_a_model_of_another_kind_is_refused(
    give: Any, task: TaskName, labels: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ModelUnavailable, match=message) as caught:
        Model(spec_of(give, task, labels=labels), "cpu")
    assert caught.value.hint
    assert "\n" not in str(caught.value)


class Whimsical(nn.Module):
    """Raises what no list of exceptions would name."""

    def forward(self, pixels: Tensor) -> Tensor:
        raise StopIteration("no more")


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (Whimsical(), "no more"),
        (lambda pixels: means(pixels)[-1:], "gives 1 rows of logits for a batch of 2"),
        (lambda pixels: None, "toy gives a NoneType"),
        (lambda pixels: means(pixels)[:, :0], "has 0 classes"),
    ],
)
def test_whatever_a_network_does_wrong_is_said_in_a_line(give: Any, message: str) -> None:
    with pytest.raises(ModelUnavailable, match=message) as caught:
        Model(spec_of(give, "classification"), "cpu")
    assert "\n" not in str(caught.value)


def test_a_batch_that_is_too_large_is_found_before_anything_listens() -> None:
    def at_most_four(pixels: Tensor) -> Tensor:
        assert len(pixels) <= 4
        return means(pixels)

    with pytest.raises(ModelUnavailable, match=r"does not take pixels \(8, 3, 32, 40\)"):
        Model(spec_of(at_most_four, "classification"), "cpu").warm_up()
    Model(spec_of(at_most_four, "classification", max_batch=4), "cpu").warm_up()


def test_more_classes_than_a_class_map_holds_are_refused() -> None:
    def many(pixels: Tensor) -> Tensor:
        return pixels[:, :1].expand(-1, 300, -1, -1)

    with pytest.raises(ModelUnavailable, match="has 300 classes"):
        Model(spec_of(many, "segmentation"), "cpu")


@pytest.mark.parametrize(("last", "found"), [(nn.Identity(), False), (nn.Softmax(1), True)])
def test_a_network_that_ends_in_a_softmax_is_known_by_its_outputs(last: nn.Module, found: bool) -> None:
    model = Model(spec_of(lambda pixels: last(means(pixels)), "classification"), "cpu")
    assert (model.spec.activation == "none") is found


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"resize_px": 10**9}, "a side of 1000000000 px"),
        ({"resize_px": (32, 0)}, "a side of 0 px"),
        ({"resize_px": 32, "mean": (123.675, 116.28, 103.53)}, "for levels up to 255, divide by 255"),
        ({"resize_px": 32, "mean": (float("nan"), 0, 0)}, "mean"),
        ({"resize_px": 32, "std": (1, 1, 0)}, "std"),
        ({"resize_px": 32, "std": (-1, 1, 1)}, "std"),
        ({"resize_px": 32, "pad_value": 300}, "pad_value 300"),
    ],
)
def test_facts_that_cannot_be_are_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**facts)


def test_outputs_split_by_frames() -> None:
    output = Model(spec_of(means, "classification"), "cpu")(
        torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 2, 2)
    )
    assert isinstance(output, LogitOutput)
    assert output.part(1, 3).logits[:, 0].tolist() == [1, 2]
    found = Model(spec_of(boxes, "detection"), "cpu")(torch.zeros(4, 3, 2, 2))
    assert isinstance(found, BoxOutput)
    assert [len(frame["boxes"]) for frame in found.part(2, 4).frames] == [2, 3]


def test_only_action_models_have_clips() -> None:
    with pytest.raises(ValueError, match="clip"):
        ModelSpec(name="x", task="action", build=nn.Identity, source="", preprocessing=FACTS)


def convolution() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=4), nn.ReLU(), nn.Conv2d(16, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def test_lower_precision_serves_where_it_agrees() -> None:
    plain = Model(spec_of(convolution(), "classification"), "cpu")
    model = load_model(spec_of(convolution(), "classification", precision="bf16"), "cpu")
    pixels = torch.rand(5, 3, 32, 40, generator=torch.Generator().manual_seed(1))
    logits = [one(pixels) for one in (plain, model)]
    assert isinstance(logits[0], LogitOutput)
    assert isinstance(logits[1], LogitOutput)
    assert logits[1].logits.dtype == torch.float32
    assert not torch.equal(logits[0].logits, logits[1].logits)
    assert torch.allclose(logits[0].logits, logits[1].logits, atol=0.05)


class Coarse(nn.Module):
    """Differences that bfloat16 cannot hold decide the winner."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3, bias=False)
        self.head.weight.data = torch.eye(3) * 0.01

    def forward(self, pixels: Tensor) -> Tensor:
        head: Tensor = self.head(means(pixels) + 1000)
        return head


def test_lower_precision_that_answers_otherwise_is_refused() -> None:
    with pytest.raises(
        ModelUnavailable, match=r"toy in bf16 with torch agrees with torch in fp32 in only [\d.]+ %"
    ):
        load_model(spec_of(Coarse(), "classification", precision="bf16"), "cpu")


def test_agreement_counts_winners_and_boxes() -> None:
    one = LogitOutput({"logits": torch.tensor([[1.0, 0], [0, 1]])}, "logits")
    other = LogitOutput({"logits": torch.tensor([[1.0, 0], [1, 0]])}, "logits")
    assert agreeing([one], [one]) == 1 > LEAST_AGREEMENT > agreeing([one], [other]) == 0.5
    frame = {
        "boxes": torch.tensor([[0.0, 0, 10, 10]]),
        "labels": torch.tensor([1]),
        "scores": torch.tensor([0.9]),
    }
    nothing = {name: tensor[:0] for name, tensor in frame.items()}
    moved = {**frame, "boxes": frame["boxes"] + 3}
    assert agreeing([BoxOutput([frame])], [BoxOutput([frame])]) == 1
    assert agreeing([BoxOutput([frame])], [BoxOutput([nothing])]) == 0
    assert agreeing([BoxOutput([frame])], [BoxOutput([moved])]) == 0


def test_agreement_counts_pixels_of_maps_and_numbers_of_one_column() -> None:
    one = LogitOutput({"map": torch.tensor([[[[1, 2], [3, 3]]]], dtype=torch.uint8)}, "map")
    other = LogitOutput({"map": torch.tensor([[[[1, 2], [3, 0]]]], dtype=torch.uint8)}, "map")
    assert (agreeing([one], [one]), agreeing([one], [other])) == (1, 0.75)
    plain, near, far = (
        LogitOutput({"logits": torch.tensor([[-1.0], [last]])}, "logits") for last in (1.0, 1.01, 2.0)
    )
    assert (agreeing([plain], [near]), agreeing([plain], [far])) == (1, 0.5)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (torch.tensor([0.0, 10.0]), torch.tensor([0.0, 10.0]), 0.0),
        (torch.tensor([0.0, 10.0]), torch.tensor([0.5, 10.0]), 0.05),
        (
            {"a": torch.zeros(2), "b": torch.tensor([0.0, 1])},
            {"a": torch.zeros(2), "b": torch.tensor([0.0, 2])},
            1,
        ),
        (torch.tensor([[0.0, 10.0]]), torch.tensor([[0.0, 10.0], [7.0, 7.0]]), 0.0),
        (torch.zeros(2, 3), torch.zeros(2, 4), float("inf")),
    ],
)
def test_deviation_is_a_share_of_the_spread(before: Any, after: Any, expected: float) -> None:
    assert deviation(before, after) == pytest.approx(expected)


def test_numbers_that_are_none_deviate() -> None:
    assert not deviation(torch.tensor([0.0, 1, 2]), torch.tensor([0.0, float("nan"), 2])) <= 1


@pytest.mark.parametrize(
    ("max_batch", "sizes"), [(1, (1,)), (3, (1, 2, 3)), (8, (1, 2, 4, 8)), (12, (1, 2, 4, 8, 12))]
)
def test_static_sizes_are_powers_of_two_and_the_largest(max_batch: int, sizes: tuple[int, ...]) -> None:
    assert bucket_sizes(max_batch) == sizes
    for count in range(1, max_batch + 1):
        size = bucket_of(count, sizes)
        assert size in sizes
        full = padded(torch.arange(count), size)
        assert full.tolist() == [*range(count), *[count - 1] * (size - count)]
    assert bucket_of(max_batch + 1, sizes) == max_batch + 1 == bucket_of(max_batch + 1, ())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("engine", ["torch", "compile"])
def test_lower_precision_agrees_on_a_gpu(precision: Any, engine: Any) -> None:
    model = load_model(spec_of(convolution(), "classification", precision=precision, engine=engine), "cuda")
    assert model.spec.engine == engine
