"""The job on FastAPI, as one writes it in an afternoon: a route takes a file, each request a thread.

Threads of torch, PyAV and the thread pool are left at their defaults.
"""

from __future__ import annotations

from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File

from scripts.bench.peers.arguments import arguments
from scripts.bench.peers.network import CHUNK, Network, decode


def make_app(network: Network) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    def predict(file: Annotated[bytes, File()]) -> dict[str, Any]:
        return network.answer(decode(file, CHUNK))

    return app


if __name__ == "__main__":
    asked = arguments()
    uvicorn.run(make_app(Network(asked)), host="127.0.0.1", port=asked.ports[0], log_level="warning")
