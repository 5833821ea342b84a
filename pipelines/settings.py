"""Settings: what the server's command line sets, read and checked once. stdlib only."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

MAX_MESSAGE_MB = 2047


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
    task, _, name = args.model.partition("=")
    if task != "segmentation" or not name:
        parser.error(f"--model {args.model!r}: expected segmentation=NAME, e.g. segmentation=fcn_resnet101")
    if args.demo and args.weights:
        parser.error("--demo brings its own weights: leave --weights out, or --demo")
    values = {one.name: getattr(args, one.name) for one in fields(Settings)}
    return Settings(**{**values, "model": name})


def _add_flags(add: Callable[..., argparse.Action]) -> None:
    add("--demo", action="store_true", help="serve the embedded demo model (drawn shapes)")
    add(
        "--model",
        default="segmentation=fcn_resnet101",
        metavar="TASK=NAME",
        help="a torchvision model by name",
    )
    add(
        "--weights",
        default="",
        metavar="FILE",
        help="a .safetensors or .pth state dict, or 'random' for noise",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where models run (auto: a GPU if any)",
    )
    add("--host", default="127.0.0.1", help="address to listen on; keep it private, put a proxy in front")
    add("--http-port", type=_port, default=8000)
    add("--grpc-port", type=_port, default=8001)
    add("--metrics-port", type=_port, default=8002, help="Prometheus metrics of Triton")
    add("--max-media-mb", type=_positive, default=64, help="largest medium of a request, in MiB")
    add(
        "--max-frames",
        type=_positive,
        default=300,
        help="most frames of a unary request; streams have no limit",
    )
    add("--chunk-frames", type=_positive, default=16, help="frames decoded and answered at once")
    add("--workers", type=_positive, default=os.cpu_count() or 1, help="media worked on at once")
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
