"""The canary: what it takes for a fault, asked of a server that answers as it is told."""

from __future__ import annotations

import http.server
import threading
import time
from collections.abc import Iterator
from typing import ClassVar

import pytest

from pipelines.serving.probe import REFUSED_S, Probe

FULL, OK, BROKEN = 503, 200, 500


class Told(http.server.BaseHTTPRequestHandler):
    """Answers with the next of `statuses`, and with the last of them from then on."""

    statuses: ClassVar[list[int]] = []

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0])
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def asked() -> Iterator[Probe]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Told)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Probe("127.0.0.1", server.server_address[1])
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_answer_is_no_fault_and_an_error_is(asked: Probe) -> None:
    Told.statuses = [OK, BROKEN]
    assert asked.fault(time.monotonic) == ""
    assert asked.fault(time.monotonic) == "HTTP 500"


def test_a_full_queue_is_a_fault_only_where_nobody_is_answered(asked: Probe) -> None:
    Told.statuses = [FULL]
    assert asked.fault(lambda: time.monotonic() - REFUSED_S / 2) == ""
    assert asked.fault(lambda: time.monotonic() - REFUSED_S - 1) == "HTTP 503"


def test_nobody_there_is_a_fault() -> None:
    assert "refused" in Probe("127.0.0.1", 1).fault(time.monotonic)
