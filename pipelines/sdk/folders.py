"""The media in folders, and what is left out of them and why. Opens no file: suffixes say what it is."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# All suffixes of what the server decodes: Pillow's formats, and FFmpeg's containers except those of sound.
STILL_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".avif", ".bmp", ".dib", ".tif", ".tiff")
# These may well hold many frames.
ANIMATED_SUFFIXES = (".gif", ".webp", ".apng", ".avifs")
IMAGE_SUFFIXES = (*STILL_SUFFIXES, *ANIMATED_SUFFIXES)
VIDEO_SUFFIXES = (
    *(
        ".mp4",
        ".m4v",
        ".mov",
        ".qt",
        ".3gp",
        ".3g2",
        ".f4v",
        ".ism",
        ".ismv",
        ".mj2",
        ".psp",
        ".insv",
        ".lrv",
    ),
    *(".mkv", ".mk3d", ".webm", ".avi", ".divx", ".flv", ".asf", ".wmv", ".ogv", ".ogg", ".ogm", ".mxf"),
    *(".ts", ".m2t", ".m2ts", ".mts", ".tp", ".trp", ".tod", ".mpg", ".mpeg", ".mpe", ".mpv", ".m1v", ".m2v"),
    *(".vob", ".evo", ".mod", ".mjpeg", ".mjpg", ".dv", ".dif", ".nut", ".ivf", ".obu", ".av1", ".vc1"),
    *(".h264", ".264", ".h26l", ".avc", ".h265", ".265", ".hevc", ".h266", ".266", ".vvc"),
)
SPECIAL = {
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
MOST_REASONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFile:
    """A file to send."""

    path: Path
    is_video: bool

    @property
    def may_be_long(self) -> bool:
        """Whether it may hold more frames than fit into one answer."""
        return self.is_video or self.path.suffix.lower() in ANIMATED_SUFFIXES


class Skipped:
    """What a walk left out: how many for which reason, and the first of each."""

    def __init__(self) -> None:
        self.unread = 0
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def note(self, reason: str, path: Path) -> None:
        self._counts[reason] += 1
        self._first.setdefault(reason, path.name)

    def note_fault(self, error: OSError, path: Path) -> None:
        """It could not be looked at."""
        self.unread += 1
        self.note(f"unreadable: {error.strerror or error}", path)

    def __str__(self) -> str:
        if not self._counts:
            return ""
        told = [
            f"{count} {reason} ({self._first[reason]}{', …' if count > 1 else ''})"
            for reason, count in self._counts.most_common(MOST_REASONS)
        ]
        rest = self._counts.total() - sum(count for _, count in self._counts.most_common(MOST_REASONS))
        return "; ".join([*told, *([f"{rest} others"] if rest else [])])


def walk(folder: Path, skipped: Skipped | None = None) -> Iterator[MediaFile]:
    """The media in a folder and those below it, by name, links followed; each folder is walked once."""
    skipped = Skipped() if skipped is None else skipped
    walked: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        try:
            found = path.stat()
            if stat.S_ISDIR(found.st_mode):
                if (place := (found.st_dev, found.st_ino)) in walked:
                    skipped.note("linked folder that is walked already", path)
                    continue
                walked.add(place)
                waiting.extend(sorted(path.iterdir(), reverse=True))
                continue
        except OSError as error:
            skipped.note_fault(error, path)
            continue
        suffix = path.suffix.lower()
        if kind := special_kind(found.st_mode):
            skipped.note(kind, path)
        elif suffix in VIDEO_SUFFIXES or suffix in IMAGE_SUFFIXES:
            yield MediaFile(path=path, is_video=suffix in VIDEO_SUFFIXES)
        else:
            skipped.note(f"of suffix {suffix}" if suffix else "without a suffix", path)


def special_kind(mode: int) -> str:
    """What a thing in a file system is that is neither a file nor a folder; else empty."""
    return SPECIAL.get(stat.S_IFMT(mode), "")
