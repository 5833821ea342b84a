"""Endpoints → a Triton server that calls them: the only module that knows PyTriton. Knows no models."""

from __future__ import annotations

import http.client
import logging
import math
import os
import resource
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from pytriton.client.exceptions import PyTritonClientTimeoutError
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.model_config.common import QueuePolicy
from pytriton.proxy.types import Request, Response
from pytriton.triton import Triton as Triton  # which the server holds
from pytriton.triton import TritonConfig
from tritonclient.utils import InferenceServerException

from pipelines.machine.threads import Threads, cores, use_threads
from pipelines.protocol.errors import ModelUnavailable
from pipelines.serving.endpoints import Endpoint, Stream, Unary
from pipelines.serving.pytriton_messages import Messages
from pipelines.serving.pytriton_patches import mend_stub_files
from pipelines.settings.server import Settings

log = logging.getLogger("trivid")

UNARY_INSTANCES = 2
# Of one call.
MOST_REQUESTS = 32
# glibc's default thresholds grow with what is freed: Triton and its stubs would keep a large upload's memory.
CHILDREN_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}

# Triton reads JSON on its thread's stack, about twice its length, and base64 makes a medium a third longer:
# with the usual 8 MiB an upload of 4 killed it.
STACK_PER_MEDIA_BYTE = 4
# A connection that breaks while PyTriton waits for Triton, among others.
FAULTS = (InferenceServerException, PyTritonClientTimeoutError, http.client.HTTPException, OSError)
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
# Linux takes no longer path for a socket; PyTriton's in the folder are named after the endpoints.
SOCKET_PATH_BYTES = 107
SOCKET_NAME = "{}_0_0-server.sock"


def make_triton(
    endpoints: Sequence[Endpoint], busy: Collection[str], settings: Settings, *, folder: Path, drain_s: int
) -> Triton:
    """A Triton server with all endpoints, not yet started.

    Args:
        busy: names of those endpoints that many ask at once, with a picture or a clip each.
        folder: for its files, which does not exist yet.
        drain_s: how long requests in flight have to end when it is stopped.

    Raises:
        ModelUnavailable: the folder's path is too long for the names of the endpoints.
    """
    _check_socket_paths(endpoints, folder)
    for name, value in CHILDREN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _allow_stack(STACK_PER_MEDIA_BYTE * settings.max_media_bytes)
    triton = Triton(config=_config(settings, drain_s), workspace=folder)
    # Endpoints are described in full, so Triton need not first start a stub of each to ask for missing parts.
    # The newer `disable-auto-complete-config` takes no value, and PyTriton writes one.
    triton._triton_server_config["strict-model-config"] = True
    for endpoint in endpoints:
        _bind(triton, endpoint, settings, busy=endpoint.name in busy)
    for model in triton._model_manager.models:
        files = model.get_proxy_model_files()
        model.get_proxy_model_files = partial(mend_stub_files, files)
        model._serializer_deserializer = Messages(Request, Response)
    manager = triton._model_manager
    manager.clean = partial(clean_at_once, manager.models, manager.clean)
    return triton


def _config(settings: Settings, drain_s: int) -> TritonConfig:
    return TritonConfig(
        http_address=settings.host,
        http_port=settings.http_port,
        http_header_forward_pattern="(?i)^trivid-.*",
        grpc_address=settings.host,
        grpc_port=settings.grpc_port,
        metrics_address=settings.host,
        metrics_port=settings.metrics_port,
        exit_timeout_secs=drain_s,
    )


def _check_socket_paths(endpoints: Sequence[Endpoint], folder: Path) -> None:
    longest = max((endpoint.name for endpoint in endpoints), key=len)
    excess = len(os.fsencode(folder / SOCKET_NAME.format(longest))) - SOCKET_PATH_BYTES
    if excess > 0:
        raise ModelUnavailable(
            f"the endpoint {longest} has no room for its socket's path in {folder}: {excess} bytes too many",
            hint="set TMPDIR to a folder with a shorter path, or give the models shorter names",
        )


def clean_at_once(models: Iterable[Any], clean: Callable[[], None]) -> None:
    """Tell all models' threads at once to end: they look once a second, and PyTriton waits model by model."""
    for model in models:
        for connector in model._requests_respones_connectors:
            connector.close()
    clean()


def _allow_stack(size_bytes: int) -> None:
    """Let threads of child processes have this much stack, which takes no memory until it is used.

    On a system that does not overcommit memory, that would be too much.
    """
    if OVERCOMMIT.exists() and OVERCOMMIT.read_text().strip() == "2":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_STACK)
    wanted = size_bytes if hard == resource.RLIM_INFINITY else min(size_bytes, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_STACK, (wanted, hard))


def start(triton: Triton) -> None:
    """Start Triton; log its errors, which may be harmless. Ask afterwards which endpoints are ready."""
    try:
        triton.run()
    except FAULTS as error:
        log.error("Triton did not start: %s", error or type(error).__name__)


def _bind(triton: Triton, endpoint: Endpoint, settings: Settings, *, busy: bool) -> None:
    threads = Threads.of(cores()).worker
    pool = ThreadPoolExecutor(settings.workers, endpoint.name, initializer=use_threads, initargs=(threads,))
    tensors = {
        role: [Tensor(name=column.name, dtype=column.dtype, shape=column.shape) for column in columns]
        for role, columns in (("inputs", endpoint.inputs), ("outputs", endpoint.outputs))
    }
    if endpoint.sessions is not None:
        config = ModelConfig(batching=False, decoupled=True)
        triton.bind(endpoint.name, Stream(endpoint, pool), **tensors, config=config)
        return
    instances = UNARY_INSTANCES if busy else 1
    # Calls end with their slowest row, so a call takes no more requests than there are workers; where the
    # wait is bounded all calls together do, for none of it is to be behind Triton's queue.
    wait_ms = settings.max_wait_ms if busy else 0
    rows = settings.workers
    if wait_ms:
        instances = min(instances, rows)
        rows = math.ceil(rows / instances)
    # No max_queue_delay: with a time limit, this Triton may go on without dispatching (its issue 8870).
    batcher = DynamicBatcher(
        preferred_batch_size=[min(MOST_REQUESTS, rows)],
        default_queue_policy=QueuePolicy(
            max_queue_size=settings.max_queue, default_timeout_microseconds=1000 * wait_ms
        ),
    )
    config = ModelConfig(max_batch_size=MOST_REQUESTS, batcher=batcher)
    triton.bind(endpoint.name, [Unary(endpoint, pool)] * instances, **tensors, config=config)
