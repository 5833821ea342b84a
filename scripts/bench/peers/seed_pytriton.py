"""The job in the shape of PyTriton's DALI example: raw bytes as UINT8 in, and in one callable, one after the
other, the whole video decoded, prepared by DALI, and given to the model as one batch.

The example decodes by NVDEC; DALI has no H.264 decoder for the CPU, so PyAV stands in for it there.
"""

from __future__ import annotations

import os
import signal
import sysconfig
import threading
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from scripts.bench.peers.arguments import arguments
from scripts.bench.peers.network import Network, decode
from scripts.servers import PORTS

MAX_BATCH, THREADS, QUEUE_DELAY_US = 32, 4, 5000
WHOLE = 1 << 30


@pipeline_def(batch_size=MAX_BATCH, num_threads=THREADS, prefetch_queue_depth=1)
def preprocessing(size: int, crop: int, mean: Any, std: Any, *, gpu: bool) -> Any:
    if gpu:
        decoded = fn.experimental.decoders.video(fn.external_source(name="videos"), device="mixed")
    else:
        decoded = fn.external_source(name="videos", layout="FHWC")
    resized = fn.resize(decoded, resize_shorter=size)
    return fn.crop_mirror_normalize(
        resized,
        dtype=types.FLOAT,
        output_layout="FCHW",
        crop=(crop, crop),
        mean=[255 * value for value in mean],
        std=[255 * value for value in std],
    )


class Example:
    """The callable and what it holds."""

    def __init__(self, network: Network) -> None:
        self.network, self.gpu = network, network.device == "cuda"
        wanted, place = network.transforms, 0 if self.gpu else None
        sizes = wanted.resize_size[0], wanted.crop_size[0]
        self.graph: Any = preprocessing(*sizes, wanted.mean, wanted.std, gpu=self.gpu, device_id=place)
        self.graph.build()

    def __call__(self, video: Any) -> dict[str, Any]:
        fed = list(video) if self.gpu else [next(decode(bytes(one), WHOLE)) for one in video]
        self.graph.feed_input("videos", fed)
        (prepared,) = self.graph.run()
        dense = torch.from_dlpack(prepared.as_tensor())  # N videos of F frames
        rows = self.network.rows(dense.flatten(0, 1), (0, 0))
        found = [[*row["class_id"], *row["probability"]] for row in rows]
        return {"rows": np.array(found, np.float32).reshape(len(video), dense.shape[1], -1)}


if __name__ == "__main__":
    asked = arguments()
    os.environ["LD_LIBRARY_PATH"] = str(sysconfig.get_config_var("LIBDIR"))
    example = Example(Network(asked))
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ports = dict(zip(PORTS, asked.ports, strict=True))
    triton = Triton(config=TritonConfig(http_address="127.0.0.1", grpc_address="127.0.0.1", **ports))
    triton.bind(
        model_name="peer",
        infer_func=batch(example),
        inputs=[Tensor(name="video", dtype=np.uint8, shape=(-1,))],
        outputs=[Tensor(name="rows", dtype=np.float32, shape=(-1, -1))],
        config=ModelConfig(
            max_batch_size=MAX_BATCH, batcher=DynamicBatcher(max_queue_delay_microseconds=QUEUE_DELAY_US)
        ),
    )
    triton.run()
    print("ready: peer", flush=True)
    stop.wait()
    triton.stop()
