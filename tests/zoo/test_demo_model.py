"""The embedded demo models: their weights, their clips with the exact truth, and the scripts for both."""

from __future__ import annotations

import subprocess
import sys
from functools import cache

import av
import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import nn
from torchvision.ops import box_iou

from pipelines.pipeline import Pipeline
from pipelines.protocol.answers import ANSWERS, DetectionAnswer
from pipelines.protocol.options import Options
from pipelines.rendering.encode import png
from pipelines.zoo.demo.networks import (
    ACTION_LABELS,
    MAX_BOXES,
    NMS_IOU,
    SCORE_FLOOR,
    DemoDetector,
    DemoTask,
    build_demo,
)
from pipelines.zoo.demo.specs import demo_specs
from scripts.demo.actions import MOVES_LEFT, MOVES_RIGHT, ActionScene, clip_action
from scripts.demo.clips import decode
from scripts.demo.judging import MEASURES, read_truth
from scripts.demo.shapes import LEAST_PX, Scene
from scripts.demo.train import demo_pipeline, draw, fresh_clip, quality
from tests.conftest import ROOT

ASSETS = ROOT / "assets"
TASKS: tuple[DemoTask, ...] = ("segmentation", "classification", "detection", "action")
SHIPPED_SEED = 2027
FRAME_STEP = 10
# Beyond those that trained the models, and others than those that judged them.
FRESH_SEEDS = range(950_001, 950_013)
Array = npt.NDArray[np.uint8]


@cache
def pipeline(task: DemoTask) -> Pipeline:
    return demo_pipeline(task)


@cache
def shipped_frames(name: str) -> list[Array]:
    return list(decode(ASSETS / name))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Array], Array]]:
    """A short clip as the script draws and writes it, and once more: frames and masks by name."""
    folder = tmp_path_factory.mktemp("clips")
    outputs = ["--draw", str(folder / "first.mp4"), "--truth", str(folder / "first.npz")]
    command = [sys.executable, "-m", "scripts.demo.train", *outputs, "--seconds", "0.2"]
    subprocess.run([*command, "--seed", str(SHIPPED_SEED)], cwd=ROOT, check=True, timeout=100)
    draw(folder / "again.mp4", folder / "again.npz", SHIPPED_SEED, 0.2, action=False)
    return {
        name: (list(decode(folder / f"{name}.mp4")), np.load(folder / f"{name}.npz")["masks"])
        for name in ("first", "again")
    }


@pytest.mark.parametrize("task", TASKS)
def test_weights_are_small_and_load(task: DemoTask) -> None:
    assert (ASSETS / f"demo_{task}.safetensors").stat().st_size <= 2_000_000
    assert all(value.isfinite().all() for value in demo_specs()[task].build().state_dict().values())


@pytest.mark.parametrize("size_hw", [(32, 32), (33, 47), (160, 284), (225, 301)])
def test_outputs_at_odd_sizes(size_hw: tuple[int, int]) -> None:
    pixels = torch.randn(2, 3, *size_hw, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert build_demo("segmentation").eval()(pixels).shape == (2, 5, *size_hw)
        assert build_demo("classification").eval()(pixels).shape == (2, 4)
        assert build_demo("action").eval()(torch.stack([pixels] * 5, 2)).shape == (2, 4)
        answers = build_demo("detection").eval()(pixels)
    assert [set(answer) for answer in answers] == [{"boxes", "labels", "scores"}] * 2


@pytest.mark.parametrize("score_bias", [-20.0, -2.0, 20.0], ids=["nothing", "something", "everything"])
def test_a_detector_answers_as_torchvisions_do(score_bias: float) -> None:
    torch.manual_seed(0)
    detector = DemoDetector(classes=5).eval()
    nn.init.constant_(detector.scores.bias, score_bias)  # type: ignore[arg-type]
    nn.init.normal_(detector.sides.bias, -1)  # type: ignore[arg-type]
    with torch.inference_mode():
        answers = detector(torch.randn(3, 3, 161, 283))
    for answer in answers:
        boxes, labels, scores = answer["boxes"], answer["labels"], answer["scores"]
        assert len(boxes) == len(labels) == len(scores) <= MAX_BOXES
        assert (boxes.shape[1:], boxes.dtype, labels.dtype, scores.dtype) == (
            (4,),
            torch.float32,
            torch.int64,
            torch.float32,
        )
        assert (boxes[:, :2] <= boxes[:, 2:]).all()
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([283, 161, 283, 161])).all()
        assert (scores.diff() <= 0).all()
        assert (scores >= SCORE_FLOOR).all()
        assert set(labels.tolist()) <= {1, 2, 3, 4}
        overlaps = np.triu(box_iou(boxes, boxes).numpy(), 1)
        assert overlaps[labels[:, None] == labels].max(initial=0) <= NMS_IOU + 1e-5
    assert {len(answer["boxes"]) for answer in answers} != {0} or score_bias == -20
    assert {len(answer["boxes"]) for answer in answers} == {MAX_BOXES} or score_bias != 20


def test_an_empty_picture_has_no_boxes() -> None:
    (answer,) = pipeline("detection").run(
        png(np.full((360, 640), 128, np.uint8)), Options(score_threshold=0.05)
    )
    assert isinstance(answer, DetectionAnswer)
    assert (answer.box.shape, answer.class_id.shape, answer.score.shape) == ((0, 4), (0,), (0,))


def test_a_seed_decides_the_drawing(drawn: dict[str, tuple[list[Array], Array]]) -> None:
    (frames, masks), (frames_again, masks_again) = drawn.values()
    assert len(frames) == len(masks) == 6
    np.testing.assert_array_equal(frames, frames_again)
    np.testing.assert_array_equal(masks, masks_again)
    other_pixels, other = Scene(7).draw(0)
    assert (masks[0] != other.class_ids).mean() > 0.05
    assert np.abs(frames[0].astype(int) - other_pixels).mean() > 10


def test_the_shipped_clip_is_what_the_script_draws(drawn: dict[str, tuple[list[Array], Array]]) -> None:
    frames, masks = drawn["first"]
    shipped = np.stack(shipped_frames("demo.mp4")[: len(frames)])
    # Another processor may round a point on an edge to its other side, and x264 decide otherwise.
    assert (read_truth(ASSETS / "demo_truth.npz")["masks"][: len(masks)] != masks).mean() < 1e-4
    assert np.abs(shipped.astype(int) - np.stack(frames)).mean() < 4


def test_the_shipped_action_clip_is_what_its_scene_draws() -> None:
    scene = ActionScene(SHIPPED_SEED)
    drawn = [scene.draw(index) for index in range(0, 240, 60)]
    frames = np.stack(shipped_frames("demo_action.mp4")[::60]).astype(int)
    assert np.abs(frames - np.stack([pixels for pixels, _ in drawn])).mean() < 6
    actions = read_truth(ASSETS / "demo_action_truth.npz")["action_id"]
    assert actions[::60].tolist() == [action for _, action in drawn]
    assert set(actions.tolist()) == set(range(len(ACTION_LABELS)))


@pytest.mark.parametrize(
    ("name", "frame_count", "most_bytes", "truth_bytes"),
    [("demo", 150, 300_000, 450_000), ("demo_action", 240, 500_000, 10_000)],
)
def test_the_shipped_files_are_small_and_whole(
    name: str, frame_count: int, most_bytes: int, truth_bytes: int
) -> None:
    assert (ASSETS / f"{name}.mp4").stat().st_size <= most_bytes
    assert (ASSETS / f"{name}_truth.npz").stat().st_size <= truth_bytes
    with av.open(ASSETS / f"{name}.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 640, 360)
        assert stream.average_rate == 30
        kinds = [frame.pict_type for frame in container.decode(stream)]
    assert av.video.frame.PictureType.B in kinds
    truth = read_truth(ASSETS / f"{name}_truth.npz")
    shapes = {"masks": (frame_count, 360, 640), "class_id": (frame_count,), "action_id": (frame_count,)}
    assert len(kinds) == frame_count
    assert all(truth[key].shape == shape for key, shape in shapes.items() if key in truth)


def test_the_shipped_boxes_enclose_the_masks() -> None:
    truth = read_truth(ASSETS / "demo_truth.npz")
    masks, boxes = truth["masks"], truth["boxes"].astype(int)
    inside = np.zeros(masks.shape, bool)
    for (x0, y0, x1, y1), label, frame in zip(boxes, truth["box_class"], truth["box_frame"], strict=True):
        within = masks[int(frame), y0:y1, x0:x1] == label
        assert all(edge.any() for edge in (within[0], within[-1], within[:, 0], within[:, -1]))
        inside[int(frame), y0:y1, x0:x1] = True
    assert not (masks[~inside] != 0).any()
    leading = [np.bincount(mask.ravel(), minlength=5)[1:].argmax() for mask in masks]
    decided = truth["class_id"] != -1
    np.testing.assert_array_equal(truth["class_id"][decided], np.array(leading)[decided])


def test_little_of_a_shape_is_ignored() -> None:
    visible: dict[bool, list[int]] = {False: [], True: []}
    for seed in range(12):
        _, truth = Scene(seed).draw(30)
        counts = np.bincount(truth.owners.ravel())[1:]
        assert len(counts) == len(truth.boxes)
        for count, ignored in zip(counts, truth.box_ignored, strict=True):
            visible[bool(ignored)].append(int(count))
    assert len(visible[False]) > len(visible[True]) > 0
    assert min(visible[False]) >= LEAST_PX
    assert np.median(visible[True]) < np.median(visible[False]) / 3


@pytest.mark.parametrize("task", TASKS)
def test_the_models_on_the_shipped_clips(task: DemoTask) -> None:
    name = "demo_action" if task == "action" else "demo"
    measure, step = MEASURES[ANSWERS[task]], {} if task == "action" else {"stride": FRAME_STEP}
    truth = read_truth(ASSETS / f"{name}_truth.npz")
    found = quality(pipeline(task), (ASSETS / f"{name}.mp4").read_bytes(), truth, **step)
    assert found[measure.name] >= measure.least, found


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_the_models_on_fresh_frames(task: DemoTask) -> None:
    """A few frames of each of the fresh scenes, through H.264, and what is true of them."""
    clip, truth = fresh_clip(Scene(seed).draw(index) for seed in FRESH_SEEDS for index in (10, 60, 110))
    assert len(np.unique(truth["class_id"][truth["class_id"] >= 0])) >= 3
    found = quality(pipeline(task), clip, truth)
    assert found[MEASURES[ANSWERS[task]].name] >= MEASURES[ANSWERS[task]].least, found


def test_the_action_model_on_the_mirror_image_of_the_shipped_clip() -> None:
    swapped = {MOVES_LEFT: MOVES_RIGHT, MOVES_RIGHT: MOVES_LEFT}
    actions = read_truth(ASSETS / "demo_action_truth.npz")["action_id"].tolist()
    mirrored = [frame[:, ::-1] for frame in shipped_frames("demo_action.mp4")]
    clip, truth = fresh_clip(
        (frame, swapped.get(action, action)) for frame, action in zip(mirrored, actions, strict=True)
    )
    assert quality(pipeline("action"), clip, truth)["accuracy"] >= 0.9


def test_the_action_model_on_fresh_clips() -> None:
    """One clip out of the middle of each of six actions, drawn at the rate of the model: half the frames."""
    scenes = [ActionScene(seed) for seed in FRESH_SEEDS[:4]]
    begins = [(scene, int(30 * actor.begin_s) + 12) for scene in scenes for actor in scene.actors[:6]]
    clip, truth = fresh_clip(
        scene.draw(index) for scene, begin in begins for index in range(begin, begin + 16, 2)
    )
    assert len(truth["action_id"]) == 24 * 8
    assert quality(pipeline("action"), clip, truth, fps=30)["accuracy"] >= 0.95


@pytest.mark.parametrize(
    ("actions", "expected"),
    [([2] * 8, 2), ([0, 0, 0, 0, 0, 0, 3, 3], 0), ([0, 0, 0, 0, 0, 3, 3, 3], -1), ([1] * 4 + [2] * 4, -1)],
)
def test_a_clip_across_a_change_has_no_action(actions: list[int], expected: int) -> None:
    assert clip_action(np.array(actions)) == expected
