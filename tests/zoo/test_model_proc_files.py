"""DL Streamer's own model-proc files: what each says, or the word for which it is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.models.spec import Activation, Attribute, Fit, TaskName
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.model_proc import read_model_proc

LAUNCH = "gst_launch__"
TRACKING = f"{LAUNCH}vehicle_pedestrian_tracking__"
FACES = f"{LAUNCH}face_detection_and_classification__"
UNIT_TESTS = "tests__unit_tests__check__elements__inference__test_test_files__mp_labels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What is expected of a file.

    Attributes:
        head: family of the head.
        outputs: names of outputs that are read.
        left_out: words of what is assumed.
    """

    task: TaskName = "detection"
    head: str = ""
    labels: int = 0
    attributes: tuple[str, ...] = ()
    activation: Activation | None = None
    outputs: tuple[str, ...] = ()
    fit: Fit = "stretch"
    left_out: str = ""


def boxes(head: str, labels: int = 0, fit: Fit = "stretch") -> Said:
    return Said(head=head, labels=labels, fit=fit)


def label(labels: int, activation: Activation, fit: Fit = "stretch", output: str = "") -> Said:
    outputs = (output,) if output else ()
    return Said(task="classification", labels=labels, activation=activation, fit=fit, outputs=outputs)


ASPECT: Fit = "letterbox_truncated"
PERSON = ("M/F", "has_bag", "has_hat", "has_longsleeves", "has_longpants", "has_longhair", "has_coat_jacket")
PERSON_OF_EIGHT = (*PERSON[:2], "has_backpack", *PERSON[2:])
VEHICLE = Said(task="classification", attributes=("color", "type"), outputs=("color", "type"))
FILES: dict[str, Said | str] = {
    "face-reidentification-retail-0095": Said(task="embedding", left_out="faces are not aligned"),
    f"{LAUNCH}audio_detect__aclnet": "audio_labels",
    f"{FACES}age-gender-recognition-retail-0013": Said(
        task="classification", labels=2, activation="none", outputs=("prob",), left_out='"age" is left out'
    ),
    f"{FACES}emotions-recognition-retail-0003": label(5, "none"),
    f"{LAUNCH}human_pose_estimation__human-pose-estimation-0001": "keypoints_openpose",
    f"{TRACKING}person-attributes-recognition-crossroad-0230": Said(
        task="classification", attributes=PERSON_OF_EIGHT, outputs=("453",)
    ),
    f"{TRACKING}person-vehicle-bike-detection-2004": boxes("ssd", 3),
    f"{TRACKING}vehicle-attributes-recognition-barrier-0039": VEHICLE,
    "intel__driver-action-recognition-adas-0002": label(9, "softmax"),
    "intel__face-detection-0200": boxes("ssd", 1),
    "intel__face-detection-0204": boxes("ssd", 1),
    "intel__face-detection-0205": boxes("ssd", 1),
    "intel__face-detection-adas-0001": boxes("ssd", 2),
    "intel__face-detection-retail-0004": boxes("ssd", 2),
    "intel__faster-rcnn-resnet101-coco-sparse-60-0001": "image_info",
    "intel__horizontal-text-detection-0001": boxes("ssd", 1),
    "intel__license-plate-recognition-barrier-0001": "sequence_index",
    "intel__license-plate-recognition-barrier-0007": "index",
    "intel__pedestrian-and-vehicle-detector-adas-0001": boxes("ssd", 3),
    "intel__person-attributes-recognition-crossroad-0234": Said(
        task="classification", attributes=PERSON, outputs=("attributes",)
    ),
    "intel__person-detection-0200": boxes("ssd", 1),
    "intel__person-detection-asl-0001": boxes("ssd", 1),
    "intel__person-detection-retail-0013": boxes("ssd", 2),
    "intel__person-vehicle-bike-detection-2000": boxes("ssd", 3),
    "intel__person-vehicle-bike-detection-2003": boxes("ssd", 3),
    "intel__person-vehicle-bike-detection-crossroad-yolov3-1020": boxes("yolo_v3", 80),
    "intel__product-detection-0001": boxes("ssd", 14),
    "intel__resnet18-xnor-binary-onnx-0001": label(1000, "none", ASPECT),
    "intel__vehicle-attributes-recognition-barrier-0039": VEHICLE,
    "intel__vehicle-license-plate-detection-barrier-0106": boxes("ssd", 3),
    "intel__weld-porosity-detection-0001": label(3, "none"),
    "intel__yolo-v2-ava-0001": boxes("yolo_v2", 20),
    "intel__yolo-v2-tiny-ava-0001": boxes("yolo_v2", 20),
    "intel__yolo-v2-tiny-vehicle-detection-0001": boxes("yolo_v2", 80),
    "onnx__hsemotion": label(8, "softmax", ASPECT),
    "onnx__mobilenetv2-7": label(1000, "none", ASPECT),
    "onnx__tinyyolov2-8": boxes("yolo_v2", 20),
    "public__aclnet": "audio_labels",
    "public__anti-spoof-mn3": label(2, "none"),
    "public__classification-optimized": label(0, "none", ASPECT),
    "public__mask-rcnn": "image_info",
    "public__mobilefacedet-v1-mxnet": Said(
        head="yolo_v3",
        labels=1,
        outputs=tuple(f"yolov30_yolooutputv3{number}_conv0_fwd/YoloRegion" for number in range(3)),
    ),
    "public__preproc-aspect-ratio": label(0, "none", ASPECT),
    "public__vehicle-license-plate-detection-barrier-0123": boxes("ssd", 3),
    "public__yolo-v2-tf": boxes("yolo_v2"),
    "public__yolo-v3-tf": boxes("yolo_v3"),
    "public__yolo-v3-tiny-tf": boxes("yolo_v3"),
    "public__yolo-v4-tiny-tf": boxes("yolo_v4"),
    "public__yolo-v5": boxes("yolo_v5"),
    "public__yolo-v7": boxes("yolo_v5", 80, ASPECT),
    "public__yolo-v8": boxes("yolo_v8", 80, ASPECT),
    "public__yolo-x": boxes("yolox", 80),
    "pytorch__coco_91cl_bkgr": boxes("boxes"),
    "pytorch__imagenet_2012": label(0, "softmax"),
    "ssd_mobilenet_v1_coco": Said(head="ssd", labels=92, outputs=("detection_boxes",)),
    f"{UNIT_TESTS}_array": label(7, "none", output="color"),
    f"{UNIT_TESTS}_array_and_path": "model_proc_test_files/color_labels.txt",
    f"{UNIT_TESTS}_wrong_path": "/some/path/that/doesnt/exist",
}


@pytest.fixture(scope="module")
def files(shared_media: Path) -> Path:
    folder = shared_media / "model_proc"
    if not folder.is_dir():
        pytest.skip(f"no model-proc files at {folder}")
    return folder


def test_the_table_has_every_file(files: Path) -> None:
    assert {file.stem for file in files.glob("*.json")} == {*FILES}


@pytest.mark.parametrize("name", [name for name, said in FILES.items() if isinstance(said, str)])
def test_a_file_that_is_out_of_scope_is_refused_by_name(files: Path, name: str) -> None:
    word = FILES[name]
    assert isinstance(word, str)
    with pytest.raises(ModelUnavailable) as caught:
        read_model_proc(files / f"{name}.json")
    assert f'"{word}"' in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("name", [name for name, said in FILES.items() if isinstance(said, Said)])
def test_every_other_file_is_read(files: Path, name: str) -> None:
    proc, said = read_model_proc(files / f"{name}.json"), FILES[name]
    assert isinstance(said, Said)
    head = proc.head()
    family = getattr(head, "version", head.family) if head else ""
    assert (proc.task, family, len(proc.labels), proc.activation) == (
        said.task,
        said.head,
        said.labels,
        said.activation,
    )
    assert tuple(one.name for one in proc.attributes) == said.attributes
    assert " ".join(proc.assumed).count(said.left_out) == 1 if said.left_out else not proc.assumed
    facts = proc.preprocessing((96, 64), name)
    assert facts.fit == said.fit
    assert facts.fixed_hw == (96, 64)
    proc.check_layers((*said.outputs, "boxes", "labels"))
    if said.outputs:
        with pytest.raises(ModelUnavailable, match=f'reads the output "{said.outputs[0]}"'):
            proc.check_layers(("other",))


def winner(one: Attribute, outputs: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, float]:
    """The label of an attribute, and its score, by hand."""
    values = outputs[one.output].reshape(-1)[one.start : one.stop]
    if len(values) == 1:
        return one.labels[0 if values[0] >= one.threshold else 1], float(values[0])
    return one.labels[int(values.argmax())], float(values.max())


def picture_of(medium: Path) -> Image.Image:
    """A picture, or frame 66 of a video."""
    if medium.suffix == ".jpg":
        return Image.open(medium).convert("RGB")
    with av.open(str(medium)) as container:
        pixels = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return Image.fromarray(pixels[66])


def attributes_by_openvino(
    files: Path, proc_name: str, medium: str, crop_xyxy: tuple[int, int, int, int]
) -> dict[str, tuple[str, float]]:
    """What the file makes of a network's outputs for a crop of a medium."""
    import openvino

    folder, model = files.parent, proc_name.rpartition("__")[2]
    weights = folder / "models" / f"{model}.xml"
    if not weights.is_file() or not (folder / "clips" / medium).is_file():
        pytest.skip(f"no {weights} or {medium}")
    network = openvino.Core().read_model(weights)
    height, width = network.input(0).shape[2:]
    proc = read_model_proc(files / f"{proc_name}.json")
    facts = proc.preprocessing((height, width), model)
    assert (facts.channels, facts.mean, facts.resize_px) == ("BGR", (0, 0, 0), (height, width))
    crop = picture_of(folder / "clips" / medium).crop(crop_xyxy)
    scaled = np.asarray(crop.resize((width, height), Image.Resampling.BILINEAR), np.float32)
    pixels = scaled[None, :, :, ::-1].transpose(0, 3, 1, 2) / 255 / np.float32(facts.std[0])
    given = openvino.Core().compile_model(network, "CPU")(pixels)
    outputs = {port.get_any_name(): value for port, value in given.items()}
    proc.check_layers(outputs)
    return {one.name: winner(one, outputs) for one in proc.attributes}


def test_attributes_of_a_real_vehicle(files: Path) -> None:
    said = attributes_by_openvino(
        files,
        f"{TRACKING}vehicle-attributes-recognition-barrier-0039",
        "cars_432p.jpg",
        (318, 165, 489, 415),
    )
    assert {name: value for name, (value, _) in said.items()} == {"type": "car", "color": "red"}
    assert min(score for _, score in said.values()) > 0.9


def test_attributes_of_a_real_person(files: Path) -> None:
    said = attributes_by_openvino(
        files,
        f"{TRACKING}person-attributes-recognition-crossroad-0230",
        "store_aisle_270p.mp4",
        (347, 80, 400, 267),
    )
    assert {name: said[name][0] for name in ("M/F", "has_bag", "has_longhair")} == {
        "M/F": "F:",
        "has_bag": "has_bag",
        "has_longhair": "has_longhair",
    }
    measured = {"M/F": 0.058, "has_bag": 0.554, "has_longhair": 0.97}
    assert {name: said[name][1] for name in measured} == pytest.approx(measured, abs=0.07)
