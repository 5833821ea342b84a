"""What is set of the server as a whole, with the defaults and in the words of `--help`. Knows no flags."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, model_validator

from pipelines.machine.admission import default_budget_bytes
from pipelines.machine.threads import Threads, cores
from pipelines.settings.model import ModelSettings
from pipelines.settings.reading import STRICT, allowed, between, said

MAX_MESSAGE_MB = 2047
LONGEST_WAIT_MS = 3_600_000
Port = Annotated[int, between(1, 65535)]
Count = Annotated[int, between(1, (1 << 31) - 1)]
IN_MESSAGE = f"1 to {MAX_MESSAGE_MB}; the most that a Triton message holds"
# In URLs an address of IPv6 has brackets.
Host = Annotated[
    str,
    allowed("an address or a name, as text", bool),
    AfterValidator(lambda host: host[1:-1] if re.fullmatch(r"\[[^][]+\]", host) else host),
]
MediumMb = Annotated[int, allowed(IN_MESSAGE, lambda mb: 1 <= mb <= MAX_MESSAGE_MB)]


class ServerSettings(BaseModel):
    """The `[server]` table of a settings file, and the flags of the same names."""

    model_config = STRICT

    demo: bool = said(False, "serve the embedded demo models (drawn shapes)")
    allow_code: bool = said(
        False,
        "let models be code (functions, torch.hub, .pt2, TorchScript) with all rights of the server",
    )
    device: Literal["auto", "cpu", "cuda"] = said("auto", "where models run; auto: a GPU if there is one")
    host: Host = said("127.0.0.1", "address to listen on; keep it private, behind a proxy")
    http_port: Port = said(8000, "HTTP port")
    grpc_port: Port = said(8001, "gRPC port")
    metrics_port: Port = said(8002, "port of Triton's metrics")
    max_media_mb: MediumMb = said(64, "largest medium, in MiB")
    max_frames: Count = said(300, "most frames in one answer; streams have no limit")
    chunk_frames: Count = said(16, "frames decoded and answered together")
    workers: Count = Field(
        default_factory=lambda: Threads.of(cores()).workers,
        description="media processed at once, for each endpoint",
    )
    max_queue: Count = said(
        64, "requests that may wait, for each endpoint; further ones are refused as overloaded"
    )
    max_memory_mb: Count = Field(
        default_factory=lambda: default_budget_bytes() >> 20,
        description="memory for all requests, in MiB; by default half of the machine's",
    )
    max_sessions: Count = said(64, "streams open at once, running or paused")
    max_wait_ms: Annotated[int, between(0, LONGEST_WAIT_MS)] = said(
        5000,
        "longest wait of a request before it is worked on, else it is overloaded; 0: no limit",
    )
    max_decode_s: Annotated[float, between(0.1, 3600)] = said(
        30.0, "longest time in seconds to decode a picture, or a video from one frame to the next"
    )
    endpoints: Literal["all", "media"] = said(
        "all", "media: only endpoints that take media; all: also those that take bare tensors"
    )


class Settings(ServerSettings):
    """All that the command line and the settings file set."""

    models: tuple[ModelSettings, ...]
    list_models: bool = said(False, "print the torchvision models that can be served, and exit")
    check: bool = said(False, "check the machine and exit")
    dry_run: bool = said(False, "run one image through every stage and exit")

    @model_validator(mode="after")
    def _ports_differ(self) -> Self:
        if len({self.http_port, self.grpc_port, self.metrics_port}) < 3:
            raise ValueError("--http-port, --grpc-port and --metrics-port must differ")
        return self

    @property
    def max_media_bytes(self) -> int:
        return self.max_media_mb << 20
