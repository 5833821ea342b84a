"""One real server with five models, two of them for one task: torchvision's, and exported files.

Some are served under names of their own; one is as long as a name may be.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from client import Client
from model_inference import Model
from pipelines.frames.resize import prepare_on_cpu
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput
from pipelines.models.spec import TaskName
from pipelines.protocol.answers import (
    ANSWERS,
    ActionAnswer,
    Answer,
    ClassificationAnswer,
    DetectionAnswer,
    SegmentationAnswer,
    answer_columns,
)
from pipelines.protocol.errors import InvalidOptions, ModelUnavailable
from pipelines.protocol.options import Options
from pipelines.sdk.grpc_transport import GrpcTransport
from pipelines.sdk.http_transport import HttpTransport
from pipelines.sdk.transport import Call, parse_address
from pipelines.serving.endpoint_table import PREPROCESSED
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from scripts.export import __main__ as export
from scripts.parity.subject import tame
from tests.conftest import Server, start_server
from tests.support import media, toy_networks

GATE, CARS, BOATS = "gate", "cars_" + 36 * "x", "boats-1"
EXPORTED = (GATE, "segmentation", CARS)
NAMED = {BOATS: "ssdlite320_mobilenet_v3_large", "action": "r3d_18"}
# Names under which models are served, and their tasks; without one it is the task.
SERVED: dict[str, TaskName] = {
    GATE: "classification",
    "segmentation": "segmentation",
    CARS: "classification",
    BOATS: "detection",
    "action": "action",
}

# Five models take a while to load and compare engines, and more on a busy machine.
pytestmark = pytest.mark.timeout(300)


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The server, and the networks that its files were made of, by name."""

    server: Server
    networks: dict[str, Model]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """ONNX files that say themselves how to be fed, and models by name, in one process."""
    folder = tmp_path_factory.mktemp("five")
    networks, tables = {}, '[server]\ndevice = "cpu"\nendpoints = "media"\n'
    small = resolve(ModelSettings(source="squeezenet1_1", weights="random"), allow_code=False)
    # Of torchvision's, the smallest segmenter takes the exporter twenty seconds.
    labels = tuple(f"class {number}" for number in range(toy_networks.CLASSES))
    toy = toy_networks.spec_of(
        toy_networks.as_pixels, "segmentation", preprocessing=toy_networks.FREE, labels=labels
    )
    pooled = toy_networks.spec_of(toy_networks.pooled, labels=labels)
    for name, spec in zip(EXPORTED, (small, toy, pooled), strict=True):
        network = spec.build().eval()
        # Untamed, such a network enlarges the rounding of an export to more than an export may have.
        tame(network, spec)
        spec = replace(spec, build=partial(copy.deepcopy, network))
        export.export_model(spec, folder / f"{name}.onnx")
        networks[name] = Model(spec, "cpu")
        tables += f'[[model]]\nsource = "{name}.onnx"\n'
        tables += f'name = "{name}"\n' if name not in ANSWERS else ""
    for name, source in NAMED.items():
        tables += f'[[model]]\ntask = "{SERVED[name]}"\nsource = "{source}"\nweights = "random"\n'
        tables += f'name = "{name}"\nengine = "torch"\n'
    settings = folder / "server.toml"
    settings.write_text(tables)
    with start_server(folder, "--settings", str(settings)) as running:
        yield Served(server=running, networks=networks)


def ask(server: Server, protocol: str, name: str, medium: bytes, *, stream: bool, **options: str) -> Answer:
    kind = ANSWERS[SERVED[name]]
    options |= {"model": name}
    with Client(server.grpc_url if protocol == "grpc" else server.http_url, timeout_s=100) as client:
        if stream:
            return kind.concatenate(list(client.ask_stream(kind, medium, options)))
        return client.ask(kind, medium, options)


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("name", SERVED)
def test_all_models_answer_from_one_process(five: Served, name: str, protocol: str, stream: bool) -> None:
    """Random weights say nothing; what is checked is that the answer is whole and in its form."""
    clip = media.clip(frames=20, width=160, height=120, rate=15)
    options = {"score_threshold": "0.02"} if name == BOATS else {}
    answer = ask(five.server, protocol, name, clip, stream=stream, max_frames="18", **options)
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
        assert all(str(one).startswith("class ") == (name == CARS) for one in answer.class_name[0])
    if isinstance(answer, SegmentationAnswer):
        assert (answer.class_pixels.sum(axis=1) == 120 * 160).all()
        assert len(answer.class_names) == toy_networks.CLASSES
    if isinstance(answer, DetectionAnswer):
        assert len(answer.box) == len(answer.score) == len(answer.box_frame_index) > 0
        assert (answer.box[:, :2] >= 0).all()
        assert (answer.box[:, 2:] <= (160, 120)).all()


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_classifiers_are_asked_about_boxes(five: Served, protocol: str, stream: bool) -> None:
    """Two of them: one about the boxes of the class that comes first, the other about the rest."""
    clip = media.clip(frames=20, width=160, height=120, rate=15)
    options = {"score_threshold": "0.02", "max_frames": "18"}
    plain = ask(five.server, protocol, BOATS, clip, stream=stream, **options)
    assert isinstance(plain, DetectionAnswer)
    chosen = str(plain.class_name[0])
    options |= {"classify": f"{chosen}:{GATE}, {CARS}"}
    answer = ask(five.server, protocol, BOATS, clip, stream=stream, **options)
    assert isinstance(answer, DetectionAnswer)
    np.testing.assert_allclose(answer.box, plain.box, atol=1e-3)
    assert answer.classified_by == (GATE, CARS)
    for name, predicted in zip(answer.class_name, answer.predicted_class, strict=True):
        assert predicted in five.networks[GATE if name == chosen else CARS].spec.labels
    assert ((answer.probability > 0) & (answer.probability <= 1)).all()
    with pytest.raises(InvalidOptions, match=f"'boat'.* is not served.*one of: {GATE}, {CARS}"):
        ask(five.server, protocol, BOATS, clip, stream=stream, classify="boat")
    with pytest.raises(InvalidOptions, match="'segmentation' is for segmentation, not a classifier"):
        ask(five.server, protocol, BOATS, clip, stream=stream, classify="segmentation")


@pytest.mark.slow
def test_status_tells_of_each_model(five: Served) -> None:
    assert five.server.output().count("RANDOM WEIGHTS") >= len(NAMED)
    for url in (five.server.grpc_url, five.server.http_url):
        with Client(url) as client:
            info = client.info()
        models = info["models"]
        assert {name: model["task"] for name, model in models.items()} == SERVED
        assert list(models) == [*EXPORTED, *NAMED]
        assert {name: models[name]["name"] for name in NAMED} == NAMED
        assert all("random" in models[name]["source"].lower() for name in NAMED)
        assert models[CARS]["labels"][0] == "class 0"
        assert all(isinstance(model["assumed"], list) for model in models.values())
        assert models["action"]["engine"] == "torch"
        assert models["action"]["memory_bytes"] > 100 << 20  # its weights have 127 MiB
        assert all(model["gpu_memory_bytes"] == 0 for model in models.values())
        assert models[GATE]["endpoints"] == [GATE, f"{GATE}_stream"]
        assert models[BOATS]["endpoints"] == [BOATS, f"{BOATS}_stream", "detection", "detection_stream"]
        assert models["action"]["endpoints"] == ["action", "action_stream"]
        gauges: Any = info
        assert gauges["waiting_for_model"].keys() == SERVED.keys()


@pytest.mark.slow
@pytest.mark.parametrize("transport", [HttpTransport, GrpcTransport])
def test_a_model_that_is_alone_answers_for_its_task_too(
    five: Served, transport: type[HttpTransport | GrpcTransport]
) -> None:
    server, clip = five.server, media.clip(frames=3, width=160, height=120)
    address = parse_address(server.http_url if transport is HttpTransport else server.grpc_url)
    with contextlib.closing(transport(address, "")) as connection:

        def boxes(endpoint: str) -> Any:
            columns = answer_columns(DetectionAnswer)
            call = Call(model=endpoint, input_name="media", data=clip, columns=columns, timeout_s=60)
            return DetectionAnswer.from_columns(connection.infer(call)).box

        np.testing.assert_allclose(boxes("detection"), boxes(BOATS), atol=1e-3)
        with pytest.raises(ModelUnavailable):
            boxes("classification")


@pytest.mark.slow
def test_the_preprocessing_of_a_model_is_asked_by_its_name_or_task(five: Served) -> None:
    clip = media.clip(frames=1, width=160, height=120)
    sizes = {}
    with contextlib.closing(HttpTransport(parse_address(five.server.http_url), "")) as connection:
        for asked in ("", GATE, "classification", CARS, "detection"):
            call = Call(
                model="dali_preprocess",
                input_name="media",
                data=clip,
                columns=PREPROCESSED,
                timeout_s=60,
                parameters={"task": asked},
            )
            sizes[asked] = connection.infer(call)["pixels"].shape[-2:]
    assert sizes[""] == sizes[GATE] == sizes["classification"] == (224, 224)
    assert (sizes[CARS], sizes["detection"]) == ((32, 40), (320, 320))


def logits_by_hand(model: Model, medium: bytes) -> torch.Tensor:
    preprocessing = model.spec.preprocessing
    with open_media(medium, options=Options(), limits=Limits(), device="cpu") as opened:
        outputs = [model(prepare_on_cpu(frames.pixels_nhwc, preprocessing)) for frames in opened.chunks()]
    parts = [output.logits for output in outputs if isinstance(output, LogitOutput)]
    return torch.cat(parts)


@pytest.mark.slow
def test_an_exported_file_alone_answers_as_its_network(five: Served) -> None:
    server, models = five.server, five.networks
    clip = media.clip(frames=6, width=200, height=150)
    probabilities = torch.softmax(logits_by_hand(models[GATE], clip), dim=1)
    answer = ask(server, "grpc", GATE, clip, stream=False, top_k="3")
    assert isinstance(answer, ClassificationAnswer)
    best = probabilities.topk(3)
    np.testing.assert_allclose(answer.probability, best.values.numpy(), atol=1e-4)
    assert answer.class_id[:, 0].tolist() == best.indices[:, 0].tolist()
    labels = models[GATE].spec.labels
    assert answer.class_name[0, 0] == labels[int(best.indices[0, 0])]

    maps = logits_by_hand(models["segmentation"], clip).argmax(dim=1)
    segmented = ask(server, "http", "segmentation", clip, stream=True, mask="none")
    assert isinstance(segmented, SegmentationAnswer)
    shares = (
        np.stack([np.bincount(one.flatten(), minlength=toy_networks.CLASSES) for one in maps.numpy()])
        / maps[0].numel()
    )
    np.testing.assert_allclose(segmented.class_pixels / (150 * 200), shares, atol=0.01)
