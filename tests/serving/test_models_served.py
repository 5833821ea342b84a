"""Real servers with models by name and from files: four tasks in one process, files without options."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from client import Client
from model_inference import Model
from pipelines.frames.resize import prepare_on_cpu
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput
from pipelines.protocol.answers import (
    ANSWERS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
)
from pipelines.protocol.options import Options
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from scripts.export import __main__ as export
from tests.conftest import Server, start_server
from tests.support import media

NAMED = {
    "classification": "resnet50",
    "detection": "ssdlite320_mobilenet_v3_large",
    "segmentation": "lraspp_mobilenet_v3_large",
    "action": "r3d_18",
}

# Four models take a minute to load and compare engines, and more on a busy machine.
pytestmark = pytest.mark.timeout(240)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model by name for each task, from one process."""
    models = [flag for task, name in NAMED.items() for flag in ("--model", f"{task}={name}")]
    flags = [*models, "--weights", "random", "--device", "cpu"]
    running = start_server(tmp_path_factory.mktemp("four"), *flags, "--endpoints", "media")
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()


def ask(server: Server, protocol: str, task: str, medium: bytes, *, stream: bool, **options: str) -> Answer:
    kind = ANSWERS[task]
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, timeout_s=100) as client:
        if stream:
            return kind.concatenate(list(client.ask_stream(kind, medium, options)))
        return client.ask(kind, medium, options)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("task", list(NAMED))
def test_all_tasks_answer_from_one_process(four: Server, task: str, protocol: str, stream: bool) -> None:
    """Random weights say nothing; what is checked is that the answer is whole and in its form."""
    clip = media.clip(frames=20, width=160, height=120, rate=15)
    options = {"score_threshold": "0.02"} if task == "detection" else {}
    answer = ask(four, protocol, task, clip, stream=stream, max_frames="18", **options)
    assert answer.final
    assert (answer.height_px, answer.width_px) == (120, 160)
    if isinstance(answer, ActionAnswer):
        assert answer.frame_index.tolist() == [0, 16]
        assert answer.last_frame_index.tolist() == [15, 17]
        assert answer.class_name.shape == (2, 5)
        return
    assert answer.frame_index.tolist() == list(range(18))
    if isinstance(answer, ClassificationAnswer):
        assert answer.probability.shape == (18, 5)
        assert (np.diff(answer.probability, axis=1) <= 0).all()
    if isinstance(answer, SegmentationAnswer):
        assert (answer.class_pixels.sum(axis=1) == 120 * 160).all()
        assert len(answer.class_names) == 21
    if isinstance(answer, DetectionAnswer):
        assert len(answer.box) == len(answer.score) == len(answer.box_frame_index) > 0
        assert (answer.box[:, :2] >= 0).all()
        assert (answer.box[:, 2:] <= (160, 120)).all()


@pytest.mark.slow
def test_random_weights_are_said_loudly(four: Server) -> None:
    assert four.output().count("RANDOM WEIGHTS") >= len(NAMED)
    with Client(four.grpc_url) as client:
        info = client.info()
    assert {task: model["name"] for task, model in info["models"].items()} == NAMED
    assert all("random" in model["source"].lower() for model in info["models"].values())


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, Model]]]:
    """An ONNX and a torch.export file that say how to be fed, and the networks that they were made of."""
    folder = tmp_path_factory.mktemp("files")
    specs = {
        "classification": resolve(ModelSettings(source="squeezenet1_1", weights="random"), allow_code=False),
        "segmentation": resolve(
            ModelSettings(source="lraspp_mobilenet_v3_large", weights="random"), allow_code=False
        ),
    }
    for task, spec in specs.items():
        export.export_model(spec, folder / f"{task}.onnx")
    settings = folder / "server.toml"
    tables = "".join(f'[[model]]\nsource = "{task}.onnx"\n' for task in specs)
    settings.write_text(f'[server]\ndevice = "cpu"\nendpoints = "media"\n{tables}')
    running = start_server(folder, "--settings", str(settings))
    try:
        running.wait_ready()
        yield running, {task: Model(spec, "cpu") for task, spec in specs.items()}
    finally:
        running.stop()


def logits_by_hand(model: Model, medium: bytes) -> torch.Tensor:
    preprocessing = model.spec.preprocessing
    with open_media(medium, options=Options(), limits=Limits(), device="cpu") as opened:
        outputs = [model(prepare_on_cpu(frames.pixels_nhwc, preprocessing)) for frames in opened.chunks()]
    parts = [output.logits for output in outputs if isinstance(output, LogitOutput)]
    return torch.cat(parts)


@pytest.mark.slow
def test_an_exported_file_alone_answers_as_its_network(files: tuple[Server, dict[str, Model]]) -> None:
    server, models = files
    clip = media.clip(frames=6, width=200, height=150)
    probabilities = torch.softmax(logits_by_hand(models["classification"], clip), dim=1)
    answer = ask(server, "grpc", "classification", clip, stream=False, top_k="3")
    assert isinstance(answer, ClassificationAnswer)
    best = probabilities.topk(3)
    np.testing.assert_allclose(answer.probability, best.values.numpy(), atol=1e-4)
    assert answer.class_id[:, 0].tolist() == best.indices[:, 0].tolist()
    labels = models["classification"].spec.labels
    assert answer.class_name[0, 0] == labels[int(best.indices[0, 0])]

    maps = logits_by_hand(models["segmentation"], clip).argmax(dim=1)
    segmented = ask(server, "http", "segmentation", clip, stream=True, mask="none")
    assert isinstance(segmented, SegmentationAnswer)
    shares = np.stack([np.bincount(one.flatten(), minlength=21) for one in maps.numpy()]) / maps[0].numel()
    np.testing.assert_allclose(segmented.class_pixels / (150 * 200), shares, atol=0.01)
