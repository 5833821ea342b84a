"""torchvision's weights from the network, once: afterwards they lie in torch's cache. Knows no tasks."""

from __future__ import annotations

import socket
import urllib.error
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.texts import check_file

DOWNLOAD_TIMEOUT_S = 20.0


def download(name: str, weights: Any, sha256: str) -> nn.Module:
    """The network `name` with `weights`, of its enum; their file is checked before it is read.

    Raises:
        ModelUnavailable: the weights cannot be had, or are others than pinned.
    """
    from torchvision import models

    cache = Path(torch.hub.get_dir()) / "checkpoints"
    cached = cache / Path(weights.url).name
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        if sha256:
            if not cached.is_file():
                cache.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(weights.url, str(cached))
            check_file(cached, sha256)
        network: nn.Module = models.get_model(name, weights=weights, progress=True)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        raise ModelUnavailable(
            f"cannot download the weights of {name} from {weights.url}: {error}",
            hint=f"give a weights file (--weights FILE), put {cached.name} into {cache}, "
            "or use the embedded demo models (--demo)",
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return network
