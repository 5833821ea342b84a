"""`model_info`, which OpenVINO's tools write into their files: how pixels are prepared. Knows no outputs.

Keys as of ModelAPI, OTX, Geti and Ultralytics; levels are of 255, and y = (x - mean) / scale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.models.spec import Fit, Preprocessing
from pipelines.protocol.errors import ModelUnavailable

KEY = "model_info "
FITS: Mapping[str, Fit] = {
    "standard": "stretch",
    "fit_to_window": "letterbox_top_left",
    "fit_to_window_letterbox": "letterbox",
}
YES = ("yes", "true", "1")


def info_preprocessing(metadata: Mapping[str, str], size_hw: tuple[int, int] | None) -> Preprocessing | None:
    """The facts of a file that says how its pixels are prepared; None: it does not say, or no size is known.

    Raises:
        ModelUnavailable: it says something that is not supported.
    """
    info = {key.removeprefix(KEY): text for key, text in metadata.items() if key.startswith(KEY)}
    said = ("mean_values", "scale_values", "reverse_input_channels", "resize_type", "embedded_processing")
    if size_hw is None or not any(key in info for key in said):
        return None
    kind = info.get("resize_type", "standard")
    crop = kind == "crop"
    if kind not in FITS and not crop:
        raise ModelUnavailable(
            f"resize_type {kind!r} in its model_info is not one of {', '.join(FITS)} or crop",
            hint="set fit and resize_px in a settings file",
        )
    embedded = info.get("embedded_processing", "").lower() in YES
    mean, scale = _three(info.get("mean_values", ""), 0.0), _three(info.get("scale_values", ""), 1.0)
    reverse = info.get("reverse_input_channels", "").lower() in YES
    if embedded:
        # The graph does all of this itself, the turn from BGR to RGB too.
        mean, scale, reverse = (0.0,) * 3, (1.0,) * 3, False
    try:
        return Preprocessing(
            resize_px=min(size_hw) if crop else size_hw,
            crop_px=size_hw if crop else None,
            fit="stretch" if crop else FITS[kind],
            mean=(mean[0] / 255, mean[1] / 255, mean[2] / 255),
            std=(scale[0] / 255, scale[1] / 255, scale[2] / 255),
            antialias=False,
            channels="RGB" if reverse else "BGR",
            pad_value=int(float(info.get("pad_value", "0") or 0)),
        )
    except ValueError as error:
        raise ModelUnavailable(
            f"its model_info: {error}", hint="set mean and std in a settings file"
        ) from error


def _three(text: str, usual: float) -> tuple[float, ...]:
    """Three numbers of a text of one or three."""
    numbers = tuple(float(one) for one in re.findall(r"-?[\d.]+(?:e-?\d+)?", text.lower())) or (usual,)
    return (numbers * 3)[:3] if len(numbers) == 1 else numbers[:3] if len(numbers) > 2 else (usual,) * 3
