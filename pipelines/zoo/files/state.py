"""State dicts in files: read without running code, and found within checkpoints. Knows no networks."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipelines.models.onnx_runtime import one_line
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.foreign import unreadable
from pipelines.zoo.texts import check_file

# Under which of these training scripts keep weights in a checkpoint, averages of them first.
AVERAGED = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema")
PLAIN = ("state_dict", "model_state_dict", "model", "net", "network", "module", "params")
# No checkpoint is nested deeper; a damaged or hostile one may hold itself.
MOST_LEVELS = 8
# How many weights an average is of: a number that `torch.optim.swa_utils` keeps beside them.
COUNT_OF_AVERAGE = "n_averaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The tensors in a file by their names there, on the CPU, and in words what was chosen among them."""

    tensors: dict[str, Tensor]
    notes: tuple[str, ...] = ()


def read_state(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """The tensors of `read_checkpoint`."""
    return read_checkpoint(path, sha256).tensors


def read_checkpoint(path: Path, sha256: str = "") -> Checkpoint:
    """A state dict, bare or in a checkpoint: `.safetensors`, or a pickle read with `weights_only`.

    Torch's own unpickler knows only tensors and plain containers, so a pickle that carries code is refused.

    Raises:
        ModelUnavailable: no such file, another one than pinned, damaged, carries code, or holds no tensors.
    """
    check_file(path, sha256)
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return _checkpoint(load_file(path), path)
        _check_stored(path)
        with warnings.catch_warnings():
            # Torch warns of protocols that it does not write itself, and then fails.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise unreadable(path, error) from error
    except ModelUnavailable:
        raise
    except Exception as error:
        raise ModelUnavailable(
            f"cannot read the weights file {path}: {one_line(error)}",
            hint="is it complete, and a state dict?",
        ) from error
    return _checkpoint(state, path)


def _check_stored(path: Path) -> None:
    """torch.save compresses nothing, and a small file that does could fill the memory."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    if any(info.compress_type for info in infos) or sum(one.file_size for one in infos) > path.stat().st_size:
        raise ModelUnavailable(
            f"{path} is compressed, which torch never does", hint="save it with torch.save"
        )


def _checkpoint(state: object, path: Path) -> Checkpoint:
    notes: list[str] = []
    inner = state
    for _ in range(MOST_LEVELS):
        found = _within(inner)
        if not found:
            break
        key, others = found[0], found[1:]
        if key in AVERAGED and others:
            notes.append(f"the averaged weights under {key} are served, not those under {others[-1]}")
        assert isinstance(inner, Mapping)
        inner = inner[key]
    tensors = dict(_tensors(inner)) if isinstance(inner, Mapping) else {}
    if not tensors:
        raise ModelUnavailable(
            f"{path} holds a {type(state).__name__}, not a state dict",
            hint="save it with torch.save(model.state_dict(), FILE)",
        )
    size = path.stat().st_size
    for name, tensor in tensors.items():
        # Its numbers may be one number many times, and would fill the memory.
        if tensor.numel() * tensor.element_size() > size:
            raise ModelUnavailable(
                f"{path}: {name} is {tuple(tensor.shape)}, more than the file holds",
                hint="is it complete, and a state dict?",
            )
    return Checkpoint(tensors=tensors, notes=tuple(notes))


def _within(state: object) -> list[str]:
    """The keys under which a checkpoint holds weights, the one to take first."""
    if not isinstance(state, Mapping):
        return []
    inner = {key: state.get(key) for key in (*AVERAGED, *PLAIN)}
    return [key for key, one in inner.items() if isinstance(one, Mapping) and any(_tensors(one))]


def _tensors(state: Mapping[Any, Any], start: str = "", level: int = 0) -> Iterator[tuple[str, Tensor]]:
    """What is a tensor in a dict, and in dicts within it, which some scripts keep for each part."""
    for key, value in state.items():
        if isinstance(value, Tensor) and key != COUNT_OF_AVERAGE:
            yield f"{start}{key}", value
        elif isinstance(value, Mapping) and level < MOST_LEVELS:
            yield from _tensors(value, f"{start}{key}.", level + 1)
