"""Which endpoints models have under their names, and what is said of them. No Triton is started."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from pytriton.proxy.types import Request

from pipelines.assembly import EngineRoom, make_pipeline
from pipelines.machine.admission import Admission
from pipelines.media.medium import Limits
from pipelines.models.spec import TaskName
from pipelines.protocol.errors import InvalidOptions
from pipelines.protocol.options import Options
from pipelines.serving.answerers import PreprocessStage
from pipelines.serving.endpoint_table import model_endpoints, status_endpoint
from pipelines.serving.endpoints import Unary
from pipelines.serving.sessions import Sessions
from pipelines.serving.triton import triton_config
from pipelines.settings.flags import parse_args
from pipelines.telemetry.counters import Telemetry
from pipelines.zoo.demo.specs import demo_specs
from tests.support import media


def make_room(models: Mapping[str, TaskName]) -> EngineRoom:
    telemetry = Telemetry()
    room = EngineRoom(
        device="cpu", limits=Limits(), telemetry=telemetry, admission=Admission(1 << 30, telemetry)
    )
    for name, task in models.items():
        room.pipelines[name] = make_pipeline(
            demo_specs()[task], "cpu", limits=room.limits, name=name, telemetry=telemetry
        )
    return room


@pytest.fixture(scope="module")
def three() -> Iterator[EngineRoom]:
    room = make_room({"gate": "classification", "cars": "classification", "boats": "detection"})
    yield room
    for pipeline in room.pipelines.values():
        pipeline.batcher.close()


def names_of(room: EngineRoom) -> dict[str, list[str]]:
    """The endpoints by the model that they ask."""
    found: dict[str, list[str]] = {}
    for endpoint in model_endpoints(room, 1 << 20, Sessions(room.telemetry)):
        found.setdefault(endpoint.model, []).append(endpoint.name)
    return found


def whole(*names: str) -> list[str]:
    return [endpoint for name in names for endpoint in (name, f"{name}_stream", f"torch_{name}")]


def test_a_model_has_endpoints_of_its_name_and_alone_those_of_its_task(three: EngineRoom) -> None:
    assert names_of(three) == {
        "gate": whole("gate"),
        "cars": whole("cars"),
        "boats": whole("boats", "detection"),
        "": ["dali_preprocess"],
    }


def test_endpoints_that_need_a_segmenter_ask_the_first() -> None:
    room = make_room({"roads": "segmentation", "segmentation": "segmentation"})
    assert names_of(room) == {
        "roads": [*whole("roads"), "dali_postprocess", "ResNet101"],
        "segmentation": whole("segmentation"),
        "": ["dali_preprocess"],
    }
    for pipeline in room.pipelines.values():
        pipeline.batcher.close()


def test_status_and_faults_go_by_names(three: EngineRoom) -> None:
    status: Any = three.status(lambda name: [name])
    assert list(status["models"]) == ["gate", "cars", "boats"]
    boats = status["models"]["boats"]
    assert (boats["name"], boats["task"], boats["head"]) == ("demo_detection", "detection", "")
    assert (boats["assumed"], boats["endpoints"]) == ([], ["boats"])
    assert status["waiting_for_model"] == {"gate": 0, "cars": 0, "boats": 0}
    assert three.fault() == ""
    other = make_room({"left": "classification"})
    other.pipelines["left"].batcher.close()
    assert other.fault() == "the batcher of left died"


@pytest.mark.parametrize(
    ("asked", "name"),
    [("", "gate"), ("cars", "cars"), ("classification", "gate"), ("detection", "boats"), ("boats", "boats")],
)
def test_preprocessing_is_that_of_a_name_or_of_the_first_of_a_task(
    three: EngineRoom, asked: str, name: str
) -> None:
    stage = PreprocessStage(three.pipelines, 1 << 24)
    assert stage.pipeline(asked) is three.pipelines[name]


def test_preprocessing_of_an_unknown_model_names_those_that_there_are(three: EngineRoom) -> None:
    stage = PreprocessStage(three.pipelines, 1 << 24)
    picture: dict[str, Any] = {"media": [media.image("png", width=8, height=8)]}
    with pytest.raises(InvalidOptions, match=r"task='gat' is not served \(one of: gate, cars, boats"):
        list(stage.answer(picture, Options(task="gat")))


def test_status_has_room_for_all_labels() -> None:
    """Three models of ImageNet-22k have labels of more than a mebibyte."""
    said = {"models": {name: {"labels": ["x" * 99] * 6000} for name in "abc"}}
    endpoint = status_endpoint(lambda: said, Telemetry(), said)
    requests = [Request({"query": np.array([[b""]], object)}) for _ in range(2)]
    with ThreadPoolExecutor(1) as pool:
        answers = Unary(endpoint, pool)(requests)
    assert [json.loads(one["status"][0, 0]) for one in answers] == [said, said]


@pytest.mark.parametrize(
    ("host", "web", "calls"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("::1", "ipv6:::1", "[::1]"),
        ("[::]", "ipv6:::", "[::]"),
    ],
)
def test_triton_is_told_addresses_in_its_libraries_forms(host: str, web: str, calls: str) -> None:
    """Of a name, its HTTP server would make an address of its own."""
    config = triton_config(parse_args(["--demo", "--host", host], ""), drain_s=1)
    assert (config.http_address, config.metrics_address, config.grpc_address) == (web, web, calls)
