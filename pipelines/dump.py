"""Answers of one medium as files and text: JSON lines, pictures, masks, a film. Knows no connection, no codec."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pipelines.errors import InternalError
from pipelines.results import SegmentationAnswer

# What a frame's bytes are saved as; raw ones get the head of a Netpbm file, which any viewer reads.
OVERLAY_NAMES = {"jpeg": "overlay.jpg", "raw": "overlay.ppm"}
MASK_NAMES = {"png": "mask.png", "raw": "mask.pgm"}
NETPBM_KINDS = {".ppm": "P6", ".pgm": "P5"}


def frame_lines(file: str, answer: SegmentationAnswer, *, with_mask: bool = False) -> Iterator[str]:
    """A JSON object for each frame; `with_mask` adds its run lengths (the option `mask=rle`)."""
    for row, index in enumerate(answer.frame_index):
        counts = zip(answer.class_names, answer.class_pixels[row], strict=True)
        line: dict[str, Any] = {
            "file": file,
            "frame_index": int(index),
            "pts_s": float(answer.pts_s[row]),
            "class_pixels": {name: int(count) for name, count in counts if count > 0},
            "decoder": answer.decoder,
        }
        if with_mask and answer.mask:
            line["mask"] = _run_lengths(answer.mask[row])
        yield json.dumps(line, ensure_ascii=False)


def _run_lengths(mask: bytes) -> Any:
    try:
        return json.loads(mask)
    except ValueError:
        raise InternalError(f"the mask is no JSON: {mask[:20]!r}") from None


class Dump:
    """Files of one medium, all named `<stem>…`, written as its answers come."""

    def __init__(self, folder: Path, stem: str, *, overlay: str, mask: str) -> None:
        """`overlay` and `mask` are the options that were asked for, so what the bytes are."""
        self._folder, self._stem = folder, stem
        self._overlay, self._mask = OVERLAY_NAMES.get(overlay), MASK_NAMES.get(mask)
        # Opened with the first answer: a request that fails leaves what an earlier one wrote.
        self._lines: IO[str] | None = None
        self._film: IO[bytes] | None = None

    def write(self, answer: SegmentationAnswer, lines: list[str]) -> None:
        """The frames' JSON lines, and whatever pictures the answer holds."""
        if self._lines is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lines = (self._folder / f"{self._stem}.jsonl").open("w", encoding="utf-8")
        self._lines.writelines(f"{line}\n" for line in lines)
        self._pictures(answer, answer.overlay, self._overlay)
        self._pictures(answer, answer.mask, self._mask)
        if answer.video:
            if self._film is None:
                self._film = (self._folder / f"{self._stem}_overlay.mp4").open("wb")
            self._film.write(answer.video)

    def write_originals(self, answer: SegmentationAnswer) -> None:
        """Frames that were asked for as JPEG without colours."""
        self._pictures(answer, answer.overlay, "original.jpg")

    def path(self, frame_index: int, name: str) -> Path:
        """Where a picture of a frame lies."""
        return self._folder / f"{self._stem}_{frame_index:06d}_{name}"

    def _pictures(self, answer: SegmentationAnswer, pictures: Any, name: str | None) -> None:
        if name is None:
            return
        kind = NETPBM_KINDS.get(Path(name).suffix)
        head = f"{kind}\n{answer.width_px} {answer.height_px}\n255\n".encode() if kind else b""
        for index, picture in zip(answer.frame_index, pictures, strict=False):
            self.path(int(index), name).write_bytes(head + picture)

    def __enter__(self) -> Dump:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._film is not None:
            self._film.close()


class Summary:
    """What a whole file shows: the classes that cover most of it."""

    def __init__(self) -> None:
        self._frames, self._pixels, self._decoder = 0, dict[str, int](), ""

    def add(self, answer: SegmentationAnswer) -> None:
        self._frames += len(answer)
        self._decoder = answer.decoder
        for name, count in zip(answer.class_names, answer.class_pixels.sum(axis=0), strict=True):
            self._pixels[name] = self._pixels.get(name, 0) + int(count)

    def __str__(self) -> str:
        if not self._frames:
            return "0 frames: the options select none"
        total = max(sum(self._pixels.values()), 1)
        _background, *classes = self._pixels.items() or [("", 0)]
        largest = sorted((item for item in classes if item[1]), key=lambda item: -item[1])[:5]
        shares = (
            ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in largest)
            or "nothing but background"
        )
        noun = "frame" if self._frames == 1 else "frames"
        return f"{self._frames} {noun}, {shares} ({self._decoder})"
