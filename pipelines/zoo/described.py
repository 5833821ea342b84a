"""A file's graph, what is beside it and what a user says → a draft that says all. Knows no formats.

What comes first counts: the user's own words, the model-proc file, the file's metadata, its shapes and
operators, and last the numbers that it gives for a picture. What is then still open is asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pipelines.models.graph import Dims, Graph
from pipelines.models.heads.identify import Identified, check, identify
from pipelines.models.outputs import named_tensors
from pipelines.models.spec import Channels, Head, Preprocessing
from pipelines.protocol.errors import ModelUnavailable
from pipelines.settings.model import ModelSettings
from pipelines.zoo.draft import Draft
from pipelines.zoo.files.input_form import InputForm, input_form
from pipelines.zoo.files.model_info import info_preprocessing
from pipelines.zoo.model_proc import ModelProc
from pipelines.zoo.pixels import BYTES, RANGES, UNIT


def described(draft: Draft, choice: ModelSettings, proc: ModelProc | None, labels: tuple[str, ...]) -> Draft:
    """The draft of a file without facts of its own, completed.

    Args:
        labels: those that the user or the model-proc file gives; empty: none.

    Raises:
        ModelUnavailable: the file is none that can be served, or does not say enough.
    """
    assert draft.graph is not None
    assert draft.open is not None
    name = draft.name
    grey = None if choice.channels is None else choice.channels == "GRAY"
    form = input_form(draft.graph, name, layout=choice.layout or "", grey=grey)
    size_hw = _size(choice, form, name)
    network = functools.cache(functools.partial(_opened, draft.open, form))
    graph = _shown(replace(draft.graph, run=_run(network, name)), size_hw)
    found = _identified(graph, choice, proc, labels, size_hw, name)
    if found.channels_last:
        form = replace(form, channels_last=(found.output,))
    size_hw = size_hw or found.size_hw
    alone = _one_at_a_time(network, found.head, graph, form, size_hw)
    form = replace(form, batch=1 if alone else form.batch)
    form = replace(form, apart=_apart(found.head, graph, form))
    pixels, assumed = _preprocessing(found, graph, form, size_hw, choice)
    if proc is not None:
        assumed = proc.left_out([port.name for port in graph.outputs]) if graph.outputs else ()
    assumed += (f"run one picture at a time: {alone}",) if alone else ()
    if found.head is not None and size_hw is not None and graph.outputs:
        demanded = bool(choice.head) or bool(proc and proc.has_head)
        fed = _fed(proc.preprocessing(size_hw, name) if proc else pixels, choice)
        assumed += check(found.head, graph, size_hw, found.labels, pixels=fed, demanded=demanded)
    whole = _completed(draft, found, form, pixels, size_hw, assumed)
    return replace(whole, score_threshold=_threshold(found, choice))


def _completed(
    draft: Draft,
    found: Identified,
    form: InputForm,
    pixels: Preprocessing | None,
    size_hw: tuple[int, int] | None,
    assumed: tuple[str, ...],
) -> Draft:
    """The draft with all that was found out."""
    assert draft.open is not None
    return replace(
        draft,
        task=found.task,
        build=functools.partial(draft.open, form),
        labels=found.labels,
        preprocessing=pixels,
        input_px=size_hw,
        max_batch=form.batch or draft.max_batch,
        head=found.head,
        output=found.output,
        activation=found.activation,
        multi_label=found.multi_label,
        attributes=found.attributes,
        keypoint_names=tuple(map(str, range(found.keypoints[0]))) if found.keypoints else (),
        licence=found.licence or draft.licence,
        assumed=(*draft.assumed, *found.assumed, *assumed),
    )


def _identified(
    graph: Graph,
    choice: ModelSettings,
    proc: ModelProc | None,
    labels: tuple[str, ...],
    size_hw: tuple[int, int] | None,
    name: str,
) -> Identified:
    """What the network is: as the user says, else the model-proc file, else as it shows itself."""
    task = choice.task
    if proc is not None and graph.outputs:
        proc.check_layers([port.name for port in graph.outputs])
        if proc.has_head and not choice.head and task in (None, "detection"):
            return Identified(task="detection", head=proc.head(graph), labels=labels)
        task = task or proc.task
        if proc.attributes:
            return Identified(task=task, attributes=proc.attributes)
    try:
        found = identify(
            graph,
            task=task,
            size_hw=size_hw,
            classes=len(labels),
            names=labels,
            wanted=choice.head or "",
            iou_threshold=choice.iou_threshold,
            output=choice.output or (proc.output if proc else ""),
        )
    except ModelUnavailable as error:
        raise ModelUnavailable(f"{name}: {error.message}", hint=error.hint) from error
    if task == "detection" and found.head is None:
        raise ModelUnavailable(
            f"{name} {graph}: none of the known forms of a detector's outputs",
            hint="--head says how to read them; or export it with boxes, labels and scores",
        )
    return replace(found, task=task or found.task)


def _threshold(found: Identified, choice: ModelSettings) -> float:
    """Of labels that only the network shows to be true at once, all are answered: see `docs/models.md`.

    A file's own threshold is not for the winner of a choice, which would then have no answer.
    """
    several = found.multi_label if choice.multi_label is None else choice.multi_label
    if found.score_threshold is not None and (found.task == "detection" or several):
        return found.score_threshold
    return 0.0 if found.multi_label else -1.0


def _size(choice: ModelSettings, form: InputForm, name: str) -> tuple[int, int] | None:
    """The height and width of the input that the user says, or else the file.

    Raises:
        ModelUnavailable: the file takes another size, and only that.
    """
    said = choice.crop_px or choice.resize_px
    if said and len(said) == len("hw"):
        if form.size_hw and tuple(said) != form.size_hw:
            only, wanted = ("x".join(map(str, sides)) for sides in (form.size_hw, said))
            wrong = f"{name} takes only pixels of {only}, not of {wanted}"
            raise ModelUnavailable(wrong, hint="leave out the size (--resize-px, crop_px)")
        return said[0], said[1]
    # One number is the shorter side; only a square is known to fit then.
    return form.size_hw or ((said[0], said[0]) if said and said[0] else None)


def _opened(open_network: Callable[[InputForm], nn.Module], form: InputForm) -> nn.Module:
    return open_network(form).eval().requires_grad_(requires_grad=False)


def _run(network: Callable[[], nn.Module], name: str) -> Callable[[Tensor], Mapping[str, Tensor]]:
    """The outputs by name for one picture or more, by a network that is opened when it is first needed."""

    def run(pixels: Tensor) -> Mapping[str, Tensor]:
        # Weights that are loaded in inference mode could not be used outside of it.
        opened = network()
        try:
            with torch.inference_mode():
                given = opened(pixels)
        except ModelUnavailable:
            raise
        except Exception as error:
            shape, lines = tuple(pixels.shape), str(error).strip().splitlines()
            wrong = f"{name} does not take pixels {shape}: {lines[-1] if lines else type(error).__name__}"
            raise ModelUnavailable(wrong, hint="check --resize-px, --layout and --channels") from error
        if isinstance(given, list) and given and isinstance(given[0], Mapping):
            return dict(given[0])
        return dict(named_tensors(given))

    return run


def _shown(graph: Graph, size_hw: tuple[int, int] | None) -> Graph:
    """The graph with the dimensions of outputs that its file does not tell, from a pass over one picture."""
    if size_hw is None or graph.run is None or (all(port.dims for port in graph.outputs) and graph.outputs):
        return graph
    if len(graph.inputs[0].dims) != len("NCHW"):
        return graph
    given = graph.run(torch.rand(1, 3, *size_hw, generator=torch.Generator().manual_seed(0)))
    known = {port.name: port for port in graph.outputs}
    ports = tuple(
        replace(
            known.get(name, graph.outputs[0] if graph.outputs else graph.inputs[0]),
            name=name,
            dtype=str(one.dtype).removeprefix("torch."),
            dims=(None, *one.shape[1:]) if len(one.shape) and one.shape[0] == 1 else tuple(one.shape),
            operator=known[name].operator if name in known else "",
        )
        for name, one in given.items()
    )
    return replace(graph, outputs=ports)


def _one_at_a_time(
    network: Callable[[], nn.Module],
    head: Head | None,
    graph: Graph,
    form: InputForm,
    size_hw: tuple[int, int] | None,
) -> str:
    """Why a network that seems to take any batch is run one picture at a time; empty: it need not be.

    Clips are not tried: how long they are is not known here.
    """
    without_row = "its outputs have no row for each picture"
    if form.batch is not None or len(form.layout) != len("NCHW"):
        return ""
    if size_hw is None:
        return without_row if _of_one_picture(head, {one.name: one.dims for one in graph.outputs}) else ""
    try:
        with torch.inference_mode():
            one, two = (network()(torch.rand(count, 3, *size_hw)) for count in (1, 2))
    except Exception as error:  # noqa: BLE001 - a program may raise anything at what it was not traced with
        lines = str(error).strip().splitlines()
        return f"it does not take two ({lines[-1][:200] if lines else type(error).__name__})"
    if isinstance(two, list) and two and isinstance(two[0], Mapping):
        return ""  # a mapping for each picture
    of_one, of_two = dict(named_tensors(one)), dict(named_tensors(two))
    if _of_one_picture(head, {name: tuple(tensor.shape) for name, tensor in of_one.items()}):
        return without_row
    joins = any(
        tensor.ndim > 1
        and len(tensor) == len(of_two[name]) == 1
        and tensor.shape[1:] != of_two[name].shape[1:]
        for name, tensor in of_one.items()
    )
    return without_row if joins else ""


def _of_one_picture(head: Head | None, dims: Mapping[str, Dims]) -> bool:
    """Whether the head's boxes `(D, 4)`, or `(M, 5)` with scores, are of one picture.

    Args:
        dims: of the outputs by name.
    """
    boxes: str | None = getattr(head, "boxes", None)
    if boxes is None or getattr(head, "numbers_pictures", False):
        return False
    read = [dims[boxes]] if boxes in dims else dims.values()
    return any(len(one) == 2 and one[-1] in (4, 5) for one in read)


def _apart(head: Head | None, graph: Graph, form: InputForm) -> bool:
    """Whether the outputs of pieces of a fixed batch are read piece by piece, as only heads can."""
    if form.batch is None or head is None:
        return False
    rows = all(port.dims and port.dims[0] == form.batch for port in graph.outputs)
    alone = _of_one_picture(head, {port.name: port.dims for port in graph.outputs})
    return alone or not rows or bool(getattr(head, "numbers_pictures", False))


def _fed(pixels: Preprocessing | None, choice: ModelSettings) -> Preprocessing | None:
    """How pixels are scaled in the end, with what the user says."""
    if pixels is None:
        return None
    said = choice.model_dump(include={"mean", "std"}, exclude_none=True)
    ranges = RANGES[choice.pixels] if choice.pixels is not None else {}
    return replace(pixels, **{**ranges, **said})


def _preprocessing(
    found: Identified, graph: Graph, form: InputForm, size_hw: tuple[int, int] | None, choice: ModelSettings
) -> tuple[Preprocessing | None, tuple[str, ...]]:
    """How the pixels are prepared where the user does not say it, and what of that is assumed."""
    if said := info_preprocessing(graph.metadata, size_hw):
        return said, ()
    if found.head is not None and size_hw is not None:
        return _usual_pixels(found.head, size_hw, graph, choice, form)
    levels: Mapping[str, Any] = BYTES if form.dtype == "uint8" else UNIT
    if graph.metadata.get("task") == "classify" and size_hw:
        # As Ultralytics prepares pictures for its classifiers.
        return Preprocessing(resize_px=size_hw[0], crop_px=size_hw, **levels), ()
    if size_hw is None and choice.resize_px is None:
        return None, ()
    # As DL Streamer feeds OpenVINO's files that say nothing.
    ir = choice.source.lower().endswith(".xml")
    levels = BYTES if ir else levels
    colours: Channels = "BGR" if ir and form.channels == 3 else "RGB"
    texts = []
    if choice.pixels is None and (choice.mean is None or choice.std is None):
        texts.append(f"values of {'0..255' if levels is BYTES else '0..1'} (--pixels)")
        if choice.channels is None and form.channels == 3:
            texts.append(f"{colours} (--channels)")
        if choice.fit is None and (choice.resize_px is None or len(choice.resize_px) == len("hw")):
            texts.append("stretched (fit in a settings file)")
    return Preprocessing(resize_px=size_hw, channels=colours, **levels), tuple(texts)


def _usual_pixels(
    head: Head, size_hw: tuple[int, int], graph: Graph, choice: ModelSettings, form: InputForm
) -> tuple[Preprocessing, tuple[str, ...]]:
    """How a head's family has its pixels, which a file that names its classes or strides need not say."""
    usual = head.pixels(size_hw)
    if form.dtype == "uint8":  # of 0..1 all would be black
        usual = replace(usual, **BYTES)
    if choice.pixels and not choice.channels and usual.channels == "BGR":
        return usual, (f"BGR, as is usual for {head.family} (--channels)",)
    if choice.pixels or graph.metadata.keys() & {"names", "stride"}:
        return usual, ()
    return usual, (f"pixels as is usual for {head.family} (--pixels, --channels)",)
