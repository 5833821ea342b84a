"""Which head a network needs: networks of all families, drawn around known boxes, and real files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.models.graph import Graph, Port
from pipelines.models.heads.identify import HEADS, check, identify
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import HeadName
from tests.support import drawn_outputs as drawn
from tests.support.drawn_outputs import Outputs, Scene, graph_of, port

NAMES = ("cat", "dog", "cow", "hen", "pig")
ULTRALYTICS = {"names": str(dict(enumerate(NAMES))), "task": "detect", "imgsz": "[320, 256]", "stride": "32"}
ORIGINAL_SIZE = Port(name="orig_target_sizes", dtype="int64", dims=(1, 2))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of network, what is said of it, and what its head must be."""

    draw: Callable[[Scene], Outputs]
    family: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    first_label: int = 0


def pose(**more: str) -> dict[str, str]:
    return {**ULTRALYTICS, "task": "pose", "kpt_shape": "[5, 3]", **more}


def boxes_of_rank_4(scene: Scene) -> Outputs:
    found = drawn.boxes_scores(scene, unit=True, background=False)
    return {"boxes": found["boxes"][:, :, None], "confs": found["scores"]}


def before_softmax(scene: Scene) -> Outputs:
    found = drawn.boxes_scores(scene, unit=True, background=True)
    return {**found, "scores": found["scores"].clamp(min=1e-4).log()}


def with_grids(scene: Scene) -> Outputs:
    """What older exports of YOLOv5 give beside the decoded rows: grids that are not decoded."""
    height, width = scene.size_hw
    grids = {f"grid{step}": torch.randn(1, 3, height // step, width // step, 10) for step in (8, 16, 32)}
    return {**drawn.yolo_v5(scene), **grids}


KINDS = {
    "yolox raw": Kind(draw=drawn.yolox, family="yolox", fields={"decoded": False, "classes": 5}),
    "yolox decoded": Kind(draw=partial(drawn.yolox, decoded=True), family="yolox", fields={"decoded": True}),
    "yolox with names": Kind(draw=drawn.yolox, family="yolox", names=NAMES),
    "yolox of a dynamic file": Kind(draw=drawn.yolox, family="yolox", more={"dynamic": True}),
    "yolo v5": Kind(draw=drawn.yolo_v5, family="yolo_v5", fields={"classes": 5}),
    "yolo v5 with names alone": Kind(
        draw=drawn.yolo_v5, family="yolo_v5", more={"metadata": {"names": str(list(NAMES)), "stride": "32"}}
    ),
    "yolo v8": Kind(draw=drawn.yolo_v8, family="yolo_v8", fields={"classes": 5, "rows_first": False}),
    "yolo v8 with metadata": Kind(draw=drawn.yolo_v8, family="yolo_v8", more={"metadata": ULTRALYTICS}),
    "yolo v8 of a dynamic file": Kind(
        draw=drawn.yolo_v8, family="yolo_v8", more={"metadata": ULTRALYTICS, "dynamic": True}
    ),
    "yolo tiny": Kind(draw=partial(drawn.yolo_v8, strides=(16, 32)), family="yolo_v8"),
    "yolo p6": Kind(draw=partial(drawn.yolo_v8, strides=(8, 16, 32, 64)), family="yolo_v8"),
    "yolo v8, rows first": Kind(
        draw=partial(drawn.yolo_v8, rows_first=True),
        family="yolo_v8",
        names=NAMES,
        fields={"rows_first": True},
    ),
    "yolo v8 masks": Kind(
        draw=drawn.yolo_v8_masks,
        family="yolo_v8",
        more={"metadata": {**ULTRALYTICS, "task": "segment"}},
        fields={"prototypes": "output1", "classes": 5},
    ),
    "yolo v8 masks, nothing said": Kind(
        draw=drawn.yolo_v8_masks, family="yolo_v8", fields={"prototypes": "output1", "classes": 5}
    ),
    "yolo v8 pose": Kind(
        draw=drawn.yolo_v8_points,
        family="yolo_v8",
        more={"metadata": pose()},
        fields={"keypoints": (5, 3), "classes": 5},
    ),
    "yolo v8 pose, nothing said": Kind(
        draw=drawn.yolo_v8_points, family="yolo_v8", fields={"keypoints": (5, 3), "classes": 5}
    ),
    "yolo v8 pose, names said": Kind(
        draw=drawn.yolo_v8_points, family="yolo_v8", names=NAMES, fields={"keypoints": (5, 3)}
    ),
    "nms in the file": Kind(
        draw=drawn.end_to_end,
        family="end_to_end",
        fields={"form": "corners"},
        more={"metadata": {**ULTRALYTICS, "args": "{'nms': True}"}},
    ),
    "nms in the file, nothing said": Kind(
        draw=drawn.end_to_end, family="end_to_end", fields={"form": "corners"}
    ),
    "yolo v10": Kind(
        draw=partial(drawn.end_to_end, filled=True), family="end_to_end", fields={"form": "corners"}
    ),
    "rt-detr in rows, said": Kind(
        draw=partial(drawn.end_to_end, form="centres", filled=True),
        family="end_to_end",
        fields={"form": "centres"},
        more={"metadata": {**ULTRALYTICS, "head": "RTDETRDecoder"}},
    ),
    "rt-detr in rows": Kind(
        draw=partial(drawn.end_to_end, form="centres", filled=True),
        family="end_to_end",
        fields={"form": "centres"},
    ),
    "yolo v7 end to end": Kind(
        draw=partial(drawn.end_to_end, form="picture"), family="end_to_end", fields={"form": "picture"}
    ),
    "rt-detr in one tensor": Kind(draw=drawn.detr_joined, family="detr", fields={"joined": "output0"}),
    "rt-detr in one tensor, said": Kind(
        draw=drawn.detr_joined,
        family="detr",
        fields={"joined": "output0"},
        more={"metadata": {**ULTRALYTICS, "description": "Ultralytics rtdetr-l model"}},
    ),
    "detr with names": Kind(
        draw=partial(drawn.detr, softmax=True), family="detr", names=NAMES, fields={"softmax": True}
    ),
    "detr": Kind(draw=partial(drawn.detr, softmax=True), family="detr", fields={"softmax": True}),
    "rt-detr with names": Kind(
        draw=partial(drawn.detr, softmax=False), family="detr", names=NAMES, fields={"softmax": False}
    ),
    "rt-detr": Kind(draw=partial(drawn.detr, softmax=False), family="detr", fields={"softmax": False}),
    "rf-detr": Kind(
        draw=partial(drawn.detr, softmax=False, names=("labels", "dets")),
        family="detr",
        fields={"softmax": False, "logits": "labels", "boxes": "dets"},
    ),
    "detr under other names": Kind(
        draw=partial(drawn.detr, softmax=False, names=("1205", "1206")), family="detr", names=NAMES
    ),
    "detr, softmax applied": Kind(
        draw=partial(drawn.detr, softmax=True, done=True),
        family="detr",
        names=NAMES,
        more={"operators": {"logits": "softmax"}},
        fields={"softmax": True, "probabilities": True},
    ),
    "detection_output": Kind(
        draw=drawn.detection_output,
        family="ssd",
        fields={"output": "detection_out"},
        more={"operators": {"detection_out": "detectionoutput"}},
    ),
    "detection_output by shape": Kind(draw=drawn.detection_output, family="ssd"),
    "boxes and labels of OTX": Kind(
        draw=partial(drawn.boxes_labels, batched=False), family="ssd", fields={"boxes": "boxes"}
    ),
    "dets and labels of MMDeploy": Kind(
        draw=partial(drawn.boxes_labels, batched=True, names=("dets", "labels"), rows=80),
        family="ssd",
        fields={"boxes": "dets", "labels": "labels"},
    ),
    "ultra light faces": Kind(
        draw=partial(drawn.boxes_scores, unit=True, background=True),
        family="boxes_scores",
        names=NAMES,
        fields={"unit": True, "background": True, "order": "xyxy"},
        more={"operators": {"scores": "softmax"}},
    ),
    "ultra light faces, the other order": Kind(
        draw=partial(drawn.boxes_scores, unit=True, background=True),
        family="boxes_scores",
        names=NAMES,
        fields={"unit": True, "background": True},
        more={"swapped": True},
    ),
    "yolo-nas": Kind(
        draw=partial(drawn.boxes_scores, unit=False, background=False),
        family="boxes_scores",
        fields={"unit": False, "background": False, "order": "xyxy"},
        more={"operators": {"scores": "sigmoid"}},
    ),
    "ssd before its softmax": Kind(
        draw=before_softmax,
        family="boxes_scores",
        fields={"background": True, "activation": "softmax"},
        more={"operators": {"scores": "add"}},
        first_label=1,
    ),
    "ssd before its softmax, names said": Kind(
        draw=before_softmax,
        family="boxes_scores",
        names=NAMES,
        fields={"background": True, "activation": "softmax"},
    ),
    "yolo v4 of pytorch": Kind(
        draw=boxes_of_rank_4,
        family="boxes_scores",
        fields={"unit": True, "boxes": "boxes", "scores": "confs"},
    ),
    "yolo v5 with its grids": Kind(
        draw=with_grids, family="yolo_v5", fields={"output": "output0", "classes": 5}
    ),
    "centres and scores": Kind(
        draw=partial(drawn.boxes_scores, unit=False, background=False, order="cxcywh"),
        family="boxes_scores",
        fields={"order": "cxcywh", "unit": False},
    ),
    "torchvision's export": Kind(
        draw=partial(drawn.chosen, names=("boxes", "labels", "scores"), unit=False, batched=False),
        family="boxes",
        fields={"unit": False},
    ),
    "faster r-cnn of the zoo": Kind(
        draw=partial(drawn.chosen, names=("6379", "6381", "6383"), unit=False, batched=False),
        family="boxes",
        fields={"unit": False, "labels": "6381"},
    ),
    "ssd of the zoo": Kind(
        draw=partial(drawn.chosen, names=("bboxes", "labels", "scores"), unit=True, batched=True),
        family="boxes",
        fields={"unit": True},
    ),
    "tensorflow": Kind(
        draw=partial(
            drawn.chosen,
            names=("detection_boxes", "detection_classes", "detection_scores"),
            unit=True,
            batched=True,
            first=1,
            y_first=True,
        ),
        family="boxes",
        fields={"unit": True, "order": "yxyx", "first_label": 1},
        more={"whole": "float32"},
    ),
    "rt-detr's own export": Kind(
        draw=partial(drawn.chosen, names=("boxes", "labels", "scores"), unit=False, batched=True),
        family="boxes",
        fields={"unit": False},
        more={"inputs": (ORIGINAL_SIZE,), "swapped": True},
    ),
}


def found_of(kind: Kind, scene: Scene, **said: Any) -> Any:
    graph = drawn.graph(kind.draw, scene, **kind.more)
    said = {"size_hw": scene.size_hw, "names": kind.names, **said}
    return graph, identify(graph, **said)


def assert_gives_back(head: Any, graph: Graph, scene: Scene, first: int = 0) -> None:
    """What was drawn is what the head finds, if the boxes of low scores are left out."""
    assert graph.run is not None
    (found,) = head(graph.run(torch.rand(1, 3, 8, 8)), scene.size_hw)
    sure = found["scores"] > 0.3
    order = found["scores"][sure].argsort(descending=True)
    torch.testing.assert_close(found["boxes"][sure][order], scene.boxes, atol=0.05, rtol=1e-3)
    torch.testing.assert_close(found["scores"][sure][order], scene.scores, atol=0.01, rtol=0)
    assert (found["labels"][sure][order] - first).tolist() == scene.labels.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_the_head_of_each_kind_gives_back_what_was_drawn(name: str) -> None:
    kind = KINDS[name]
    scene = drawn.scene()
    graph, found = found_of(kind, scene)
    assert (found.task, found.head.family) == ("detection", kind.family)
    assert {key: getattr(found.head, key) for key in kind.fields} == kind.fields
    assert_gives_back(found.head, graph, scene, kind.first_label)
    assert check(found.head, graph, scene.size_hw, found.labels) == ()


@settings(deadline=None, max_examples=25)
@given(
    name=st.sampled_from([*KINDS]),
    seed=st.integers(0, 1000),
    count=st.integers(1, 6),
    sides=st.sampled_from([(256, 320), (320, 320), (160, 192), (416, 416)]),
)
def test_any_scene_is_given_back(name: str, seed: int, count: int, sides: tuple[int, int]) -> None:
    kind = KINDS[name]
    metadata = dict(kind.more.get("metadata", {}))
    if "imgsz" in metadata:
        metadata["imgsz"] = str(list(sides))
    scene = drawn.scene(seed, count, size_hw=sides)
    graph = drawn.graph(kind.draw, scene, **{**kind.more, "metadata": metadata})
    found = identify(graph, size_hw=sides, names=kind.names)
    assert found.head is not None
    assert found.head.family == kind.family
    assert_gives_back(found.head, graph, scene, kind.first_label)


@pytest.mark.parametrize(
    "name",
    [
        "yolox raw",
        "yolox decoded",
        "yolo v5",
        "yolo v8",
        "nms in the file, nothing said",
        "yolo-nas",
        "rf-detr",
    ],
)
def test_one_class_is_found_too(name: str) -> None:
    kind, scene = KINDS[name], drawn.scene(5, classes=1)
    for names in ((), ("face",)):
        graph, found = found_of(kind, scene, names=names)
        assert found.head.family == kind.family
        assert_gives_back(found.head, graph, scene)


@pytest.mark.parametrize(
    ("draw", "family"),
    [
        (partial(drawn.end_to_end, form="centres", filled=True), "end_to_end"),
        (partial(drawn.end_to_end, filled=True), "end_to_end"),
        (drawn.detr_joined, "detr"),
    ],
)
def test_six_numbers_are_two_classes_or_a_score_and_a_class(
    draw: Callable[[Scene], Outputs], family: str
) -> None:
    scene = drawn.scene(6, classes=2)
    graph = drawn.graph(draw, scene)
    head = identify(graph, size_hw=SIZE, names=("cat", "dog")).head
    assert head is not None
    assert head.family == family
    assert_gives_back(head, graph, scene)


def test_texts_are_no_detector() -> None:
    """Of each place a softmax over letters: (N, T, K), all in 0..1, as a DETR's tensor is."""
    letters = torch.randn(1, 40, 37).softmax(dim=2)
    with pytest.raises(ModelUnavailable, match="softmax"):
        identify(graph_of(port("o", 1, 40, 37), values={"o": letters}), size_hw=SIZE)


def test_a_head_without_names_of_outputs_is_checked() -> None:
    graph = drawn.graph(drawn.yolox, drawn.scene())
    assert check(HEADS["yolox"](), graph, SIZE) == ()
    with pytest.raises(ModelUnavailable, match="not in pixels"):
        check(HEADS["yolox"](decoded=True), graph, SIZE)
    with pytest.raises(ModelUnavailable, match="yolo_v8"):
        check(HEADS["yolo_v8"](classes=80), graph, SIZE)


def test_every_head_has_a_family() -> None:
    assert set(HEADS) == set(HeadName.__args__)  # type: ignore[attr-defined]


SIZE = (320, 256)
CELLS = 40 * 32 + 20 * 16 + 10 * 8
OBB = {**ULTRALYTICS, "task": "obb"}


@pytest.mark.parametrize(
    ("graph", "said", "words"),
    [
        (graph_of(port("output0", 1, 10, CELLS), metadata=OBB), {}, ["oriented"]),
        (graph_of(port("output0", 1, 10, CELLS), metadata=OBB), {"wanted": "yolo_v8"}, ["oriented"]),
        (graph_of(port("output0", 1, 10, CELLS)), {"names": NAMES}, ["oriented", "--labels"]),
        (
            graph_of(
                *(port(name, 1, 100) for name in ("num_dets", "det_boxes", "det_scores", "det_classes"))
            ),
            {},
            ["EfficientNMS", "without NMS"],
        ),
        (graph_of(port("out", 1, 2125, 37)), {"names": NAMES, "size_hw": (320, 320)}, ["NanoDet"]),
        (
            Graph(
                inputs=(port("image", 1, 3, 320, 256), port("scale_factor", 1, 2)),
                outputs=(port("nms", None, 6),),
            ),
            {},
            ["PicoDet", "without"],
        ),
        (graph_of(port("o", 1, 85, 20, 16)), {}, ["FastestDet", "--model segmentation=FILE"]),
        (graph_of(port("o", 1, 3, 40, 32, 85), port("p", 1, 3, 20, 16, 85)), {}, ["anchors", "--model-proc"]),
        (graph_of(port("o", 1, 255, 40, 32), port("p", 1, 255, 20, 16)), {}, ["anchors", "--model-proc"]),
        (graph_of(port("o", 1, 85, 40, 32)), {"wanted": "yolo_v3"}, ["yolo_v3", "--model-proc"]),
        (
            graph_of(port("o", 1, 1000)),
            {"wanted": "yolox"},
            ["yolox", "(N, A, 5 + K)", "o float32 (1, 1000)"],
        ),
        (graph_of(port("o", 1, 5000, 85)), {}, ["--head yolo_v5 or --head yolo_v8", "--labels"]),
        (graph_of(port("o", 1, None, None)), {"size_hw": None, "task": "detection"}, ["--resize-px"]),
        (
            graph_of(port("class_queries_logits", 1, 9, 6), port("masks_queries_logits", 1, 9, 8, 8)),
            {},
            ["mask"],
        ),
        (graph_of(port("o", 1, 84, CELLS)), {"names": NAMES}, ["80 classes", "5 labels", "--labels"]),
        (
            graph_of(port("a", 1, 9), port("b", 1, 9)),
            {"task": "classification"},
            ["a float32 (1, 9); b", "--output"],
        ),
        (
            graph_of(port("a", 1, 9)),
            {"task": "segmentation"},
            ["segmentation", "a float32 (1, 9)", "(N, K, h, w)"],
        ),
        (
            graph_of(port("a", 1, 9)),
            {"task": "classification", "output": "b"},
            ["'b'", "a float32", "--output"],
        ),
    ],
)
def test_what_is_refused(graph: Graph, said: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ModelUnavailable) as refused:
        identify(graph, **{"size_hw": SIZE, **said})
    assert not [word for word in words if word not in str(refused.value)], str(refused.value)


def test_nanodet_is_told_from_yolox_by_its_distances() -> None:
    """Both are (N, A, C) with a row of each cell."""
    cells = drawn.grid(drawn.scene())
    distances = torch.randn(len(cells.boxes), 32) * 3
    values = torch.cat([cells.scores, distances], dim=1)[None]
    with pytest.raises(ModelUnavailable, match="NanoDet"):
        identify(graph_of(port("out", *values.shape), values={"out": values}), size_hw=SIZE)


def test_a_number_between_offsets_and_pixels_is_undecided() -> None:
    cells = drawn.grid(drawn.scene())
    values = drawn.with_objectness(cells.boxes / 8, cells.scores)
    with pytest.raises(ModelUnavailable, match="no head reads") as refused:
        identify(graph_of(port("out", *values.shape), values={"out": values}), size_hw=SIZE)
    assert "not in pixels" in str(refused.value)
    assert "--head" in str(refused.value)


def test_a_demanded_head_overrules() -> None:
    """Objectness is a class of its own, if the user says so."""
    scene = drawn.scene()
    graph = drawn.graph(partial(drawn.yolox, decoded=True), scene)
    found = identify(graph, size_hw=SIZE, wanted="yolo_v8")
    assert found.head is not None
    assert (found.head.family, getattr(found.head, "rows_first")) == ("yolo_v8", True)  # noqa: B009
    assert "as --head says" in found.assumed[0]


@pytest.mark.parametrize("family", ["boxes_scores", "detr"])
def test_either_reading_of_two_outputs_can_be_demanded(family: str) -> None:
    graph = drawn.graph(partial(drawn.detr, softmax=False, names=("a", "b")), drawn.scene())
    head = identify(graph, size_hw=SIZE, names=NAMES, wanted=family).head
    assert head is not None
    assert head.family == family
    corners = drawn.graph(partial(drawn.boxes_scores, unit=True, background=False), drawn.scene())
    head = identify(corners, size_hw=SIZE, names=NAMES, wanted=family).head
    assert head is not None
    assert head.family == family


def test_what_is_left_out_is_said() -> None:
    """Masks go with boxes of torchvision's form only."""

    def with_masks(scene: Scene) -> Outputs:
        found = drawn.boxes_labels(scene, batched=False)
        return {**found, "masks": torch.rand(len(scene.boxes), 28, 28)}

    found = identify(drawn.graph(with_masks, drawn.scene()), size_hw=SIZE)
    assert "outputs that are not read: masks" in found.assumed


def test_bytes_are_fed_as_levels() -> None:
    scene = drawn.scene()
    graph = drawn.graph(drawn.yolo_v8, scene)
    seen = []

    def run(pixels: torch.Tensor) -> Outputs:
        seen.append(float(pixels.max()))
        return graph.run(pixels / 255) if graph.run else {}

    of_bytes = Port(name="images", dtype="uint8", dims=(1, 3, *SIZE))
    identify(Graph(inputs=(of_bytes,), outputs=graph.outputs, run=run), size_hw=SIZE)
    assert max(seen) > 200


def test_the_overlap_is_the_users_else_the_metadata() -> None:
    scene = drawn.scene()
    info = {"model_info model_type": "YOLO", "model_info iou_threshold": "0.6"}
    graph = drawn.graph(drawn.yolo_v8, scene, metadata=info)
    overlaps = [identify(graph, size_hw=SIZE, iou_threshold=one).head for one in (None, 0.3)]
    assert [getattr(one, "iou_threshold") for one in overlaps] == [0.6, 0.3]  # noqa: B009


BACKGROUND = ("background", *NAMES)


@pytest.mark.parametrize(
    ("draw", "names", "labels"),
    [
        (drawn.yolo_v8, BACKGROUND, NAMES),
        (drawn.yolox, BACKGROUND, NAMES),
        (drawn.yolox, NAMES[1:], None),
        (partial(drawn.boxes_scores, unit=True, background=True), BACKGROUND, BACKGROUND),
        (partial(drawn.boxes_scores, unit=True, background=True), ("face", *NAMES), None),
        (partial(drawn.boxes_scores, unit=True, background=False), BACKGROUND, NAMES),
        (partial(drawn.boxes_scores, unit=True, background=False), NAMES[1:], None),
        (partial(drawn.detr, softmax=True), NAMES, NAMES),
        (partial(drawn.detr, softmax=False), NAMES[2:], None),
        (drawn.end_to_end, NAMES[:1], None),
        (drawn.detection_output, NAMES, NAMES),
    ],
)
def test_names_are_counted(
    draw: Callable[[Scene], Outputs], names: tuple[str, ...], labels: tuple[str, ...] | None
) -> None:
    """One more for the background is found; what is one off otherwise is refused."""
    graph = drawn.graph(draw, drawn.scene(3))
    if labels is None:
        with pytest.raises(ModelUnavailable, match="label"):
            identify(graph, size_hw=SIZE, names=names)
        return
    found = identify(graph, size_hw=SIZE, names=names)
    assert found.labels == labels
    assert found.head is not None
    assert graph.run is not None
    (seen,) = found.head(graph.run(torch.rand(1, 3, 8, 8)), SIZE)
    scene = drawn.scene(3)
    best = seen["scores"].topk(len(scene.boxes)).indices
    assert [labels[one] for one in seen["labels"][best]] == [NAMES[one] for one in scene.labels]


def test_labels_that_count_from_1_are_found_by_the_highest() -> None:
    scene = Scene(
        boxes=torch.tensor([[10.0, 20, 90, 120], [120, 40, 200, 190]]),
        labels=torch.tensor([4, 0]),
        scores=torch.tensor([0.9, 0.8]),
    )
    draw = partial(drawn.chosen, names=("bboxes", "labels", "scores"), unit=True, batched=True, first=1)
    found = identify(drawn.graph(draw, scene), size_hw=SIZE, names=NAMES)
    assert getattr(found.head, "first_label") == 1  # noqa: B009


def test_a_softmax_without_a_plain_background_is_asked_for() -> None:
    """As of an untrained detector: only the number of names tells."""
    values = {"boxes": torch.rand(1, 500, 4).sort(dim=2).values, "scores": torch.rand(1, 500, 3).softmax(2)}
    ports = [port("boxes", 1, 500, 4), port("scores", 1, 500, 3, operator="softmax")]
    with pytest.raises(ModelUnavailable, match=r"background.*--labels"):
        identify(graph_of(*ports, values=values), size_hw=SIZE)
    found = identify(graph_of(*ports, values=values), size_hw=SIZE, names=("a", "b"))
    assert getattr(found.head, "background") is True  # noqa: B009


def test_too_dark_pixels_are_said() -> None:
    """The values are those of a detector that was given 0..1 for 0..255: nothing above 0.01."""
    scene = drawn.scene().without()
    graph = drawn.graph(drawn.yolox, scene)
    found = identify(graph, size_hw=SIZE)
    assert found.head is not None
    (text,) = check(found.head, graph, SIZE)
    assert "--pixels" in text


def test_a_head_that_the_values_contradict_is_refused() -> None:
    graph = drawn.graph(drawn.yolox, drawn.scene())
    wrong = HEADS["yolox"](output="output", decoded=True)
    with pytest.raises(ModelUnavailable, match="not in pixels"):
        check(wrong, graph, SIZE)
    (text, *_) = check(wrong, graph, SIZE, demanded=True)
    assert "not in pixels" in text


def test_labels_without_the_background_that_a_list_counts_are_asked_for() -> None:
    graph = drawn.graph(drawn.detection_output, drawn.scene())
    highest = int(drawn.scene().labels.max())
    with pytest.raises(ModelUnavailable, match=f"at least {highest + 1} classes") as caught:
        identify(graph, size_hw=drawn.scene().size_hw, names=NAMES[:highest])
    assert "background first if its numbers begin at 1" in (caught.value.hint or "")


def padded(labels: torch.Tensor, scores: torch.Tensor | None = None) -> Graph:
    """Three boxes that are chosen already, of which the last is none."""
    boxes = torch.tensor([[[10.0, 20, 90, 120], [120, 40, 200, 190], [0, 0, 0, 0]]])
    scores = torch.tensor([[0.9, 0.6, 0]]) if scores is None else scores
    dtype = str(labels.dtype).removeprefix("torch.")
    ports = [port("boxes", 1, 3, 4), port("labels", 1, 3, dtype=dtype), port("scores", 1, 3)]
    return graph_of(*ports, values={"boxes": boxes, "labels": labels, "scores": scores})


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_a_label_below_0_is_of_no_box(dtype: torch.dtype) -> None:
    found = identify(padded(torch.tensor([[1, 0, -1]], dtype=dtype)), size_hw=SIZE)
    assert (found.task, found.head and found.head.family) == ("detection", "boxes")


def test_a_row_without_a_score_is_no_box() -> None:
    rows = torch.full((1, 40, 6), -1.0)
    rows[0, 0] = torch.tensor([10.0, 20, 90, 120, 0.9, 1])
    found = identify(graph_of(port("o", 1, 40, 6), values={"o": rows}), size_hw=SIZE)
    assert found.head is not None
    assert found.head.family == "end_to_end"


def test_a_detector_whose_values_are_odd_is_no_classifier() -> None:
    """An output that is called scores makes a classifier only where no boxes are beside it."""
    graph = padded(torch.tensor([[1, 0, 0]]), torch.tensor([[7.0, 3.0, 0.0]]))
    with pytest.raises(ModelUnavailable, match="are not scores") as caught:
        identify(graph, size_hw=SIZE)
    assert "--model TASK=FILE" in (caught.value.hint or "")


def twice(draw: Callable[[Scene], Outputs], scene: Scene) -> Graph:
    """The same output under two names, as of networks that are trained with and without NMS."""

    def both(drawn_scene: Scene) -> Outputs:
        (values,) = draw(drawn_scene).values()
        return {"one2one": values, "one2many": values}

    return drawn.graph(both, scene)


@pytest.mark.parametrize("wanted", ["", "yolo_v8"])
def test_the_output_that_is_asked_for_decides_between_equal_ones(wanted: str) -> None:
    graph = twice(drawn.yolo_v8, drawn.scene())
    with pytest.raises(ModelUnavailable) as caught:
        identify(graph, size_hw=SIZE, wanted=wanted)
    assert "--output one2one or --output one2many" in (caught.value.hint or "")
    head = identify(graph, size_hw=SIZE, wanted=wanted, output="one2one").head
    assert getattr(head, "output") == "one2one"  # noqa: B009
    with pytest.raises(ModelUnavailable, match=r"no output 'x'.*one2one"):
        identify(graph, size_hw=SIZE, wanted=wanted, output="x")


def test_a_softmax_beside_what_names_tell_for_certain_is_no_doubt() -> None:
    """TensorFlow's detection API gives the scores of all classes too."""
    draw = KINDS["tensorflow"].draw

    def with_all_scores(scene: Scene) -> Outputs:
        found = dict(draw(scene))
        rows = found["detection_boxes"].shape[1]
        return {**found, "detection_multiclass_scores": torch.rand(1, rows, 7).softmax(dim=2)}

    found = identify(drawn.graph(with_all_scores, drawn.scene()), size_hw=SIZE)
    assert found.head is not None
    assert (found.head.family, getattr(found.head, "order")) == ("boxes", "yxyx")  # noqa: B009


def of_numbers(*numbers: int) -> Scene:
    count = len(numbers)
    boxes = torch.tensor([[10.0, 20, 90, 120], [120, 40, 200, 190]])[:count]
    return Scene(boxes=boxes, labels=torch.tensor(numbers), scores=torch.tensor([0.9, 0.8])[:count])


@pytest.mark.parametrize(
    "draw",
    [
        partial(drawn.chosen, names=("boxes", "labels", "scores"), unit=False, batched=True),
        partial(drawn.boxes_labels, batched=True),
        drawn.detection_output,
    ],
)
@pytest.mark.parametrize(
    ("numbers", "names", "said"),
    [
        ((1, 2), NAMES, ["undecided", "0 is cat", "put a background first"]),
        ((0, 2), NAMES, ["count from 0", "0 is cat"]),
        ((1, 2), ("background", *NAMES), []),
    ],
)
def test_where_the_numbers_of_classes_begin_is_said(
    draw: Callable[[Scene], Outputs], numbers: tuple[int, int], names: tuple[str, ...], said: list[str]
) -> None:
    found = identify(drawn.graph(draw, of_numbers(*numbers)), size_hw=SIZE, names=names)
    texts = [text for text in found.assumed if "numbers of classes" in text]
    assert len(texts) == bool(said)
    assert not [word for word in said if word not in texts[0]]
    assert getattr(found.head, "first_label", 0) == 0


def test_a_0_and_a_number_for_each_name_are_more_classes_than_names() -> None:
    """No name is shifted where numbers count from 0 plainly."""
    draw = partial(drawn.chosen, names=("boxes", "labels", "scores"), unit=False, batched=True)
    with pytest.raises(ModelUnavailable, match="at least 6 classes"):
        identify(drawn.graph(draw, of_numbers(0, 5)), size_hw=SIZE, names=NAMES)
    found = identify(drawn.graph(draw, of_numbers(1, 5)), size_hw=SIZE, names=NAMES)
    assert any("count from 1: 1 is cat" in text for text in found.assumed)
