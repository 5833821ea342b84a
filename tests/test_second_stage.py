"""A second model on the boxes of a first: the answers are as for squares alone, and batches are few."""

from __future__ import annotations

import io
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from pipelines.assembly import make_pipeline
from pipelines.batching.work import Terms
from pipelines.frames import crops
from pipelines.frames.batch import FrameBatch
from pipelines.frames.crops import square_around
from pipelines.media.decode import open_media
from pipelines.media.medium import Limits
from pipelines.models.spec import Attribute, Preprocessing
from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import DetectionAnswer
from pipelines.protocol.errors import DeadlineExceeded, InvalidOptions
from pipelines.protocol.options import Options
from pipelines.second_stage import second_stage
from pipelines.tasks.boxes import Found
from pipelines.zoo.demo.specs import demo_specs
from tests.conftest import ROOT
from tests.support import media, toy_networks
from tests.support.detections import film_frame
from tests.support.sources import spec_of
from tests.support.toy_stages import BOXES, LABELS, classified, detector, pipeline_of

Table = dict[str, Pipeline]
KINDS = tuple(f"kind {number}" for number in range(toy_networks.CLASSES))
FORMS = {
    "stretched": Preprocessing(resize_px=(32, 40)),
    "cut": Preprocessing(resize_px=36, crop_px=(32, 32)),
    "free": Preprocessing(resize_px=32),
    "boxed": Preprocessing(resize_px=(32, 32), fit="letterbox", pad_value=114, channels="BGR"),
}
ATTRIBUTES = (
    Attribute(name="colour", output="logits", labels=("red", "blue"), start=0, stop=2),
    Attribute(name="wet", output="logits", labels=("yes", "no"), start=2, stop=3, activation="sigmoid"),
)


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """A detector, a classifier of each form, one with attributes, and one for another task."""
    table: Table = {}
    pipeline_of(detector(), "detection", table, chunk=4)
    for name, form in FORMS.items():
        spec = toy_networks.spec_of(toy_networks.pooled, preprocessing=form, labels=KINDS)
        pipeline_of(replace(spec, max_batch=64), name, table)
    told = toy_networks.spec_of(toy_networks.pooled, labels=KINDS, attributes=ATTRIBUTES)
    pipeline_of(told, "told", table)
    pipeline_of(toy_networks.spec_of(toy_networks.as_pixels, "segmentation"), "maps", table)
    yield table
    for one in table.values():
        one.batcher.close()


def ask(table: Table, medium: bytes, **options: Any) -> DetectionAnswer:
    parts = list(table["detection"].run(medium, Options(**options)))
    return DetectionAnswer.concatenate([one for one in parts if isinstance(one, DetectionAnswer)])


def found_at(*boxes: list[float]) -> Found:
    """Objects of class 0."""
    count, corners = len(boxes), np.array(boxes, np.float32)
    return replace(
        Found.none(0),
        box_d4=corners,
        region_d4=corners,
        score_d=np.ones(count, np.float32),
        class_id_d=np.zeros(count, np.int64),
        keypoint_dp3=np.empty((count, 0, 3), np.float32),
        keypoint_score_dp=np.empty((count, 0), np.float32),
    )


def frames_of(medium: bytes) -> npt.NDArray[np.uint8]:
    with open_media(medium, options=Options(), limits=Limits(), device="cpu") as opened:
        return np.concatenate([np.array(one.pixels_nhwc) for one in opened.chunks()])


@pytest.mark.parametrize("name", FORMS)
def test_each_box_is_told_what_its_square_alone_is(table: Table, name: str) -> None:
    clip = media.clip(frames=6, width=160, height=120)
    pixels, answer = frames_of(clip), ask(table, clip, classify=name, score_threshold=0.1)
    assert len(answer.box) == 6 * len(BOXES)
    assert (answer.classified_by, answer.attribute_names) == ((name,), ())
    for place, (frame, box) in enumerate(zip(answer.box_frame_index, answer.box, strict=True)):
        alone = classified(table[name], pixels[(frame, *square_around(box.tolist(), (120, 160)))])
        assert answer.predicted_class[place] == alone.class_name[0, 0]
        assert answer.probability[place] == pytest.approx(alone.probability[0, 0], abs=1e-5)


def test_boxes_of_all_frames_of_a_chunk_are_one_batch(table: Table) -> None:
    sizes = table["stretched"].batcher.batch_sizes
    sizes.clear()
    ask(table, media.clip(frames=6, width=160, height=120), classify="stretched")
    # Chunks of four frames and of two.
    assert sizes == {4 * len(BOXES): 1, 2 * len(BOXES): 1}


def test_in_small_pieces_the_answers_are_the_same(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = media.clip(frames=5, width=160, height=120)
    whole = ask(table, clip, classify="stretched")
    monkeypatch.setattr(crops, "PIECE_BYTES", 3 * 12 * 32 * 40)
    table["stretched"].batcher.batch_sizes.clear()
    pieces = ask(table, clip, classify="stretched")
    assert max(table["stretched"].batcher.batch_sizes) <= 6  # two pieces may meet
    assert pieces.predicted_class.tolist() == whole.predicted_class.tolist()
    np.testing.assert_allclose(pieces.probability, whole.probability, atol=1e-6)


def test_one_square_is_copied_at_a_time(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of large squares of a large frame, all at once, would not be in the memory that is reserved."""
    frame, alive, most = np.zeros((300, 400, 3), np.uint8), 0, 0
    copied = np.ascontiguousarray

    def counted(view: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        nonlocal alive, most
        made, alive = copied(view), alive + 1
        most = max(most, alive)
        weakref.finalize(made, gone)
        return made

    def gone() -> None:
        nonlocal alive
        alive -= 1

    monkeypatch.setattr("pipelines.pipeline.np.ascontiguousarray", counted)
    squares = [frame[:, left : left + 300] for left in range(0, 100, 10)]
    assert len(table["stretched"].prepare_pictures(squares)) == len(squares)
    assert most == 1


def test_a_model_is_asked_about_the_boxes_that_it_is_for(table: Table) -> None:
    clip = media.clip(frames=2, width=160, height=120)
    whole, told = (ask(table, clip, classify=name, score_threshold=0.1) for name in ("cut", "told"))
    some = ask(table, clip, classify="cat : cut", score_threshold=0.1)
    cats = whole.class_name == "cat"
    assert some.predicted_class.tolist() == np.where(cats, whole.predicted_class, "").tolist()
    np.testing.assert_allclose(some.probability, np.where(cats, whole.probability, 0), atol=1e-6)
    # A cat is asked about by the first; the third class by its number; the rest is for the last.
    both = ask(table, clip, classify="3:cut, cat:told,told,cut", score_threshold=0.1)
    birds = whole.class_name == "bird"
    assert both.classified_by == ("cut", "told")
    expected = np.where(birds, whole.predicted_class, told.predicted_class)
    assert both.predicted_class.tolist() == expected.tolist()
    assert both.attribute_names == ("colour", "wet")
    assert (both.attribute_value[birds] == "").all()
    assert not both.attribute_probability[birds].any()
    assert both.attribute_value[~birds].tolist() == told.attribute_value[~birds].tolist()


def test_attributes_are_told_by_box(table: Table) -> None:
    picture = media.image("png", width=160, height=120)
    pixels, answer = frames_of(picture), ask(table, picture, classify="told")
    assert answer.attribute_value.shape == (len(BOXES), 2)
    for place, box in enumerate(answer.box):
        alone = classified(table["told"], pixels[(0, *square_around(box.tolist(), (120, 160)))])
        assert answer.attribute_value[place].tolist() == alone.attribute_value[0].tolist()
        np.testing.assert_allclose(
            answer.attribute_probability[place], alone.attribute_probability[0], atol=1e-5
        )


def test_without_the_option_nothing_is_told(table: Table) -> None:
    answer = ask(table, media.clip(frames=2, width=160, height=120))
    assert (answer.classified_by, answer.attribute_names) == ((), ())
    assert (len(answer.predicted_class), len(answer.probability), len(answer.attribute_value)) == (0, 0, 0)


@pytest.mark.parametrize(
    "options", [{}, {"start_s": 0.05, "keyframes_only": True}, {"class_name": "nothing"}]
)
def test_without_boxes_no_model_is_asked(table: Table, options: dict[str, Any]) -> None:
    table["told"].batcher.batch_sizes.clear()
    file = io.BytesIO()
    Image.new("RGB", (160, 120)).save(file, "png")
    medium = media.clip(frames=3) if options else file.getvalue()
    answer = ask(table, medium, classify="told", overlay="jpeg", **options)
    assert len(answer.box) == 0
    assert (answer.classified_by, answer.attribute_names) == (("told",), ("colour", "wet"))
    assert not table["told"].batcher.batch_sizes
    assert len(DetectionAnswer.from_columns(answer.to_columns()).predicted_class) == 0


REFUSED = [
    ("nobody", LABELS, "'nobody' is not served.*one of: stretched, cut, free, boxed, told"),
    ("maps", LABELS, "'maps' is for segmentation, not a classifier"),
    ("cow:told", LABELS, "classify='cow:told': unknown class_name 'cow'.*knows: nothing, cat"),
    ("9:told", LABELS, "out of range 0 to 3"),
    (":told", LABELS, "names no class"),
    ("told,", LABELS, "the model '' is not served"),
    ("cat:", LABELS, "the model '' is not served"),
    ("cat:told", (), "have no names.*0:NAME"),
]


@pytest.mark.parametrize(("classify", "labels", "said"), REFUSED)
def test_what_cannot_be_asked_is_refused(
    table: Table, classify: str, labels: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InvalidOptions, match=said):
        second_stage(classify, labels, table, Terms.of(Options()))


def test_the_names_are_checked_before_the_medium_is_opened(table: Table) -> None:
    with pytest.raises(InvalidOptions, match="nobody"):
        ask(table, b"no medium at all", classify="nobody")
    maps = {"maps": table["maps"]}
    with pytest.raises(InvalidOptions, match="this server has no model for classification"):
        second_stage("told", LABELS, maps, Terms.of(Options()))


@pytest.mark.parametrize(
    ("classify", "labels", "expected"),
    [
        ("told", ("c",), ()),
        ("a, b:told", ("a, b", "c"), (0,)),  # a label with a comma
        ("c:told, told", ("b", "c"), (1,)),
        ("a:b:told", ("c", "a:b"), (1,)),
        ("7:told", ("c", "7"), (1,)),  # a label that is a number
        ("7:told", (), (7,)),
        ("c:told", ("c", "b", "c"), (0, 2)),  # a label that two classes have
    ],
)
def test_how_classes_are_named(
    table: Table, classify: str, labels: tuple[str, ...], expected: tuple[int, ...]
) -> None:
    question, *_ = second_stage(classify, labels, table, Terms.of(Options())).questions
    assert question.class_ids == expected


def test_a_deadline_holds_for_the_second_model_too(table: Table) -> None:
    stage = second_stage("told", LABELS, table, Terms(deadline_s=0, urgent=False))
    frames = FrameBatch.of(media.picture()[None], pts_s=np.zeros(1), frame_index=np.zeros(1, np.int64))
    with pytest.raises(DeadlineExceeded):
        stage(frames, [found_at([0, 0, 9, 9])])


@pytest.mark.parametrize(("medium", "urgent"), [(media.image(), True), (media.clip(frames=6), False)])
def test_what_is_about_one_frame_is_urgent(
    table: Table, monkeypatch: pytest.MonkeyPatch, medium: bytes, urgent: bool
) -> None:
    seen, submit = [], table["told"].batcher.submit

    def note(*args: Any, **terms: Any) -> Any:
        seen.append(terms["urgent"])
        return submit(*args, **terms)

    monkeypatch.setattr(table["told"].batcher, "submit", note)
    assert len(ask(table, medium, classify="told").box)
    assert set(seen) == {urgent}


def test_captions_tell_it(table: Table) -> None:
    clip = media.clip(frames=2, width=640, height=480)
    plain, told = (ask(table, clip, overlay="raw", classify=name).overlay for name in ("", "cut"))
    assert len(plain) == len(told) == 2
    assert plain[0] != told[0]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_demo_models_agree_on_shapes(device: str) -> None:
    """Trained networks: what a square around a drawn shape shows most of is that shape."""
    specs, table = demo_specs(), Table()
    for name in ("detection", "classification"):
        task: Any = name
        table[name] = make_pipeline(specs[task], device, limits=Limits(), served=lambda: table)
    answer = ask(table, (ROOT / "assets" / "demo.mp4").read_bytes(), max_frames=8, classify="classification")
    assert len(answer.box) > 20
    assert (answer.predicted_class == answer.class_name).mean() > 0.95
    for one in table.values():
        one.batcher.close()


IMAGENET: dict[str, Any] = {
    "resize_px": 256,
    "crop_px": (224, 224),
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}
DOGS = range(151, 269)


def test_the_breed_of_a_dog(shared_media: Path) -> None:
    """A COCO detector and an ImageNet classifier, both as ONNX files."""
    files, table = shared_media / "models", Table()
    sources: dict[str, dict[str, Any]] = {
        "detection": {"source": str(files / "yolox_nano.onnx")},
        "breeds": {"source": str(files / "mobilenetv2-12-qdq.onnx"), **IMAGENET},
    }
    for name, facts in sources.items():
        if not Path(facts["source"]).is_file():
            pytest.skip(f"no {facts['source']}")
        pipeline_of(spec_of(**facts), name, table)
    clip = (shared_media / "clips" / "woman_dog_720p.mp4").read_bytes()
    answer = ask(table, clip, stride=144, max_frames=2, classify="16:breeds")
    dogs = answer.class_name == "16"
    assert answer.box_frame_index[dogs].tolist() == [0, 144]
    assert all(int(one) in DOGS for one in answer.predicted_class[dogs])
    assert set(answer.predicted_class[~dogs]) == {""}
    frame = film_frame(shared_media / "clips" / "woman_dog_720p.mp4", 144)[0]
    box = answer.box[dogs][1]
    alone = classified(table["breeds"], frame[square_around(box.tolist(), (720, 1280))])
    assert answer.predicted_class[dogs][1] == alone.class_name[0, 0]
    for one in table.values():
        one.batcher.close()


def test_colours_of_cars(shared_media: Path) -> None:
    """Two attributes of an OpenVINO file, of boxes that are known."""
    files, table = shared_media / "models", Table()
    source = files / "vehicle-attributes-recognition-barrier-0039.xml"
    picture = shared_media / "clips" / "cars_432p.jpg"
    if not (source.is_file() and picture.is_file()):
        pytest.skip(f"no {source}, {picture}")
    model_proc = shared_media / "model_proc" / f"intel__{source.stem}.json"
    pipeline_of(spec_of(str(source), model_proc=str(model_proc)), "cars", table)
    pixels = frames_of(picture.read_bytes())
    frames = FrameBatch.of(pixels, pts_s=np.zeros(1), frame_index=np.zeros(1, np.int64))
    stage = second_stage("cars", ("car",), table, Terms.of(Options()))
    (told,) = stage(frames, [found_at([92, 25, 261, 327], [318, 165, 489, 415])])
    assert told.attribute_da is not None
    said = [dict(zip(stage.attribute_names, row, strict=True)) for row in told.attribute_da]
    assert [one["color"] for one in said] == ["white", "red"]
    assert {one["type"] for one in said} == {"car"}
    table["cars"].batcher.close()
