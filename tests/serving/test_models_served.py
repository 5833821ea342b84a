"""One real server with a model for each task: two by name, two from exported files that need no options."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

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
from scripts.parity.subject import tame
from tests.conftest import Server, start_server
from tests.support import media, toy_networks

NAMED = {"detection": "ssdlite320_mobilenet_v3_large", "action": "r3d_18"}
EXPORTED = ("classification", "segmentation")
TASKS = (*NAMED, *EXPORTED)

# Four models take a while to load and compare engines, and more on a busy machine.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The server, and the networks that its files were made of."""

    server: Server
    networks: dict[str, Model]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """ONNX files that say themselves how to be fed, and models by name, in one process."""
    folder = tmp_path_factory.mktemp("four")
    networks, tables = {}, '[server]\ndevice = "cpu"\nendpoints = "media"\n'
    small = resolve(ModelSettings(source="squeezenet1_1", weights="random"), allow_code=False)
    # Of torchvision's, the smallest segmenter takes the exporter twenty seconds.
    toy = toy_networks.spec_of(
        toy_networks.as_pixels,
        "segmentation",
        preprocessing=toy_networks.FREE,
        labels=tuple(f"class {number}" for number in range(toy_networks.CLASSES)),
    )
    for task, spec in zip(EXPORTED, (small, toy), strict=True):
        network = spec.build().eval()
        # Untamed, such a network enlarges the rounding of an export to more than an export may have.
        tame(network, spec)
        spec = replace(spec, build=partial(copy.deepcopy, network))
        export.export_model(spec, folder / f"{task}.onnx")
        networks[task] = Model(spec, "cpu")
        tables += f'[[model]]\nsource = "{task}.onnx"\n'
    for task, name in NAMED.items():
        tables += f'[[model]]\ntask = "{task}"\nsource = "{name}"\nweights = "random"\nengine = "torch"\n'
    settings = folder / "server.toml"
    settings.write_text(tables)
    with start_server(folder, "--settings", str(settings)) as running:
        yield Served(server=running, networks=networks)


def ask(server: Server, protocol: str, task: str, medium: bytes, *, stream: bool, **options: str) -> Answer:
    kind = ANSWERS[task]
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, timeout_s=100) as client:
        if stream:
            return kind.concatenate(list(client.ask_stream(kind, medium, options)))
        return client.ask(kind, medium, options)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("task", TASKS)
def test_all_tasks_answer_from_one_process(four: Served, task: str, protocol: str, stream: bool) -> None:
    """Random weights say nothing; what is checked is that the answer is whole and in its form."""
    clip = media.clip(frames=20, width=160, height=120, rate=15)
    options = {"score_threshold": "0.02"} if task == "detection" else {}
    answer = ask(four.server, protocol, task, clip, stream=stream, max_frames="18", **options)
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
        assert len(answer.class_names) == toy_networks.CLASSES
    if isinstance(answer, DetectionAnswer):
        assert len(answer.box) == len(answer.score) == len(answer.box_frame_index) > 0
        assert (answer.box[:, :2] >= 0).all()
        assert (answer.box[:, 2:] <= (160, 120)).all()


@pytest.mark.slow
def test_random_weights_are_said_loudly(four: Served) -> None:
    assert four.server.output().count("RANDOM WEIGHTS") >= len(NAMED)
    with Client(four.server.grpc_url) as client:
        models = client.info()["models"]
    assert models.keys() == set(TASKS)
    assert {task: models[task]["name"] for task in NAMED} == NAMED
    assert all("random" in models[task]["source"].lower() for task in NAMED)


def logits_by_hand(model: Model, medium: bytes) -> torch.Tensor:
    preprocessing = model.spec.preprocessing
    with open_media(medium, options=Options(), limits=Limits(), device="cpu") as opened:
        outputs = [model(prepare_on_cpu(frames.pixels_nhwc, preprocessing)) for frames in opened.chunks()]
    parts = [output.logits for output in outputs if isinstance(output, LogitOutput)]
    return torch.cat(parts)


@pytest.mark.slow
def test_an_exported_file_alone_answers_as_its_network(four: Served) -> None:
    server, models = four.server, four.networks
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
    shares = (
        np.stack([np.bincount(one.flatten(), minlength=toy_networks.CLASSES) for one in maps.numpy()])
        / maps[0].numel()
    )
    np.testing.assert_allclose(segmented.class_pixels / (150 * 200), shares, atol=0.01)
