"""A model-proc file as a whole: what it says of a model, for those who make specs. Knows no network."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, model_validator

from pipelines.models.graph import Graph
from pipelines.models.spec import Activation, Attribute, Head, Preprocessing, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.reading import STRICT, not_allowed, read, read_text
from pipelines.zoo.model_proc.answers import FIXED, attributes_of, head_of
from pipelines.zoo.model_proc.outputs import Output
from pipelines.zoo.model_proc.pixels import Input, Params, preprocessing
from pipelines.zoo.model_proc.scope import BOXES, LABEL, METHODS, RAW, TEXT, Scope

# Of outputs that are compared with each other: vectors of faces.
VECTORS = "cosine_distance"


def _one_at_most(layers: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(layers) > 1:
        raise not_allowed("a list of one; networks of several inputs are not served")
    return layers


class ModelProc(BaseModel):
    """What a model-proc file says, as it is written; its properties say what it means.

    Where an output gives boxes, the model is a detector, and its other outputs are left out. Else one label
    is the answer of a classifier, and several, or one with on and off names, are named attributes.
    """

    model_config = STRICT

    json_schema_version: Literal["2.0.0", "2.1.0", "2.2.0"] = "2.2.0"
    input_preproc: Annotated[tuple[Input, ...], AfterValidator(_one_at_most)] = ()
    output_postproc: tuple[Output, ...] = ()

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        boxes = [one.converter for one in self.output_postproc if one.converter in BOXES]
        if len(boxes) > 1:
            raise ValueError(f"it has {' and '.join(boxes)}, but a model has one converter of boxes")
        if not boxes:
            attributes_of(self._labels)
        return self

    @property
    def task(self) -> TaskName | None:
        """What its converters are of; None: not said. A label is of clips as well as of pictures."""
        if self._boxes:
            return "detection"
        if self._labels:
            return "classification"
        return "embedding" if any(one.format == VECTORS for one in self.output_postproc) else None

    @property
    def has_head(self) -> bool:
        """Whether it says how boxes are read."""
        return self._boxes is not None

    def head(self, graph: Graph | None = None) -> Head | None:
        """How boxes are read; None: no converter of boxes.

        Args:
            graph: of the network; it tells names of outputs and numbers of points that the file does not.

        Raises:
            ModelUnavailable: the network has no output that the converter reads.
        """
        return head_of(self._boxes, graph) if self._boxes else None

    @property
    def attributes(self) -> tuple[Attribute, ...]:
        """The named parts of a classifier's answer; empty: its answer is one class of `labels`."""
        return () if self._boxes else attributes_of(self._labels)

    @property
    def output(self) -> str:
        """The name of the output that a classifier or an embedding reads; empty: not said."""
        return "" if self._boxes or self.attributes else self._main.layer

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; empty: not said, or each attribute has its own."""
        return () if self.attributes else self._main.names

    @property
    def activation(self) -> Activation | None:
        """What makes probabilities of a classifier's outputs; none: they are in 0..1; None: not said."""
        return None if self._boxes or self.attributes else METHODS.get(self._main.method)

    @property
    def multi_label(self) -> bool:
        """Whether all labels above the threshold are answered, not the best only."""
        return not self.attributes and self._main.method in ("multi", "softmax_multi")

    @property
    def score_threshold(self) -> float:
        """-1: not said."""
        return -1.0 if self.attributes else self._main.threshold

    @property
    def assumed(self) -> tuple[str, ...]:
        """What of the file is not served, in words for people."""
        texts = [
            f'output "{one.title}" is left out: numbers as text are not answered'
            for one in self.output_postproc
            if one.converter == TEXT
        ]
        if self._boxes:
            texts += [f'label "{one.title}" is left out: boxes are answered' for one in self._labels]
        if self._params.alignment_points:
            texts.append("faces are not aligned: alignment_points is not used")
        return tuple(texts)

    def check_layers(self, names: Collection[str]) -> None:
        """Check that the outputs which are read are among those of the network.

        Raises:
            ModelUnavailable: one is not; the hint lists those that are.
        """
        missing = [layer for layer in self._layers if layer not in names]
        if missing:
            wrong = f'the model-proc file reads the output "{missing[0]}", which the network does not have'
            raise ModelUnavailable(wrong, hint=f"it gives {', '.join(names)}: set layer_name to one of them")

    def left_out(self, names: Collection[str]) -> tuple[str, ...]:
        """What is said of those outputs of the network that the file does not name, in words for people."""
        named = [*self._layers, *(layer for one in self.output_postproc for layer in one.layers)]
        others = [name for name in names if name not in named]
        if not self._layers or not others:
            return ()
        return (f"the outputs {', '.join(others)} are left out: the model-proc file does not name them",)

    def preprocessing(self, input_px: tuple[int, int], name: str) -> Preprocessing:
        """The facts for a network `name` whose input is `input_px`, height and width.

        Raises:
            ModelUnavailable: what the file says does not go with that size, or with any.
        """
        return preprocessing(self._params, input_px, name)

    @property
    def _params(self) -> Params:
        return self.input_preproc[0].params if self.input_preproc else Params()

    @property
    def _layers(self) -> tuple[str, ...]:
        """The outputs of the network that are read, as far as they are named."""
        read = (self._boxes,) if self._boxes else (self._labels or (self._main,))
        return tuple(layer for one in read for layer in FIXED.get(one.converter, one.layers))

    @property
    def _boxes(self) -> Output | None:
        return next((one for one in self.output_postproc if one.converter in BOXES), None)

    @property
    def _labels(self) -> tuple[Output, ...]:
        return tuple(one for one in self.output_postproc if one.converter == LABEL)

    @property
    def _main(self) -> Output:
        """The output that is read, where it is one."""
        raw = (one for one in self.output_postproc if one.converter in RAW)
        return self._boxes or next(iter((*self._labels, *raw)), Output())


def read_model_proc(path: Path, *, label_files: bool = True) -> ModelProc:
    """Read a model-proc file.

    Args:
        label_files: whether files of labels that it names are read; not where the user gives others.

    Raises:
        WrongInput: it cannot be read, or a field is unknown, wrong, or of a kind that is not supported; the
            message names file, field, value and what is allowed.
    """
    text = read_text(path, "model-proc")
    origin = f"the model-proc file {path}"
    read(Scope, text, origin)
    return read(ModelProc, text, origin, folder=path.parent if label_files else None)
