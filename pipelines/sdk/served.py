"""What a server says about itself, and which of its endpoints a call is for. Knows no wire, no media."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TypedDict

from pipelines.protocol.answers import ANSWERS, Answer
from pipelines.protocol.errors import InvalidOptions, ModelUnavailable


class ClipInfo(TypedDict):
    """What a clip model takes: `length` frames, `fps` of them per second, and no other length if `fixed`."""

    length: int
    fps: float
    fixed: bool


class ModelInfo(TypedDict):
    """A served model: what it is, where its weights are from, its classes (for pixels, the background first).

    `name` is its own, not the one that it is served under. `assumed` says what the server took for granted.
    `head` is how a detector's outputs are read. `memory_bytes` is how far the server's process grew when it
    was loaded, `gpu_memory_bytes` what torch has allocated for it. `batch_sizes` counts the computed batches
    by size.
    """

    name: str
    task: str
    source: str
    assumed: list[str]
    head: str
    licence: str
    labels: list[str]
    precision: str
    engine: str
    clip: ClipInfo | None
    endpoints: list[str]
    memory_bytes: int
    gpu_memory_bytes: int
    batch_sizes: dict[str, int]


class ServerInfo(TypedDict):
    """What a server says about itself: its models by the names under which they are served, and counts.

    `decoders` counts the media that each has read.
    """

    version: str
    device: str
    max_media_bytes: int
    max_frames: int
    models: dict[str, ModelInfo]
    decoders: dict[str, int]


def read_info(text: bytes) -> ServerInfo:
    """What a server says about itself. Raises ValueError or TypeError where it is not of the agreed form."""
    info: ServerInfo = json.loads(text)
    if not isinstance(info, dict):
        raise TypeError(f"the status is {text[:20]!r}")
    info.setdefault("decoders", {})  # a server that has read nothing yet sends no counts
    if missing := ServerInfo.__annotations__.keys() - info.keys():
        raise ValueError(f"the status lacks {', '.join(sorted(missing))}")
    models = info["models"]
    if not isinstance(models, dict) or not all(isinstance(model, dict) for model in models.values()):
        raise TypeError(f"the status has models of the form {type(models).__name__}")
    info["max_media_bytes"] = int(info["max_media_bytes"])
    return info


def task_of(name: str, info: ServerInfo) -> str:
    """The task of a served model. Raises InvalidOptions if there is no such model."""
    if name not in info["models"]:
        raise InvalidOptions(f"the server has no model {name!r}", hint=f"it serves {_served(info)}")
    # A server without this fact has models by task only.
    return info["models"][name].get("task", name)


def kind_of(info: ServerInfo, task: str = "", model: str = "") -> tuple[type[Answer], str]:
    """The form of answer of what is asked for, and the model that is asked; empty: the only one of its task.

    Args:
        task, model: what is asked for; both empty: the server's first model of a known form.

    Raises:
        InvalidOptions: there is no such model, or it is for another task.
        ModelUnavailable: the server serves nothing, or the model nothing, that this client knows.
    """
    hint = "are client and server of the same version?"
    if not task and not model:
        model = next((name for name in info["models"] if task_of(name, info) in ANSWERS), "")
        if not model:
            raise ModelUnavailable("the server serves no task that this client knows", hint=hint)
    found = task_of(model, info) if model else task
    if task and found != task:
        raise _other_task(model, found, task)
    if found not in ANSWERS:
        raise ModelUnavailable(f"{model} is for {found}, which this client does not know", hint=hint)
    return ANSWERS[found], model


def endpoint_of(task: str, model: str, info: ServerInfo) -> str:
    """The endpoint of a model: its name.

    Args:
        model: its name; empty: the only model of the task, or the one without another name.

    Raises:
        InvalidOptions: there is no such model, or it is for another task, or it is not clear which.
    """
    if model:
        if (found := task_of(model, info)) != task:
            raise _other_task(model, found, task)
        return model
    names = [name for name in info["models"] if task_of(name, info) == task]
    if task in names or len(names) == 1:
        return task if task in names else names[0]
    if not names:
        raise InvalidOptions(f"the server has no model for {task}", hint=f"it serves {_served(info)}")
    raise InvalidOptions(f"the server has several models for {task}", hint=f"name one: {_listed(names)}")


def _other_task(model: str, found: str, task: str) -> InvalidOptions:
    return InvalidOptions(
        f"the model {model} is for {found}, not for {task}", hint="leave out one of the two"
    )


def _served(info: ServerInfo) -> str:
    """All models in words: each name, and its task where that is another word."""
    tasks = {name: task_of(name, info) for name in info["models"]}
    return _listed(name if name == task else f"{name} ({task})" for name, task in tasks.items())


def _listed(words: Iterable[str]) -> str:
    return ", ".join(words) or "none"
