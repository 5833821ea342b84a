"""What a source says of its model, and over it what the user chose: a `ModelSpec`. Knows no formats."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pipelines.models.spec import Activation, Clip, Head, ModelSpec, Preprocessing, TaskName, Tiling
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings, PixelSettings
from pipelines.settings.reading import WrongInput, read_text
from pipelines.zoo.described import described
from pipelines.zoo.draft import Draft
from pipelines.zoo.model_proc import ModelProc, read_model_proc
from pipelines.zoo.pixels import RANGES, UNIT
from pipelines.zoo.texts import MOST_NAMES, wrong_name

# What a choice may say of `Preprocessing`.
PIXELS = PixelSettings.model_fields.keys() & {one.name for one in fields(Preprocessing)}
# What a network may be by the number of its outputs' dimensions.
TASKS_OF_RANK: dict[int, tuple[TaskName, ...]] = {
    4: ("segmentation",),
    3: ("detection", "segmentation"),
    2: ("classification", "embedding"),
}
# What may be said only of a model of these tasks.
OF_TASKS: Mapping[str, tuple[TaskName, ...]] = {
    "head": ("detection",),
    "iou_threshold": ("detection",),
    "output": ("classification", "segmentation", "action", "embedding", "detection"),
    "activation": ("classification", "segmentation", "action"),
    "multi_label": ("classification", "action"),
    "normalise": ("embedding",),
}
# What may be said only of a file without facts of its own: of others the network is known.
OF_GRAPHS = ("head", "layout")
log = logging.getLogger("trivid")


def finish(draft: Draft, choice: ModelSettings) -> ModelSpec:
    """The spec: of each thing what the choice says, else its model-proc file, else the source.

    Raises:
        ModelUnavailable: they contradict each other, or something is not known.
    """
    path = Path(choice.model_proc).expanduser()
    proc = read_model_proc(path, label_files=not choice.labels) if choice.model_proc else None
    labels = read_labels(Path(choice.labels).expanduser()) if choice.labels else ()
    labels = labels or (proc.labels if proc else ())
    if draft.graph is not None:
        draft = _described(draft, choice, proc, labels)
    elif labels:
        draft = replace(draft, labels=labels)
    if proc is not None:
        draft = _with_proc(draft, proc)
    task = _task(draft, choice)
    _check_meaning(draft, choice, task)
    _check_labels(draft, task)
    if draft.assumed:
        log.warning("%s: assumed: %s", draft.name, "; ".join(draft.assumed))
    try:
        return ModelSpec(
            name=draft.name,
            task=task,
            build=draft.build,
            source=draft.source,
            labels=draft.labels,
            preprocessing=_preprocessing(draft, choice, proc),
            max_batch=choice.max_batch or draft.max_batch,
            thread_safe=draft.thread_safe,
            clip=_clip(draft, choice, task),
            tiling=_tiling(choice) or draft.tiling,
            keypoint_names=draft.keypoint_names,
            head=_head(draft, choice),
            output=choice.output or draft.output,
            activation=choice.activation or _activation(draft, choice),
            multi_label=draft.multi_label if choice.multi_label is None else choice.multi_label,
            attributes=draft.attributes,
            normalise=draft.normalise if choice.normalise is None else choice.normalise,
            assumed=draft.assumed,
            score_threshold=draft.score_threshold if choice.score_threshold < 0 else choice.score_threshold,
            licence=draft.licence,
            precision=choice.precision,
            engine=choice.engine,
        )
    except ValueError as error:
        raise ModelUnavailable(f"{draft.name}: {error}", hint="check the options of this model") from error


def _described(draft: Draft, choice: ModelSettings, proc: ModelProc | None, labels: tuple[str, ...]) -> Draft:
    """As `described`; a side of the file's own that no picture may have is a fault of the file."""
    try:
        return described(draft, choice, proc, labels)
    except ValueError as error:
        raise ModelUnavailable(f"{draft.name}: {error}", hint="check the sizes in the file") from error


def _with_proc(draft: Draft, proc: ModelProc) -> Draft:
    """The draft, where a model-proc file says something of how outputs are read."""
    return replace(
        draft,
        task=draft.task or proc.task,
        output=proc.output or draft.output,
        activation=proc.activation or draft.activation,
        multi_label=proc.multi_label or draft.multi_label,
        attributes=proc.attributes or draft.attributes,
        score_threshold=proc.score_threshold if proc.score_threshold >= 0 else draft.score_threshold,
        assumed=(*draft.assumed, *proc.assumed),
    )


def _activation(draft: Draft, choice: ModelSettings) -> Activation | None:
    """What the source says, unless the user's several labels at once make a sigmoid of its softmax."""
    several = choice.multi_label and draft.activation == "softmax"
    return "sigmoid" if several else draft.activation


def _check_meaning(draft: Draft, choice: ModelSettings, task: TaskName) -> None:
    """Raise ModelUnavailable if something is chosen that would change nothing of such a model."""
    where = {name: f"a model of the task {task}" for name, tasks in OF_TASKS.items() if task not in tasks}
    if draft.graph is None:
        # What it takes and gives is known, so nothing would ask for it.
        known = "whose source describes it: only for files that do not"
        where |= dict.fromkeys(OF_GRAPHS, f"a model {known}")
        if task == "detection":
            where["output"] = f"a detector {known}"
        if choice.channels == "GRAY":
            where["channels"] = f"a model {known}"
    for name, what in where.items():
        if (value := getattr(choice, name)) not in (None, ""):
            said = str(value).lower() if isinstance(value, bool) else value
            raise ModelUnavailable(
                f"{draft.name}: {name}={said} has no meaning for {what}",
                hint=f"leave out --{name.replace('_', '-')}",
            )


def _head(draft: Draft, choice: ModelSettings) -> Head | None:
    """The head, with the overlap that the user says."""
    head: Any = draft.head
    if choice.iou_threshold is None:
        return draft.head
    if head is None:
        raise ModelUnavailable(
            f"{draft.name} chooses its boxes itself: iou_threshold={choice.iou_threshold} has no meaning",
            hint="leave out --iou-threshold",
        )
    if not hasattr(head, "iou_threshold"):
        wrong = f"iou_threshold has no meaning for head {head.family}: its network chooses the boxes"
        raise ModelUnavailable(f"{draft.name}: {wrong}", hint="leave out --iou-threshold")
    chosen: Head = replace(head, iou_threshold=choice.iou_threshold)
    return chosen


def _task(draft: Draft, choice: ModelSettings) -> TaskName:
    if choice.task and draft.task and choice.task != draft.task:
        wrong = f"{draft.name} is a {draft.task} model, not {choice.task}"
        hint = f'task = "{draft.task}"' if choice.place else f"--model {draft.task}={choice.source}"
        raise ModelUnavailable(wrong, hint=hint)
    task = choice.task or draft.task
    if task is None:
        raise _taskless(draft, choice)
    return task


def _taskless(draft: Draft, choice: ModelSettings) -> ModelUnavailable:
    """The error for a model of which nothing tells what it is for: what it has, and what would tell."""
    wrong = f"{choice.source} does not state its task"
    first, *others = first_of_all = ("classification",)
    more = ""
    if draft.graph is not None:
        labels = f", and there are {len(draft.labels)} labels" if draft.labels else ""
        wrong += f": it {draft.graph}{labels}"
        ranks = {len(port.dims) for port in draft.graph.outputs if port.dtype.startswith("float")}
        found = next((rank for rank in TASKS_OF_RANK if rank in ranks), 0)
        if not found and draft.input_px is not None:
            return ModelUnavailable(wrong, hint="export it with scores (N, K) or with another form of a task")
        first, *others = TASKS_OF_RANK.get(found, first_of_all)
        if draft.input_px is None:
            more = "; or give --resize-px HEIGHTxWIDTH, so that it can be tried"
    named = f'task = "{first}"' if choice.place else f"--model {first}={choice.source}"
    other = f" (or {', '.join(others)})" if others else ""
    return ModelUnavailable(wrong, hint=f"name it, e.g. {named}{other}{more}")


def _check_labels(draft: Draft, task: TaskName) -> None:
    """Dense outputs are counted when the model is loaded; the classes of a detector only here."""
    labels = draft.labels
    if task == "detection" and labels and draft.classes and len(labels) != draft.classes:
        wrong = f"has {draft.classes} classes, the background included, and {len(labels)} labels"
        hint = "give a file with one label per line, the background first"
        raise ModelUnavailable(f"{draft.name} {wrong}", hint=hint)


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
    if choice.channels == "GRAY":
        said["channels"] = "RGB"
    if choice.pixels is not None:
        said = {**RANGES[choice.pixels], **said}
    if proc is not None:
        base = proc.preprocessing(_input_px(draft, choice), draft.name)
        said = {name: value for name, value in said.items() if name not in ("resize_px", "crop_px")}
    else:
        base = draft.preprocessing or _unknown(draft, choice)
    if sides := said.get("resize_px"):
        if draft.head is not None and len(sides) == 1 and sides[0]:
            sides = (sides[0], sides[0])
        shorter = len(sides) == 1
        # These go with the kind of resize that was; height and width leave nothing to crop.
        fit = "stretch" if shorter else base.fit
        # What a network of one size takes of a longer side is its middle.
        crop_px = (base.crop_px or (draft.input_px if sides[0] else None)) if shorter else None
        said = {"max_px": None, "fit": fit, "crop_px": crop_px, **said}
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
        raise ModelUnavailable(wrong, hint="give --resize-px HEIGHTxWIDTH")
    return found


def _unknown(draft: Draft, choice: ModelSettings) -> Preprocessing:
    """Of a source that says nothing of its pixels, all that the user must say; a size is never guessed."""
    if choice.resize_px is None:
        raise ModelUnavailable(
            f"{draft.name} does not state its preprocessing: its input size is missing",
            hint="give --resize-px HEIGHTxWIDTH (0: no resize), and --pixels for its mean and std; or a "
            "--model-proc file",
        )
    return Preprocessing(resize_px=None, **UNIT)


def _clip(draft: Draft, choice: ModelSettings, task: TaskName) -> Clip | None:
    if task != "action":
        if choice.clip_length or choice.clip_fps:
            wrong = f"{draft.name} takes no clips: its task is {task}"
            raise ModelUnavailable(wrong, hint="leave out clip_*")
        return None
    known = draft.clip
    only = draft.clip_length or (known.length if known and known.fixed else 0)
    length = choice.clip_length or only or (known.length if known else 0)
    fps = choice.clip_fps or (known.fps if known else 0)
    if not length or not fps:
        what, names = ("rate", "clip_fps") if length else ("length and rate", "clip_length and clip_fps")
        hint = f"give {names} in a settings file"
        raise ModelUnavailable(f"{draft.name} does not state its clip {what}", hint=hint)
    if only and length != only:
        wrong = f"{draft.name} takes clips of {only} frames only, not {length}"
        raise ModelUnavailable(wrong, hint="leave out clip_length")
    return Clip(length=length, fps=fps, fixed=bool(only))


def _tiling(choice: ModelSettings) -> Tiling | None:
    if choice.tile_px is None:
        return None
    return Tiling(tile_px=choice.tile_px, overlap_px=choice.tile_overlap_px or 0)
