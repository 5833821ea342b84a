"""Which of torchvision's networks a state dict is of, by names and shapes of its tensors. Knows no weights.

`networks.json` beside this file, which python -m scripts.reference.networks writes, has a hash of these for
each network. In it digits in names do not count, since older files number some layers otherwise; nor do the
shapes that depend on the number of classes, and what only training uses.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path

from pydantic import BaseModel
from torch import Tensor

from pipelines.settings.reading import STRICT
from pipelines.zoo.files.fitting import COUNTER, TRAINING_HEADS, split_names, usual_name

TABLE = Path(__file__).with_name("networks.json")
# Layers whose names were words in older files, where now they are numbers.
OLDER_WORDS = re.compile(r"(?:(?<=\.)|^)(?:mask_fcn|linear_)\d\.")
DIGIT = re.compile(r"\d")

Shapes = Mapping[str, tuple[int, ...]]


class NetworkTable(BaseModel):
    """The file.

    Attributes:
        torchvision: the version that it is of.
        parts: with what names of tensors begin.
        sized: tensors whose shape depends on what a network is used for.
        networks: names by hashes.
    """

    model_config = STRICT

    torchvision: str
    parts: tuple[str, ...]
    sized: tuple[str, ...]
    networks: dict[str, tuple[str, ...]]


@cache
def network_table() -> NetworkTable:
    """What `networks.json` holds."""
    return NetworkTable.model_validate_json(TABLE.read_text())


def candidates(state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The names of the networks that `state` may be of, under whatever prefix; () if it is of none."""
    table = network_table()
    under: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, tensor in state.items():
        for prefix, rest in split_names(usual_name(key)):
            under.setdefault(prefix, {})[rest] = tuple(tensor.shape)
    found = {prefix: table.networks.get(fingerprint(shapes, table)) for prefix, shapes in under.items()}
    whole = [prefix for prefix, names in found.items() if names]
    return found[min(whole, key=len)] or () if whole else ()


def fingerprint(shapes: Shapes, table: NetworkTable) -> str:
    """A hash of what does not change from file to file of one network."""
    return hashed(shapes, table.parts, table.sized)


def hashed(shapes: Shapes, parts: Collection[str], sized: Collection[str]) -> str:
    """A hash of names and shapes; see `NetworkTable` for `parts` and `sized`."""
    plain = ((plain_name(name), shape) for name, shape in kept(shapes))
    lines = sorted(
        f"{name} {len(shape) if name in sized else shape}"
        for name, shape in plain
        if name.partition(".")[0] in parts
    )
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=8).hexdigest()


def kept(shapes: Shapes) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Those tensors that every file of a network has."""
    return (
        (name, shape)
        for name, shape in shapes.items()
        if not name.endswith(COUNTER) and not name.startswith(TRAINING_HEADS)
    )


def plain_name(name: str) -> str:
    """A tensor's name without numbers."""
    parts = DIGIT.sub("", OLDER_WORDS.sub("", name)).split(".")
    return ".".join(part for part in parts if part)
