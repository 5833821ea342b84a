"""What a source says of its model, and over it what the user chose: together a `ModelSpec`. Knows no
formats.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.models.spec import MAX_BATCH, MAX_SIDE_PX, Clip, ModelSpec, Preprocessing, TaskName, Tiling
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.zoo.model_proc import ModelProc, read_model_proc
from pipelines.zoo.texts import MOST_NAMES, read_text, wrong_name

PLAIN_FIELDS = ("fit", "interpolation", "antialias", "channels", "pad_value")
ALL_FIELDS = ("resize_px", "max_px", "crop_px", "mean", "std", *PLAIN_FIELDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a source says of its model; None, 0 or empty where it says nothing. Else as in `ModelSpec`.

    Attributes:
        preprocessing: None: nothing is known, so the user must say it.
        input_px: height and width, of a network that takes only these.
        classes: how many there are, as far as it can be known before the network is loaded.
    """

    name: str
    build: Callable[[], nn.Module] = field(compare=False)
    source: str
    task: TaskName | None = None
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    input_px: tuple[int, int] | None = None
    classes: int = 0
    max_batch: int = 8
    thread_safe: bool = False
    clip: Clip | None = None
    tiling: Tiling | None = None
    keypoint_names: tuple[str, ...] = ()
    probabilities: bool = False
    score_threshold: float = -1.0
    licence: str = ""


def draft_of(spec: ModelSpec) -> Draft:
    """A draft that says all that `spec` says."""
    return Draft(
        name=spec.name,
        build=spec.build,
        source=spec.source,
        task=spec.task,
        labels=spec.labels,
        preprocessing=spec.preprocessing,
        max_batch=spec.max_batch,
        thread_safe=spec.thread_safe,
        clip=spec.clip,
        tiling=spec.tiling,
        keypoint_names=spec.keypoint_names,
        probabilities=spec.probabilities,
        score_threshold=spec.score_threshold,
        licence=spec.licence,
    )


def finish(draft: Draft, choice: ModelSettings) -> ModelSpec:
    """The spec: of each thing what the choice says, else its model-proc file, else the source.

    Raises:
        ModelUnavailable: they contradict each other, or something is not known.
    """
    task = _task(draft, choice)
    proc = read_model_proc(Path(choice.model_proc).expanduser()) if choice.model_proc else None
    threshold = proc.score_threshold if proc and proc.score_threshold >= 0 else draft.score_threshold
    try:
        return ModelSpec(
            name=draft.name,
            task=task,
            build=draft.build,
            source=draft.source,
            labels=_labels(draft, choice, proc, task),
            preprocessing=_preprocessing(draft, choice, proc),
            max_batch=_max_batch(draft, choice),
            thread_safe=draft.thread_safe,
            clip=_clip(draft, choice, task),
            tiling=_tiling(choice) or draft.tiling,
            keypoint_names=draft.keypoint_names,
            probabilities=proc.probabilities
            if proc and proc.probabilities is not None
            else draft.probabilities,
            score_threshold=_threshold(choice, threshold),
            licence=draft.licence,
            precision=choice.precision,
            engine=choice.engine,
        )
    except (ValueError, OverflowError) as error:
        raise ModelUnavailable(f"{draft.name}: {error}", hint="check the options of this model") from error


def _max_batch(draft: Draft, choice: ModelSettings) -> int:
    batch = choice.max_batch or draft.max_batch
    if not 1 <= batch <= MAX_BATCH:
        raise ValueError(f"max_batch {batch} is not in 1 to {MAX_BATCH}")
    return batch


def _threshold(choice: ModelSettings, other: float) -> float:
    if choice.score_threshold != -1 and not 0 <= choice.score_threshold <= 1:
        raise ValueError(f"score_threshold {choice.score_threshold} is not in 0 to 1")
    return choice.score_threshold if choice.score_threshold >= 0 else other


def _task(draft: Draft, choice: ModelSettings) -> TaskName:
    if choice.task and draft.task and choice.task != draft.task:
        raise ModelUnavailable(
            f"{draft.name} is a {draft.task} model, not {choice.task}",
            hint=f"--model {draft.task}={choice.source}",
        )
    task = choice.task or draft.task
    if task is None:
        raise ModelUnavailable(
            f"{choice.source} does not say what its task is",
            hint=f"say it: --model classification={choice.source}",
        )
    return task


def _labels(draft: Draft, choice: ModelSettings, proc: ModelProc | None, task: TaskName) -> tuple[str, ...]:
    """Dense outputs are counted when the model is loaded; the classes of a detector only here."""
    if choice.labels:
        labels = read_labels(Path(choice.labels).expanduser())
    else:
        labels = (proc.labels if proc else ()) or draft.labels
    if task == "detection" and labels and draft.classes and len(labels) != draft.classes:
        raise ModelUnavailable(
            f"{draft.name} has {draft.classes} classes, the background included, and {len(labels)} labels",
            hint="give a file with a label a line, the background first",
        )
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a UTF-8 text file, one a line; blank lines at its end do not count."""
    text = read_text(path, "labels").rstrip(" \n")
    labels = tuple(line.strip(" ") for line in text.split("\n")) if text else ()
    for number, label in enumerate(labels, 1):
        if not label:
            raise ModelUnavailable(
                f"the labels file {path} has no label in line {number}", hint="a label a line"
            )
        if wrong := wrong_name(label):
            raise ModelUnavailable(
                f"the labels file {path} has in line {number} a label that is {wrong}", hint="a label a line"
            )
    if len(labels) > MOST_NAMES:
        raise ModelUnavailable(
            f"the labels file {path} has {len(labels)} labels, more than {MOST_NAMES}", hint="check the path"
        )
    if not labels:
        raise ModelUnavailable(f"the labels file {path} is empty", hint="a label a line")
    return labels


def _preprocessing(draft: Draft, choice: ModelSettings, proc: ModelProc | None) -> Preprocessing:
    known = {name: getattr(choice, name) for name in ALL_FIELDS if getattr(choice, name) is not None}
    base = draft.preprocessing
    if proc is not None:
        base = proc.preprocessing(_input_px(draft, choice), draft.name)
        known.pop("resize_px", None)
        known.pop("crop_px", None)
    elif base is None:
        base = _plain(draft, choice)
    values: dict[str, Any] = {name: getattr(base, name) for name in (*ALL_FIELDS, "round_pixels")}
    if "resize_px" in known:
        # These go with the kind of resize that was; height and width leave nothing to crop.
        values |= {"max_px": None, "fit": "stretch"}
        values["crop_px"] = values["crop_px"] if len(known["resize_px"]) == 1 else None
    values |= {name: value for name, value in known.items() if name in (*PLAIN_FIELDS, "max_px")}
    if "resize_px" in known:
        values["resize_px"] = _side_or_size("resize_px", known["resize_px"])
    if "crop_px" in known:
        values["crop_px"] = _size("crop_px", known["crop_px"])
    for name in ("mean", "std"):
        if name in known:
            values[name] = _three(name, known[name])
    return Preprocessing(**values)


def _input_px(draft: Draft, choice: ModelSettings) -> tuple[int, int]:
    """What a model-proc file resizes to: the network's input, which its file does not name."""
    if choice.crop_px:
        return _size("crop_px", choice.crop_px)
    if choice.resize_px:
        return _size("resize_px", choice.resize_px)
    found = draft.input_px or (draft.preprocessing and draft.preprocessing.fixed_hw)
    if not found:
        raise ModelUnavailable(
            f"{draft.name} does not say its input size, and neither does a model-proc file",
            hint="give resize_px=HEIGHT,WIDTH",
        )
    return found


def _plain(draft: Draft, choice: ModelSettings) -> Preprocessing:
    """Of a file that says nothing: its fixed size if it has one, and pixels of 0..1.

    A size or a mean that is guessed would only make answers worse, so what cannot be known is asked for.
    """
    if choice.resize_px is None and draft.input_px is None:
        raise ModelUnavailable(
            f"{draft.name} does not say how it wants its pixels: resize_px is missing (mean and std too, "
            "unless they are 0 and 1)",
            hint="give resize_px, crop_px, mean and std in a settings file (resize_px = 0: as they are), "
            "or a --model-proc file",
        )
    return Preprocessing(resize_px=draft.input_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _clip(draft: Draft, choice: ModelSettings, task: TaskName) -> Clip | None:
    if task != "action":
        if choice.clip_length or choice.clip_fps:
            raise ModelUnavailable(
                f"{draft.name} takes no clips: its task is {task}", hint="leave clip_* out"
            )
        return None
    known = draft.clip
    length, fps = (
        choice.clip_length or (known.length if known else 0),
        choice.clip_fps or (known.fps if known else 0),
    )
    if not length or not fps:
        raise ModelUnavailable(f"{draft.name} does not say its clips", hint="give clip_length and clip_fps")
    if known and known.fixed and length != known.length:
        raise ModelUnavailable(
            f"{draft.name} takes clips of {known.length} frames only, not {length}",
            hint="leave clip_length out",
        )
    return Clip(length=length, fps=fps, fixed=bool(known and known.fixed))


def _tiling(choice: ModelSettings) -> Tiling | None:
    if choice.tile_px is None:
        if choice.tile_overlap_px is not None:
            raise ValueError(f"tile_overlap_px={choice.tile_overlap_px} needs tile_px")
        return None
    return Tiling(tile_px=_size("tile_px", choice.tile_px), overlap_px=choice.tile_overlap_px or 0)


def _side_or_size(name: str, values: tuple[int, ...]) -> int | tuple[int, int] | None:
    if values == (0,):
        return None
    return values[0] if len(values) == 1 else _size(name, values)


def _size(name: str, values: tuple[int, ...]) -> tuple[int, int]:
    if len(values) not in (1, 2):
        raise ValueError(f"{name} is one number or height and width, not {values}")
    for size in values:
        if not 1 <= size <= MAX_SIDE_PX:
            raise ValueError(f"{name}: a side of {size} px is not in 1 to {MAX_SIDE_PX}")
    return values[0], values[-1]


def _three(name: str, values: tuple[float, ...]) -> tuple[float, float, float]:
    if len(values) not in (1, 3):
        raise ValueError(f"{name} is one number or one for each of three channels, not {values}")
    return values[0], values[len(values) // 2], values[-1]
