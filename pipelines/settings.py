"""Settings: what the server's command line sets, read and checked once. stdlib only."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

MAX_MESSAGE_MB = 2047
DEFAULT_MODEL = "segmentation=fcn_resnet101"
_SHOWN = "(default: %(default)s)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the command line sets."""

    demo: bool
    model: str
    weights: str
    device: str
    host: str
    http_port: int
    grpc_port: int
    metrics_port: int
    max_media_mb: int
    max_frames: int
    chunk_frames: int
    workers: int
    endpoints: str
    check: bool
    dry_run: bool

    @property
    def max_media_bytes(self) -> int:
        return self.max_media_mb << 20


def parse_args(argv: Sequence[str], manual: str) -> Settings:
    """The settings of a command line; wrong ones end the process with exit code 2. `manual` heads `--help`."""
    parser = argparse.ArgumentParser(
        description=manual, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    _add_flags(parser.add_argument)
    args = parser.parse_args(argv)
    if len({args.http_port, args.grpc_port, args.metrics_port}) < 3:
        parser.error("--http-port, --grpc-port and --metrics-port must differ")
    if args.max_media_mb > MAX_MESSAGE_MB:
        parser.error(
            f"--max-media-mb {args.max_media_mb}: a message of Triton's holds at most {MAX_MESSAGE_MB}"
        )
    if args.demo and args.model:
        parser.error("--demo brings its own model: leave --model out, or --demo")
    task, _, name = (args.model or DEFAULT_MODEL).partition("=")
    if task != "segmentation" or not name:
        parser.error(f"--model {args.model!r}: expected segmentation=NAME, e.g. {DEFAULT_MODEL}")
    if args.demo and args.weights:
        parser.error("--demo brings its own weights: leave --weights out, or --demo")
    values = {one.name: getattr(args, one.name) for one in fields(Settings)}
    return Settings(**{**values, "model": name})


def _add_flags(add: Callable[..., argparse.Action]) -> None:
    """All flags, each with its default where `--help` shows it."""
    add("--demo", action="store_true", help="serve the embedded demo model (drawn shapes)")
    add("--model", metavar="TASK=NAME", help=f"a torchvision model by name (default: {DEFAULT_MODEL})")
    add(
        "--weights",
        default="",
        metavar="FILE",
        help="a .safetensors or .pth state dict, or 'random' for noise",
    )
    devices = ("auto", "cpu", "cuda")
    add("--device", choices=devices, default="auto", help=f"where models run; auto is a GPU if any {_SHOWN}")
    add("--host", default="127.0.0.1", help=f"address to listen on; keep it private, behind a proxy {_SHOWN}")
    for name, port, what in (
        ("http", 8000, "HTTP"),
        ("grpc", 8001, "gRPC"),
        ("metrics", 8002, "Triton's metrics"),
    ):
        add(f"--{name}-port", type=_port, default=port, metavar="PORT", help=f"port of {what} {_SHOWN}")
    for name, number, what in (
        ("max-media-mb", 64, "largest medium of a request, in MiB"),
        ("max-frames", 300, "most frames of one answer; streams have no limit"),
        ("chunk-frames", 16, "frames decoded and answered at once"),
        ("workers", os.cpu_count() or 1, "media worked on at once"),
    ):
        add(f"--{name}", type=_positive, default=number, metavar="N", help=f"{what} {_SHOWN}")
    what = "media: those that take media alone; all: those of bare tensors too"
    add("--endpoints", choices=("all", "media"), default="all", help=f"{what} {_SHOWN}")
    add("--check", action="store_true", help="check the machine and exit")
    add("--dry-run", action="store_true", help="push a picture through every stage and exit")


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)
