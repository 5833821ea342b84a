"""Adapted detectors of torchvision against the originals: the same boxes, masks, keypoints."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models import detection
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import resize_boxes, resize_keypoints

from pipelines.frames.batch import FrameBatch
from pipelines.frames.geometry import View, geometry
from pipelines.models.outputs import BoxOutput
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.protocol import rle
from pipelines.protocol.errors import ModelUnavailable
from pipelines.protocol.options import Options
from pipelines.rendering.postprocess import Postprocessor
from pipelines.tasks.detection import Detection
from pipelines.zoo.vision.adapters import adapt_detector, detector_preprocessing
from pipelines.zoo.vision.one_stage import ssd_boxes

NO_WEIGHTS = {"weights": None, "weights_backbone": None}
SMALL = {**NO_WEIGHTS, "min_size": 100, "max_size": 160}
# Random networks are sure of nothing: without a threshold some boxes come out.
BUILDERS: dict[str, Callable[[], nn.Module]] = {
    "fasterrcnn": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(
        **SMALL, num_classes=7, box_score_thresh=0.0, box_detections_per_img=20
    ),
    "maskrcnn": lambda: detection.maskrcnn_resnet50_fpn(
        **SMALL, num_classes=7, box_score_thresh=0.0, box_detections_per_img=8, rpn_post_nms_top_n_test=60
    ),
    "keypointrcnn": lambda: detection.keypointrcnn_resnet50_fpn(
        **SMALL, num_classes=2, box_score_thresh=0.0, box_detections_per_img=6, rpn_post_nms_top_n_test=60
    ),
    "retinanet": lambda: detection.retinanet_resnet50_fpn(
        **SMALL, num_classes=7, score_thresh=0.0, detections_per_img=20, topk_candidates=100
    ),
    "fcos": lambda: detection.fcos_resnet50_fpn(
        **SMALL, num_classes=7, score_thresh=0.0, detections_per_img=20, topk_candidates=100
    ),
    "ssd": lambda: detection.ssd300_vgg16(
        **NO_WEIGHTS, num_classes=7, score_thresh=0.0, detections_per_img=20, topk_candidates=100
    ),
    "ssdlite": lambda: detection.ssdlite320_mobilenet_v3_large(
        **NO_WEIGHTS, num_classes=7, score_thresh=0.0, detections_per_img=20, topk_candidates=100
    ),
}
SOURCE_HW = (61, 113)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a detector found in raw pictures; adapted: in all together, and in the second alone."""

    raw: Tensor
    original: list[dict[str, Tensor]]
    adapted: list[dict[str, Tensor]]
    alone: dict[str, Tensor]


@functools.cache
def run(family: str) -> Run:
    torch.manual_seed(0)
    network = BUILDERS[family]().eval()
    spread_scores(network)
    # Two for VGG, which takes seconds a picture.
    coarse = torch.rand(2 if family == "ssd" else 3, 3, 9, 14)
    raw = functional.interpolate(coarse, SOURCE_HW, mode="bicubic").clamp(0, 1)
    with torch.inference_mode():
        original = network(list(raw))
        pixels = prepared(raw, detector_preprocessing(network))
        adapted = adapt_detector(network)
        return Run(raw=raw, original=original, adapted=adapted(pixels), alone=adapted(pixels[1:2])[0])


def spread_scores(network: nn.Module) -> None:
    """Scale the last layers of an SSD so that no two scores are equal: of equals any may come first."""
    if isinstance(network, detection.ssd.SSD):
        features: Any = network.backbone(torch.randn(1, 3, 320, 320))
        heads: Any = network.head.classification_head.module_list
        for level, head in zip(features.values(), heads, strict=True):
            with torch.no_grad():
                last = head if isinstance(head, nn.Conv2d) else head[-1]
                last.weight *= 0.1 / head(level).std()


def prepared(raw: Tensor, facts: Preprocessing) -> Tensor:
    """Pictures as the facts say, by torch alone."""
    assert (facts.interpolation, facts.antialias, facts.round_pixels) == ("bilinear", False, False)
    size = geometry(facts, *raw.shape[-2:]).resized_hw
    resized = functional.interpolate(raw, size, mode="bilinear", antialias=False, align_corners=False)
    mean, std = (torch.tensor(values)[:, None, None] for values in (facts.mean, facts.std))
    return (resized - mean) / std


def to_source(found: dict[str, Tensor], model_hw: tuple[int, int]) -> dict[str, Tensor]:
    """What `GeneralizedRCNNTransform.postprocess` does."""
    mapped = dict(found, boxes=resize_boxes(found["boxes"], list(model_hw), list(SOURCE_HW)))
    if "masks" in found:
        mapped["masks"] = paste_masks_in_image(found["masks"], mapped["boxes"], SOURCE_HW)
    if "keypoints" in found:
        mapped["keypoints"] = resize_keypoints(found["keypoints"], list(model_hw), list(SOURCE_HW))
    return mapped


@pytest.mark.parametrize("family", BUILDERS)
def test_an_adapted_detector_answers_as_the_original(family: str) -> None:
    found = run(family)
    with torch.device("meta"):
        facts = detector_preprocessing(BUILDERS[family]())
    model_hw = geometry(facts, *SOURCE_HW).resized_hw
    assert min(len(one["boxes"]) for one in found.original) > 0
    for expected, adapted in zip(found.original, found.adapted, strict=True):
        assert_same(to_source(adapted, model_hw), expected)


@functools.cache
def ssdlite() -> Any:
    """With all classes of COCO, as it is served."""
    return detection.ssdlite320_mobilenet_v3_large(**NO_WEIGHTS).eval()


def logits_of(background: float, spread: float, things: int) -> Tensor:
    """Logits of two pictures: a background, noise, and some things that many anchors around them see."""
    dice = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(2, 3234, 91, generator=dice)
    logits[..., 0] += background
    for _ in range(things):
        label, anchor = (
            int(torch.randint(least, most, (), generator=dice)) for least, most in ((1, 91), (0, 3000))
        )
        logits[:, anchor : anchor + 200, label] += 12 * torch.rand(2, 200, generator=dice)
    return logits


@pytest.mark.parametrize(
    ("background", "spread", "things", "fields"),
    [
        (0.0, 0.2, 0, {}),
        (9.0, 1.0, 12, {}),
        (9.0, 0.3, 12, {}),
        (12.0, 0.3, 3, {}),
        (30.0, 0.1, 0, {}),
        (
            9.0,
            1.0,
            12,
            {"score_thresh": 0.01, "topk_candidates": 400, "detections_per_img": 200, "nms_thresh": 0.45},
        ),
        (0.0, 2.0, 0, {"topk_candidates": 20, "detections_per_img": 100_000}),
        (9.0, 1.0, 12, {"nms_thresh": 0.0}),
    ],
)
def test_all_classes_of_an_ssd_at_once_give_torchvisions_boxes(
    background: float, spread: float, things: int, fields: dict[str, float]
) -> None:
    network = copy.copy(ssdlite())
    for name, value in fields.items():
        setattr(network, name, value)
    dice = torch.Generator().manual_seed(1)
    heads = {
        "cls_logits": logits_of(background, spread, things),
        "bbox_regression": torch.randn(2, 3234, 4, generator=dice),
    }
    corners = 320 * torch.rand(3234, 2, generator=dice)
    anchors = torch.cat([corners, corners + 5 + 80 * torch.rand(3234, 2, generator=dice)], 1)
    expected = network.postprocess_detections(heads, [anchors] * 2, [(320, 300)] * 2)
    found = ssd_boxes(network, heads, anchors, (320, 300))
    assert [frame.keys() for frame in found] == [frame.keys() for frame in expected]
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("family", BUILDERS)
def test_a_batch_answers_as_its_pictures_one_by_one(family: str) -> None:
    assert_same(run(family).alone, run(family).adapted[1])


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """All tensors of a frame, to a thousandth of a pixel."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=5e-3)


def test_masks_and_keypoints_stay_in_model_pixels() -> None:
    (masks, *_), (keypoints, *_) = run("maskrcnn").adapted, run("keypointrcnn").adapted
    assert masks["masks"].shape == (len(masks["boxes"]), 1, 28, 28)
    assert keypoints["keypoints"].shape == (len(keypoints["boxes"]), 17, 3)
    assert keypoints["keypoints_scores"].shape == (len(keypoints["boxes"]), 17)


@pytest.mark.parametrize("family", ["maskrcnn", "keypointrcnn"])
def test_the_task_answers_as_the_original(family: str) -> None:
    """The whole way back: what the task makes of an adapted detector's answers is what the original says."""
    found = run(family)
    facts = Preprocessing(resize_px=100, max_px=160)
    model = ModelSpec(
        name=family,
        task="detection",
        build=nn.Identity,
        source="random",
        preprocessing=facts,
        score_threshold=0,
    )
    job = Detection(model, Options())
    frames = FrameBatch.of(
        np.zeros((3, *SOURCE_HW, 3), np.uint8), pts_s=np.arange(3.0), frame_index=np.arange(3)
    )
    view = View(top_px=0, left_px=0, geometry=geometry(facts, *SOURCE_HW))
    post = Postprocessor(device="cpu", max_frames=4, classes=2)
    answer = job.answer(frames, [job.read(BoxOutput(found.adapted))], [view], post, final=True)
    expected = {name: torch.cat([one[name] for one in found.original]) for name in found.original[0]}
    np.testing.assert_allclose(answer.box, expected["boxes"], atol=0.01)
    np.testing.assert_allclose(answer.score, expected["scores"], atol=1e-4)
    assert np.array_equal(answer.class_id, expected["labels"])
    if family == "maskrcnn":
        masks = np.stack([rle.decode_object(mask) for mask in answer.mask])
        assert (masks != (expected["masks"][:, 0] > 0.5).numpy()).mean() < 1e-3
    else:
        np.testing.assert_allclose(answer.keypoint, expected["keypoints"], atol=0.01)
        np.testing.assert_allclose(answer.keypoint_score, expected["keypoints_scores"], atol=1e-3)


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
FACTS: list[tuple[Callable[[], nn.Module], dict[str, Any]]] = [
    (lambda: detection.fasterrcnn_resnet50_fpn(**NO_WEIGHTS), {"resize_px": 800, "max_px": 1333, **IMAGENET}),
    (
        lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**NO_WEIGHTS),
        {"resize_px": 320, "max_px": 640, **IMAGENET},
    ),
    (
        # Several shorter sides are for training; the last is that of evaluation.
        lambda: detection.keypointrcnn_resnet50_fpn(**NO_WEIGHTS, min_size=(640, 672, 800)),
        {"resize_px": 800, "max_px": 1333, **IMAGENET},
    ),
    (
        lambda: detection.ssd300_vgg16(**NO_WEIGHTS),
        {"resize_px": (300, 300), "mean": (0.48235, 0.45882, 0.40784), "std": (1 / 255, 1 / 255, 1 / 255)},
    ),
    (
        # (width, height)
        lambda: detection.retinanet_resnet50_fpn(**NO_WEIGHTS, fixed_size=(160, 96)),
        {"resize_px": (96, 160), **IMAGENET},
    ),
]


@pytest.mark.parametrize(("build", "expected"), FACTS)
def test_a_detector_says_how_its_pixels_are_prepared(
    build: Callable[[], nn.Module], expected: dict[str, Any]
) -> None:
    with torch.device("meta"):
        network = build()
    wanted = Preprocessing(interpolation="bilinear", antialias=False, round_pixels=False, **expected)
    assert detector_preprocessing(network) == wanted
    adapted = adapt_detector(network)
    assert detector_preprocessing(adapted) == wanted
    assert adapt_detector(adapted) is adapted


@pytest.mark.parametrize(
    "source_hw", [(1080, 1920), (1920, 1080), (480, 640), (333, 1777), (37, 41), (800, 1333)]
)
def test_sizes_are_those_of_the_detector_itself(source_hw: tuple[int, int]) -> None:
    with torch.device("meta"):
        network: Any = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            **NO_WEIGHTS, min_size=800, max_size=1333
        )
    resized, _ = network.eval().transform.resize(torch.zeros(3, *source_hw))
    assert geometry(detector_preprocessing(network), *source_hw).resized_hw == tuple(resized.shape[-2:])


def test_another_network_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    for ask in (adapt_detector, detector_preprocessing):
        with pytest.raises(ModelUnavailable, match="Sequential has 0 modules that prepare pictures"):
            ask(network)


def test_a_detector_of_other_channels_is_refused() -> None:
    with torch.device("meta"):
        network = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            **NO_WEIGHTS, image_mean=[0.5], image_std=[0.5]
        )
    with pytest.raises(ModelUnavailable, match="takes 1 channels"):
        detector_preprocessing(network)


def test_the_black_goes_up_to_whole_strides() -> None:
    """As `batch_images` pads: zeros at the right and below; the size is told without them."""
    with torch.device("meta"):
        network: Any = BUILDERS["fasterrcnn"]()
    batch = torch.rand(2, 3, 50, 70)
    expected = network.transform.batch_images(list(batch), size_divisible=32)
    adapted: Any = adapt_detector(network)
    images, _ = adapted.network.transform(list(batch))
    assert torch.equal(images.tensors, expected)
    assert images.image_sizes == [(50, 70)] * 2
