"""A second model on the boxes of a first: which is asked about which boxes, what it says. Knows no transport.

The boxes of all frames of a chunk go to the classifier's batcher together, and meet those of other requests.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipelines.batching.batcher import Batcher
from pipelines.batching.work import Terms
from pipelines.frames.batch import FrameBatch, PixelArray
from pipelines.frames.crops import PIECE_BYTES, pieces, squares
from pipelines.models.outputs import Output
from pipelines.models.spec import ModelSpec
from pipelines.protocol.answers import Floats, Ints, Texts
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options
from pipelines.tasks import attributes
from pipelines.tasks.boxes import Found
from pipelines.tasks.classes import class_ids
from pipelines.tasks.ranking import Ranking

PIECES_IN_FLIGHT = 2
# One more is being prepared.
SECOND_STAGE_BYTES = (PIECES_IN_FLIGHT + 1) * PIECE_BYTES


class Served(Protocol):
    """A served model, as far as it is needed here."""

    name: str
    spec: ModelSpec
    batcher: Batcher

    def prepare_pictures(self, pictures: Sequence[PixelArray]) -> Tensor:
        """The model's pixels of N pictures uint8 RGB `(H, W, 3)`, float32 `(N, 3, h, w)`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A classifier, and the numbers of the classes whose boxes it is asked about; empty: all."""

    model: Served
    class_ids: tuple[int, ...]

    def fits(self, class_id_d: Ints) -> npt.NDArray[np.bool_]:
        """For each of D boxes whether it is one of them."""
        return np.isin(class_id_d, self.class_ids) if self.class_ids else np.ones(len(class_id_d), bool)


class Said:
    """What is said of D objects, of A attributes, as it comes in; until then nothing."""

    def __init__(self, objects: int, attribute_names: tuple[str, ...]) -> None:
        self._names = attribute_names
        shape = objects, len(attribute_names)
        self.predicted_d: Texts = np.full(objects, "", object)
        self.probability_d: Floats = np.zeros(objects, np.float32)
        self.attribute_da: Texts = np.full(shape, "", object)
        self.attribute_probability_da: Floats = np.zeros(shape, np.float32)
        self.not_finite_d = np.zeros(objects, bool)

    def add(self, rows: Ints, parts: Sequence[Floats], spec: ModelSpec) -> None:
        """What `attributes.read` left of a classifier's batches, about the objects of these numbers."""
        # The request's own threshold and number of classes are for the detector.
        ranks = Ranking.of(Options(top_k=1), spec).add([part[:, : len(spec.labels)] for part in parts])
        self.predicted_d[rows], self.probability_d[rows] = ranks.class_name[:, 0], ranks.probability[:, 0]
        self.not_finite_d[rows] = ranks.not_finite
        told = attributes.values(parts, spec)
        for place, name in enumerate(told.names):
            column = self._names.index(name)
            self.attribute_da[rows, column] = told.value[:, place]
            self.attribute_probability_da[rows, column] = told.probability[:, place]

    def of(self, objects: Found) -> Found:
        """The objects with what is said of them."""
        return replace(
            objects,
            predicted_d=self.predicted_d,
            probability_d=self.probability_d,
            attribute_da=self.attribute_da,
            attribute_probability_da=self.attribute_probability_da,
        )


class SecondStage:
    """One request's questions: each box goes to the first that fits it.

    Attributes:
        models: names of the classifiers.
        attribute_names: of all their attributes.
    """

    def __init__(self, questions: Sequence[Question], terms: Terms) -> None:
        self.questions, self._terms = questions, terms
        specs = [one.model.spec for one in questions]
        self.models = tuple(dict.fromkeys(one.model.name for one in questions))
        self.attribute_names = tuple(dict.fromkeys(one.name for spec in specs for one in spec.attributes))

    def __call__(self, frames: FrameBatch, found: Sequence[Found]) -> list[Found]:
        """The objects of each of N frames, in its pixels, with what the classifiers say of them."""
        counts = [len(one) for one in found]
        objects = Found.concatenate(found)
        rows_d = np.repeat(np.arange(len(found)), counts)
        said = Said(len(objects), self.attribute_names)
        waiting = np.ones(len(objects), bool)
        for question in self.questions:
            chosen = np.flatnonzero(waiting & question.fits(objects.class_id_d))
            waiting[chosen] = False
            if len(chosen):
                pictures = squares(frames.pixels_nhwc, rows_d[chosen], objects.box_d4[chosen])
                said.add(chosen, self._read(question.model, pictures), question.model.spec)
        objects = said.of(objects)
        marks = [one.not_finite or said.not_finite_d[rows_d == row].any() for row, one in enumerate(found)]
        return [replace(objects.pick(rows_d == row), not_finite=bool(mark)) for row, mark in enumerate(marks)]

    def _read(self, model: Served, pictures: Iterable[PixelArray]) -> list[Floats]:
        """What is read of the classifier's outputs, in the order of the pictures, in any number of parts.

        While a piece of the pictures is computed, the next one is prepared.
        """
        parts: list[Floats] = []
        in_flight: deque[Future[list[Floats]]] = deque()

        def read(output: Output) -> Floats:
            return attributes.read(output, model.spec)

        try:
            for piece in pieces(pictures, model.spec.preprocessing):
                pixels = model.prepare_pictures(piece)
                in_flight.append(
                    model.batcher.submit(
                        pixels,
                        read,
                        stream=id(self),
                        deadline_s=self._terms.deadline_s,
                        urgent=self._terms.urgent,
                    )
                )
                if len(in_flight) == PIECES_IN_FLIGHT:
                    parts += in_flight.popleft().result()
            while in_flight:
                parts += in_flight.popleft().result()
        finally:
            for future in in_flight:
                future.cancel()
        return parts


def second_stage(
    classify: str, labels: Sequence[str], served: Mapping[str, Served], terms: Terms
) -> SecondStage:
    """The option `classify` of a request to a detector with these labels.

    Args:
        served: all models, by what requests call them.

    Raises:
        InvalidOptions: a model is not served or no classifier, or the detector knows no class of that name.
    """
    # A label may hold a comma itself, the name of a model may not.
    class_name, _, name = classify.rpartition(":")
    entries = [classify] if class_name in labels and "," not in name else classify.split(",")
    return SecondStage([_question(entry.strip(), labels, served) for entry in entries], terms)


def _question(entry: str, labels: Sequence[str], served: Mapping[str, Served]) -> Question:
    class_name, colon, name = entry.rpartition(":")
    model = served.get(name.strip())
    if model is None or model.spec.task != "classification":
        classifiers = [one for one, other in served.items() if other.spec.task == "classification"]
        what = "not served" if model is None else f"for {model.spec.task}, not a classifier"
        raise InvalidOptions(
            f"classify={entry!r}: the model {name.strip()!r} is {what}",
            hint=f"one of: {', '.join(classifiers)}"
            if classifiers
            else "this server has no model for classification",
        )
    return Question(model=model, class_ids=_classes(class_name.strip(), entry, labels) if colon else ())


def _classes(class_name: str, entry: str, labels: Sequence[str]) -> tuple[int, ...]:
    """The numbers of the classes of that name, or the number itself."""
    if not class_name:
        raise InvalidOptions(f"classify={entry!r} names no class", hint="NAME, or CLASS:NAME")
    numbered = re.fullmatch("[0-9]{1,9}", class_name) and class_name not in labels
    if not numbered and not labels:
        raise InvalidOptions(
            f"classify={entry!r}: this detector's classes have no names",
            hint="use their numbers, such as 0:NAME",
        )
    wanted = Options(class_id=int(class_name)) if numbered else Options(class_name=class_name)
    try:
        return class_ids(wanted, labels)
    except InvalidOptions as error:
        raise InvalidOptions(f"classify={entry!r}: {error.message}", hint=error.hint) from None
