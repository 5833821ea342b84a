"""Rows at the border to Triton: each fails alone, and together they keep to the room in shared memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pipelines.protocol.columns import Column, Row, Tensor, text_column
from pipelines.protocol.errors import UnsupportedMedia
from pipelines.protocol.options import Options, Scalar
from pipelines.serving.endpoints import Endpoint, Unary
from pipelines.telemetry.counters import Telemetry

LIMIT = 1000
NUMBER = Column(name="number", dtype=np.int64, dims=(1,), help="how many bytes to answer; below 0 a fault")
BYTES = Column(name="bytes", dtype=np.uint8, dims=("N",), help="that many")
ERROR = Column(name="error", dtype=object, dims=(1,), help="empty, or the error as JSON")


class Request(dict[str, Tensor]):
    """A request in PyTriton's form."""

    def __init__(self, *numbers: int, **parameters: Scalar) -> None:
        super().__init__(number=np.array(numbers, np.int64)[:, None])
        self.parameters = parameters


def answer(inputs: Row, _options: Options) -> Iterator[Row]:
    number = int(inputs["number"][0])
    if number == -1:
        raise UnsupportedMedia("minus one")
    if number < -1:
        raise KeyError("a fault of the program")
    yield {"bytes": np.ones(number, np.uint8), "error": text_column("")}


def codes(*requests: Request) -> list[list[str]]:
    endpoint = Endpoint(
        name="toy",
        inputs=(NUMBER,),
        outputs=(BYTES, ERROR),
        answer=answer,
        telemetry=Telemetry(),
        max_answer_bytes=LIMIT,
    )
    with ThreadPoolExecutor(2) as pool:
        answers = Unary(endpoint, pool)(requests)
    texts = [[bytes(row[0]) for row in one["error"]] for one in answers]
    return [[json.loads(text)["code"] if text else "" for text in rows] for rows in texts]


@pytest.mark.parametrize(
    ("requests", "expected"),
    [
        ([Request(5)], [[""]]),
        ([Request(1), Request(-1), Request(2)], [[""], ["unsupported_media"], [""]]),
        ([Request(3, -1, 4)], [["", "unsupported_media", ""]]),
        ([Request(-2), Request(1)], [["internal_error"], [""]]),
        ([Request(1, stride=1), Request(1)], [["invalid_options"], [""]]),
        ([Request(LIMIT + 1), Request(1)], [["too_large"], [""]]),
        ([Request(600, 1)], [["too_large"] * 2]),
        ([Request(600), Request(600), Request(300)], [[""], ["overloaded"], [""]]),
    ],
)
def test_each_row_gets_its_own_answer_or_error(requests: list[Request], expected: list[list[str]]) -> None:
    assert codes(*requests) == expected
