"""transformers' image processors → `Preprocessing`; what such a processor does beyond it is refused by name.

The fields are those of the classes in transformers 5, which fill in what a folder's JSON leaves out. What
they mean is then tried: the processor and the server prepare the same pictures, and must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipelines.frames.resize import prepare_on_cpu
from pipelines.models.onnx_runtime import one_line
from pipelines.models.spec import Interpolation, Preprocessing, Rounding
from pipelines.protocol.errors import ModelUnavailable, TooLarge

# Pillow's numbers. Its nearest pixel is not torchvision's, which the server takes.
INTERPOLATIONS: dict[int, Interpolation] = {2: "bilinear", 3: "bicubic"}
OTHER_INTERPOLATIONS = {0: "nearest", 1: "lanczos", 4: "box", 5: "hamming"}
# What a processor may do without any effect here: a batch has one size, and nothing is trained.
HARMLESS = {
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb", "do_flip_channel_order"),
    *("do_reduce_labels", "do_convert_annotations", "do_pad", "do_sample_frames"),
}
# Other fields that change pixels, and the values with which they do not.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "keep_aspect_ratio": (None, False),
    "ensure_multiple_of": (None, 0, 1),
    "size_divisor": (None, 0, 1),
    "size_divisibility": (None, 0, 1),
    "pad_size": (None,),
}
OTHER_HINT = "export the network to ONNX, and say in [model.preprocessing] how pixels are prepared"
# Below this side ConvNext's processor crops, from there on it stretches.
CONVNEXT_WHOLE_PX = 384
# A shorter side is enlarged by this in LeViT's processor before the crop.
LEVIT_MARGIN = 256 / 224
# Sizes of the pictures that both sides prepare, and by how many levels of 255 they may differ: Pillow rounds
# otherwise than torchvision. Where a cubic curve overshoots 0..255, it differs more; so pictures stay within.
TRIED_HW = ((97, 131), (210, 118), (150, 150))
TRIED_LEVELS = (64, 192)
MOST_LEVELS = 1.5


def processor_pixels(processor: Any, *, clips: bool) -> Preprocessing:
    """What a processor does with a picture.

    Args:
        processor: an image processor or video processor of transformers.
        clips: it takes the frames of clips.

    Raises:
        ModelUnavailable: it does what the server cannot, or otherwise than its fields say.
    """
    fields: Mapping[str, Any] = processor.to_dict()
    kind = type(processor).__name__
    family = kind.removesuffix("Pil").removesuffix("Fast").removesuffix("Processor").removesuffix("Image")
    for name, value in fields.items():
        if name.startswith("do_") and value and name not in HARMLESS:
            raise _refused(kind, name, value)
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise _refused(kind, name, value)
    try:
        preprocessing = _preprocessing(family, kind, fields)
        _try(processor, kind, preprocessing, clips=clips)
    except (TypeError, ValueError, LookupError, ArithmeticError, TooLarge) as error:
        raise ModelUnavailable(
            f"{kind} has a field that is wrong: {type(error).__name__}: {one_line(error)}",
            hint="check the folder's preprocessor_config.json",
        ) from error
    return preprocessing


def _preprocessing(family: str, kind: str, fields: Mapping[str, Any]) -> Preprocessing:
    resize_px, max_px, crop_px, rounding = _sizes(family, kind, fields)
    mean, std = _levels(family, fields)
    return Preprocessing(
        resize_px=resize_px,
        max_px=max_px,
        crop_px=crop_px,
        mean=mean,
        std=std,
        interpolation=_interpolation(kind, fields),
        channels="BGR" if fields.get("do_flip_channel_order") else "RGB",
        rounding=rounding,
    )


_Sizes = tuple[int | tuple[int, int] | None, int | None, tuple[int, int] | None, Rounding]


def _sizes(family: str, kind: str, fields: Mapping[str, Any]) -> _Sizes:
    """`resize_px`, `max_px`, `crop_px` and `rounding`."""
    crop_px = _pair(fields.get("crop_size")) if fields.get("do_center_crop") else None
    if not fields.get("do_resize"):
        return None, None, crop_px, "transformers"
    size = dict(fields.get("size") or {})
    pair, shorter, longest = _pair(size), size.get("shortest_edge"), size.get("longest_edge")
    crop_pct = fields.get("crop_pct")
    if family == "ConvNext" and shorter:
        if shorter >= CONVNEXT_WHOLE_PX:
            return (shorter, shorter), None, crop_px, "transformers"
        return int(shorter / crop_pct), None, (shorter, shorter), "transformers"
    if family == "PoolFormer" and crop_pct is not None:
        if pair and pair[0] != pair[1]:
            return (int(pair[0] / crop_pct), int(pair[1] / crop_pct)), None, crop_px, "transformers"
        return int((pair[0] if pair else shorter) / crop_pct), None, crop_px, "transformers"
    if family == "Levit" and shorter:
        return int(LEVIT_MARGIN * shorter), None, crop_px, "transformers"
    if shorter and longest:
        return shorter, longest, crop_px, "yolos" if family == "Yolos" else "transformers"
    if shorter or pair:
        return shorter or pair, None, crop_px, "transformers"
    raise _refused(kind, "size", size)


def _pair(size: Any) -> tuple[int, int] | None:
    """Height and width, where a size names them."""
    if isinstance(size, int):
        return size, size
    found = dict(size or {})
    return (found["height"], found["width"]) if {"height", "width"} <= found.keys() else None


_Three = tuple[float, float, float]


def _levels(family: str, fields: Mapping[str, Any]) -> tuple[_Three, _Three]:
    """Mean and std for values in 0..1: of a level x the processor makes (x · f - o - m) / s."""
    factor = float(fields.get("rescale_factor") or 1 / 255) if fields.get("do_rescale") else 1.0
    offset = (
        float(bool(fields.get("offset") or fields.get("rescale_offset"))) if fields.get("do_rescale") else 0.0
    )
    means, stds = np.zeros(3), np.ones(3)
    if fields.get("do_normalize"):
        means, stds = (
            np.broadcast_to(np.asarray(fields[name], float), 3) for name in ("image_mean", "image_std")
        )
    if family == "EfficientNet" and fields.get("include_top"):
        # It divides once more.
        stds = stds * np.broadcast_to(np.asarray(fields["image_std"], float), 3)
    scale = 255 * factor
    mean_r, mean_g, mean_b = ((means + offset) / scale).tolist()
    std_r, std_g, std_b = (stds / scale).tolist()
    return (mean_r, mean_g, mean_b), (std_r, std_g, std_b)


def _interpolation(kind: str, fields: Mapping[str, Any]) -> Interpolation:
    number = fields.get("resample")
    if number is None or not fields.get("do_resize"):
        return "bilinear"
    if int(number) not in INTERPOLATIONS:
        raise _refused(kind, "resample", OTHER_INTERPOLATIONS.get(int(number), number))
    return INTERPOLATIONS[int(number)]


def _try(processor: Any, kind: str, preprocessing: Preprocessing, *, clips: bool) -> None:
    """Raise ModelUnavailable unless a processor prepares pictures as `preprocessing` says."""
    for height_px, width_px in TRIED_HW:
        coarse_hw = height_px // 4 + 1, width_px // 4 + 1
        coarse = np.random.default_rng(0).integers(*TRIED_LEVELS, (*coarse_hw, 3), np.uint8)
        picture = np.ascontiguousarray(coarse.repeat(4, 0).repeat(4, 1)[:height_px, :width_px])
        expected = prepare_on_cpu(picture[None], preprocessing)[0]
        found = _prepared(processor, kind, picture, clips=clips)
        if found.shape != expected.shape:
            wrong = f"{tuple(found.shape)} and not {tuple(expected.shape)} of"
        else:
            levels = (found - expected).abs() * 255 * torch.tensor(preprocessing.std).view(3, 1, 1)
            if float(levels.amax()) <= MOST_LEVELS:
                continue
            wrong = f"pixels {float(levels.amax()):.0f} levels from what its fields say, of"
        raise ModelUnavailable(
            f"{kind} has steps that are not supported: it makes {wrong} {width_px}x{height_px} px",
            hint=OTHER_HINT,
        )


def _prepared(processor: Any, kind: str, picture: Any, *, clips: bool) -> Tensor:
    """The pixels `(3, h, w)` that the processor makes of a picture `(H, W, 3)`."""
    try:
        made = processor([[picture, picture]] if clips else picture, return_tensors="pt")
    except Exception as error:
        # A border: the code of any processor of the library, with the values of a file.
        raise ModelUnavailable(
            f"{kind} cannot prepare a picture: {one_line(error)}",
            hint="check the folder's preprocessor_config.json",
        ) from error
    for value in dict(made).values():
        if isinstance(value, Tensor) and value.ndim >= 4 and value.shape[-3] == 3:
            return value.reshape(-1, *value.shape[-3:])[0].float()
    raise ModelUnavailable(
        f"{kind} makes {', '.join(map(str, made))}, not pixels", hint="only networks of pictures are served"
    )


def _refused(kind: str, name: str, value: Any) -> ModelUnavailable:
    return ModelUnavailable(f"{kind} has {name} = {value}, which is not supported", hint=OTHER_HINT)
