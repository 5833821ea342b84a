"""How clients ask the peers: a medium in, a row for each frame out. Imports no peer."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from typing import Any

import numpy as np

Ask = Callable[[bytes], list[Any]]


def asker(url: str, timeout_s: float) -> AbstractContextManager[Ask]:
    """A connection of one client's own: to PyTriton's example by gRPC, to the others by HTTP.

    What it gives raises `http.client.HTTPException` where a peer refuses.
    """
    return (_ask_pytriton if url.startswith("grpc://") else _ask_http)(url.partition("://")[2], timeout_s)


@contextmanager
def _ask_pytriton(address: str, timeout_s: float) -> Iterator[Ask]:
    from tritonclient import grpc
    from tritonclient.utils import InferenceServerException

    def ask(media: bytes) -> list[Any]:
        video = grpc.InferInput("video", [1, len(media)], "UINT8")
        video.set_data_from_numpy(np.frombuffer(media, np.uint8)[None])
        try:
            result = client.infer("peer", [video], client_timeout=timeout_s)
        except InferenceServerException as error:
            raise http.client.HTTPException(str(error)) from error
        return list(result.as_numpy("rows")[0])

    with closing(grpc.InferenceServerClient(address)) as client:
        yield ask


@contextmanager
def _ask_http(address: str, timeout_s: float) -> Iterator[Ask]:
    def ask(media: bytes) -> list[Any]:
        connection.request("POST", "/predict", *_multipart(media))
        response = connection.getresponse()
        text = response.read()
        if response.status != http.client.OK:
            raise http.client.HTTPException(f"HTTP {response.status}")
        rows: list[Any] = json.loads(text)["rows"]
        return rows

    with closing(http.client.HTTPConnection(address, timeout=timeout_s)) as connection:
        yield ask


def _multipart(media: bytes) -> tuple[bytes, dict[str, str]]:
    """A form with the medium as its `file`: body and headers (RFC 7578)."""
    boundary = "trivid-bench"
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="medium"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    body = head.encode() + media + f"\r\n--{boundary}--\r\n".encode()
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}
