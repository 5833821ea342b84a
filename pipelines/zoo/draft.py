"""What a source says of its model, and over it what the user chose: a `ModelSpec`. Knows no formats."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from pipelines.models.spec import Clip, ModelSpec, Preprocessing, TaskName, Tiling
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings, PixelSettings
from pipelines.settings.reading import WrongInput, read_text
from pipelines.zoo.model_proc import ModelProc, read_model_proc
from pipelines.zoo.texts import MOST_NAMES, wrong_name

# What is taken where a file says nothing, and of that a choice said nothing either.
ASSUMED = {"mean": "mean 0", "std": "std 1 (values of 0..1)", "channels": "RGB", "fit": "stretched"}
# What a choice may say of `Preprocessing`.
PIXELS = PixelSettings.model_fields.keys() & {one.name for one in fields(Preprocessing)}
log = logging.getLogger("trivid")


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
    said = {one.name: getattr(spec, one.name) for one in fields(Draft) if hasattr(spec, one.name)}
    return Draft(**said)


def finish(draft: Draft, choice: ModelSettings) -> ModelSpec:
    """The spec: of each thing what the choice says, else its model-proc file, else the source.

    Raises:
        ModelUnavailable: they contradict each other, or something is not known.
    """
    task = _task(draft, choice)
    proc = read_model_proc(Path(choice.model_proc).expanduser()) if choice.model_proc else None
    thresholds = (choice.score_threshold, proc.score_threshold if proc else -1.0, draft.score_threshold)
    scaled = proc.probabilities if proc else None
    try:
        return ModelSpec(
            name=draft.name,
            task=task,
            build=draft.build,
            source=draft.source,
            labels=_labels(draft, choice, proc, task),
            preprocessing=_preprocessing(draft, choice, proc),
            max_batch=choice.max_batch or draft.max_batch,
            thread_safe=draft.thread_safe,
            clip=_clip(draft, choice, task),
            tiling=_tiling(choice) or draft.tiling,
            keypoint_names=draft.keypoint_names,
            probabilities=draft.probabilities if scaled is None else scaled,
            score_threshold=next((one for one in thresholds if one >= 0), -1.0),
            licence=draft.licence,
            precision=choice.precision,
            engine=choice.engine,
        )
    except ValueError as error:
        raise ModelUnavailable(f"{draft.name}: {error}", hint="check the options of this model") from error


def _task(draft: Draft, choice: ModelSettings) -> TaskName:
    if choice.task and draft.task and choice.task != draft.task:
        wrong = f"{draft.name} is a {draft.task} model, not {choice.task}"
        hint = f'task = "{draft.task}"' if choice.place else f"--model {draft.task}={choice.source}"
        raise ModelUnavailable(wrong, hint=hint)
    task = choice.task or draft.task
    if task is None:
        said = 'task = "classification"' if choice.place else f"--model classification={choice.source}"
        hint = f"name it, e.g. {said}"
        raise ModelUnavailable(f"{choice.source} does not state its task", hint=hint)
    return task


def _labels(draft: Draft, choice: ModelSettings, proc: ModelProc | None, task: TaskName) -> tuple[str, ...]:
    """Dense outputs are counted when the model is loaded; the classes of a detector only here."""
    chosen = read_labels(Path(choice.labels).expanduser()) if choice.labels else ()
    labels = chosen or (proc.labels if proc else ()) or draft.labels
    if task == "detection" and labels and draft.classes and len(labels) != draft.classes:
        wrong = f"has {draft.classes} classes, the background included, and {len(labels)} labels"
        hint = "give a file with one label per line, the background first"
        raise ModelUnavailable(f"{draft.name} {wrong}", hint=hint)
    return labels


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels of a UTF-8 text file, one a line; blank lines at its end do not count."""
    text = read_text(path, "labels").rstrip(" \n")
    labels = tuple(line.strip(" ") for line in text.split("\n")) if text else ()
    wrong = f"has {len(labels)} labels, more than {MOST_NAMES}" if len(labels) > MOST_NAMES else ""
    for number, label in enumerate(labels, 1):
        if not label:
            wrong = wrong or f"has no label in line {number}"
        elif reason := wrong_name(label):
            wrong = wrong or f"has in line {number} a label that is {reason}"
    if wrong or not labels:
        raise WrongInput(f"the labels file {path} {wrong or 'is empty'}", hint="one label per line")
    return labels


def _preprocessing(draft: Draft, choice: ModelSettings, proc: ModelProc | None) -> Preprocessing:
    said: dict[str, Any] = choice.model_dump(include=PIXELS, exclude_none=True)
    if proc is not None:
        base = proc.preprocessing(_input_px(draft, choice), draft.name)
        said = {name: value for name, value in said.items() if name not in ("resize_px", "crop_px")}
    else:
        base = draft.preprocessing or _plain(draft, choice)
    if sides := said.get("resize_px"):
        shorter = len(sides) == 1
        # These go with the kind of resize that was; height and width leave nothing to crop.
        said = {"max_px": None, "fit": "stretch", "crop_px": base.crop_px if shorter else None, **said}
        said["resize_px"] = sides[0] or None if shorter else sides
    return replace(base, **said)


def _input_px(draft: Draft, choice: ModelSettings) -> tuple[int, int]:
    """What a model-proc file resizes to: the network's input, which its file does not name."""
    if choice.crop_px:
        return choice.crop_px
    if choice.resize_px:
        return choice.resize_px[0], choice.resize_px[-1]
    found = draft.input_px or (draft.preprocessing and draft.preprocessing.fixed_hw)
    if not found:
        wrong = f"{draft.name} does not state its input size, and neither does a model-proc file"
        raise ModelUnavailable(wrong, hint="give resize_px = [HEIGHT, WIDTH] in a settings file")
    return found


def _plain(draft: Draft, choice: ModelSettings) -> Preprocessing:
    """Of a file that says nothing: its fixed size if it has one, and pixels of 0..1.

    A size or a mean that is guessed would only make answers worse, so what cannot be known is asked for.
    """
    if choice.resize_px is None and draft.input_px is None:
        raise ModelUnavailable(
            f"{draft.name} does not state its preprocessing: resize_px is missing (mean and std too, "
            "unless they are 0 and 1)",
            hint="give resize_px, crop_px, mean and std in a settings file (resize_px = 0: as they are), "
            "or a --model-proc file",
        )
    of_a_size = len(choice.resize_px) == len("hw") if choice.resize_px else draft.input_px is not None
    names = [name for name in ASSUMED if getattr(choice, name) is None and (of_a_size or name != "fit")]
    if choice.mean is None or choice.std is None:
        log.warning(
            "%s does not say what it wants of its pixels; assumed: %s. If it was trained with others, its "
            "answers are wrong: set %s in [model.preprocessing] of a settings file",
            draft.name,
            ", ".join(ASSUMED[name] for name in names),
            ", ".join(names),
        )
    return Preprocessing(resize_px=draft.input_px, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def _clip(draft: Draft, choice: ModelSettings, task: TaskName) -> Clip | None:
    if task != "action":
        if choice.clip_length or choice.clip_fps:
            wrong = f"{draft.name} takes no clips: its task is {task}"
            raise ModelUnavailable(wrong, hint="leave out clip_*")
        return None
    known = draft.clip
    length = choice.clip_length or (known.length if known else 0)
    fps = choice.clip_fps or (known.fps if known else 0)
    if not length or not fps:
        raise ModelUnavailable(
            f"{draft.name} does not state its clip length and rate", hint="give clip_length and clip_fps"
        )
    if known and known.fixed and length != known.length:
        wrong = f"{draft.name} takes clips of {known.length} frames only, not {length}"
        raise ModelUnavailable(wrong, hint="leave out clip_length")
    return Clip(length=length, fps=fps, fixed=bool(known and known.fixed))


def _tiling(choice: ModelSettings) -> Tiling | None:
    if choice.tile_px is None:
        return None
    return Tiling(tile_px=choice.tile_px, overlap_px=choice.tile_overlap_px or 0)
