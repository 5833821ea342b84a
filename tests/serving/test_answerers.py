"""The limit of an answer: of one answer all parts together, of a stream each part by itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.columns import Row, nbytes, text_column
from pipelines.protocol.errors import TooLarge
from pipelines.protocol.options import Options
from pipelines.serving.answerers import EndToEnd
from pipelines.zoo.demo.specs import demo_specs
from tests.support import media

# The pictures of an answer: 4 frames of 64 times 48 pixels.
RAW_BYTES = 4 * 64 * 48 * 3


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    made = make_pipeline(demo_specs()["classification"], "cpu", limits=Limits(chunk_frames=4))
    yield made
    made.batcher.close()


def rows_of(pipeline: Pipeline, form: str, limit_bytes: int, frames: int) -> list[Row]:
    answers = getattr(EndToEnd(pipeline, limit_bytes), form)
    return list(answers({"media": text_column(media.clip(frames=frames))}, Options(overlay="raw")))


def test_a_stream_may_be_larger_than_any_of_its_answers(pipeline: Pipeline) -> None:
    rows = rows_of(pipeline, "stream", 2 * RAW_BYTES, frames=12)
    assert [len(row["overlay"]) for row in rows] == [4, 4, 4]
    with pytest.raises(TooLarge, match="at frame 11"):
        rows_of(pipeline, "unary", 2 * RAW_BYTES, frames=12)


def test_an_answer_of_a_stream_counts_with_all_its_columns(pipeline: Pipeline) -> None:
    (row,) = rows_of(pipeline, "stream", 2 * RAW_BYTES, frames=4)
    size = sum(map(nbytes, row.values()))
    assert size > RAW_BYTES
    assert len(rows_of(pipeline, "stream", size, frames=4)) == 1
    with pytest.raises(TooLarge, match="at frame 3"):
        rows_of(pipeline, "stream", size - 1, frames=4)
