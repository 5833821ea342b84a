"""The vector of each frame and their mean, of length 1 or as the network gives them; real cosines."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipelines.assembly import make_pipeline
from pipelines.loading.agreement import agreeing
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import ModelSpec, Preprocessing
from pipelines.protocol.answers import EmbeddingAnswer
from pipelines.protocol.options import Options
from pipelines.sdk.report import Summary, row_lines
from pipelines.serving.answerers import ModelStage
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from tests.support import media

OSNET = "models/osnet_x0_25_msmt17_batch.onnx"
# Frame, and a box of store_aisle_270p.mp4 (left, top, right, bottom).
WOMAN, WOMAN_LATER = (0, (342, 84, 418, 269)), (66, (347, 80, 400, 267))
MAN = (0, (262, 68, 321, 242))


class Grey(nn.Module):
    """Twice the mean of each channel, (N, 3, 1, 1)."""

    def forward(self, pixels_nchw: Tensor) -> Tensor:
        return 2 * pixels_nchw.mean(dim=(2, 3), keepdim=True)


def answer_of(normalise: bool, levels: list[int], **options: Any) -> EmbeddingAnswer:
    facts = Preprocessing(resize_px=(8, 8), mean=(0, 0, 0), std=(1, 1, 1))
    spec = ModelSpec(
        name="grey",
        task="embedding",
        build=Grey,
        source="test",
        labels=("not", "used"),
        preprocessing=facts,
        normalise=normalise,
    )
    pipeline = make_pipeline(spec, "cpu", limits=Limits(chunk_frames=2))
    pictures = [np.full((32, 48, 3), level, np.uint8) for level in levels]
    clip = media.clip(pictures=pictures, width=48, height=32)
    parts = [one for one in pipeline.run(clip, Options(**options)) if isinstance(one, EmbeddingAnswer)]
    stage = ModelStage(pipeline)
    assert [column.dims for column in stage.outputs] == [(3,)]
    pipeline.batcher.close()
    return EmbeddingAnswer.concatenate(parts)


def test_vectors_are_as_long_as_the_network_gives_them_where_that_is_asked_for() -> None:
    answer = answer_of(False, [51, 102, 153])
    np.testing.assert_allclose(answer.embedding, np.outer([0.4, 0.8, 1.2], np.ones(3)), atol=0.02)
    np.testing.assert_allclose(answer.mean_embedding, [0.8] * 3, atol=0.02)


def test_vectors_have_length_one() -> None:
    answer = answer_of(True, [51, 102, 153])
    np.testing.assert_allclose(answer.embedding, np.full((3, 3), 3**-0.5), atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(answer.mean_embedding), 1, atol=1e-6)
    line, *_ = row_lines("a.mp4", answer)
    assert line.count("0.577") == 3
    summary = Summary()
    summary.add(answer)
    assert str(summary) == "3 frames, vectors of 3 numbers (pyav)"


def test_a_vector_of_zeros_stays_one() -> None:
    assert not np.isnan(answer_of(True, [0]).embedding).any()


def test_no_frame_is_an_answer_without_rows() -> None:
    assert len(answer_of(True, [51, 51], start_s=0.05, keyframes_only=True)) == 0


def test_vectors_agree_by_their_direction() -> None:
    one = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(4, 512, generator=torch.Generator().manual_seed(1))
    plain, near, far = (
        LogitOutput({"output": one + share * noise}, "output", vectors=True) for share in (0, 0.05, 1)
    )
    assert agreeing([plain], [near]) == 1
    assert agreeing([plain], [far]) == 0
    assert agreeing([plain.part(0, 1)], [near.part(0, 1)]) == 1


def png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def osnet(shared_media: Path) -> Path:
    if not (shared_media / OSNET).is_file():
        pytest.skip(f"no {OSNET} at {shared_media}")
    return shared_media / OSNET


def test_a_person_is_told_again(osnet: Path, shared_media: Path) -> None:
    """A woman of two frames is alike, she and a man are not."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    spec = resolve(ModelSettings(source=str(osnet), task="embedding", mean=mean, std=std), allow_code=False)
    pipeline = make_pipeline(spec, "cpu", limits=Limits())
    with av.open(str(shared_media / "clips" / "store_aisle_270p.mp4")) as film:
        frames = [
            Image.fromarray(frame.to_ndarray(format="rgb24"))
            for frame in itertools.islice(film.decode(video=0), 67)
        ]
    vectors = []
    for number, (left, top, right, bottom) in (WOMAN, WOMAN_LATER, MAN):
        (answer,) = pipeline.run(png(frames[number].crop((left, top, right, bottom))), Options())
        assert isinstance(answer, EmbeddingAnswer)
        vectors.append(answer.embedding[0])
    pipeline.batcher.close()
    assert vectors[0].shape == (512,)
    assert vectors[0] @ vectors[1] > 0.85
    assert vectors[0] @ vectors[2] < 0.6
