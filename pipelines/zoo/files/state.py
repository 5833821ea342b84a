"""State dicts: read without running code, and loaded into a network. Knows no torchvision, no options."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pipelines.models.onnx_runtime import one_line
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.texts import check_file

# Under which of these training scripts keep the state dict in a checkpoint.
CHECKPOINT_KEYS = ("state_dict", "model_state_dict", "model")
# Heads that only training uses: a file may hold them, the served network has none.
TRAINING_HEADS = ("aux_classifier.", "aux1.", "aux2.", "AuxLogits.")


def read_state(path: Path, sha256: str = "") -> dict[str, Tensor]:
    """The tensors of a state dict on the CPU: `.safetensors`, or a pickle read with `weights_only`.

    Torch's own unpickler knows only tensors and plain containers, so a pickle that carries code is refused.

    Raises:
        ModelUnavailable: no such file, another one than pinned, damaged, carries code, or holds no tensors.
    """
    check_file(path, sha256)
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        _check_stored(path)
        with warnings.catch_warnings():
            # Torch warns of protocols that it does not write itself, and then fails.
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(
            f"{path} is not a state dict that can be read without running code from it",
            hint="save it with torch.save(model.state_dict(), FILE), or as .safetensors",
        ) from error
    except ModelUnavailable:
        raise
    except Exception as error:
        raise ModelUnavailable(
            f"cannot read the weights file {path}: {one_line(error)}",
            hint="is it complete, and a state dict?",
        ) from error
    return _tensors(state, path)


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


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if isinstance(state, Mapping):
        inner = next((state[key] for key in CHECKPOINT_KEYS if isinstance(state.get(key), Mapping)), state)
        if inner and all(isinstance(value, Tensor) for value in inner.values()):
            return {str(key).removeprefix("module."): value for key, value in inner.items()}
    raise ModelUnavailable(
        f"{path} holds no state dict but a {type(state).__name__}",
        hint="save it with torch.save(model.state_dict(), FILE)",
    )


def class_count(expected: Mapping[str, Tensor], classes: int, state: Mapping[str, Tensor]) -> int:
    """How many classes `state` has, if it is of the network that with `classes` has the tensors `expected`.

    Sizes along the first axis of the tensors that differ are multiples of the number of classes: of the
    logits once, of boxes per class four times, of boxes at anchors as often as there are anchors. Where they
    do not agree the answer is `classes`, and loading says what is wrong.
    """
    counts = set()
    for name, tensor in expected.items():
        found = state.get(name)
        if found is None or found.shape == tensor.shape or name.startswith(TRAINING_HEADS):
            continue
        if found.ndim == 0 or found.shape[1:] != tensor.shape[1:] or len(found) * classes % len(tensor):
            return classes
        counts.add(len(found) * classes // len(tensor))
    return counts.pop() if len(counts) == 1 else classes


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load `state` into `network`; heads for training only may be there or not.

    Raises:
        ModelUnavailable: they are the weights of another network.
    """
    own = network.state_dict()
    kept = {name: state[name] for name in state if name in own or not name.startswith(TRAINING_HEADS)}
    missing = [name for name in own if name not in kept and not name.startswith(TRAINING_HEADS)]
    unknown = [name for name in kept if name not in own]
    if missing or unknown:
        raise ModelUnavailable(
            f"{path} holds the weights of another network: "
            + "; ".join(
                f"{what} tensors: {len(names)}, e.g. {', '.join(names[:3])}"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            ),
            hint="check the name of the network",
        )
    for name, tensor in kept.items():
        if tensor.shape != own[name].shape:
            raise ModelUnavailable(
                f"{path} holds the weights of another network: {name} is {tuple(tensor.shape)}, "
                f"expected {tuple(own[name].shape)}",
                hint="check the name of the network and its number of classes",
            )
    network.load_state_dict(kept, strict=False)
