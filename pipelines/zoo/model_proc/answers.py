"""What a model-proc file's outputs mean: a head for boxes, named attributes. Knows no pixels.

Overlapping boxes are left out as by DL Streamer: over all classes, and not at all where the network has
chosen its boxes itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pipelines.models.graph import Graph
from pipelines.models.heads.boxes import Boxes
from pipelines.models.heads.boxes_scores import BoxesScores
from pipelines.models.heads.end_to_end import EndToEnd
from pipelines.models.heads.region import Region, Version
from pipelines.models.heads.ssd import Ssd
from pipelines.models.heads.yolo_v5 import YoloV5
from pipelines.models.heads.yolo_v8 import YoloV8
from pipelines.models.heads.yolox import Yolox
from pipelines.models.spec import Attribute, Head
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.model_proc.outputs import DEFAULT_THRESHOLD, Output
from pipelines.zoo.model_proc.scope import METHODS

# The overlaps that DL Streamer takes where a file names none.
OVERLAP, REGION_OVERLAP = 0.4, 0.5
# Points of COCO's people, of x, y and visibility.
POINTS, POINT_NUMBERS = 17, 3
# What stands before the classes and points of YOLOv8, and a row of boxes that were chosen already.
BOX_NUMBERS, ROW_NUMBERS = 4, 6
ROWS_RANK, MAP_RANK = 3, 4


def head_of(output: Output, graph: Graph | None) -> Head:
    """The head for a converter of boxes; the graph tells names and numbers that the file does not.

    Raises:
        ModelUnavailable: the network has no output of that form.
    """
    return HEADS[output.converter](output, graph)


def _detection_output(output: Output, graph: Graph | None) -> Head:
    return Ssd(output=_layer(output, graph, MAP_RANK))


def _boxes_labels(_output: Output, _graph: Graph | None) -> Head:
    return Ssd(boxes="boxes", labels="labels")


def _boxes(_output: Output, _graph: Graph | None) -> Head:
    return Ssd(boxes="boxes")


def _detection(output: Output, graph: Graph | None) -> Head:
    """torchvision's three outputs, or one of the forms that hold boxes and scores together."""
    ports = graph.outputs if graph else ()
    if {"boxes", "labels", "scores"} <= {port.name for port in ports}:
        return Boxes()
    for port in ports:
        if port.dims and port.dims[-1] == len(("picture", "label", "score", *"xyxy")):
            return Ssd(output=port.name)
        if port.dims and port.dims[-1] == len((*"xyxy", "score")):
            return Ssd(boxes=port.name)
    if graph is not None:
        raise _not_there(output, graph)
    return Boxes()


def _boxes_scores(output: Output, _graph: Graph | None) -> Head:
    activation = METHODS["softmax" if output.do_cls_softmax else "max"]
    return BoxesScores(
        unit=True, order="xywh", classes=_classes(output), activation=activation, iou_threshold=None
    )


def _region(version: Version) -> Callable[[Output, Graph | None], Head]:
    def region(output: Output, _graph: Graph | None) -> Head:
        return Region(
            version=version,
            classes=_classes(output),
            anchors=output.anchors,
            masks=output.masks,
            outputs=output.layers,
            sigmoid=output.output_sigmoid_activation,
            softmax=output.do_cls_softmax,
            cells_hw=output.cells_hw,
            iou_threshold=_overlap(output, REGION_OVERLAP),
            class_agnostic=True,
        )

    return region


def _yolo_v7(output: Output, graph: Graph | None) -> Head:
    rows = _layer(output, graph, ROWS_RANK)
    return YoloV5(classes=_classes(output), output=rows, iou_threshold=_overlap(output), class_agnostic=True)


def _yolo_x(output: Output, graph: Graph | None) -> Head:
    rows = _layer(output, graph, ROWS_RANK)
    return Yolox(classes=_classes(output), output=rows, iou_threshold=_overlap(output), class_agnostic=True)


def _yolo_v8(output: Output, graph: Graph | None) -> Head:
    boxes, prototypes = _boxes_and_masks(output, graph)
    pose = output.converter.endswith("_pose")
    # Its rows have no numbers of classes where the points are.
    classes = _classes(output) or (1 if pose else 0)
    return YoloV8(
        classes=classes,
        output=boxes,
        prototypes=prototypes,
        keypoints=_points(output, graph, BOX_NUMBERS + classes, axis=1) if pose else None,
        iou_threshold=_overlap(output),
        class_agnostic=True,
    )


def _end_to_end(output: Output, graph: Graph | None) -> Head:
    boxes, prototypes = _boxes_and_masks(output, graph)
    pose = output.converter.endswith("_pose")
    points = _points(output, graph, ROW_NUMBERS, axis=2) if pose else None
    return EndToEnd(output=boxes, prototypes=prototypes, keypoints=points)


# The outputs that a converter finds by names of its own.
FIXED = {
    "boxes_labels": ("boxes", "labels"),
    "boxes": ("boxes",),
    "boxes_scores": ("boxes", "scores"),
}
HEADS: dict[str, Callable[[Output, Graph | None], Head]] = {
    "detection_output": _detection_output,
    "boxes_labels": _boxes_labels,
    "boxes": _boxes,
    "boxes_scores": _boxes_scores,
    "detection": _detection,
    "yolo_v2": _region("yolo_v2"),
    "yolo_v3": _region("yolo_v3"),
    "yolo_v4": _region("yolo_v4"),
    "yolo_v5": _region("yolo_v5"),
    "yolo_v7": _yolo_v7,
    "yolo_x": _yolo_x,
    **dict.fromkeys(("yolo_v8", "yolo_v8_seg", "yolo_v8_pose"), _yolo_v8),
    **dict.fromkeys(("yolo_v11", "yolo_v11_seg", "yolo_v11_pose"), _yolo_v8),
    **dict.fromkeys(("yolo_v10", "yolo_v26", "yolo_v26_seg", "yolo_v26_pose"), _end_to_end),
}


def _classes(output: Output) -> int:
    return output.classes or len(output.names)


def _overlap(output: Output, default: float = OVERLAP) -> float:
    return default if output.iou_threshold is None else output.iou_threshold


def _boxes_and_masks(output: Output, graph: Graph | None) -> tuple[str, str]:
    """The names of the rows, and of the prototypes: DL Streamer's own, unless the network has others."""
    if not output.converter.endswith("_seg"):
        return _layer(output, graph, ROWS_RANK), ""
    if graph is None or {"boxes", "masks"} <= {port.name for port in graph.outputs}:
        return "boxes", "masks"
    return _fitting(output, graph, ROWS_RANK), _fitting(output, graph, MAP_RANK)


def _layer(output: Output, graph: Graph | None, rank: int) -> str:
    """The name of an output: as the file has it, else the network's; empty: neither is known."""
    return output.layer if output.layer or graph is None else _fitting(output, graph, rank)


def _fitting(output: Output, graph: Graph, rank: int) -> str:
    """The first output of the network that has so many axes."""
    for port in graph.outputs:
        if len(port.dims) == rank:
            return port.name
    raise _not_there(output, graph)


def _not_there(output: Output, graph: Graph) -> ModelUnavailable:
    wrong = f'no output is what the converter "{output.converter}" of the model-proc file reads'
    return ModelUnavailable(wrong, hint=f"another converter: the network {graph}")


def _points(output: Output, graph: Graph | None, before: int, *, axis: int) -> tuple[int, int]:
    """How many points there are, and of how many numbers: as named, else as the rows have room for."""
    if output.point_names:
        return len(output.point_names), POINT_NUMBERS
    for port in graph.outputs if graph else ():
        length = port.dims[axis] if len(port.dims) > axis else None
        if length and length > before and (length - before) % POINT_NUMBERS == 0:
            return (length - before) // POINT_NUMBERS, POINT_NUMBERS
    return POINTS, POINT_NUMBERS


def attributes_of(outputs: Sequence[Output]) -> tuple[Attribute, ...]:
    """The named parts of the answer of several outputs, or of one with on and off names.

    Raises:
        ValueError: what is said of them does not suffice, or a name is there twice.
    """
    if len(outputs) == 1 and outputs[0].method != "compound":
        return ()
    found = [part for output in outputs for layer in output.layers or ("",) for part in _parts(output, layer)]
    for output in outputs:
        if not output.names:
            raise ValueError(f"{output.title} has no labels, as an attribute needs them")
        if len(outputs) > 1 and not output.layers:
            raise ValueError(f"{output.title} has no layer_name, as each of several outputs needs it")
    for name, times in Counter(one.name for one in found).items():
        if times > 1:
            raise ValueError(f"more than one attribute is called {name}: each needs an attribute_name")
    return tuple(found)


def _parts(output: Output, layer: str) -> Iterator[Attribute]:
    threshold = DEFAULT_THRESHOLD if output.threshold < 0 else output.threshold
    if output.method == "softmax_multi":
        raise ValueError(f"{output.title} has the method softmax_multi, which only one output may have")
    if output.method not in ("compound", "multi"):
        name = output.attribute_name or layer
        activation = METHODS.get(output.method, "none")
        yield Attribute(name=name, output=layer, labels=output.names, activation=activation)
        return
    step = 2 if output.method == "compound" else 1
    for column in range(len(output.names) // step):
        on, off = (*output.names[column * step : (column + 1) * step], "")[:2]
        if on or off:  # a number without a name is left out, as by DL Streamer
            yield Attribute(
                name="/".join(part for text in (on, off) if (part := text.strip(" :"))) or on or off,
                output=layer,
                labels=(on or f"not {off}", off or f"not {on}"),
                start=column,
                stop=column + 1,
                activation="none",
                threshold=threshold,
            )
