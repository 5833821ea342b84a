"""The canary: what it takes for a fault, asked of a server that answers as it is told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from pipelines.protocol.columns import text_column
from pipelines.protocol.errors import TooLarge
from pipelines.sdk.client import STATUS_COLUMNS
from pipelines.sdk.http_transport import HttpTransport
from pipelines.sdk.transport import parse_address
from pipelines.serving.door import REFUSED_S, canary_fault
from pipelines.serving.endpoint_table import status_endpoint
from pipelines.telemetry.counters import Telemetry
from tests.support.stub_server import Reply, StubServer, binary

PATH = "/v2/models/status/infer"
FULL = Reply(status=503, body=b'{"error": "[request id: <id_unknown>] Exceeds maximum queue size"}')


@pytest.fixture
def stub() -> Iterator[StubServer]:
    with StubServer() as server:
        yield server


def fault(url: str, answered_s: Callable[[], float] = time.monotonic) -> str:
    return canary_fault(HttpTransport(parse_address(url)), status_endpoint(dict, Telemetry()), answered_s)


def test_an_answer_is_no_fault_and_an_error_is(stub: StubServer) -> None:
    assert fault(stub.url) == ""
    stub.replies[PATH] = binary(STATUS_COLUMNS, {"error": text_column(TooLarge("so many labels").to_json())})
    assert fault(stub.url) == ""
    stub.replies[PATH] = Reply(status=500)
    assert "HTTP 500" in fault(stub.url)


def test_a_full_queue_is_a_fault_only_where_nobody_is_answered(stub: StubServer) -> None:
    stub.replies[PATH] = FULL
    assert fault(stub.url, lambda: time.monotonic() - REFUSED_S / 2) == ""
    assert "maximum queue size" in fault(stub.url, lambda: time.monotonic() - REFUSED_S - 1)


def test_nobody_there_is_a_fault() -> None:
    assert "refused" in fault("http://127.0.0.1:1")
