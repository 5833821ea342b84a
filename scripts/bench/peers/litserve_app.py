"""The job on LitServe, by its own idioms: decode_request, predict, and a worker for each core.

Each worker has one thread of torch and takes one request at a time: LitServe's batching, of whole videos
here, was slower, for one worker then decodes for all. Annotations are not strings, since LitServe reads them.
"""

import os
from collections.abc import Iterator
from typing import Any

import litserve
import torch
from fastapi import Request

from scripts.bench.peers.arguments import arguments
from scripts.bench.peers.network import CHUNK, Network, decode

PATIENCE_S = 900


class Predictor(litserve.LitAPI):
    def __init__(self, asked: Any) -> None:
        super().__init__()
        self.asked = asked

    def setup(self, device: str) -> None:
        if device == "cpu":
            torch.set_num_threads(1)
        self.network = Network(self.asked)

    def decode_request(self, request: Request) -> Iterator[Any]:
        """Frames, chunk by chunk, decoded as `predict` takes them."""
        return decode(request["file"].file.read(), CHUNK)

    def predict(self, x: Iterator[Any]) -> dict[str, list[Any]]:
        return self.network.answer(x)


if __name__ == "__main__":
    asked = arguments()
    workers = 1 if asked.device == "cuda" else os.cpu_count() or 1
    server = litserve.LitServer(
        Predictor(asked), accelerator=asked.device, devices=1, workers_per_device=workers, timeout=PATIENCE_S
    )
    server.run(host="127.0.0.1", port=asked.ports[0], log_level="warning", generate_client_file=False)
