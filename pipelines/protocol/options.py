"""Options of a request, made from its parameters and validated at birth. Knows no protocol, no medium."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pipelines.protocol.errors import InvalidOptions

Scalar = str | int | float | bool
Overlay = Literal["none", "jpeg", "mp4", "raw"]
Style = Literal["overlay", "extract", "redact"]
Mask = Literal["none", "rle", "png", "raw", "probability"]
Damaged = Literal["mark", "error"]
Tail = Literal["drop", "pad", "repeat"]
Decoder = Literal["auto", "nvdec", "cpu"]


def option(default: Scalar, help_text: str, *, low: float = -math.inf, high: float = math.inf) -> Any:
    """A field of `Options`: its default, what it means, and the range a number must lie in (inclusive)."""
    return field(default=default, metadata={"help": help_text, "low": low, "high": high})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a request may set; one field is one request parameter of that name."""

    task: str = option("", "the model whose preprocessing runs, by its name or task; empty: the first")
    class_name: str = option("", "only this class, or several separated by commas; empty: all")
    class_id: int = option(-1, "one class by its number; -1 for all classes", low=-1)
    score_threshold: float = option(
        -1.0,
        "only scores above this count; -1: the model's own, else 0.5 (0 if one class of several is chosen "
        "for each frame or pixel)",
        low=-1,
        high=1,
    )
    top_k: int = option(5, "number of classes for each frame or clip, the likeliest first", low=1, high=1000)
    clip_length: int = option(0, "frames per clip; 0: as the model was trained", low=0, high=1024)
    clip_stride: int = option(
        0, "frames from one clip's start to the next; 0: one clip length", low=0, high=1024
    )
    tail: Tail = option(
        "pad",
        "a last clip that is too short is dropped, padded with its last frame, or repeated from its start",
    )
    start_s: float = option(
        0.0, "only frames at this time of the medium or later, in seconds; 0: from its first frame on", low=0
    )
    end_s: float = option(
        math.inf,
        "only frames before this time, in seconds; where times fall, the first frame at end_s or later ends "
        "the answers",
        low=0,
    )
    fps: float = option(
        0.0, "frames per second to answer; 0: all frames, or for clips the model's rate", low=0, high=1000
    )
    keyframes_only: bool = option(False, "answer only key frames")
    stride: int = option(1, "answer every n-th frame (of those that fps keeps)", low=1)
    max_frames: int = option(0, "at most this many frames; 0: all, up to the server's limit", low=0)
    damaged: Damaged = option(
        "mark",
        "mark: answer damaged frames and mark them; error: end before the first. Frames that depend on a "
        "damaged or lost one are damaged too",
    )
    overlay: Overlay = option("none", "pictures in the answer: JPEG per frame, H.264 per chunk, or raw RGB")
    style: Style = option(
        "overlay",
        "what the pictures show: coloured classes, only the class, or the class made unrecognisable",
    )
    alpha: float = option(
        0.5, "opacity of the overlay's colours; at 0 the frames are left as they are", low=0, high=1
    )
    outline_px: int = option(
        2, "width of the overlay's outlines in source pixels; 0 for none", low=0, high=16
    )
    background: str = option("000000", "with extract: the colour of everything else, as RRGGBB")
    classify: str = option(
        "",
        "a served classifier that is asked about each box: NAME, or CLASS:NAME for the boxes of one class; "
        "several are separated by commas, and the first that fits a box is asked",
    )
    mask: Mask = option("rle", "classes as run lengths, PNG or raw bytes, or their probability as PNG")
    decoder: Decoder = option("auto", "auto: NVDEC where it fits, else the CPU; nvdec: NVDEC or an error")
    base64: bool = option(False, "media is base64 text, and binary answers are too (for JSON clients)")
    deadline_ms: float = option(
        0,
        "milliseconds from arrival to the end of the answer, pauses included; 0: no limit",
        low=0,
    )
    credits: int = option(
        0, "stream: at most this many answers now; 0: all, while they are small", low=0, high=1000
    )
    session: str = option("", "stream: continue after the answer with this token; media is then empty")
    last_seq: int = option(-1, "with session: send the answers after this number again", low=-1)
    cancel: bool = option(False, "with session: end the stream now")

    def __post_init__(self) -> None:
        for name, kind in OPTION_TYPES.items():
            _check_option(name, kind, getattr(self, name))
        if self.end_s <= self.start_s:
            raise InvalidOptions(f"end_s={self.end_s} is not after start_s={self.start_s}")
        if not re.fullmatch("[0-9a-fA-F]{6}", self.background):
            raise InvalidOptions(
                f"option background={self.background!r} is not a colour", hint="RRGGBB, e.g. 00ff00"
            )
        for one, other in (("class_name", "class_id"), ("fps", "keyframes_only")):
            if self.is_set(one) and self.is_set(other):
                raise InvalidOptions(f"{one} and {other} are both set", hint="set one of them")
        self._check_session()

    def _check_session(self) -> None:
        """A session goes on with the options of its start."""
        for name in OPTION_FIELDS:
            of_session = name in ("last_seq", "cancel")
            if of_session and not self.session and self.is_set(name):
                raise InvalidOptions(f"{name} without a session", hint="send the token of its last answer")
            if self.session and name not in TRANSFER_OPTIONS and self.is_set(name):
                raise InvalidOptions(
                    f"option {name} is set with a session", hint="a stream keeps the options of its start"
                )

    def is_set(self, name: str) -> bool:
        """Whether an option has another value than its default."""
        return bool(getattr(self, name) != OPTION_FIELDS[name].default)


def _check_option(name: str, kind: Any, value: Any) -> None:
    """Raise InvalidOptions unless `value` is one of the Literal's choices or within the field's range."""
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise InvalidOptions(f"option {name}={value!r} is not known", hint=f"one of: {choices}")
        return
    if kind in (int, float):
        meta = OPTION_FIELDS[name].metadata
        if not meta["low"] <= value <= meta["high"]:
            raise InvalidOptions(f"option {name}={value} is out of range", hint=_expected(name))


def _expected(name: str) -> str:
    """What an option takes, in words."""
    kind, meta = OPTION_TYPES[name], OPTION_FIELDS[name].metadata
    if kind not in (int, float):
        return "expected true or false" if kind is bool else "expected text"
    low, high = f"{meta['low']:g}", f"{meta['high']:g}"
    bounds = f"of {low} or more" if high == "inf" else f"from {low} to {high}"
    return f"expected a {'whole ' * (kind is int)}number {bounds}"


# What a request says of a pull of a stream, and not of the medium.
STREAM_OPTIONS = ("credits", "session", "last_seq", "cancel")
# What the Python client sets by itself.
TRANSFER_OPTIONS = ("base64", *STREAM_OPTIONS)
OPTION_FIELDS = {entry.name: entry for entry in dataclasses.fields(Options)}
OPTION_TYPES: dict[str, Any] = get_type_hints(Options)


def parse_options(
    parameters: Mapping[str, Scalar], *, allowed: Sequence[str], preset: Mapping[str, Scalar] | None = None
) -> Options:
    """Request parameters (text or JSON scalars) → Options; `preset` holds an endpoint's own defaults.

    Raises:
        InvalidOptions: an option is unknown to this endpoint, of the wrong type or out of range.
    """
    unknown = [name for name in parameters if name not in allowed]
    if unknown:
        name = unknown[0]
        what = (
            f"option {name!r} is not for this endpoint"
            if name in OPTION_FIELDS
            else f"unknown option {name!r}"
        )
        elsewhere = "is it for another task? " if name in OPTION_FIELDS else ""
        own = ", ".join(sorted(set(allowed).difference(TRANSFER_OPTIONS))) or "none"
        others = ", ".join(one for one in TRANSFER_OPTIONS if one in allowed)
        more = others and f"; without the Python client also {others}"
        raise InvalidOptions(what, hint=f"{elsewhere}allowed here: {own}{more}")
    given = {name: _read_scalar(name, value) for name, value in parameters.items()}
    values: dict[str, Any] = {**(preset or {}), **given}
    return Options(**values)


def _read_scalar(name: str, value: Scalar) -> Scalar:
    """A parameter in the type of its option; text is read as a number or truth value where one is due."""
    kind = OPTION_TYPES[name]
    try:
        if kind is bool:
            return _read_bool(value)
        if isinstance(value, bool):
            raise ValueError("a boolean")
        if kind is int:
            if isinstance(value, float) and not value.is_integer():
                raise ValueError("a fraction")
            return int(value)
        if kind is float:
            number = float(value)
            if math.isnan(number):
                raise ValueError("not a number")
            return number
    except (ValueError, OverflowError):
        raise InvalidOptions(f"option {name}={value!r} has the wrong type", hint=_expected(name)) from None
    if not isinstance(value, str):
        raise InvalidOptions(f"option {name}={value!r} has the wrong type", hint=_expected(name))
    return value


def _read_bool(value: Scalar) -> bool:
    truth = {"true": True, "1": True, "false": False, "0": False}.get(str(value).lower())
    if truth is None:
        raise ValueError(value)
    return truth
