"""Folders of media: all that is served is found, nothing else is opened, what is left out is said."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal, get_args

import av
import pytest
from PIL import Image

from pipelines.media.containers import CONTAINERS
from pipelines.sdk.folders import IMAGE_SUFFIXES, VIDEO_SUFFIXES, Skipped, walk

# FFmpeg's suffixes of files of sound or subtitles only, of Pillow's pictures, and of what is not served.
OTHERS = {"m4a", "m4b", "isma", "mka", "mks", "wma", "avif", "mpo", "heic", "heif"}

Mode = Literal["r", "w"]


def test_every_suffix_of_what_is_served_is_walked() -> None:
    Image.init()
    served = ("JPEG", "MPO", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF")
    pictures = {suffix for suffix, name in Image.registered_extensions().items() if name in served}
    assert pictures <= set(IMAGE_SUFFIXES)
    videos = {
        f".{suffix}"
        for name in CONTAINERS.split(",")
        for mode in get_args(Mode)
        for suffix in _extensions(name, mode)
        if suffix not in OTHERS
    }
    assert videos <= set(VIDEO_SUFFIXES)
    assert not set(VIDEO_SUFFIXES) & set(IMAGE_SUFFIXES)


def _extensions(name: str, mode: Mode) -> set[str]:
    try:
        return set(av.format.ContainerFormat(name, mode).extensions)
    except ValueError:  # FFmpeg reads it but does not write it
        return set()


def test_whatever_lies_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "media"
    (folder / "sub.mp4" / "deep").mkdir(parents=True)
    names = ["a.PNG", ".hidden.jpg", "sub.mp4/b.mts", "sub.mp4/deep/c.gif", "d\n\x1b[31m.jpe", "empty.mkv"]
    for name in [*names, "n.txt", "o.txt", "without"]:
        (folder / name).write_bytes(b"")
    raw = os.fsdecode(b"caf\xe9.webm")
    (folder / raw).write_bytes(b"")
    (folder / "sub.mp4" / "loop").symlink_to(folder)
    (folder / "me.mp4").symlink_to("me.mp4")
    (folder / "gone.mp4").symlink_to("nowhere")
    (folder / "link.jpg").symlink_to("a.PNG")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "z.mov").write_bytes(b"")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "p.mp4")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "s.mp4"))
        skipped = Skipped()
        found = {str(one.path.relative_to(folder)): one for one in walk(folder, skipped)}
    assert set(found) == {*names, raw, "link.jpg", "linked/z.mov"}
    assert [name for name in found if found[name].may_be_long] == [
        *(raw, "empty.mkv", "linked/z.mov", "sub.mp4/b.mts", "sub.mp4/deep/c.gif")
    ]
    told = str(skipped)
    for part in (
        *(
            "2 of suffix .txt (n.txt, …)",
            "1 without a suffix (without)",
            "1 pipe (p.mp4)",
            "1 socket (s.mp4)",
        ),
        "1 linked folder that is walked already (loop)",
        "1 unreadable: No such file or directory (gone.mp4)",
        "1 unreadable: Too many levels of symbolic links (me.mp4)",
    ):
        assert part in told
    assert skipped.unread == 2


def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "closed").mkdir(mode=0)
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)  # root may read all, and nobody cannot come here from the root folder
    user = os.geteuid()
    skipped = Skipped()
    if user == 0:
        os.seteuid(65534)
    try:
        found = [one.path.name for one in walk(Path(), skipped)]
    finally:
        os.seteuid(user)
    assert (found, str(skipped)) == (["a.mp4"], "1 unreadable: Permission denied (closed)")


@pytest.mark.parametrize("kinds", [0, 3, 30])
def test_many_reasons_are_summed_up(kinds: int) -> None:
    skipped = Skipped()
    for kind in range(kinds):
        skipped.note(f"of suffix .{kind}", Path(f"a.{kind}"))
    assert str(skipped).count(";") == min(max(kinds - 1, 0), 8)
    assert ("22 others" in str(skipped)) == (kinds == 30)
