"""torchvision's networks by name: which are served, their kind, and how they are built. Knows no options."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from pipelines.models.spec import TaskName
from pipelines.protocol.errors import ModelUnavailable

RANDOM = "random"
TASK_OF_FOLDER: dict[str, TaskName] = {
    "detection": "detection",
    "segmentation": "segmentation",
    "video": "action",
}
# Why a model that torchvision lists is not served.
LEFT_OUT = {
    "quantization": "is quantized: its int8 operators run only on a CPU, and it takes no custom weights",
    "optical_flow": "is an optical flow model: it takes pairs of frames and has no classes",
}
# What makes the tensors of a network that is built.
MAKERS = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)


def find_name(source: str) -> str:
    """The name in torchvision's registry of a name or import path.

    Raises:
        ModelUnavailable: there is none, with the closest; or it is of a kind that is not served.
    """
    from torchvision import models

    path, _, name = source.removeprefix("torchvision.").removeprefix("models.").rpartition(".")
    if name in models.list_models() and (not path or f"{_module(name)}.".startswith(f"{path}.")):
        if why := LEFT_OUT.get(_folder(name)):
            raise ModelUnavailable(f"{name} {why}", hint="--list-models lists all that are served")
        return name
    close = difflib.get_close_matches(name, names(), n=5, cutoff=0.4)
    listed = f"closest: {', '.join(close)}; " if close else ""
    raise ModelUnavailable(
        f"torchvision has no model {source!r}",
        hint=f"{listed}--list-models lists all; a file ends in .pt2, .pt, .onnx, .xml, .safetensors or .pth",
    )


def names() -> list[str]:
    """All names that are served."""
    from torchvision import models

    return [name for name in models.list_models() if _folder(name) not in LEFT_OUT]


def task_of(name: str) -> TaskName:
    """The task of a registered name, which is the folder of torchvision's that its builder is in."""
    return TASK_OF_FOLDER.get(_folder(name), "classification")


def network_of(name: str, classes: int, **sizes: int) -> nn.Module:
    """The network without weights, as torchvision builds it for its own: no training heads, no warnings.

    Args:
        sizes: what else its builder takes, such as `image_size`.
    """
    from torchvision import models

    takes = inspect.signature(inspect.unwrap(models.get_model_builder(name))).parameters
    options: dict[str, Any] = {"weights": None, "num_classes": classes, **sizes}
    if "weights_backbone" in takes:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        # With its own weights torchvision lets the network undo its mean and std, for their transforms.
        options |= {"aux_logits": False, "init_weights": False, "transform_input": True}
    network: nn.Module = models.get_model(name, **options)
    return network


class _MetaTensors(TorchFunctionMode):
    """Networks built within have shapes and no numbers, so that building is quick.

    `torch.device("meta")` would do so too, but for RegNets, which compute their sizes with tensors.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(kwargs or {})
        if func in MAKERS and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def shapes_of(name: str, classes: int, **sizes: int) -> nn.Module:
    """The same without numbers, on the meta device: it tells its tensors' names and shapes."""
    with _MetaTensors():
        network = network_of(name, classes, **sizes)
    return network.to("meta")


def find_weights(name: str, weights: str) -> Any:
    """An entry of the enum of a network's weights; empty: its default.

    Raises:
        ModelUnavailable: there is no such entry.
    """
    from torchvision import models

    enum = models.get_model_weights(name)
    wanted = weights.rpartition(".")[2] or "DEFAULT"
    known = [one.name for one in known_weights(name)]
    if wanted not in ("DEFAULT", *known):
        raise ModelUnavailable(
            f"{name} has no weights {weights!r}",
            hint=f"one of: DEFAULT, {', '.join(known)}, {RANDOM}, or a file",
        )
    return enum[wanted] if wanted != "DEFAULT" else enum.DEFAULT


def known_weights(name: str) -> list[Any]:
    """The entries of that enum, oldest first: their pixels are prepared as torchvision's own scripts do it.

    Those of a backbone, without categories, are left out: there is nothing to answer with.
    """
    from torchvision import models

    return [one for one in models.get_model_weights(name) if one.meta.get("categories")]


def _folder(name: str) -> str:
    return _module(name).partition(".")[0]


def _module(name: str) -> str:
    from torchvision import models

    module: str = models.get_model_builder(name).__module__
    return module.removeprefix("torchvision.models.")
