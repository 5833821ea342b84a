"""One answer of all parts, and streams of them: their limits, and media that break off."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import av
import numpy as np
import pytest

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import answer_columns
from pipelines.protocol.columns import Column, Row, nbytes, text_column
from pipelines.protocol.errors import InvalidMedia, TooLarge
from pipelines.protocol.options import Options
from pipelines.sdk.client import _answer as read_answer
from pipelines.serving.answerers import EndToEnd, PreprocessStage
from pipelines.serving.endpoints import Endpoint, Unary
from pipelines.telemetry.counters import Telemetry
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


BROKEN = media.truncated(media.clip(frames=12, mux_options={"movflags": "faststart"}), 0.9)


def endpoint_of(pipeline: Pipeline, answer: Callable[[Row, Options], Iterator[Row]]) -> Endpoint:
    return Endpoint(
        name="broken",
        inputs=(Column(name="media", dtype=object, dims=(1,), help=""),),
        outputs=answer_columns(pipeline.task.answer),
        answer=answer,
        telemetry=Telemetry(),
        max_answer_bytes=1 << 30,
        allowed=("damaged", "overlay"),
    )


class Request(dict[str, Any]):
    parameters: Mapping[str, Any] = {"overlay": "mp4"}


def test_one_answer_has_what_was_there_before_the_medium_breaks_off(pipeline: Pipeline) -> None:
    endpoint = endpoint_of(pipeline, EndToEnd(pipeline, 1 << 30).unary)
    request = Request(media=np.array([[BROKEN], [media.clip(frames=12)]], object))
    with ThreadPoolExecutor(2) as pool:
        (tensors,) = Unary(endpoint, pool)([request])
    broken, whole = ({name: value[row] for name, value in tensors.items()} for row in range(2))
    count = int(broken["count"][0])
    assert 9 <= count < 12
    np.testing.assert_array_equal(broken["frame_index"][:count], np.arange(count))
    np.testing.assert_array_equal(broken["class_id"][:count], whole["class_id"][:count])
    assert json.loads(broken["error"][0])["code"] == "invalid_media"
    assert (int(broken["final"][0]), int(whole["count"][0]), whole["error"][0]) == (1, 12, b"")
    assert endpoint.telemetry.snapshot()["errors"] == {"invalid_media": 1}
    # The film is complete as far as it goes.
    with av.open(io.BytesIO(broken["video"][0]), "r") as film:
        assert len(list(film.decode(video=0))) == count


def test_the_client_raises_the_error_and_hands_over_what_was_there(pipeline: Pipeline) -> None:
    endpoint = endpoint_of(pipeline, EndToEnd(pipeline, 1 << 30).unary)
    with ThreadPoolExecutor(1) as pool:
        (tensors,) = Unary(endpoint, pool)([Request(media=np.array([[BROKEN]], object))])
    columns = {name: value[0] for name, value in tensors.items()}
    with pytest.raises(InvalidMedia, match="ends early") as caught:
        read_answer(pipeline.task.answer, columns)
    assert len(caught.value.answer) == int(columns["count"][0])
    assert len(caught.value.answer.class_name) == len(caught.value.answer)


def test_a_medium_that_breaks_off_at_once_is_only_an_error(pipeline: Pipeline) -> None:
    with pytest.raises(InvalidMedia):
        list(EndToEnd(pipeline, 1 << 30).unary({"media": text_column(BROKEN[:900])}, Options()))


def test_damaged_frames_are_counted(pipeline: Pipeline) -> None:
    before = pipeline.telemetry.snapshot()["frames"].get("damaged", 0)
    cut = media.truncated(media.image("jpeg", 320, 240), 0.7)
    (row,) = EndToEnd(pipeline, 1 << 30).unary({"media": text_column(cut)}, Options())
    assert row["damaged"].tolist() == [1]
    assert pipeline.telemetry.snapshot()["frames"]["damaged"] == before + 1


def test_the_stages_have_what_was_there_too(pipeline: Pipeline) -> None:
    inputs = {"media": text_column(BROKEN)}
    rows = PreprocessStage({"classification": pipeline}, 1 << 30).answer(inputs, Options())
    first = next(rows)
    assert 9 <= len(first["pixels"]) < 12
    with pytest.raises(InvalidMedia, match="ends early"):
        next(rows)
