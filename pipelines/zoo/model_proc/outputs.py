"""The fields that a model-proc file has for each output of a network. Knows not what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, model_validator

from pipelines.models.spec import MAX_SIDE_PX
from pipelines.settings.reading import STRICT, WrongInput, between, not_allowed, read_text
from pipelines.zoo.model_proc.scope import BOXES, LABEL, REGIONS, current_name
from pipelines.zoo.texts import LONGEST_NAME, MOST_NAMES, Name, Names, wrong_name

MOST_ANCHORS = 1000
DEFAULT_THRESHOLD = 0.5


def _labels(named: tuple[str, ...] | str, info: ValidationInfo) -> tuple[str, ...]:
    """The labels, or the lines of the file that is named beside or below the model-proc file.

    Without that folder, which is the context, a file of labels is not looked at.
    """
    if isinstance(named, tuple):
        return named
    if info.context is None:
        return ()
    # A file from elsewhere must not have others read than those that came with it.
    if Path(named).is_absolute() or ".." in Path(named).parts or wrong_name(named):
        raise not_allowed("a list of texts, or a file in the model-proc file's folder or below")
    try:
        lines = tuple(read_text(Path(info.context) / named, "labels").rstrip(" \n").split("\n"))
    except WrongInput as error:
        raise not_allowed("a list of texts, or a readable file with one label per line") from error
    if len(lines) > MOST_NAMES or any(map(wrong_name, lines)):
        most = f"at most {MOST_NAMES} printable labels of at most {LONGEST_NAME} characters"
        raise not_allowed(f"a file of {most}")
    return lines


Labels = Annotated[Names | str, AfterValidator(_labels)]
Share = Annotated[float, between(0.0, 1.0)]
Cells = Annotated[int, between(1, MAX_SIDE_PX)]
Side = Annotated[float, between(1e-6, 1e6)]
Anchors = Annotated[tuple[Side, ...], Field(max_length=2 * MOST_ANCHORS)]
Masks = Annotated[tuple[Annotated[int, between(0, MOST_ANCHORS)], ...], Field(max_length=MOST_ANCHORS)]


class Output(BaseModel):
    """What is said of one output, or of those that make boxes together."""

    model_config = STRICT

    layer_name: Name = ""
    layer_names: Names = ()
    attribute_name: Name = ""
    converter: Annotated[str, AfterValidator(current_name)] = ""
    method: str = ""
    labels: Labels = ()
    labels_file: Labels = Field(default=(), validation_alias="labels-file")
    threshold: Share = -1.0
    format: Any = None
    precision: Any = None
    iou_threshold: Share | None = None
    classes: Annotated[int, between(1, MOST_NAMES)] = 0
    anchors: Anchors = ()
    masks: Masks = ()
    bbox_number_on_cell: Annotated[int, between(1, MOST_ANCHORS)] = 0
    cells_number: Cells | None = None
    cells_number_x: Cells | None = None
    cells_number_y: Cells | None = None
    do_cls_softmax: bool = False
    output_sigmoid_activation: bool = False
    point_names: Names = ()
    point_connections: Names = ()
    text_scale: float = 1.0
    text_precision: int = 0

    @property
    def layers(self) -> tuple[str, ...]:
        """The outputs of the network that it is about; empty: whatever fits."""
        return self.layer_names or ((self.layer_name,) if self.layer_name else ())

    @property
    def layer(self) -> str:
        return self.layers[0] if self.layers else ""

    @property
    def title(self) -> str:
        """What a message calls it."""
        return self.attribute_name or self.layer or self.converter

    @property
    def names(self) -> tuple[str, ...]:
        """The labels, as many as there are classes."""
        named = tuple(self.labels_file or self.labels)
        return named[: self.classes] if self.classes else named

    @property
    def cells_hw(self) -> tuple[int, int] | None:
        """Rows and columns of the coarsest grid."""
        rows, columns = self.cells_number_y or self.cells_number, self.cells_number_x or self.cells_number
        return (rows, columns) if rows and columns else None

    @model_validator(mode="after")
    def _one_list_of_labels(self) -> Self:
        if {"labels", "labels_file"} <= self.model_fields_set:
            raise ValueError("it has labels and labels-file, but may have only one of them")
        if self.layer_name and self.layer_names:
            raise ValueError("it has layer_name and layer_names, but may have only one of them")
        return self

    @model_validator(mode="after")
    def _labels_fit(self) -> Self:
        count = len(self.labels_file or self.labels)
        if self.converter in BOXES and 0 < count < self.classes:
            raise ValueError(f"it has {self.classes} classes, and only {count} labels")
        if self.converter == LABEL and self.method == "compound" and (count % 2 or not count):
            raise ValueError(f"it has {count} labels, but compound needs two for each number")
        return self

    @model_validator(mode="after")
    def _grids_fit(self) -> Self:
        if self.converter not in REGIONS:
            return self
        count = len(self.anchors)
        if not count or count % (2 * (self.bbox_number_on_cell or 1)):
            boxes = f"; a cell has {self.bbox_number_on_cell} boxes" if self.bbox_number_on_cell else ""
            raise ValueError(f"it has {count} numbers as anchors, but {self.converter} needs pairs{boxes}")
        if self.masks and (len(self.masks) != count // 2 or max(self.masks) >= count // 2):
            raise ValueError(f"its masks {self.masks} do not number {count // 2} anchors")
        if not self.classes and not self.names:
            raise ValueError(f"{self.converter} needs classes or labels")
        sides = {"cells_number_x", "cells_number_y"} & self.model_fields_set
        if len(sides) == 1 or (sides and "cells_number" in self.model_fields_set):
            raise ValueError("it needs cells_number, or cells_number_x and cells_number_y")
        return self
