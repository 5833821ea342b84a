"""The bench of a model of one's own: a loop by hand finds what we find, and the head is a stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from pipelines.assembly import make_pipeline
from pipelines.media.medium import Limits
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import DetectionAnswer
from pipelines.protocol.options import Options
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from scripts.bench.jobs import DEMO, Job, brings_weights
from scripts.bench.peers import asking, starting
from scripts.bench.stages import Bench
from tests.support.media import clip

PERSON, DOG = 0, 16
# What ONNX Runtime and a decoder of its own measured: frame, class, score, box.
MEASURED = (
    (0, PERSON, 0.84, (223, 213, 466, 554)),
    (0, DOG, 0.79, (409, 373, 716, 584)),
    (144, PERSON, 0.88, (149, 199, 388, 551)),
    (144, DOG, 0.84, (442, 378, 764, 563)),
)
LOOP = "opencv_loop"


@pytest.fixture(scope="module")
def yolox(shared_media: Path) -> str:
    """A file of a YOLOX network."""
    pytest.importorskip("cv2")
    path = shared_media / "models" / "yolox_nano.onnx"
    if not path.is_file():
        pytest.skip(f"no network at {path}")
    return str(path)


@pytest.fixture(scope="module")
def film(shared_media: Path) -> Path:
    path = shared_media / "clips" / "woman_dog_720p.mp4"
    if not path.is_file():
        pytest.skip(f"no film at {path}")
    return path


def check_found(found: dict[str, Any], frame: int) -> None:
    """Whether each object that was measured in a frame is among what was found."""
    for _, label, score, box in (one for one in MEASURED if one[0] == frame):
        place = found["labels"].index(label)
        assert found["scores"][place] == pytest.approx(score, abs=0.05)
        assert overlap([found["boxes"][place]], [box]) > 0.9


def overlap(ours: Sequence[Any], theirs: Sequence[Any]) -> float:
    """The least IoU of pairs of boxes."""
    both = (torch.tensor(np.asarray(boxes, np.float32)) for boxes in (ours, theirs))
    return float(box_iou(*both).diagonal().min())


def test_the_loop_finds_what_was_measured(yolox: str, film: Path) -> None:
    from scripts.bench.peers import opencv_loop

    detector = opencv_loop.Detector(yolox)
    for number, frame_hwc in zip(range(145), opencv_loop.frames(str(film)), strict=False):
        if number in (0, 144):
            check_found(detector(frame_hwc), number)
    assert number == 144
    assert detector(np.zeros((90, 160, 3), np.uint8)) == {"boxes": [], "scores": [], "labels": []}


def test_the_loop_refuses_other_networks(yolox: str) -> None:
    from scripts.bench.peers import opencv_loop

    with pytest.raises(SystemExit, match=r"1000\], not the 1029 cells of YOLOX"):
        opencv_loop.Detector(yolox.replace("yolox_nano", "mobilenetv2-12-qdq"))


@pytest.fixture(scope="module")
def job(yolox: str, film: Path, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Four frames of the film, the first and the last of which were measured."""
    with av.open(str(film), "r") as video:
        shown = (frame.to_ndarray(format="rgb24") for frame in video.decode(video=0))
        pictures = [
            np.asarray(one, np.uint8) for number, one in enumerate(shown) if number in (0, 48, 96, 144)
        ]
    medium = tmp_path_factory.mktemp("film") / "film.mp4"
    medium.write_bytes(clip(pictures=pictures, width=1280, height=720))
    return Job(task="detection", model=yolox, medium=str(medium), frames=4)


@pytest.fixture(scope="module")
def pipeline(yolox: str) -> Pipeline:
    spec = resolve(ModelSettings(source=yolox, task="detection"), allow_code=False)
    return make_pipeline(dataclasses.replace(spec, engine="onnxruntime"), "cpu", limits=Limits())


def test_a_head_is_a_stage(job: Job, pipeline: Pipeline) -> None:
    stages = Bench(pipeline, job).stages()
    assert "head" in stages
    for stage, passes in stages.items():
        assert sum(passes[0]()) == pytest.approx(job.frames), stage


def test_the_loop_answers_as_we_do(job: Job, pipeline: Pipeline, tmp_path: Path) -> None:
    (answer,) = pipeline.run(job.media, Options())
    assert isinstance(answer, DetectionAnswer)
    with starting.peers(job, tmp_path) as others:
        assert others.keys() == {LOOP}
        with asking.asker(others[LOOP][1].url, 60) as ask:
            rows = ask(job.media)
            assert ask(job.media) == rows  # over the same connection
    assert len(rows) == job.frames
    check_found(rows[0], 0)
    check_found(rows[-1], 144)
    for frame, row in enumerate(rows):
        ours = answer.box_frame_index == frame
        assert answer.class_id[ours].tolist() == row["labels"]
        np.testing.assert_allclose(answer.score[ours], row["scores"], atol=0.03)
        assert overlap(answer.box[ours], row["boxes"]) > 0.95


@pytest.mark.parametrize(
    ("model", "task", "own", "peers"),
    [
        ("mobilenet_v3_large", "classification", False, {"seed_pytriton", "fastapi_app", "litserve_app"}),
        ("ssdlite320_mobilenet_v3_large", "detection", False, {"fastapi_app", "litserve_app"}),
        ("a/Net.ONNX", "detection", True, {LOOP}),
        ("net.onnx", "classification", True, set()),
        ("net.xml", "detection", True, set()),
        ("shades:shade", "classification", True, set()),
        (DEMO, "detection", True, set()),
    ],
)
def test_which_peers_do_a_job(model: str, task: str, own: bool, peers: set[str]) -> None:
    assert brings_weights(model) is own
    assert starting.peers_of(task, model).keys() == peers
    assert bool(peers) or "no peer does" in starting.missing(task, model)


def test_a_file_goes_to_the_server_without_weights() -> None:
    job = Job(task="detection", model="net.onnx", medium="film.mp4", frames=1, flags=("--labels", "coco.txt"))
    flags = ["--device", "cpu", "--endpoints", "media", "--labels", "coco.txt"]
    assert job.server_flags() == ["--model", "detection=net.onnx", *flags]
