"""The tensors of a state dict brought to a network: prefixes, older names, classes. Knows no files."""

from __future__ import annotations

import re
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from pipelines.models.onnx_runtime import one_line
from pipelines.protocol.errors import ModelUnavailable

# Heads that only training uses: a file may hold them, the served network has none.
TRAINING_HEADS = ("aux_classifier.", "aux1.", "aux2.", "AuxLogits.")
# How many batches a norm has seen: frozen norms and older versions of torch do not count them.
COUNTER = "num_batches_tracked"
MOST_PARTS = 4
DIGITS = "0123456789"
# What torch puts between the parts of names where a module was compiled, sharded or checkpointed.
WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# DenseNet's layers before Python could read them as attributes: `norm.1` is now `norm1`.
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(\d\.)")
OF_AVERAGE = re.compile(r"(?:^|[._])(?:ema|swa|avg|averaged?)(?:[._]|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """The tensors of a state dict by the names of a network, as far as it has them, and the others' names."""

    tensors: dict[str, Tensor]
    outside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def fit(names: Collection[str], state: Mapping[str, Tensor], path: Path) -> Fitted:
    """`state` without the prefix of up to four parts that hides a network's `names` in it.

    Where no prefix gives all of them, the best is taken off: `load_state` says what is missing.

    Raises:
        ModelUnavailable: there are several such networks in it, and none is an average.
    """
    plain = {usual_name(name): tensor for name, tensor in state.items()}
    needed = {name for name in names if _needed(name)}
    hits = Counter(prefix for key in plain for prefix, rest in split_names(key) if rest in needed)
    whole = sorted(prefix for prefix, count in hits.items() if count == len(needed))
    notes: tuple[str, ...] = ()
    prefix = whole[0] if whole else max(hits, key=lambda one: (hits[one], -len(one)), default="")
    if len(whole) > 1:
        averages = [one for one in whole if OF_AVERAGE.search(one)]
        listed = " and ".join(one or "no prefix" for one in whole)
        if len(averages) != 1:
            raise ModelUnavailable(
                f"{path} holds {len(whole)} networks that fit: under {listed}",
                hint="save the state dict of one of them",
            )
        prefix = averages[0]
        notes = (f"of the networks under {listed} the average is served, {prefix}",)
    tensors = {key[len(prefix) :]: tensor for key, tensor in plain.items() if key.startswith(prefix)}
    outside = tuple(key for key in plain if not key.startswith(prefix))
    return Fitted(tensors=tensors, outside=outside, notes=notes)


def usual_name(name: str) -> str:
    """A tensor's name without torch's wrappers, and as torchvision has it today."""
    return OLD_DENSENET.sub(r"\1\2", WRAPPERS.sub("", name))


def split_names(key: str) -> Iterator[tuple[str, str]]:
    """All ways to part a name into a prefix of up to four parts, with its last dot, and a rest."""
    parts = key.split(".")
    for count in range(min(MOST_PARTS, len(parts) - 1) + 1):
        rest = ".".join(parts[count:])
        yield key[: len(key) - len(rest)], rest


def _needed(name: str) -> bool:
    return not name.endswith(COUNTER) and not name.startswith(TRAINING_HEADS)


def frozen_norms(names: Iterable[str], state: Mapping[str, Tensor]) -> set[str]:
    """The norms among a network's `names` of tensors that count batches there and not in `state`."""
    return {name.removesuffix(f".{COUNTER}") for name in names if name.endswith(COUNTER)} - {
        name.removesuffix(f".{COUNTER}") for name in state if name.endswith(COUNTER)
    }


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
    return max(counts) if len(counts) == 1 and min(counts) > 0 else classes


def load_state(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> tuple[str, ...]:
    """Load `state` into `network`, and give the names of the tensors that it has no use for.

    Heads for training only and norms' counters may be there or not. Numbers of other formats become the
    network's. Its own modules rename tensors of older versions, which they do only where none is stated.

    Raises:
        ModelUnavailable: they are the weights of another network.
    """
    own = network.state_dict()
    kept = {name: state[name] for name in state if name in own or not name.startswith(TRAINING_HEADS)}
    wrong = [name for name in kept if name in own and kept[name].shape != own[name].shape]
    fitting = OrderedDict((name, tensor) for name, tensor in kept.items() if name not in wrong)
    # MNASNet as a whole refuses what states no version; its parts, as those of others, rename only then.
    fitting._metadata = {"": {"version": network._version}}  # type: ignore[attr-defined]
    try:
        found = network.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:
        raise ModelUnavailable(
            f"{path} holds the weights of another network: {one_line(error)}",
            hint="check the name of the network",
        ) from error
    missing = [name for name in found.missing_keys if _needed(name) and name not in wrong]
    unknown = tuple(name for name in found.unexpected_keys if _needed(name))
    if missing or _has_further(unknown, own):
        _refuse(path, missing, unknown)
    for name in wrong:
        raise ModelUnavailable(
            f"{path} holds the weights of another network: {name} is {tuple(kept[name].shape)}, "
            f"expected {tuple(own[name].shape)}",
            hint="check the name of the network and its number of classes",
        )
    for name, tensor in kept.items():
        if name in own and own[name].is_floating_point() != tensor.is_floating_point():
            raise ModelUnavailable(
                f"{path}: {name} is of {tensor.dtype}, expected {own[name].dtype}",
                hint="quantized weights go with a network that is exported with them, as ONNX",
            )
    return unknown


def _refuse(path: Path, missing: Collection[str], unknown: Collection[str]) -> None:
    raise ModelUnavailable(
        f"{path} holds the weights of another network: "
        + "; ".join(
            f"{what} tensors: {len(names)}, e.g. {', '.join([*names][:3])}"
            for what, names in (("missing", missing), ("unknown", unknown))
            if names
        ),
        hint="check the name of the network",
    )


def _has_further(names: Iterable[str], own: Iterable[str]) -> bool:
    """Whether one of the tensors continues a series that a network has, such as `layer3.6` after `layer3.5`.

    Then they are of a deeper one with the same parts. Others, such as a loss's weights, are of no use here.
    """
    parts_of: dict[str, set[str]] = {}
    for key in own:
        for parent, child in _steps(key):
            parts_of.setdefault(parent, set()).add(child)
    for name in names:
        parent, child = next(step for step in _steps(name) if step[1] not in parts_of.get(step[0], ()))
        if child.rstrip(DIGITS) in {sibling.rstrip(DIGITS) for sibling in parts_of.get(parent, ())}:
            return True
    return False


def _steps(name: str) -> Iterator[tuple[str, str]]:
    """Of `a.b.c`: `a` in ``, `b` in `a`, `c` in `a.b`."""
    parts = name.split(".")
    for depth, child in enumerate(parts):
        yield ".".join(parts[:depth]), child
