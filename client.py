"""Client of Trivid: videos and images in, typed answers out. Needs numpy, and tritonclient[grpc] for gRPC.

    from client import Client

    with Client("grpc://127.0.0.1:8001", timeout_s=60) as client:
        for answer in client.segment_stream("clip.mp4", stride=5):
            print(answer.pts_s, answer.class_names, answer.class_pixels)
        print(client.classify("photo.jpg", top_k=3).class_name)

As a program: `python client.py --help`. It exits with 0 if all is well, 1 if some media failed, 2 at wrong
usage, 3 if the server cannot be reached or is not ready, 130 at Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args, get_origin

from pipelines.protocol.answers import (
    ANSWERS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.errors import DeadlineExceeded, InvalidOptions, ModelUnavailable, TrividError
from pipelines.protocol.options import OPTION_FIELDS, OPTION_TYPES, TRANSFER_OPTIONS
from pipelines.sdk.client import DEFAULT_URL, MODEL, Client
from pipelines.sdk.console import Screen
from pipelines.sdk.files import Dump
from pipelines.sdk.report import Summary, row_lines
from pipelines.sdk.served import ModelInfo, ServerInfo, kind_of

__all__ = [
    "ActionAnswer",
    "Answer",
    "ClassificationAnswer",
    "Client",
    "DetectionAnswer",
    "EmbeddingAnswer",
    "ModelInfo",
    "SegmentationAnswer",
    "ServerInfo",
    "main",
]

OK, SOME_FAILED, WRONG_USAGE, NO_SERVER, INTERRUPTED = 0, 1, 2, 3, 130

EXAMPLES = """\
examples:
  what is in a video, one line per file           client.py --video-paths clip.mp4
  the three likeliest classes of an image     client.py --task classification --image-paths dog.jpg --top-k 3
  boxes of persons, drawn into a video            client.py --task detection --class-name person
                                                      --video-paths a.mp4 --overlay mp4
  actions in a video, one line per clip           client.py --task action --video-paths a.mp4 --json
  of one of several models, by its name           client.py --model gate --image-paths photos/
  five frames a second, as JSON                   client.py --video-paths clip.mp4 --fps 5 --json | jq .
  images, masks and JSON lines into out/          client.py --image-paths photos/ --dump-images --output out
  a video with the people coloured                client.py --task segmentation --class-name person
                                                      --video-paths a.mp4 --overlay mp4 --output out
  what the server serves, over HTTP               client.py --url http://host:8000 --info

exit codes: 0 all well, 1 some media failed (the others are done), 2 wrong usage or missing file,
3 server not reachable or not ready, 130 interrupted
"""

LONGEST_S = 1e6
SHORT_FLAGS = {"score_threshold": "--threshold", "start_s": "--start", "end_s": "--end"}
OPTIONS = tuple(name for name in OPTION_FIELDS if name not in ("task", *TRANSFER_OPTIONS))
SELECTION = ("start_s", "end_s", "fps", "keyframes_only", "stride", "max_frames", "decoder")
CLIPS = ("clip_length", "clip_stride", "tail")

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".flv", ".ogv"),
    *(".h264", ".264", ".h265", ".265", ".hevc"),
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="client.py",
        usage="client.py --video-paths PATH ... | --image-paths PATH ... | --info [flags] (--help: all)",
        description="Send videos and images to a Trivid server and say what is in them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--video-paths", nargs="+", type=Path, default=[], metavar="PATH", help="videos, or folders of media")
    add("--image-paths", nargs="+", type=Path, default=[], metavar="PATH", help="images, or folders of media")
    add("--task", choices=list(ANSWERS), help="task to run (default: that of the model)")
    add(
        "--model",
        default="",
        metavar="NAME",
        help="served model to ask (default: the only one of the task, else the first)",
    )
    add("--url", default=DEFAULT_URL, help="grpc://, grpcs://, http:// or https:// (default: %(default)s)")
    add("--token", default="", help="access token (default: the variable TRIVID_TOKEN)")
    add(
        "--timeout",
        type=_seconds,
        default=60.0,
        metavar="S",
        help="seconds to wait for each answer (default: %(default)s)",
    )
    add("--info", action="store_true", help="print the server's description as JSON")
    add(
        "--stream",
        action=argparse.BooleanOptionalAction,
        help="one answer per chunk, for media of any length; or one answer for all (default: stream videos)",
    )
    files = parser.add_argument_group("output")
    files.add_argument("--json", action="store_true", help="print one JSON object per frame or clip")
    files.add_argument(
        "--output", type=Path, metavar="DIR", help="folder for files (default: out, if needed)"
    )
    files.add_argument(
        "--dump-images", action="store_true", help="save pictures and masks of every frame or box"
    )
    files.add_argument("--originals", action="store_true", help="also save the frames without drawings")
    options = parser.add_argument_group("request options (each task takes only some of them)")
    for name in OPTIONS:
        flags = [f"--{name.replace('_', '-')}", *([SHORT_FLAGS[name]] if name in SHORT_FLAGS else [])]
        text = str(OPTION_FIELDS[name].metadata["help"]).replace("%", "%%")
        if OPTION_TYPES[name] is bool:
            options.add_argument(*flags, nargs="?", const="true", metavar="{true,false}", help=text)
        else:
            options.add_argument(*flags, metavar=_metavar(name), help=text)
    return parser


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) <= LONGEST_S:
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, up to {LONGEST_S:g}")


def _metavar(name: str) -> str:
    kind = OPTION_TYPES[name]
    if get_origin(kind) is Literal:
        return f"{{{','.join(get_args(kind))}}}"
    return {int: "N", float: "X"}.get(kind, "NAME")


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaFile:
    """A file to send."""

    path: Path
    is_video: bool


def _list_media(videos: Sequence[Path], images: Sequence[Path]) -> list[MediaFile]:
    """The files named, and the media in the folders named. Raises InvalidOptions where there is nothing."""
    media: list[MediaFile] = []
    for path, is_video in [*((path, True) for path in videos), *((path, False) for path in images)]:
        if not path.exists():
            raise InvalidOptions(f"{path}: no such file or folder")
        found = list(_walk(path)) if path.is_dir() else [MediaFile(path=path, is_video=is_video)]
        if not found:
            raise InvalidOptions(
                f"{path}: no media in this folder", hint="name the file itself to send it as it is"
            )
        media.extend(found)
    return media


def _walk(folder: Path) -> Iterator[MediaFile]:
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and path.is_file():
            yield MediaFile(path=path, is_video=suffix in VIDEO_SUFFIXES)


class Invocation:
    """One call of the program: every file is sent, its answers are printed and saved, in turn."""

    def __init__(
        self, client: Client, info: ServerInfo, arguments: argparse.Namespace, screen: Screen
    ) -> None:
        self._client, self._arguments, self._screen = client, arguments, screen
        self._kind, model = kind_of(info, arguments.task or "", arguments.model)
        self._address = {MODEL: model}
        given = {name: getattr(arguments, name) for name in OPTIONS}
        pictures = {"overlay": "jpeg", "mask": "png"} if arguments.dump_images else {"mask": "none"}
        if not hasattr(self._kind, "mask"):
            del pictures["mask"]
        self._options: dict[str, str] = pictures | {k: v for k, v in given.items() if v is not None}
        self._folder = self._find_folder()
        self._stems: dict[str, int] = {}

    def _find_folder(self) -> Path | None:
        """The folder for files, if there will be any. Raises InvalidOptions where a file is in its place."""
        asked = {self._options.get("overlay", "none"), self._options.get("mask", "none")}
        files = self._arguments.originals or asked - {"none", "rle"}
        folder: Path | None = self._arguments.output or (Path("out") if files else None)
        for place in (folder, *folder.parents) if folder else ():
            if place.exists() and not place.is_dir():
                raise InvalidOptions(f"no folder for files: {place} is a file", hint="name another: --output")
        return folder

    def send_all(self, media: Sequence[MediaFile]) -> int:
        """Send all files; returns the exit code."""
        done = failed = 0
        for medium in media:
            try:
                self._send(medium)
                done += 1
            except (TrividError, OSError) as error:
                if isinstance(error, BrokenPipeError):
                    raise
                self._screen.complain(error, medium.path)
                if isinstance(error, ModelUnavailable):
                    return NO_SERVER
                if isinstance(error, InvalidOptions) and not done:
                    return WRONG_USAGE
                failed += 1
            self._screen.file_done()
        return SOME_FAILED if failed else OK

    def _send(self, medium: MediaFile) -> None:
        answers = self._answers(medium, self._options)
        if self._folder is None:
            self._show(medium, answers, None)
            return
        asked = {name: self._options.get(name, "none") for name in ("overlay", "mask")}
        with Dump(self._folder, self._stem(medium.path), **asked) as dump:
            self._show(medium, answers, dump)
            if self._arguments.dump_images and not medium.is_video:
                shutil.copyfile(medium.path, dump.path("000000", f"original{medium.path.suffix.lower()}"))
            elif self._arguments.originals:
                for answer in self._answers(medium, self._plain()):
                    dump.write_originals(answer)

    def _plain(self) -> dict[str, str]:
        """Options that bring the same frames with nothing drawn on them."""
        kept = {name: self._options[name] for name in (*SELECTION, *CLIPS) if name in self._options}
        masks = {"mask": "none"} if hasattr(self._kind, "mask") else {}
        return {**kept, **masks, "overlay": "jpeg", "alpha": "0"}

    def _answers(self, medium: MediaFile, options: dict[str, str]) -> Iterator[Answer]:
        options = options | self._address
        stream = medium.is_video if self._arguments.stream is None else self._arguments.stream
        if stream:
            return self._client.ask_stream(self._kind, medium.path, options)
        return iter([self._client.ask(self._kind, medium.path, options)])

    def _show(self, medium: MediaFile, answers: Iterator[Answer], dump: Dump | None) -> None:
        """Print and save answers as they come, and without --json a line for the whole file at the end."""
        summary = Summary()
        self._screen.frames(medium.path, 0)
        for answer in answers:
            lines = list(row_lines(str(medium.path), answer, with_mask=self._options.get("mask") == "rle"))
            if dump is not None:
                dump.write(answer, lines)
            if self._arguments.json:
                for line in lines:
                    self._screen.say(line)
            summary.add(answer)
            self._screen.frames(medium.path, len(answer))
        if not self._arguments.json:
            where = "" if dump is None else f"; files in {self._folder}"
            self._screen.say(f"{medium.path}: {summary}{where}")

    def _stem(self, path: Path) -> str:
        """The file's name without suffix, numbered where several files share it."""
        count = self._stems[path.stem] = self._stems.get(path.stem, 0) + 1
        return path.stem if count == 1 else f"{path.stem}-{count}"


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code (argparse exits by itself, with 2, at an unknown flag)."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are ours to tell, in one line
    screen = Screen(0)
    try:
        media = _list_media(arguments.video_paths, arguments.image_paths)
        if not media and not arguments.info:
            parser.error("nothing to do: name --video-paths, --image-paths or --info")
        screen = Screen(len(media))
        token = arguments.token or os.environ.get("TRIVID_TOKEN", "")
        with Client(arguments.url, timeout_s=arguments.timeout, token=token) as client:
            info = client.info()
            if arguments.info:
                screen.say(json.dumps(info, indent=2, ensure_ascii=False))
            code = OK
            if media:
                code = Invocation(client, info, arguments, screen).send_all(media)
        screen.clear()
        return code
    except TrividError as error:
        screen.complain(error)
        if isinstance(error, ModelUnavailable | DeadlineExceeded):
            return NO_SERVER
        return WRONG_USAGE if isinstance(error, InvalidOptions) else SOME_FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read stdout has left
        return SOME_FAILED
    except OSError as error:
        screen.complain(error, Path(str(error.filename or "")))
        return WRONG_USAGE
    except KeyboardInterrupt:
        screen.clear()
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
