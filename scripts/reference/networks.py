"""Write pipelines/zoo/vision/networks.json: `python -m scripts.reference.networks`; `--check` only compares.

All of torchvision's networks are built without numbers, which takes half a minute.
"""

from __future__ import annotations

import sys

import torchvision

from pipelines.zoo.vision.architectures import names, shapes_of
from pipelines.zoo.vision.recognition import TABLE, NetworkTable, Shapes, hashed, kept, plain_name
from scripts import ROOT

# Numbers of classes that no shape of a network has by chance.
CLASSES = (7, 11)
# Sized by what a network is used for, as the classes are: the picture, and the points of a body.
ALSO_SIZED = ("encoder.pos_embedding", "roi_heads.keypoint_predictor.kps_score_lowres")


def main() -> int:
    wanted = table().model_dump_json(indent=1) + "\n"
    if TABLE.is_file() and TABLE.read_text() == wanted:
        return 0
    place = TABLE.relative_to(ROOT)
    if sys.argv[1:] == ["--check"]:
        print(f"error: {place} is stale: run `make reference`", file=sys.stderr)
        return 1
    TABLE.write_text(wanted)
    print(f"wrote {place}")
    return 0


def table() -> NetworkTable:
    """The table of the torchvision that is installed."""
    parts: set[str] = set()
    sized: set[str] = set()
    found: dict[str, Shapes] = {}
    for name in names():
        found[name], other = (shapes(name, classes) for classes in CLASSES)
        parts |= {plain_name(tensor).partition(".")[0] for tensor, _ in kept(found[name])}
        sized |= {
            plain_name(tensor)
            for tensor, shape in kept(found[name])
            if shape != other[tensor] or tensor.startswith(ALSO_SIZED)
        }
    networks: dict[str, tuple[str, ...]] = {}
    for name, tensors in found.items():
        key = hashed(tensors, parts, sized)
        networks[key] = (*networks.get(key, ()), name)
    return NetworkTable(
        torchvision=torchvision.__version__.partition("+")[0],
        parts=tuple(sorted(parts)),
        sized=tuple(sorted(sized)),
        networks=dict(sorted(networks.items(), key=lambda pair: pair[1])),
    )


def shapes(name: str, classes: int) -> Shapes:
    """The shapes of the tensors of a network."""
    return {tensor: tuple(one.shape) for tensor, one in shapes_of(name, classes).state_dict().items()}


if __name__ == "__main__":
    sys.exit(main())
