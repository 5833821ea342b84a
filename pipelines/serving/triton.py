"""Endpoints → a Triton server that calls them: the only module that knows PyTriton. Knows no models."""

from __future__ import annotations

import atexit
import contextlib
import http.client
import logging
import math
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pytriton.client.exceptions import PyTritonClientTimeoutError
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.model_config.common import QueuePolicy
from pytriton.proxy.types import Request, Response
from pytriton.triton import (
    DEFAULT_PROTECTED_ENDPOINTS,
    TritonConfig,
    TritonLifecyclePolicy,
    TritonSecurityConfig,
)
from pytriton.triton import Triton as Triton  # which the server holds
from tritonclient.utils import InferenceServerException

from pipelines.machine import preflight
from pipelines.machine.private import close_to_others
from pipelines.machine.threads import Threads, cores, use_threads
from pipelines.sdk.client import STATUS
from pipelines.serving.endpoints import Calls, Endpoint, Stream, Unary
from pipelines.serving.pytriton_messages import Messages
from pipelines.serving.pytriton_patches import mend_stub_files
from pipelines.settings.server import Settings

log = logging.getLogger("trivid")

UNARY_INSTANCES = 2
# Of one call.
MOST_REQUESTS = 32
# glibc's default thresholds grow with what is freed: Triton and its stubs would keep a large upload's memory.
CHILDREN_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(8 << 20), "MALLOC_TRIM_THRESHOLD_": str(16 << 20)}

# Triton reads JSON on its thread's stack: about twice its length, and base64 makes a medium a third longer.
# A level takes up to 270 bytes, and docker/nginx.conf lets a million through. The usual 8 MiB are too few.
STACK_PER_MEDIA_BYTE = 4
LEAST_STACK_BYTES = 2 << 30
# A connection that breaks while PyTriton waits for Triton, among others.
FAULTS = (InferenceServerException, PyTritonClientTimeoutError, http.client.HTTPException, OSError)
# Triton listens once all models are loaded, and says of each that it is. On a busy machine it may take a stub
# that is slow for dead, and wait for its end without end.
SILENT_S = 60.0
# What Triton says when it is to stop, once no request waits.
NONE_WAITS = "All models are stopped"
# Within this time an answer is on its way to the client.
SENT_S = 3.0
LOOK_S = 0.05
OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")
# Who may load models runs code, and who may register shared memory reads clips. PyTriton's token for it would
# stand on Triton's command line, for all to read. So nobody may: no header of HTTP or gRPC can have its name.
# Triton loads its models from the server's own folder instead.
NEVER = f"{','.join(DEFAULT_PROTECTED_ENDPOINTS)}:No:Body=never"
FROM_FOLDER = TritonLifecyclePolicy(launch_triton_on_startup=True, local_model_store=True)


def make_triton(
    endpoints: Sequence[Endpoint],
    busy: Collection[str],
    settings: Settings,
    calls: Calls,
    *,
    folder: Path,
    drain_s: int,
) -> Triton:
    """A Triton server with all endpoints, not yet started.

    Args:
        busy: names of those endpoints that many ask at once, with a picture or a clip each.
        calls: counts those of all endpoints but `status`, which the server asks itself.
        folder: for its files, which does not exist yet.
        drain_s: how long requests in flight have to end when it is stopped.
    """
    for name, value in CHILDREN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    _allow_stack(max(LEAST_STACK_BYTES, STACK_PER_MEDIA_BYTE * settings.max_media_bytes))
    triton = Triton(
        config=triton_config(settings, drain_s),
        workspace=folder,
        triton_lifecycle_policy=FROM_FOLDER,
        security_config=TritonSecurityConfig(restricted_endpoints=[]),
    )
    # Endpoints are described in full, so Triton need not first start a stub of each to ask for missing parts.
    # The newer `disable-auto-complete-config` takes no value, and PyTriton writes one.
    triton._triton_server_config["strict-model-config"] = True
    # PyTriton's own questions know no IPv6, and would need what nobody may.
    triton._wait_for_models = _close_shared_memory
    triton._triton_server_config["http-restricted-api"] = NEVER
    triton._triton_server_config["grpc-restricted-protocol"] = NEVER
    for endpoint in endpoints:
        counted = Calls() if endpoint.name == STATUS else calls
        _bind(triton, endpoint, settings, counted, busy=endpoint.name in busy)
    for model in triton._model_manager.models:
        for name, text in mend_stub_files(model.get_proxy_model_files()).items():
            (folder / "model-store" / model.model_name / name.removeprefix("file:")).write_bytes(text)
        model._serializer_deserializer = Messages(Request, Response)
    return triton


def triton_config(settings: Settings, drain_s: int) -> TritonConfig:
    """Where Triton listens, and how long requests in flight have at its end. Raises OSError: no such host."""
    address = preflight.address_of(settings.host)
    # Triton's libraries for HTTP and gRPC have each a form of its own for IPv6.
    web, calls = (f"ipv6:{address}", f"[{address}]") if ":" in address else (address, address)
    return TritonConfig(
        http_address=web,
        http_port=settings.http_port,
        http_header_forward_pattern="(?i)^trivid-.*",
        grpc_address=calls,
        grpc_port=settings.grpc_port,
        metrics_address=web,
        metrics_port=settings.metrics_port,
        exit_timeout_secs=drain_s,
    )


def _wait_until_loaded(triton: Triton, address: tuple[str, int], output: Output) -> None:
    """Triton listens once it has loaded all models. Raises OSError if it ends before, or falls silent."""
    while triton._triton_server.is_alive():
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(address, SILENT_S).close()
            return
        if output.silent_s() > SILENT_S:
            raise TimeoutError(f"it was silent for {SILENT_S:g} s while it loaded the models")
        time.sleep(LOOK_S)
    raise OSError("it ended by itself")


def _close_shared_memory() -> None:
    """Where the kernel let Triton open it to others."""
    close_to_others(preflight.SHM.glob(f"pytrtion{os.getpid()}-*"))


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


class Output:
    """Triton's lines, which go to standard output; one of them tells that no request waits."""

    def __init__(self) -> None:
        self.none_waits = threading.Event()
        self._last = ""
        self._heard_s = time.monotonic()

    def silent_s(self) -> float:
        """For how long it has said nothing."""
        return time.monotonic() - self._heard_s

    def write(self, part: str | bytes) -> None:
        """Any part of a line: Triton writes word by word."""
        self._heard_s = time.monotonic()
        text = part.decode(errors="replace") if isinstance(part, bytes) else part
        # The terminal may be gone: if this raised, nobody would read Triton's lines any more.
        with contextlib.suppress(OSError):
            print(text, end="")
        self._last = (self._last + text)[-len(NONE_WAITS) - len(text) :]
        if NONE_WAITS in self._last:
            self.none_waits.set()


def start(triton: Triton, settings: Settings) -> Output:
    """Start Triton, and return once it listens. Raises OSError if it does not."""
    output = Output()
    address = (settings.host, settings.http_port)
    triton._wait_for_server = partial(_wait_until_loaded, triton, address, output)
    triton._initialize_server()
    triton._triton_server._record_logs = output.write
    # If Triton dies, PyTriton would wait for all that runs, and take its successor on the same port for it.
    triton._on_tritonserver_exit = lambda *_: None
    atexit.unregister(triton.stop)
    try:
        triton.run()
    except FAULTS as error:
        raise OSError(str(error) or type(error).__name__) from error
    return output


def let_go(triton: Triton) -> None:
    """End the threads that wait for the requests of a Triton that is dead, each once its call has ended."""
    for model in triton._model_manager.models:
        threading.Thread(target=model.clean, daemon=True).start()


def finish(triton: Triton, output: Output, calls: Calls) -> None:
    """Let Triton take no more requests, and wait until those in flight are answered, or until it is dead.

    It says when none waits, but not when those are answered that run, until it has ended stub after stub.
    """
    server = triton._triton_server
    with contextlib.suppress(ProcessLookupError):
        server._tritonserver_running_cmd.process.signal(signal.SIGINT)
    while server.is_alive() and not (output.none_waits.wait(LOOK_S) and calls.quiet_s() > SENT_S):
        time.sleep(LOOK_S)


def _bind(triton: Triton, endpoint: Endpoint, settings: Settings, calls: Calls, *, busy: bool) -> None:
    threads = Threads.of(cores()).worker
    pool = ThreadPoolExecutor(settings.workers, endpoint.name, initializer=use_threads, initargs=(threads,))
    tensors = {
        role: [Tensor(name=column.name, dtype=column.dtype, shape=column.shape) for column in columns]
        for role, columns in (("inputs", endpoint.inputs), ("outputs", endpoint.outputs))
    }
    if endpoint.sessions is not None:
        config = ModelConfig(batching=False, decoupled=True)
        triton.bind(endpoint.name, Stream(endpoint, pool, calls), **tensors, config=config)
        return
    instances = UNARY_INSTANCES if busy else 1
    # Calls end with their slowest row, so a call takes no more requests than there are workers; where the
    # wait is bounded all calls together do, for none of it is to be behind Triton's queue.
    wait_ms = round(1000 * endpoint.max_wait_s)
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
    triton.bind(endpoint.name, [Unary(endpoint, pool, calls)] * instances, **tensors, config=config)
