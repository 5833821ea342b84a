"""What a model file says of itself: a `ModelSpec` without its network, as JSON text. Knows no file format.

    {"version": 1, "name": …, "task": …, "labels": […], "licence": …, "activation": null,
     "keypoint_names": […], "clip": null | {"length", "fps", "fixed"}, "preprocessing": {every field of it}}

The text lies under `MODEL_FACTS_KEY` in the metadata of a file, so that the file alone is enough to serve it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel
from torch import nn

from pipelines.models.spec import Activation, Clip, ModelSpec, Preprocessing, TaskName
from pipelines.settings.reading import STRICT, WrongInput, allowed, read
from pipelines.zoo.texts import Name, Names

MODEL_FACTS_KEY = "trivid"
HINT = "write it again with python -m scripts.export, or give the preprocessing as options"


class _Facts(BaseModel):
    """The text, read and written; the fields beside `version` are those of `ModelSpec`."""

    model_config = STRICT

    version: Annotated[int, allowed("1", lambda version: version == 1)]
    name: Name
    task: TaskName
    labels: Names = ()
    licence: Name = ""
    activation: Activation | None = None
    # In files of older versions: the outputs are probabilities, which is now an activation of "none".
    probabilities: bool = False
    keypoint_names: Names = ()
    clip: Clip | None = None
    preprocessing: Preprocessing


OF_SPEC = tuple(name for name in _Facts.model_fields if name not in ("version", "probabilities"))


def facts_to_json(spec: ModelSpec) -> str:
    """The text that `spec_from_facts` reads: what the spec says of answers and pixels, not of how it runs."""
    return _Facts(version=1, **{name: getattr(spec, name) for name in OF_SPEC}).model_dump_json(
        exclude={"probabilities"}
    )


def spec_from_facts(text: str, *, build: Callable[[], nn.Module], source: str, file: str | Path) -> ModelSpec:
    """The spec that a model file holds; `build` and `source` as in `ModelSpec`, `file` is named in errors.

    Fields that have a default in `ModelSpec`, `Preprocessing` or `Clip` may be missing, others may not.

    Raises:
        WrongInput: it is no such JSON, of another version, or a field is missing, unknown or wrong.
    """
    facts = read(_Facts, text, str(file), root=MODEL_FACTS_KEY, hint=HINT)
    said = {name: getattr(facts, name) for name in OF_SPEC}
    if facts.probabilities:
        said["activation"] = "none"
    try:
        return ModelSpec(build=build, source=source, **said)
    except ValueError as error:
        raise WrongInput(f"{file}: {MODEL_FACTS_KEY}.clip is wrong: {error}", hint=HINT) from error
