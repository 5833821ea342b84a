"""Client of Trivid: videos and images in, typed answers out. Needs numpy, and tritonclient[grpc] for gRPC.

    from client import Client

    with Client("grpc://127.0.0.1:8001", timeout_s=60) as client:
        for answer in client.segment_stream("clip.mp4", stride=5):
            print(answer.pts_s, answer.class_names, answer.class_pixels)
        print(client.classify("photo.jpg", top_k=3).class_name)

As a program: `python client.py --help`. It exits with 0 if all is well, 1 if some media failed, 2 at wrong
usage, 3 if the server cannot be reached or is not ready, 130 at Ctrl-C.
"""

# ruff: noqa: E402 - interrupts are seen to before the long imports
from __future__ import annotations

import os
import signal
import sys

INTERRUPTED = 130


def _end_quietly(*_: object) -> None:
    os._exit(INTERRUPTED)


# While Python imports and while it ends, an interrupt would be a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end_quietly)

import argparse
import contextlib
import itertools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pipelines.protocol.answers import (
    ANSWERS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    EmbeddingAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.errors import (
    DeadlineExceeded,
    InternalError,
    InvalidOptions,
    ModelUnavailable,
    TrividError,
)
from pipelines.protocol.kserve import reading
from pipelines.protocol.options import OPTION_FIELDS, OPTION_TYPES, TRANSFER_OPTIONS
from pipelines.sdk.client import DEFAULT_URL, LONGEST_S, MODEL, Client
from pipelines.sdk.console import OutputLost, Screen
from pipelines.sdk.files import Dump
from pipelines.sdk.folders import IMAGE_SUFFIXES, VIDEO_SUFFIXES, MediaFile, Skipped
from pipelines.sdk.folders import walk as _walk
from pipelines.sdk.report import Summary, row_lines
from pipelines.sdk.served import ModelInfo, ServerInfo, kind_of
from pipelines.sdk.text import as_json

__all__ = [
    "IMAGE_SUFFIXES",
    "VIDEO_SUFFIXES",
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

OK, SOME_FAILED, WRONG_USAGE, NO_SERVER = 0, 1, 2, 3

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

# Bytes, so that what is added to it stays below what file systems take.
LONGEST_STEM = 200
SHORT_FLAGS = {"score_threshold": "--threshold", "start_s": "--start", "end_s": "--end"}
OPTIONS = tuple(name for name in OPTION_FIELDS if name not in ("task", *TRANSFER_OPTIONS))
SELECTION = ("start_s", "end_s", "fps", "keyframes_only", "stride", "max_frames", "damaged", "decoder")
CLIPS = ("clip_length", "clip_stride", "tail")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="client.py",
        usage="client.py --video-paths PATH ... | --image-paths PATH ... | --info [flags] (--help: all)",
        description="Send videos and images to a Trivid server and say what is in them.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    paths: dict[str, Any] = {"nargs": "+", "action": "extend", "type": Path, "default": [], "metavar": "PATH"}
    add("--video-paths", help="videos, or folders of media", **paths)
    add("--image-paths", help="images, or folders of media", **paths)
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


def _list_media(
    videos: Sequence[Path], images: Sequence[Path]
) -> tuple[list[MediaFile], list[tuple[Path, Skipped]]]:
    """The files named and the media in the folders named; of each folder, what is left out.

    Raises InvalidOptions where there is nothing.
    """
    media: list[MediaFile] = []
    left_out: list[tuple[Path, Skipped]] = []
    for path, is_video in [*((path, True) for path in videos), *((path, False) for path in images)]:
        if not path.exists():
            raise InvalidOptions(f"{path}: no such file or folder")
        if not path.is_dir():
            media.append(MediaFile(path=path, is_video=is_video))
            continue
        skipped = Skipped()
        found = list(_walk(path, skipped))
        if not found:
            raise InvalidOptions(
                f"{path}: no media in this folder; skipped: {str(skipped) or 'nothing'}",
                hint="name the file itself to send it as it is",
            )
        media.extend(found)
        left_out.append((path, skipped))
    return media, left_out


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
        self._stems: set[str] = set()

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
        stream = medium.may_be_long if self._arguments.stream is None else self._arguments.stream
        if stream:
            return self._client.ask_stream(self._kind, medium.path, options)
        return (self._client.ask(self._kind, path, options) for path in [medium.path])

    def _show(self, medium: MediaFile, answers: Iterator[Answer], dump: Dump | None) -> None:
        """Print and save answers as they come, and without --json a line for the whole file at the end."""
        summary, faults = Summary(), list[TrividError]()
        self._screen.frames(medium.path, 0)
        for answer in _until_fault(answers, faults):
            with reading():
                lines = list(
                    row_lines(str(medium.path), answer, with_mask=self._options.get("mask") == "rle")
                )
                summary.add(answer)
            if dump is not None:
                dump.write(answer, lines)
            if self._arguments.json:
                for line in lines:
                    self._screen.say(line)
            self._screen.frames(medium.path, len(answer))
        if not self._arguments.json and (summary.rows or not faults):
            where = "" if dump is None else f"; files in {self._folder}"
            self._screen.say(f"{medium.path}: {summary}{where}")
        for fault in faults:
            raise fault

    def _stem(self, path: Path) -> str:
        """The file's name without suffix, shortened if too long, numbered where several files share it."""
        stem = os.fsdecode(os.fsencode(path.stem)[:LONGEST_STEM])
        names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
        free = next(name for name in names if name not in self._stems)
        self._stems.add(free)
        return free


def _until_fault(answers: Iterator[Answer], faults: list[TrividError]) -> Iterator[Answer]:
    """The answers up to an error, and what came with it. The error goes into `faults`."""
    try:
        yield from answers
    except TrividError as error:
        faults.append(error)
        if error.answer is not None:
            yield error.answer


def main(argv: Sequence[str] | None = None) -> int:
    """The program; returns its exit code (argparse exits by itself, with 2, at an unknown flag)."""
    screen = Screen(0)
    try:
        return _run(argv, screen)
    except KeyboardInterrupt:
        screen.clear()
        return INTERRUPTED
    finally:
        screen.close()


def _run(argv: Sequence[str] | None, screen: Screen) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    if not (arguments.video_paths or arguments.image_paths or arguments.info):
        parser.error("nothing to do: name --video-paths, --image-paths or --info")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are ours to tell, in one line
    try:
        return _ask(arguments, screen)
    except TrividError as error:
        screen.complain(error)
        if isinstance(error, ModelUnavailable | DeadlineExceeded):
            return NO_SERVER
        return WRONG_USAGE if isinstance(error, InvalidOptions) else SOME_FAILED
    except OutputLost as error:
        if not isinstance(error.__cause__, BrokenPipeError):  # whoever read stdout may leave
            screen.complain(error)
        return SOME_FAILED
    except OSError as error:
        screen.complain(error)
        return WRONG_USAGE
    except Exception as error:  # noqa: BLE001 - the program's border: it ends in a sentence, not a traceback
        screen.complain(
            InternalError(f"{type(error).__name__}: {error}", hint="a fault of the client: report it")
        )
        return SOME_FAILED


def _ask(arguments: argparse.Namespace, screen: Screen) -> int:
    """Ask for all that the arguments name; returns the exit code."""
    media, left_out = _list_media(arguments.video_paths, arguments.image_paths)
    screen.total = len(media)
    token = arguments.token or os.environ.get("TRIVID_TOKEN", "")
    with Client(arguments.url, timeout_s=arguments.timeout, token=token) as client:
        info = client.info()
        if arguments.info:
            for line in as_json(info, indent=2).split("\n"):
                screen.say(line)
        code = Invocation(client, info, arguments, screen).send_all(media) if media else OK
    for folder, skipped in left_out:
        if str(skipped):
            screen.note(f"skipped in {folder}: {skipped}")
        if skipped.unread:
            code = code or SOME_FAILED
    screen.clear()
    return code


def _program() -> int:
    """`main`, interrupted without a traceback whenever it happens."""
    quiet = signal.getsignal(signal.SIGINT) is _end_quietly
    try:
        if quiet:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = main()
        if quiet:
            signal.signal(signal.SIGINT, _end_quietly)
    except KeyboardInterrupt:
        return INTERRUPTED
    return code


if __name__ == "__main__":
    sys.exit(_program())
