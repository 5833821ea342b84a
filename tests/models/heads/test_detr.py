"""The DETR head: the same boxes, classes and scores as transformers' own post-processing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipelines.models.heads.detr import Detr
from pipelines.protocol.errors import ModelUnavailable

SIZE_HW = (64, 96)
LEAST = 0.05


def drawn(seed: int, shape: tuple[int, int, int], scale: float = 3) -> dict[str, Tensor]:
    """Logits and boxes of N pictures, Q queries and C columns."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(shape, generator=generator)
    return {"logits": logits, "pred_boxes": torch.rand(*shape[:2], 4, generator=generator)}


def of_transformers(processor: str, outputs: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """What the library's own processor makes of them, best first."""
    library: Any = pytest.importorskip("transformers")
    given_ = library.models.detr.modeling_detr.DetrObjectDetectionOutput(
        logits=outputs["logits"], pred_boxes=outputs["pred_boxes"]
    )
    sizes = torch.tensor([SIZE_HW] * len(outputs["logits"]))
    found = getattr(library, processor)().post_process_object_detection(
        given_, threshold=LEAST, target_sizes=sizes
    )
    orders = [one["scores"].argsort(descending=True, stable=True) for one in found]
    return [{name: one[name][order] for name in one} for one, order in zip(found, orders, strict=True)]


def above(found: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{name: one[name][one["scores"] > LEAST] for name in one} for one in found]


def assert_same(found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> None:
    assert len(found) == len(wanted)
    for ours, theirs in zip(above(found), wanted, strict=True):
        assert ours["labels"].dtype == torch.int64
        assert ours["labels"].tolist() == theirs["labels"].tolist()
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"])


KINDS = {
    "DetrImageProcessor": Detr(softmax=True),
    "YolosImageProcessor": Detr(softmax=True),
    "RTDetrImageProcessor": Detr(),
    "ConditionalDetrImageProcessor": Detr(most=100),
}


@pytest.mark.parametrize("processor", KINDS)
@settings(deadline=None, max_examples=10)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 120), st.integers(2, 9)),
)
def test_it_answers_as_transformers(processor: str, seed: int, shape: tuple[int, int, int]) -> None:
    outputs = drawn(seed, shape)
    assert_same(KINDS[processor](outputs, SIZE_HW), of_transformers(processor, outputs))


def yolos(library: Any) -> nn.Module:
    config = library.YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=list(SIZE_HW),
        num_detection_tokens=12,
        num_labels=5,
    )
    network: nn.Module = library.YolosForObjectDetection(config)
    return network.eval()


def detr(library: Any) -> nn.Module:
    backbone = library.ResNetConfig(
        embedding_size=8, hidden_sizes=[8] * 4, depths=[1] * 4, out_features=["stage4"]
    )
    config = library.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        num_queries=12,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_labels=5,
    )
    network: nn.Module = library.DetrForObjectDetection(config)
    return network.eval()


def rt_detr(library: Any) -> nn.Module:
    """With statistics of its norms, without which all scores are nearly the same."""
    backbone = library.RTDetrResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1] * 4,
        layer_type="basic",
        out_features=["stage2", "stage3", "stage4"],
    )
    config = library.RTDetrConfig(
        backbone_config=backbone,
        encoder_hidden_dim=16,
        encoder_in_channels=[8, 16, 16],
        encoder_ffn_dim=16,
        d_model=16,
        num_queries=20,
        decoder_in_channels=[16] * 3,
        decoder_ffn_dim=16,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_labels=5,
        num_denoising=0,
    )
    network: Any = library.RTDetrForObjectDetection(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # the mean of all passes
    network.train()
    for _ in range(3):
        network.model(torch.randn(2, 3, 64, 64))
    return network.eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "processor"),
    [(yolos, "YolosImageProcessor"), (detr, "DetrImageProcessor"), (rt_detr, "RTDetrImageProcessor")],
)
@torch.no_grad()
@pytest.mark.usefixtures("seeded")
def test_networks_of_transformers_are_read_as_by_their_processors(make: Any, processor: str) -> None:
    network = make(pytest.importorskip("transformers"))
    given_ = network(torch.rand(2, 3, *SIZE_HW))
    outputs = {name: one for name, one in given_.items() if isinstance(one, Tensor)}
    wanted = of_transformers(processor, outputs)
    assert all(len(one["scores"]) > 3 for one in wanted)
    assert_same(KINDS[processor].with_classes(5)(outputs, SIZE_HW), wanted)


def test_a_query_may_answer_with_two_classes() -> None:
    outputs = {
        "dets": torch.tensor([[[0.5, 0.5, 0.5, 0.25], [0.1, 0.1, 0.1, 0.1]]]),
        "labels": torch.tensor([[[2.0, 3.0, -9.0], [-9.0, -9.0, -9.0]]]),
    }
    (found,) = Detr(boxes="dets", logits="labels")(outputs, (100, 200))
    assert found["labels"].tolist() == [1, 0]
    torch.testing.assert_close(found["boxes"], torch.tensor([[50.0, 37.5, 150.0, 62.5]] * 2))
    torch.testing.assert_close(found["scores"], torch.tensor([3.0, 2.0]).sigmoid())
    assert_same(Detr(boxes="", logits="")(outputs, (100, 200)), [found])


def test_one_joined_output_has_probabilities() -> None:
    outputs = drawn(1, (2, 30, 6))
    joined = torch.cat([outputs["pred_boxes"], outputs["logits"].sigmoid()], dim=2)
    assert_same(Detr(joined="output0")({"output0": joined}, SIZE_HW), above(Detr()(outputs, SIZE_HW)))
    ready = {**outputs, "logits": outputs["logits"].sigmoid()}
    assert_same(Detr(probabilities=True)(ready, SIZE_HW), above(Detr()(outputs, SIZE_HW)))


def test_nothing_is_suppressed_unless_asked() -> None:
    outputs = {
        "logits": torch.tensor([[[4.0, -9.0], [3.0, -9.0], [-9.0, 2.0]]]),
        "pred_boxes": torch.tensor([[[0.5, 0.5, 0.5, 0.5]] * 3]),
    }
    assert [len(Detr(iou_threshold=iou)(outputs, SIZE_HW)[0]["scores"]) for iou in (None, 0.5)] == [3, 2]
    (lone,) = Detr(iou_threshold=0.5, class_agnostic=True)(outputs, SIZE_HW)
    assert lone["labels"].tolist() == [0]


@pytest.mark.parametrize(
    ("head", "shapes", "says"),
    [
        (Detr(), {"logits": (1, 9, 3)}, r"boxes .* in output pred_boxes; the model gives logits \(1, 9, 3\)"),
        (Detr(), {"logits": (1, 9, 3), "pred_boxes": (1, 9, 5)}, r"\(N, Q, 4\); .* pred_boxes \(1, 9, 5\)"),
        (
            Detr(),
            {"logits": (1, 8, 3), "pred_boxes": (1, 9, 4)},
            r"needs logits \(1, 9, K\) .* logits \(1, 8, 3\)",
        ),
        (Detr(softmax=True), {"logits": (1, 9, 1), "pred_boxes": (1, 9, 4)}, r"K from 2"),
        (Detr(classes=2), {"logits": (1, 9, 3), "pred_boxes": (1, 9, 4)}, r"3 classes.* 2 labels"),
        (
            Detr(classes=4, softmax=True),
            {"logits": (1, 9, 3), "pred_boxes": (1, 9, 4)},
            r"2 or 3 classes.* 4 labels",
        ),
        (Detr(joined="a"), {"a": (1, 9, 4)}, r"needs \(N, Q, 4 \+ K\).* a \(1, 9, 4\)"),
        (Detr(boxes="", logits=""), {"a": (1, 9)}, r"boxes \(N, Q, 4\); .* a \(1, 9\)"),
        (Detr(), {}, "the model gives nothing"),
    ],
)
def test_other_outputs_are_refused_by_name(head: Detr, shapes: dict[str, tuple[int, ...]], says: str) -> None:
    with pytest.raises(ModelUnavailable, match=says):
        head({name: torch.zeros(shape) for name, shape in shapes.items()}, SIZE_HW)


def test_pixels_are_stretched_with_the_statistics_of_imagenet() -> None:
    facts = Detr().pixels((480, 640))
    assert (facts.fixed_hw, facts.fit, facts.channels, facts.antialias) == (
        (480, 640),
        "stretch",
        "RGB",
        True,
    )
    assert facts.mean == (0.485, 0.456, 0.406)
    assert facts.std == (0.229, 0.224, 0.225)


@pytest.mark.gpu
@pytest.mark.parametrize("head", [Detr(), Detr(softmax=True), Detr(iou_threshold=0.5)])
def test_a_gpu_gives_the_same(head: Detr) -> None:
    outputs = drawn(3, (3, 60, 7))
    found = head({name: one.cuda() for name, one in outputs.items()}, SIZE_HW)
    assert all(one["boxes"].is_cuda for one in found)
    cpu = [{name: column.cpu() for name, column in one.items()} for one in found]
    assert_same(cpu, above(head(outputs, SIZE_HW)))


def test_pixels_of_one_tensor_are_in_0_to_1() -> None:
    facts = Detr(joined="output0").pixels((480, 640))
    assert (facts.fixed_hw, facts.fit, facts.mean, facts.std) == ((480, 640), "stretch", (0, 0, 0), (1, 1, 1))
