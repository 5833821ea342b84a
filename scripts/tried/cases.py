"""The models, what their server is told of them, what they are asked, and the answers that were measured.

The measured answers were found without Trivid (`models/README.md` of the data), with ONNX Runtime, OpenVINO
and torch. Boxes are in pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.models import MobileNet_V2_Weights
from torchvision.models.detection import SSDLite320_MobileNet_V3_Large_Weights

from scripts import ROOT

DATA = ROOT.parent / "shared" / "data"
MODELS, CLIPS = DATA / "models", DATA / "clips"

_COCO = SSDLite320_MobileNet_V3_Large_Weights.DEFAULT.meta["categories"]
LABELS: Mapping[str, tuple[str, ...]] = {
    "coco": tuple(name for name in _COCO if name not in ("__background__", "N/A")),
    "imagenet": tuple(MobileNet_V2_Weights.DEFAULT.meta["categories"]),
    "face": ("background", "face"),
    "voc": (
        *(
            "background",
            "aeroplane",
            "bicycle",
            "bird",
            "boat",
            "bottle",
            "bus",
            "car",
            "cat",
            "chair",
            "cow",
        ),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train"),
        "tvmonitor",
    ),
    "person": (
        *("is_male", "has_bag", "has_backpack", "has_hat", "has_longsleeves", "has_longpants"),
        *("has_longhair", "has_coat_jacket"),
    ),
    "vehicle": (
        *("car", "bus", "truck", "van"),
        *("white", "gray", "yellow", "red", "green", "blue", "black"),
    ),
    "emotions": ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"),
}

Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A picture or a frame of a clip, or a part of it (left, top, right, bottom)."""

    file: Path
    frame: int = 0
    crop: Box | None = None

    def __str__(self) -> str:
        frame = "" if self.file.suffix == ".jpg" else f" frame {self.frame}"
        return f"{self.file.name}{frame}{f' {list(self.crop)}' if self.crop else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Objects that are found, by name, score and place; others may be too."""

    found: tuple[tuple[str, float, Box], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Classes:
    """The likeliest class and how probable it is, and that of others."""

    best: str
    probability: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """The shares of the pixels that classes have; all others have none."""

    share: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attributes:
    """Named attributes with their values and how probable these are."""

    value: Mapping[str, tuple[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosines:
    """How alike the picture is to others: the cosine to each, at least or at most."""

    same: tuple[tuple[Picture, float], ...]
    different: tuple[tuple[Picture, float], ...]


Expected = Boxes | Classes | Shares | Attributes | Cosines


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, and what is asked of it.

    Attributes:
        name: under which it is served.
        labels: a list of `LABELS`; empty: none is given.
        flags: what the server is told beside it, without the leading `--`.
        asked: pictures and the answers to them.
    """

    name: str
    file: str
    labels: str = ""
    flags: Mapping[str, str] = field(default_factory=dict)
    asked: tuple[tuple[Picture, Expected], ...]

    def arguments(self, folder: Path) -> list[str]:
        """The command line that serves it, with its list of labels in a folder."""
        given = ["--model", f"{self.name}:={MODELS / self.file}"]
        if self.labels:
            given += ["--labels", f"{self.name}={folder / self.labels}.txt"]
        for flag, value in self.flags.items():
            given += [f"--{flag}", f"{self.name}={value}"]
        return given


DOG = CLIPS / "woman_dog_720p.mp4"
STORE = CLIPS / "store_aisle_270p.mp4"
CARS = CLIPS / "cars_432p.jpg"
BABOON, MONKEY = DATA / "baboon_1280px.jpg", DATA / "monkey_1920px.jpg"
YOLOX_ANSWERS: tuple[tuple[Picture, Expected], ...] = (
    (
        Picture(file=DOG),
        Boxes(found=(("person", 0.84, (223, 213, 466, 554)), ("dog", 0.79, (409, 373, 716, 584)))),
    ),
    (
        Picture(file=DOG, frame=216),
        Boxes(found=(("person", 0.87, (152, 76, 313, 565)), ("dog", 0.86, (786, 389, 985, 546)))),
    ),
    (
        Picture(file=CLIPS / "bottles_360p.mp4"),
        Boxes(
            found=(
                ("bottle", 0.93, (509, 106, 571, 318)),
                ("bottle", 0.92, (286, 109, 344, 315)),
                ("bottle", 0.92, (57, 109, 123, 316)),
            )
        ),
    ),
    (
        Picture(file=STORE, frame=33),
        Boxes(
            found=(
                ("person", 0.89, (265, 62, 331, 243)),
                ("person", 0.86, (337, 146, 437, 269)),
                ("person", 0.76, (343, 80, 393, 199)),
            )
        ),
    ),
)
EMOTION_ANSWERS: tuple[tuple[Picture, Expected], ...] = (
    (
        Picture(file=CLIPS / "asl_eat.mkv", crop=(274, 95, 335, 178)),
        Classes(best="happy", probability={"happy": 0.966}),
    ),
)
MAN = Picture(file=STORE, crop=(262, 68, 321, 242))
MAN_LATER = Picture(file=STORE, frame=66, crop=(261, 57, 317, 219))
GREEN = Picture(file=STORE, crop=(341, 84, 418, 270))
GREEN_LATER = Picture(file=STORE, frame=66, crop=(347, 80, 400, 267))
PALE_CAR = Picture(file=CARS, crop=(92, 25, 261, 327))
RED_CAR = Picture(file=CARS, crop=(318, 165, 489, 415))

CASES: tuple[Case, ...] = (
    Case(name="yolox", file="yolox_nano.onnx", labels="coco", asked=YOLOX_ANSWERS),
    Case(
        name="yolox-script",
        file="yolox_nano.torchscript.pt",
        labels="coco",
        flags={"resize-px": "416x416"},
        asked=YOLOX_ANSWERS,
    ),
    Case(
        name="faces",
        file="version-RFB-320.onnx",
        labels="face",
        asked=(
            (Picture(file=CLIPS / "grace_hopper.jpg"), Boxes(found=(("face", 1.0, (171, 120, 357, 334)),))),
        ),
    ),
    Case(
        name="mobilenet-int8",
        file="mobilenetv2-12-qdq.onnx",
        labels="imagenet",
        flags={"pixels": "imagenet", "resize-px": "256"},
        asked=(
            (Picture(file=BABOON), Classes(best="baboon", probability={"baboon": 0.946, "macaque": 0.038})),
            (Picture(file=MONKEY), Classes(best="baboon", probability={"baboon": 0.896, "macaque": 0.069})),
        ),
    ),
    Case(
        name="mobilenet-state",
        file="mobilenet_v2_torchvision_fp16.pth",
        asked=(
            (Picture(file=BABOON), Classes(best="baboon", probability={"baboon": 0.851})),
            (Picture(file=MONKEY), Classes(best="baboon", probability={"baboon": 0.843, "macaque": 0.081})),
        ),
    ),
    Case(
        name="deeplab",
        file="deeplab_v3_mnv2_voc21.onnx",
        labels="voc",
        flags={"pixels": "signed"},
        asked=(
            (Picture(file=DOG, frame=144), Shares(share={"person": 0.029, "dog": 0.011})),
            (Picture(file=DOG, frame=120), Shares(share={"dog": 0.031, "person": 0.001})),
            (Picture(file=CLIPS / "bottles_360p.mp4"), Shares(share={"bottle": 0.137})),
            (Picture(file=CLIPS / "grace_hopper.jpg"), Shares(share={"person": 0.632})),
        ),
    ),
    Case(
        name="osnet",
        file="osnet_x0_25_msmt17_batch.onnx",
        flags={"pixels": "imagenet"},
        asked=(
            (MAN, Cosines(same=((MAN_LATER, 0.74),), different=((GREEN, 0.53), (GREEN_LATER, 0.53)))),
            (GREEN, Cosines(same=((GREEN_LATER, 0.81),), different=((MAN_LATER, 0.53),))),
        ),
    ),
    Case(
        name="emotion",
        file="emotion_mini_xception.onnx",
        labels="emotions",
        flags={"pixels": "signed"},
        asked=EMOTION_ANSWERS,
    ),
    Case(
        name="emotion-script",
        file="emotion_mini_xception.torchscript.pt",
        labels="emotions",
        flags={"pixels": "signed", "resize-px": "64x64"},
        asked=EMOTION_ANSWERS,
    ),
    Case(
        name="person-attributes",
        file="person-attributes-recognition-crossroad-0230.xml",
        labels="person",
        asked=(
            (
                Picture(file=STORE, frame=66, crop=(347, 80, 400, 267)),
                Attributes(value={"is_male": ("no", 0.94), "has_longhair": ("yes", 0.97)}),
            ),
            (
                Picture(file=DOG, frame=72, crop=(225, 72, 419, 559)),
                Attributes(value={"is_male": ("no", 0.97), "has_longpants": ("yes", 0.99)}),
            ),
        ),
    ),
    Case(
        name="vehicle-attributes",
        file="vehicle-attributes-recognition-barrier-0039.xml",
        labels="vehicle",
        asked=(
            (
                PALE_CAR,
                Attributes(value={"type": ("car", 1.0), "color": ("white", 1.0)}),
            ),
            (
                Picture(file=CARS, crop=(318, 165, 489, 415)),
                Attributes(value={"type": ("car", 1.0), "color": ("red", 1.0)}),
            ),
        ),
    ),
)
