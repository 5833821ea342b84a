"""What the YOLO families have in common: how they are fed, objectness, keypoints, masks. Knows no file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from pipelines.models.heads.suppression import LEAST_SCORE, candidates
from pipelines.models.heads.tensors import pick
from pipelines.models.spec import Preprocessing
from pipelines.protocol.errors import ModelUnavailable

# Grey level of the bars, which all were trained with.
BARS = 114
# Sides of a mask within its box. Prototypes have a cell every 4 pixels, so boxes of up to MASK_CELLS * 4
# pixels lose nothing, and larger ones detail below a 56th of their side.
MASK_CELLS = 56
# So many masks are computed at a time; each is as large as the prototypes first.
MASKS_AT_ONCE = 32
# A keypoint more probably seen than not.
VISIBLE = 0.5


def letterboxed(size_hw: tuple[int, int]) -> Preprocessing:
    """RGB in 0..1, bars around the picture, resized as OpenCV does it."""
    return Preprocessing(
        resize_px=size_hw, fit="letterbox", pad_value=BARS, mean=(0, 0, 0), std=(1, 1, 1), antialias=False
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """C candidates of a batch.

    Attributes:
        picture_c, row_c: int64 `(C,)`, numbers of their pictures and of their rows.
        box_c4: float32 `(C, 4)` as the network gave it.
        score_c, label_c: of the best class.
    """

    picture_c: Tensor
    row_c: Tensor
    box_c4: Tensor
    score_c: Tensor
    label_c: Tensor


def objects_output(outputs: Mapping[str, Tensor], name: str, classes: int, family: str) -> Tensor:
    """The output `(N, A, 5 + K)` of a head with objectness.

    Raises:
        ModelUnavailable: there is none.
    """
    columns = 5 + classes if classes else 0
    needs = f"head {family} needs (N, A, {columns or '5 + K'}): box, objectness and {classes or 'K'} classes"

    def fits(tensor: Tensor) -> bool:
        return tensor.ndim == 3 and (tensor.shape[2] == columns if columns else tensor.shape[2] > 5)

    return pick(outputs, name, fits, needs)


def rows_of_objects(row_nac: Tensor) -> Rows:
    """The candidates of rows `(N, A, 5 + K)` of box, objectness and classes; score: objectness times class.

    No class scores above 1, so that rows of little objectness are out before their classes are compared.
    """
    objectness_na = row_nac[..., 4]
    picture, row = (objectness_na > LEAST_SCORE).nonzero(as_tuple=True)
    score = objectness_na[picture, row] * row_nac[picture, row, 5:].amax(dim=1)
    score_na = torch.zeros_like(objectness_na)
    score_na[picture, row] = score
    picture, row = candidates(score_na)
    chosen = row_nac[picture, row]
    return Rows(
        picture_c=picture,
        row_c=row,
        box_c4=chosen[:, :4],
        score_c=score_na[picture, row],
        label_c=chosen[:, 5:].argmax(dim=1),
    )


def check_extras(prototypes: str, keypoints: tuple[int, int] | None) -> None:
    """Check that what comes beside boxes and classes can be read.

    Raises:
        ModelUnavailable: it cannot.
    """
    if keypoints is None:
        return
    if keypoints[0] < 1 or keypoints[1] not in (2, 3):
        raise ModelUnavailable(
            f"{keypoints[0]} keypoints of {keypoints[1]} values each are not read",
            hint="2 values are x and y, 3 are x, y and how visible the point is",
        )
    if prototypes:
        raise ModelUnavailable("a network of both masks and keypoints is not read", hint="leave one out")


def read_keypoints(value_dv: Tensor, keypoints: tuple[int, int]) -> dict[str, Tensor]:
    """Values `(D, P * V)`, point after point → `keypoints` `(D, P, 3)`: x, y, visible (1 or 0).

    With V = 3 also `keypoints_scores` `(D, P)`: how visible each is, 0..1; with V = 2 all are visible.
    """
    point_dpv = value_dv.reshape(len(value_dv), *keypoints)
    if keypoints[1] == 2:
        return {"keypoints": torch.cat([point_dpv, torch.ones_like(point_dpv[..., :1])], dim=-1)}
    score_dp = point_dpv[..., 2]
    visible = (score_dp > VISIBLE).to(point_dpv.dtype)[..., None]
    return {"keypoints": torch.cat([point_dpv[..., :2], visible], dim=-1), "keypoints_scores": score_dp}


def box_masks(share_dm: Tensor, prototype_mhw: Tensor, box_d4: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """One picture's masks, float32 `(D, 1, m, m)` of 0..1 within the boxes, as torchvision's mask heads.

    A mask is the sigmoid of a sum of prototypes, of which the part in the box is enlarged or reduced.

    Args:
        share_dm: how much of each prototype is in each mask.
        prototype_mhw: they cover the whole picture of `size_hw` pixels.
        box_d4: xyxy in these pixels.
    """
    prototypes, rows, columns = prototype_mhw.shape
    centre_m = (torch.arange(MASK_CELLS, device=box_d4.device) + 0.5) / MASK_CELLS
    near_d41 = 2 * box_d4[:, :, None] / box_d4.new_tensor([*reversed(size_hw)] * 2)[:, None] - 1  # -1..1
    x_dm, y_dm = near_d41[:, :2].lerp(near_d41[:, 2:], centre_m).unbind(dim=1)
    masks = []
    for start in range(0, len(box_d4) or 1, MASKS_AT_ONCE):
        some = slice(start, start + MASKS_AT_ONCE)
        share, x, y = share_dm[some], x_dm[some, None, :], y_dm[some, :, None]
        maps = (share @ prototype_mhw.reshape(prototypes, -1)).sigmoid_().reshape(len(x), 1, rows, columns)
        places = torch.stack([x.expand(-1, MASK_CELLS, -1), y.expand(-1, -1, MASK_CELLS)], dim=-1)
        masks.append(grid_sample(maps, places, padding_mode="border", align_corners=False))
    return torch.cat(masks)


def prototypes_output(outputs: Mapping[str, Tensor], name: str, family: str) -> Tensor | None:
    """The output `(N, M, h, w)` of prototypes of that name; None without a name.

    Raises:
        ModelUnavailable: there is none.
    """
    if not name:
        return None
    return pick(
        outputs, name, lambda tensor: tensor.ndim == 4, f"head {family} needs prototypes (N, M, h, w)"
    )


def extra_columns(prototype_nmhw: Tensor | None, keypoints: tuple[int, int] | None) -> int:
    """How many columns of an output are for masks and keypoints."""
    shares = 0 if prototype_nmhw is None else prototype_nmhw.shape[1]
    return shares + (keypoints[0] * keypoints[1] if keypoints else 0)


def finished(
    found: list[dict[str, Tensor]],
    prototype_nmhw: Tensor | None,
    keypoints: tuple[int, int] | None,
    size_hw: tuple[int, int],
) -> list[dict[str, Tensor]]:
    """The detections of each picture with masks or keypoints for their column `extras`.

    Raises:
        ModelUnavailable: there are prototypes of another number of pictures.
    """
    if prototype_nmhw is not None and len(prototype_nmhw) != len(found):
        raise ModelUnavailable(
            f"prototypes {tuple(prototype_nmhw.shape)} are not of {len(found)} pictures",
            hint="max_batch=1 for a model exported with a fixed batch size",
        )
    for number, detections in enumerate(found):
        extra_de = detections.pop("extras")
        if keypoints is not None:
            detections |= read_keypoints(extra_de, keypoints)
        elif prototype_nmhw is not None:
            detections["masks"] = box_masks(extra_de, prototype_nmhw[number], detections["boxes"], size_hw)
    return found
