"""The job on FastAPI, as one writes it in an afternoon: a route that takes a file, a thread a request,
chunks.

Threads of torch, PyAV and the thread pool are left at their defaults.
"""

from __future__ import annotations

from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File

from scripts.bench.peers.network import CHUNK, Network, arguments, decode


def make_app(network: Network) -> FastAPI:
    app = FastAPI()

    @app.get("/health")
    def health() -> str:
        return "ok"

    @app.post("/predict")
    def predict(file: Annotated[bytes, File()]) -> dict[str, Any]:
        rows: list[Any] = []
        for frames in decode(file, CHUNK):
            rows += network.rows(network.prepare(frames), frames.shape[1:3])
        return {"rows": rows}

    return app


if __name__ == "__main__":
    asked = arguments()
    app = make_app(Network(asked.task, asked.model, asked.weights, asked.device))
    uvicorn.run(app, host="127.0.0.1", port=asked.ports[0], log_level="warning")
