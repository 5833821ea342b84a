"""What makes scores of outputs is found by values over several pictures; what is assumed is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model_inference import Model
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import Attribute, ModelSpec, TaskName
from pipelines.protocol.errors import ModelUnavailable
from tests.models.test_model import means, spec_of

Give = Callable[[Tensor], Any]


def bright(pixels: Tensor) -> Tensor:
    """(N, 3) about 0 for mild noise, far from it for black, white and strong noise."""
    return 4 * (means(pixels) - 0.5)


def scaled(pixels: Tensor) -> Tensor:
    """(N, 3) that are logits, but lie in 0..1 for mild noise."""
    return bright(pixels) * torch.tensor([1.0, 2.0, 3.0]) + 0.5


def one(pixels: Tensor) -> Tensor:
    return scaled(pixels)[:, :1]


def planes(pixels: Tensor) -> Tensor:
    return pixels * torch.tensor([1.0, 2.0, 3.0]).view(1, 3, 1, 1) - 1


def found(give: Give, task: TaskName = "classification", **fields: Any) -> ModelSpec:
    return Model(spec_of(give, task, **fields), "cpu").spec


@pytest.mark.parametrize(
    ("give", "task", "activation", "multi_label"),
    [
        (bright, "classification", "softmax", False),
        (scaled, "classification", "softmax", False),
        (lambda pixels: scaled(pixels).softmax(1), "classification", "none", False),
        (lambda pixels: scaled(pixels).sigmoid(), "classification", "none", True),
        (lambda pixels: scaled(pixels).softmax(1)[..., None, None], "classification", "none", False),
        (one, "classification", "sigmoid", False),
        (lambda pixels: one(pixels)[:, 0], "classification", "sigmoid", False),
        (lambda pixels: one(pixels)[:, :, None, None].sigmoid(), "classification", "none", False),
        (lambda pixels: 0 * one(pixels) + 0.4, "classification", "sigmoid", False),
        (lambda pixels: (one(pixels) > 0.5).float(), "classification", "none", False),
        (lambda pixels: scaled(pixels).half().softmax(1), "classification", "none", False),
        (planes, "segmentation", "softmax", False),
        (lambda pixels: planes(pixels).softmax(1), "segmentation", "none", False),
        (lambda pixels: planes(pixels).sigmoid(), "segmentation", "none", False),
        (lambda pixels: planes(pixels)[:, :1], "segmentation", "sigmoid", False),
        (lambda pixels: planes(pixels)[:, 0], "segmentation", "sigmoid", False),
        (lambda pixels: planes(pixels)[:, :1].sigmoid(), "segmentation", "none", False),
        (scaled, "action", "softmax", False),
        (lambda pixels: scaled(pixels).sigmoid(), "action", "none", True),
    ],
)
def test_values_over_several_pictures_tell(
    give: Give, task: TaskName, activation: str, multi_label: bool
) -> None:
    spec = found(give, task)
    assert (spec.activation, spec.multi_label) == (activation, multi_label)
    surprising = activation == "sigmoid" or multi_label or len(spec.labels) == 1
    if task == "segmentation" and activation == "none":
        # Of several sigmoids it is said, and of a softmax nothing need be.
        assert not any("at once" in text for text in spec.assumed)
        return
    assert all("--activation" in text for text in spec.assumed)
    assert bool(spec.assumed) == surprising or spec.labels[0] == "background"


@pytest.mark.parametrize(
    ("give", "activation", "multi_label"),
    [
        (scaled, "sigmoid", True),
        (lambda pixels: scaled(pixels).sigmoid(), "none", True),
        (lambda pixels: scaled(pixels).softmax(1), "none", False),
        (scaled, "softmax", False),
        (one, "sigmoid", False),
    ],
)
def test_sigmoids_that_are_said_are_of_labels_that_may_all_be_true(
    give: Give, activation: Any, multi_label: bool
) -> None:
    labels = () if give is one else ("bag", "hat", "coat")
    spec = found(give, activation=activation, labels=labels)
    assert (spec.activation, spec.multi_label, spec.assumed) == (activation, multi_label, ())
    assert len(spec.attributes) == (3 if multi_label else 0)
    assert spec.score_threshold == (0 if multi_label else -1)


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_class_of_a_pixel_wins_whatever_the_activation(activation: Any) -> None:
    spec = found(lambda pixels: planes(pixels).sigmoid(), "segmentation", activation=activation)
    assert (spec.activation, spec.multi_label) == (activation or "none", False)
    assert [text.partition(": ")[2] for text in spec.assumed] == (
        [] if activation else ["probabilities already (--activation)"]
    )


def test_what_is_said_is_taken() -> None:
    assert found(lambda pixels: scaled(pixels).softmax(1), activation="softmax").activation == "softmax"
    assert found(scaled, multi_label=True).activation == "sigmoid"
    assert found(one, activation="softmax").activation == "sigmoid"
    with pytest.raises(
        ModelUnavailable, match=r"numbers of -?[\d.e-]+ to [\d.]+, so they are no prob"
    ) as caught:
        found(lambda pixels: 9 * scaled(pixels), activation="none")
    assert "--activation softmax" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("give", "task", "labels", "known"),
    [
        (one, "classification", (), ("0",)),
        (one, "classification", ("smile",), ("smile",)),
        (one, "classification", ("no", "yes"), ("no", "yes")),
        (lambda pixels: planes(pixels)[:, :1], "segmentation", (), ("background", "0")),
        (lambda pixels: planes(pixels)[:, :1], "segmentation", ("cat",), ("background", "cat")),
        (lambda pixels: planes(pixels)[:, :1], "segmentation", ("ground", "cat"), ("ground", "cat")),
    ],
)
def test_one_column_has_a_name_or_two(
    give: Give, task: TaskName, labels: tuple[str, ...], known: tuple[str, ...]
) -> None:
    assert found(give, task, labels=labels).labels == known


@pytest.mark.parametrize(
    ("give", "task"), [(scaled, "classification"), (planes, "segmentation"), (scaled, "embedding")]
)
def test_what_is_not_a_number_is_refused(give: Give, task: TaskName) -> None:
    with pytest.raises(ModelUnavailable, match="toy gives numbers that are not finite"):
        found(lambda pixels: give(pixels) * float("nan"), task)


def test_other_outputs_are_named_where_labels_do_not_fit() -> None:
    def give(pixels: Tensor) -> dict[str, Tensor]:
        return {"embedding": torch.cat([bright(pixels)] * 3, 1), "logits": scaled(pixels)}

    with pytest.raises(ModelUnavailable, match="toy has 3 outputs and 9 labels") as caught:
        found(give, labels=tuple("abcdefghi"))
    assert "embedding (2, 9): --output NAME" in (caught.value.hint or "")
    assert found(give, labels=tuple("abcdefghi"), output="embedding").output == "embedding"


@pytest.mark.parametrize("shape", [(), (4,), (1, 6, 4)])
def test_an_output_that_is_not_of_pictures_is_left_out(shape: tuple[int, ...]) -> None:
    model = Model(
        spec_of(lambda pixels: {"logits": bright(pixels), "anchors": torch.ones(shape)}, "classification"),
        "cpu",
    )
    assert [facts.name for facts in model.outputs] == ["logits"]
    assert len(model(torch.zeros(3, 3, 32, 40))) == 3


# Numbers of classes.


def numbers(pixels: Tensor) -> Tensor:
    """(N, h, w): 0 for black to 4 for white."""
    return (4 * pixels.mean(1).clamp(0, 1)).round()


@pytest.mark.parametrize(
    "give",
    [
        lambda pixels: numbers(pixels).long(),
        lambda pixels: numbers(pixels)[:, None].int(),
        lambda pixels: numbers(pixels)[..., None].byte(),
        numbers,
    ],
)
def test_a_class_map_is_known(give: Give) -> None:
    labels = tuple("abcde")
    model = Model(spec_of(give, "segmentation", labels=labels), "cpu")
    assert (model.spec.class_map, model.spec.labels, model.spec.assumed) == (True, labels, ())
    output = model(torch.full((1, 3, 32, 40), 0.5))
    assert isinstance(output, LogitOutput)
    assert (output.logits.dtype, output.logits.shape) == (torch.uint8, (1, 1, 32, 40))
    assert set(output.logits.flatten().tolist()) == {2}
    assert model.outputs[0].dims == (1, None, None)


def test_a_class_map_needs_enough_names() -> None:
    with pytest.raises(ModelUnavailable, match="gives the class 4, and there are labels for 0 to 2"):
        found(lambda pixels: numbers(pixels).long(), "segmentation", labels=("a", "b", "c"))
    spec = found(lambda pixels: numbers(pixels).long(), "segmentation")
    assert len(spec.labels) == 256
    assert "--labels" in spec.assumed[0]


def test_a_coarse_class_map_is_enlarged_without_new_numbers() -> None:
    model = Model(spec_of(lambda pixels: numbers(pixels)[:, ::4, ::4].long(), "segmentation"), "cpu")
    pixels = torch.rand(1, 3, 32, 40, generator=torch.Generator().manual_seed(0)).round()
    output = model(pixels)
    assert isinstance(output, LogitOutput)
    assert output.sized[output.main].shape == (1, 1, 32, 40)
    assert set(output.logits.flatten().tolist()) <= set(output.tensors[output.main].flatten().tolist())


def test_scores_with_the_classes_last_are_turned() -> None:
    plain = Model(spec_of(planes, "segmentation"), "cpu")
    last = Model(spec_of(lambda pixels: planes(pixels).permute(0, 2, 3, 1), "segmentation"), "cpu")
    pixels = torch.rand(2, 3, 32, 40)
    one, other = plain(pixels), last(pixels)
    assert isinstance(one, LogitOutput)
    assert isinstance(other, LogitOutput)
    assert last.spec.labels == ("0", "1", "2")
    assert torch.equal(one.logits, other.logits)


# Attributes.


def vehicle(pixels: Tensor) -> dict[str, Tensor]:
    maps = bright(pixels)[..., None, None]
    kind, colour = torch.cat([maps, -maps[:, :1]], 1).softmax(1), torch.cat([maps, 2 * maps], 1).softmax(1)
    return {"type": kind, "color": colour, "points": 9 * maps[:, :2], "map": pixels}


def test_outputs_that_are_a_classification_each_are_attributes() -> None:
    spec = found(vehicle)
    assert [(one.name, one.output, one.stop, one.activation) for one in spec.attributes] == [
        ("type", "type", 4, "none"),
        ("color", "color", 6, "none"),
    ]
    assert spec.labels == ("0", "1", "2", "3")
    assert "attribute of that name" in spec.assumed[0]
    assert "points, map are left out" in spec.assumed[1]


def test_labels_of_several_outputs_stand_one_after_the_other() -> None:
    labels = ("car", "bus", "truck", "van", "white", "gray", "yellow", "red", "green", "blue")
    spec = found(vehicle, labels=labels)
    assert [one.labels for one in spec.attributes] == [labels[:4], labels[4:]]
    assert spec.labels == labels[:4]
    chosen = found(vehicle, labels=labels[4:], output="color")
    assert (chosen.attributes, chosen.labels) == ((), labels[4:])
    with pytest.raises(ModelUnavailable, match="several outputs that task classification could read"):
        found(vehicle, labels=labels[:5])


def test_logits_of_several_outputs_are_not_guessed_at() -> None:
    def give(pixels: Tensor) -> dict[str, Tensor]:
        return {"a": 9 * bright(pixels), "b": 9 * bright(pixels)[:, :2]}

    with pytest.raises(ModelUnavailable, match=r"a \(2, 3\), b \(2, 2\)") as caught:
        found(give)
    assert caught.value.hint == "--output a, or --output b"
    assert [one.activation for one in found(give, labels=tuple("abcde")).attributes] == ["softmax"] * 2
    assert found(give, labels=tuple("ab")).output == "b"


def test_the_only_output_of_probabilities_is_read() -> None:
    spec = found(lambda pixels: {"a": 9 * bright(pixels), "b": bright(pixels).softmax(1)})
    assert (spec.output, spec.attributes) == ("b", ())
    assert "the output b is read" in spec.assumed[0]


def test_named_labels_that_may_all_be_true_are_attributes_too() -> None:
    spec = found(lambda pixels: scaled(pixels).sigmoid(), labels=("bag", "hat", "coat"))
    assert [(one.name, one.labels, one.start, one.stop) for one in spec.attributes] == [
        ("bag", ("yes", "no"), 0, 1),
        ("hat", ("yes", "no"), 1, 2),
        ("coat", ("yes", "no"), 2, 3),
    ]


@pytest.mark.parametrize(
    "wrong",
    [
        Attribute(name="x", output="none", labels=("a", "b", "c")),
        Attribute(name="x", output="logits", labels=("a", "b")),
        Attribute(name="x", output="logits", labels=("a", "b", "c"), start=1, stop=4),
        Attribute(name="x", output="logits", labels=("a",), start=1, stop=2),
    ],
)
def test_attributes_that_do_not_fit_are_refused(wrong: Attribute) -> None:
    with pytest.raises(ModelUnavailable, match="attribute x") as caught:
        found(bright, attributes=(wrong,))
    assert caught.value.hint


def test_a_vector_has_no_labels_and_no_scores() -> None:
    spec = found(
        lambda pixels: {"logits": bright(pixels)[..., None, None], "embedding": one(pixels)}, "embedding"
    )
    assert (spec.output, spec.labels, spec.assumed) == ("embedding", (), ())
    model = Model(spec_of(lambda pixels: bright(pixels)[..., None, None], "embedding"), "cpu")
    output = model(torch.zeros(2, 3, 32, 40))
    assert isinstance(output, LogitOutput)
    assert output.logits.shape == (2, 3)
