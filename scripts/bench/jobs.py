"""What is measured: a task with its model and weights, a medium, and how clients ask.

Weights are random but seeded, written to a file once, so that every server of a run computes the same;
nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipelines.models.spec import TaskName
from pipelines.protocol.options import Scalar
from pipelines.settings.model import ModelSettings
from pipelines.zoo import FILE_SUFFIXES
from scripts.bench.load import Load
from scripts.servers import Server

Protocol = Literal["grpc", "http"]
DEMO = "demo"
# Of each task the usual model, and what is asked for. The peers' answers have no masks either.
USUAL: dict[TaskName, tuple[str, dict[str, Scalar]]] = {
    "classification": ("mobilenet_v3_large", {"top_k": 5}),
    "detection": ("ssdlite320_mobilenet_v3_large", {}),
    "segmentation": ("lraspp_mobilenet_v3_large", {"mask": "none"}),
    "action": ("r3d_18", {"top_k": 5}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One job.

    Attributes:
        model: a source as server.py takes it, such as torchvision's name or a file; or `demo` for the
            project's embedded models.
        weights: a state dict of torchvision's model; empty where the source brings its own.
        medium: the encoded file that every request sends; `frames` is how many it has.
        stream: whether an answer comes for each chunk, or one for the whole medium.
        flags: more of server.py's own flags.
    """

    task: TaskName
    model: str
    weights: str = ""
    medium: str
    frames: int
    protocol: Protocol = "grpc"
    stream: bool = True
    device: str = "cpu"
    flags: tuple[str, ...] = ()

    @property
    def options(self) -> dict[str, Scalar]:
        return USUAL[self.task][1]

    @property
    def media(self) -> bytes:
        return Path(self.medium).read_bytes()

    def load(self, server: Server, clients: int = 1, seconds: float = 0.0) -> Load:
        """A closed loop of clients of a server of ours."""
        return Load(
            kind="trivid",
            url=server.grpc_url if self.protocol == "grpc" else server.http_url,
            medium=self.medium,
            task=self.task,
            stream=self.stream,
            options=self.options,
            clients=clients,
            seconds=seconds,
        )

    def server_flags(self) -> list[str]:
        """server.py's command line, but for ports."""
        weights = ["--weights", f"{self.task}={self.weights}"] if self.weights else []
        model = ["--demo"] if self.model == DEMO else ["--model", f"{self.task}={self.model}"]
        return [*model, *weights, "--device", self.device, "--endpoints", "media", *self.flags]


def brings_weights(model: str) -> bool:
    """Whether a source brings its own: the demo's models, a file, or one that says where it is from."""
    return model == DEMO or ":" in model or model.lower().endswith(FILE_SUFFIXES)


def save_random_weights(task: TaskName, model: str, folder: Path, *, tamed: bool = False) -> Path:
    """The seeded random weights that `--weights random` gives a torchvision model, as a file.

    Args:
        tamed: as `python -m scripts.parity` has them: rounding moves them no more than trained ones.
    """
    from safetensors.torch import save_file

    from pipelines.zoo import resolve

    spec = resolve(ModelSettings(source=model, task=task, weights="random"), allow_code=False)
    network = spec.build().eval()
    if tamed:
        from scripts.parity.subject import tame

        tame(network, spec)
    # Detectors and segmenters stand in an adapter; the file is torchvision's own.
    network = getattr(network, "network", network)
    path = folder / f"{model}{'-tamed' if tamed else ''}.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in network.state_dict().items()}, path)
    return path
