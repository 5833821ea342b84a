"""Names by which models are served: which may be given, and what a model without one is called.

Knows no sources: a model's task may be found only later, so its name is too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from pipelines.models.spec import TaskName
from pipelines.settings.model import ModelSettings
from pipelines.settings.reading import WrongInput

TASKS: tuple[TaskName, ...] = get_args(TaskName)


def served_names(models: Sequence[ModelSettings], tasks: Sequence[TaskName | None]) -> list[str]:
    """The name of each model: its own, else its task's; empty where neither is known.

    Args:
        tasks: of the models, as far as they are known.

    Raises:
        WrongInput: two have one name, or a model has the name of another task.
    """
    seen: dict[str, ModelSettings] = {}
    for model, task in zip(models, tasks, strict=True):
        name = model.name or task or ""
        place = model.place or "--model"
        if name in TASKS and task and name != task:
            raise WrongInput(
                f"{place}: {model.source} is for {task}, and cannot have the name {name}",
                hint="the name of a task is only for a model of that task",
            )
        other = seen.setdefault(name, model) if name else model
        if other is model:
            continue
        both = f"{other.source} and {model.source}"
        if model.name and other.name:
            raise WrongInput(f"{place}: two models have the name {name}: {both}", hint="give each its own")
        raise WrongInput(
            f"{place}: two models of task {name}: {both}; only one may be without a name of its own",
            hint=f'name the other: --model NAME:{name}=SOURCE, or name = "NAME" in [[model]]',
        )
    return [model.name or task or "" for model, task in zip(models, tasks, strict=True)]
