"""Which converters, methods and input formats of DL Streamer's are served. Knows no other field.

A file is looked at here first: what is out of scope is refused by its name, before any field that only
files of its kind have.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict

from pipelines.models.spec import Activation
from pipelines.settings.reading import allowed, not_allowed

LENIENT = ConfigDict(extra="ignore", frozen=True)
REGIONS = ("yolo_v2", "yolo_v3", "yolo_v4", "yolo_v5")
# Those that give boxes.
BOXES = (
    *("detection_output", "boxes_labels", "boxes_scores", "boxes", "detection"),
    *REGIONS,
    *("yolo_v7", "yolo_x", "yolo_v8", "yolo_v8_seg", "yolo_v8_pose", "yolo_v10"),
    *("yolo_v11", "yolo_v11_seg", "yolo_v11_pose", "yolo_v26", "yolo_v26_seg", "yolo_v26_pose"),
)
LABEL, TEXT, RAW = "label", "text", ("", "raw_data_copy")
READ = (LABEL, *BOXES, *RAW)
# Names that a converter had before.
OLDER = {
    "tensor_to_bbox_ssd": "detection_output",
    "tensor_to_bbox_atss": "boxes_labels",
    "ssd": "boxes_labels",
    "Classification": LABEL,
    "YOLOv8": "yolo_v8",
    "YOLOv8-SEG": "yolo_v8_seg",
    "YOLOv8-OBB": "yolo_v8_obb",
    "MaskRCNN": "mask_rcnn",
    "rotated_detection": "mask_rcnn",
}
# What others that DL Streamer has are of.
OUT_OF_SCOPE = {
    "audio_labels": "sound",
    "centerface": "points of a face in heat maps",
    "keypoints_3d": "points in space",
    "keypoints_hrnet": "points in heat maps",
    "keypoints_openpose": "points in heat maps",
    "mask_rcnn": "masks of a second stage",
    "yolo_v8_obb": "oriented boxes",
    "yolo_v11_obb": "oriented boxes",
    "yolo_v26_obb": "oriented boxes",
}
# What the method says of the outputs: scores to be made probabilities, or to be taken as they are.
METHODS: dict[str, Activation] = {
    "softmax": "softmax",
    "max": "none",
    "compound": "none",
    "multi": "none",
    "softmax_multi": "softmax",
}


def current_name(converter: str) -> str:
    """The name that a converter has today."""
    if converter in OLDER:
        return OLDER[converter]
    return converter.removeprefix("tensor_to_").removeprefix("bbox_")


def _is_served(converter: Any) -> Any:
    if converter is None or not isinstance(converter, str):
        return converter
    name = current_name(converter)
    if name in (*READ, TEXT):
        return converter
    reason = f"; out of scope: {OUT_OF_SCOPE[name]}" if name in OUT_OF_SCOPE else ""
    raise not_allowed(f"{', '.join(filter(None, READ))}{reason}")


class _Input(BaseModel):
    model_config = LENIENT

    format: Annotated[Any, allowed("image; out of scope: inputs beside it", ("image", None).__contains__)] = (
        None
    )


class _Output(BaseModel):
    model_config = LENIENT

    converter: Annotated[Any, AfterValidator(_is_served)] = None
    method: Annotated[
        Any,
        allowed(
            f"{', '.join(METHODS)}; out of scope: texts of label numbers, as index has them",
            (*METHODS, None).__contains__,
        ),
    ] = None


def _more_than_text(outputs: tuple[_Output, ...]) -> tuple[_Output, ...]:
    names = [current_name(one.converter) for one in outputs if isinstance(one.converter, str)]
    if names and len(names) == len(outputs) and {*names} == {TEXT}:
        raise not_allowed("a label or boxes too, since text without them is not served")
    return outputs


class Scope(BaseModel):
    """The parts of a file that say whether it is served at all."""

    model_config = LENIENT

    input_preproc: tuple[_Input, ...] = ()
    output_postproc: Annotated[tuple[_Output, ...], AfterValidator(_more_than_text)] = ()
