"""Of several outputs the one of the task is found by its form, its name or the labels; else all are named."""

from __future__ import annotations

import pytest
import torch

from pipelines.models.forms import Form, arranged, channels_are_last, main_output
from pipelines.models.graph import Dims, Port
from pipelines.models.spec import TaskName
from pipelines.protocol.errors import ModelUnavailable


def ports(**dims: Dims) -> list[Port]:
    """Outputs of floats; a name that ends in `_int` is of integers."""
    return [
        Port(name=name, dtype="int64" if name.endswith("_int") else "float32", dims=size)
        for name, size in dims.items()
    ]


@pytest.mark.parametrize(
    ("task", "outputs", "labels", "found"),
    [
        ("classification", ports(a=(2, 5)), 0, "a"),
        ("classification", ports(a=(2, 5, 1, 1)), 0, "a"),
        ("classification", ports(a=(2, 1, 1, 5)), 0, "a"),
        ("classification", ports(a=(2,)), 0, "a"),
        ("classification", ports(maps=(2, 8, 7, 7), a=(2, 5)), 0, "a"),
        ("classification", ports(number_int=(2, 1), a=(2, 5)), 0, "a"),
        ("classification", ports(sure=(2,), a=(2, 5)), 0, "a"),
        ("classification", ports(embedding=(2, 8), logits=(2, 3)), 0, "logits"),
        ("classification", ports(embedding=(2, 8), logits=(2, 3)), 8, "logits"),
        ("classification", ports(embedding=(None, 8), probs=(None, 3)), 0, "probs"),
        ("classification", ports(a=(2, 8), b=(2, 3)), 3, "b"),
        ("classification", ports(output=(2, 512), b=(2, 3)), 3, "b"),
        ("classification", ports(output=(2, 3), b=(2, 512)), 0, "output"),
        ("classification", ports(a=(None, None), b=(None, 3)), 3, "b"),
        ("embedding", ports(a=(2, 512, 1, 1)), 0, "a"),
        ("embedding", ports(embedding=(2, 8), logits=(2, 3)), 0, "embedding"),
        ("segmentation", ports(out=(2, 21, 9, 9), aux=(2, 21, 9, 9)), 0, "out"),
        ("segmentation", ports(map_int=(2, 9, 9)), 0, "map_int"),
        ("segmentation", ports(map_int=(2, 1, 9, 9)), 0, "map_int"),
        ("segmentation", ports(map_int=(2, 9, 9), a=(2, 21, 9, 9)), 0, "a"),
        ("segmentation", ports(a=(2, 9, 9), b=(2, 4)), 0, "a"),
        ("segmentation", ports(a=(2, 21, 9, 9), b=(2, 4, 1, 1)), 0, "a"),
    ],
)
def test_the_output_of_the_task_is_found(
    task: TaskName, outputs: list[Port], labels: int, found: str
) -> None:
    assert main_output(outputs, task, model="toy", labels=labels) == found


@pytest.mark.parametrize("prefix", ["model/head/", "net."])
def test_a_telling_name_may_have_a_path(prefix: str) -> None:
    outputs = [Port(name=f"{prefix}Logits:0", dtype="float16", dims=(1, 3)), *ports(features=(1, 8))]
    assert main_output(outputs, "classification", model="toy") == f"{prefix}Logits:0"


def test_what_is_not_decided_is_listed_with_the_way_out() -> None:
    with pytest.raises(ModelUnavailable, match=r"toy gives several .*: a \(2, 8\), b \(2, 3\)") as caught:
        main_output(ports(a=(2, 8), b=(2, 3)), "classification", model="toy", labels=4)
    assert caught.value.hint == "--output a, or --output b"


def test_an_output_may_be_asked_for() -> None:
    outputs = ports(embedding=(2, 8), logits=(2, 3), maps=(2, 3, 7, 7))
    assert main_output(outputs, "classification", model="toy", wanted="embedding") == "embedding"
    with pytest.raises(
        ModelUnavailable, match=r"no output 'x'; it gives embedding \(2, 8\), logits \(2, 3\)"
    ):
        main_output(outputs, "classification", model="toy", wanted="x")
    with pytest.raises(
        ModelUnavailable, match=r"gives maps \(2, 3, 7, 7\), task classification needs \(N, K"
    ):
        main_output(outputs, "classification", model="toy", wanted="maps")


@pytest.mark.parametrize(
    ("dims", "size_hw", "labels", "last"),
    [
        ((1, 21, 257, 257), (257, 257), 0, False),
        ((1, 257, 257, 21), (257, 257), 0, True),
        ((1, 21, 33, 33), (257, 257), 21, False),
        ((1, 33, 33, 21), (257, 257), 21, True),
        ((1, 65, 116, 5), (520, 924), 0, True),
        ((1, 5, 65, 116), (520, 924), 0, False),
        ((1, 9, 9, 1), (32, 32), 0, True),
        ((1, 8, 8, 8), (8, 8), 0, False),
        ((1, 4, 4, 8), (8, 8), 8, True),
    ],
)
def test_where_the_classes_lie(dims: Dims, size_hw: tuple[int, int], labels: int, last: bool) -> None:
    assert channels_are_last(dims, size_hw, labels) is last


def test_numbers_that_no_map_holds_are_the_background() -> None:
    numbers = torch.tensor([[[3, -1, 300, 255]]])
    assert arranged(numbers, Form(class_map=True)).tolist() == [[[[3, 0, 0, 255]]]]
