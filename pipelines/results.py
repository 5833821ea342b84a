"""Answers as frozen columns, the same objects on the server and in the client. numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.contract import COMMON_COLUMNS, Column, Tensor, bytes_column, text_column

SEGMENTATION_COLUMNS = (
    Column(name="frame_index", dtype=np.int64, dims=("N",), help="number of the frame in its medium, from 0"),
    Column(name="pts_s", dtype=np.float64, dims=("N",), help="its presentation time in seconds"),
    Column(
        name="class_names", dtype=object, dims=("K",), help="names of the K classes, the background first"
    ),
    Column(name="class_pixels", dtype=np.int64, dims=("N", "K"), help="source pixels of each class"),
    Column(name="size", dtype=np.int64, dims=(2,), help="height and width of the source in pixels"),
    Column(
        name="mask",
        dtype=object,
        dims=("N",),
        help="the class map as asked for: COCO run lengths as JSON, PNG, raw",
        binary=True,
    ),
    Column(
        name="overlay",
        dtype=object,
        dims=("N",),
        help="the picture as asked for: JPEG or raw RGB bytes",
        binary=True,
    ),
    Column(
        name="video",
        dtype=object,
        dims=(1,),
        help="H.264 in fragmented MP4; the parts of a stream concatenate",
        binary=True,
    ),
    *COMMON_COLUMNS,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SegmentationAnswer:
    """What segmentation says of N frames of one medium; fields are columns of SEGMENTATION_COLUMNS."""

    frame_index: npt.NDArray[np.int64]
    pts_s: npt.NDArray[np.float64]
    class_names: tuple[str, ...]
    class_pixels: npt.NDArray[np.int64]
    height_px: int
    width_px: int
    mask: Sequence[bytes] = ()
    overlay: Sequence[bytes] = ()
    video: bytes = b""
    decoder: str = ""
    decoder_reason: str = ""
    final: bool = False

    def __post_init__(self) -> None:
        count = len(self.frame_index)
        if len(self.pts_s) != count or self.class_pixels.shape != (count, len(self.class_names)):
            raise ValueError(
                f"columns disagree: {count} frame_index, {len(self.pts_s)} pts_s, "
                f"class_pixels {self.class_pixels.shape} of {len(self.class_names)} classes"
            )
        for name in ("mask", "overlay"):
            if len(getattr(self, name)) not in (0, count):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {count} frames")

    def __len__(self) -> int:
        return len(self.frame_index)

    @property
    def nbytes(self) -> int:
        """Bytes of everything that grows with the pixels."""
        return sum(map(len, self.mask)) + sum(map(len, self.overlay)) + len(self.video)

    def to_columns(self) -> dict[str, Tensor]:
        """The answer as named columns, without the row dimension."""
        return {
            "frame_index": self.frame_index,
            "pts_s": self.pts_s,
            "class_names": bytes_column([name.encode() for name in self.class_names]),
            "class_pixels": self.class_pixels,
            "size": np.array([self.height_px, self.width_px], np.int64),
            "mask": bytes_column(self.mask),
            "overlay": bytes_column(self.overlay),
            "video": text_column(self.video),
            "count": np.array([len(self)], np.int64),
            "decoder": text_column(self.decoder),
            "decoder_reason": text_column(self.decoder_reason),
            "final": np.array([self.final], np.uint8),
            "error": text_column(""),
        }

    @classmethod
    def from_columns(cls, columns: Mapping[str, Tensor]) -> SegmentationAnswer:
        """The inverse of `to_columns`; padding beyond `count` is dropped."""
        count = int(columns["count"][0])
        texts = {name: bytes(columns[name][0]) for name in ("decoder", "decoder_reason", "video")}
        names = tuple(bytes(name).decode() for name in columns["class_names"])
        return cls(
            frame_index=columns["frame_index"][:count],
            pts_s=columns["pts_s"][:count],
            class_names=names,
            # A row of no frames is padded to one of one class.
            class_pixels=columns["class_pixels"][:count] if count else np.empty((0, len(names)), np.int64),
            height_px=int(columns["size"][0]),
            width_px=int(columns["size"][1]),
            mask=_texts(columns["mask"][:count]),
            overlay=_texts(columns["overlay"][:count]),
            video=texts["video"],
            decoder=texts["decoder"].decode(),
            decoder_reason=texts["decoder_reason"].decode(),
            final=bool(columns["final"][0]),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[SegmentationAnswer]) -> SegmentationAnswer:
        """The parts of one medium, in order, as one answer."""
        if len(parts) == 1:
            return parts[0]
        first = parts[0]
        return cls(
            frame_index=np.concatenate([part.frame_index for part in parts]),
            pts_s=np.concatenate([part.pts_s for part in parts]),
            class_names=first.class_names,
            class_pixels=np.concatenate([part.class_pixels for part in parts]),
            height_px=first.height_px,
            width_px=first.width_px,
            mask=[value for part in parts for value in part.mask],
            overlay=[value for part in parts for value in part.overlay],
            video=b"".join(part.video for part in parts),
            decoder=first.decoder,
            decoder_reason=first.decoder_reason,
            final=parts[-1].final,
        )


def _texts(column: Tensor) -> list[bytes]:
    """A BYTES column; one of empty texts alone is padding and becomes no entries."""
    values = [bytes(value) for value in column]
    return values if any(values) else []
