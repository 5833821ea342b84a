"""Draft: what a source says of its model, as far as it says it. Knows no formats, no options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields

from torch import nn

from pipelines.models.graph import Graph
from pipelines.models.spec import (
    Activation,
    Attribute,
    Clip,
    Head,
    ModelSpec,
    Preprocessing,
    TaskName,
    Tiling,
)
from pipelines.zoo.files.input_form import InputForm


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a source says of its model; None, 0 or empty where it says nothing. Else as in `ModelSpec`.

    Attributes:
        preprocessing: None: nothing is known, so the user must say it.
        input_px: height and width, of a network that takes only these.
        classes: how many there are, as far as it can be known before the network is loaded.
        clip_length: frames of a clip, of a network that takes only these and does not say their rate.
        graph, open: of a file without facts: what it shows, and its network for a form of input.
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
    clip_length: int = 0
    tiling: Tiling | None = None
    keypoint_names: tuple[str, ...] = ()
    graph: Graph | None = None
    open: Callable[[InputForm], nn.Module] | None = field(default=None, compare=False)
    head: Head | None = None
    output: str = ""
    activation: Activation | None = None
    multi_label: bool = False
    attributes: tuple[Attribute, ...] = ()
    normalise: bool = True
    assumed: tuple[str, ...] = ()
    score_threshold: float = -1.0
    licence: str = ""


def draft_of(spec: ModelSpec) -> Draft:
    """A draft that says all that `spec` says."""
    said = {one.name: getattr(spec, one.name) for one in fields(Draft) if hasattr(spec, one.name)}
    return Draft(**said)
