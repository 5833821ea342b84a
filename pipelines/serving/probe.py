"""The server asked as a client would ask it: is a model ready, does it answer, first requests. HTTP alone."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import logging
import time
from collections.abc import Callable, Iterable

CANARY_TIMEOUT_S = 60.0
# A queue that is full is no fault, unless nobody has had an answer for so long.
REFUSED_S = 60.0
# What to ask where a server listens on all addresses.
LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
FAULTS = (http.client.HTTPException, OSError)

log = logging.getLogger("trivid")


class Probe:
    """Questions to the server of this machine at an address."""

    def __init__(self, host: str, port: int) -> None:
        self._host = LOOPBACK.get(host, host)
        self._port = port

    def is_ready(self, model: str) -> bool:
        """Whether Triton has loaded a model."""
        try:
            return self._status(f"/v2/models/{model}/ready") == http.client.OK
        except FAULTS:
            return False

    def fault(self, answered_s: Callable[[], float]) -> str:
        """What is wrong with an answer of `status`; empty if nothing is.

        Args:
            answered_s: tells when anybody's question to it was last answered, by `time.monotonic`.
        """
        body = {"inputs": [{"name": "query", "shape": [1, 1], "datatype": "BYTES", "data": ["canary"]}]}
        try:
            status = self._status("/v2/models/status/infer", json.dumps(body))
        except FAULTS as error:
            return str(error) or type(error).__name__
        silent_s = time.monotonic() - answered_s()
        full = status == http.client.SERVICE_UNAVAILABLE and silent_s < REFUSED_S
        return "" if status == http.client.OK or full else f"HTTP {status}"

    def ask_first(self, models: Iterable[str], media: bytes) -> None:
        """Send a medium to each of the models in turn, so that no client's request is the first."""
        body = json.dumps({"media": base64.b64encode(media).decode(), "base64": True})
        for model in models:
            try:
                status = self._status(f"/v2/models/{model}/generate", body)
            except FAULTS as error:
                log.warning("the first request to %s failed: %s", model, error or type(error).__name__)
                continue
            if status != http.client.OK:
                log.warning("the first request to %s was answered with HTTP %d", model, status)

    def _status(self, path: str, body: str | None = None) -> int:
        connection = http.client.HTTPConnection(self._host, self._port, timeout=CANARY_TIMEOUT_S)
        with contextlib.closing(connection):
            connection.request("GET" if body is None else "POST", path, body)
            response = connection.getresponse()
            response.read()
            return response.status
