"""torchvision's detectors of one stage (SSD, RetinaNet, FCOS) in two steps: the layers, then their boxes.

The first step gives tensors of every picture alike, so that other engines can have it. The second is
torchvision's own. Only SSD's loop over all classes takes longer than its layers: here all classes are done at
once, with the same boxes in the same order. Knows no weights, and not how pixels are prepared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

ONE_STAGE = ("SSD", "RetinaNet", "FCOS")
# Of the last tensors of `one_stage_maps`, of which only the shapes count.
GRID = "grid_"
# Up to this many candidates torchvision (0.25) suppresses all classes in one go: its rounding differs.
TOGETHER = {"cpu": 1_000, "cuda": 25_000}
# How many candidates are looked at first for each box that is kept at most.
FIRST_LOOK = 4


def is_one_stage(network: nn.Module) -> bool:
    """Whether a network is one of torchvision's detectors that `one_stage_maps` knows."""
    kinds = {kind.__name__ for kind in type(network).__mro__ if kind.__module__.startswith("torchvision.")}
    return bool(kinds & set(ONE_STAGE))


def one_stage_maps(network: Any, batch: Tensor) -> dict[str, Tensor]:
    """What backbone and heads say of a batch of whole strides, and the sizes of the backbone's features.

    As in `forward` of torchvision's classes: `cls_logits` `(N, A, K)`, `bbox_regression` `(N, A, 4)` and
    maybe more, of A anchors; and `grid_0`, `grid_1` … `(h, w)`, zeros in the size of each feature map.
    """
    features = network.backbone(batch)
    levels = [features] if isinstance(features, Tensor) else list(features.values())
    grids = {f"{GRID}{place}": level.new_zeros(level.shape[-2:]) for place, level in enumerate(levels)}
    return {**network.head(levels), **grids}


def one_stage_boxes(
    network: Any, maps: Mapping[str, Tensor], size_px: tuple[int, int], padded_px: tuple[int, int]
) -> list[dict[str, Tensor]]:
    """The boxes of each picture in the maps of a batch.

    Args:
        size_px: height and width of the pictures, to which boxes are cut.
        padded_px: the same with the black up to whole strides.
    """
    from torchvision.models.detection.image_list import ImageList

    heads = {name: tensor for name, tensor in maps.items() if not name.startswith(GRID)}
    grids = [tensor[None, None] for name, tensor in maps.items() if name.startswith(GRID)]
    count = len(heads["cls_logits"])
    shape = ImageList(torch.empty(1, 3, *padded_px, device="meta"), [size_px])
    (anchors,) = network.anchor_generator(shape, grids)
    if not hasattr(network, "neg_to_pos_ratio"):
        cells = [grid.numel() for grid in grids]
        each = heads["cls_logits"].shape[1] // sum(cells)
        levels = [each * number for number in cells]
        split = {name: list(torch.split(tensor, levels, dim=1)) for name, tensor in heads.items()}
        own = [list(torch.split(anchors, levels))] * count
        found: list[dict[str, Tensor]] = network.postprocess_detections(split, own, [size_px] * count)
        return found
    return ssd_boxes(network, heads, anchors, size_px)


def ssd_boxes(
    network: Any, heads: Mapping[str, Tensor], anchors: Tensor, size_px: tuple[int, int]
) -> list[dict[str, Tensor]]:
    """What `SSD.postprocess_detections` of torchvision gives, for all classes at once.

    Equal scores aside, of which either may come first: of each class the best `topk_candidates` above
    `score_thresh`, of them those that overlap no better one of their class, and of all the best
    `detections_per_img`.

    Args:
        heads: `bbox_regression` `(N, A, 4)` and `cls_logits` `(N, A, K)`, the background first.
        anchors: `(A, 4)`.
    """
    from torchvision.ops import clip_boxes_to_image

    scores_nka = heads["cls_logits"].softmax(-1).transpose(-1, -2)[:, 1:].contiguous()
    wanted_nka = scores_nka > network.score_thresh
    frames = []
    for codes, scores, wanted in zip(heads["bbox_regression"], scores_nka, wanted_nka, strict=True):
        boxes = clip_boxes_to_image(network.box_coder.decode_single(codes, anchors), size_px)
        found = _of_the_best(network, boxes, scores, wanted)
        frames.append(_of_all(network, boxes, scores, wanted) if found is None else found)
    return frames


def _of_the_best(network: Any, boxes: Tensor, scores: Tensor, wanted: Tensor) -> dict[str, Tensor] | None:
    """The boxes of a picture by a look at only its best candidates; None where that does not tell.

    Whether a candidate is kept depends only on better ones, so enough of the best decide for all. None of
    these is beyond the best `topk_candidates` of its class if there are no more of a class at all. And there
    are so many that torchvision suppresses class by class, too.

    Args:
        boxes: `(A, 4)`.
        scores, wanted: `(K - 1, A)`, without the background.
    """
    most: int = network.detections_per_img
    first = max(FIRST_LOOK * most, TOGETHER[boxes.device.type] + 1)
    if int(wanted.sum()) <= first:
        return None
    best = scores.flatten().topk(first, sorted=False).indices.sort().values
    labels, places = best // scores.shape[1], best % scores.shape[1]
    if int(torch.bincount(labels).max()) > network.topk_candidates:
        return None
    frame = _frame(boxes, scores, labels, places)
    kept = _kept_by_class(frame, network.nms_thresh)
    return _taken(frame, kept[:most]) if len(kept) >= most else None


def _of_all(network: Any, boxes: Tensor, scores: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """The boxes of a picture by all its candidates; arguments as above."""
    from torchvision.ops import batched_nms

    crowded = wanted.sum(1) > network.topk_candidates
    if crowded.any():
        best = scores[crowded].topk(network.topk_candidates, dim=1, sorted=False).values
        wanted[crowded] &= scores[crowded] >= best.amin(1, keepdim=True)
    frame = _frame(boxes, scores, *wanted.nonzero(as_tuple=True))
    if len(frame["scores"]) > TOGETHER[boxes.device.type]:
        kept = _kept_by_class(frame, network.nms_thresh)
    else:
        kept = batched_nms(frame["boxes"], frame["scores"], frame["labels"], network.nms_thresh)
    return _taken(frame, kept[: network.detections_per_img])


def _frame(boxes: Tensor, scores: Tensor, rows: Tensor, places: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes[places], "scores": scores[rows, places], "labels": rows + 1}


def _taken(frame: Mapping[str, Tensor], kept: Tensor) -> dict[str, Tensor]:
    return {name: tensor[kept] for name, tensor in frame.items()}


def _kept_by_class(frame: Mapping[str, Tensor], most_iou: float) -> Tensor:
    """Which candidates are kept, best first, each class suppressed for itself; they come class by class."""
    from torchvision.ops import nms

    boxes, scores = frame["boxes"], frame["scores"]
    kept, start = [], 0
    for count in torch.bincount(frame["labels"]).tolist():
        stop = start + count
        if count:
            kept.append(start + nms(boxes[start:stop], scores[start:stop], most_iou).sort().values)
        start = stop
    places = torch.cat(kept)
    return places[scores[places].sort(descending=True).indices]
