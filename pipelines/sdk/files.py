"""Answers of one medium as files: JSON lines, pictures, masks, a video. Knows no connection, no codec."""

from __future__ import annotations

from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from pipelines.protocol.answers import Answer, DetectionAnswer, SegmentationAnswer

# The formats in which a row's bytes are saved; raw ones get a Netpbm header, which any viewer reads.
OVERLAY_NAMES = {"jpeg": "overlay.jpg", "raw": "overlay.ppm"}
MASK_NAMES = {"png": "mask.png", "raw": "mask.pgm", "probability": "probability.png"}
NETPBM_KINDS = {".ppm": "P6", ".pgm": "P5"}


class Dump:
    """Files of one medium, all named `<stem>…`, written as its answers come."""

    def __init__(self, folder: Path, stem: str, *, overlay: str, mask: str) -> None:
        """`overlay` and `mask` are the options of the request: they tell what the bytes are."""
        self._folder, self._stem = folder, stem
        self._overlay, self._mask = OVERLAY_NAMES.get(overlay), MASK_NAMES.get(mask)
        # Opened at the first answer, so that a request that fails leaves the files of an earlier one.
        self._lines: FileIO | None = None
        self._film: FileIO | None = None

    def write(self, answer: Answer, lines: list[str]) -> None:
        """Write the JSON lines, and all pictures that the answer holds."""
        if self._lines is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._lines = self._open(f"{self._stem}.jsonl")
        self._save(self._lines, "".join(f"{line}\n" for line in lines).encode())
        names = [f"{index:06d}" for index in answer.frame_index]
        self._pictures(answer, names, answer.overlay, self._overlay)
        if isinstance(answer, SegmentationAnswer):
            self._pictures(answer, names, answer.mask, self._mask)
        if isinstance(answer, DetectionAnswer):
            self._pictures(answer, _box_names(answer), answer.mask, self._mask)
        if answer.video:
            if self._film is None:
                self._film = self._open(f"{self._stem}_overlay.mp4")
            self._save(self._film, answer.video)

    def write_originals(self, answer: Answer) -> None:
        """Write frames that were requested as JPEG with nothing drawn on them."""
        names = [f"{index:06d}" for index in answer.frame_index]
        self._pictures(answer, names, answer.overlay, "original.jpg")

    def path(self, number: str, name: str) -> Path:
        """The path of a picture: a frame's by its number, a box's by its frame's number and its own."""
        return self._folder / f"{self._stem}_{number}_{name}"

    def _pictures(
        self, answer: Answer, numbers: Sequence[str], pictures: Sequence[bytes], name: str | None
    ) -> None:
        if name is None:
            return
        kind = NETPBM_KINDS.get(Path(name).suffix)
        head = f"{kind}\n{answer.width_px} {answer.height_px}\n255\n".encode() if kind else b""
        for number, picture in zip(numbers, pictures, strict=False):
            with self._open(self.path(number, name).name) as file:
                self._save(file, head + picture)

    def _open(self, name: str) -> FileIO:
        """A file of its own, unbuffered: what cannot be written is known at once."""
        return FileIO(self._folder / name, "w")

    def _save(self, file: FileIO, data: bytes) -> None:
        """Write all of it. Raises OSError with the file's name, such as that of a full disk."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, file.name) from None

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lines is not None:
            self._lines.close()
        if self._film is not None:
            self._film.close()


def _box_names(answer: DetectionAnswer) -> list[str]:
    """Names of the boxes: the frame's number, and the box's place in the frame."""
    places: dict[int, int] = {}
    names = []
    for index in answer.box_frame_index.tolist():
        places[index] = places.get(index, -1) + 1
        names.append(f"{index:06d}_{places[index]:03d}")
    return names
