"""Loading a model with the engine that its spec asks for, and the proof that it answers as torch in fp32.

An engine, or a lower precision, serves only if it agrees with plain torch on pictures of blurred noise. At
least 99.5 % of the winners of frames (segmentation: of pixels), or of the boxes, must be the same. In fp32
all numbers must agree too, to a thousandth of their spread. `auto` is the fastest engine that agrees. Knows
no media, and not how a network is computed.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model_inference import Model
from pipelines.loading.agreement import agreeing, deviation, example_pixels
from pipelines.loading.race import fastest
from pipelines.models.export import FAILURES, ExportedRunner, exported
from pipelines.models.onnx_runtime import OnnxGraph, has_cuda, one_line
from pipelines.models.openvino_runtime import OpenvinoGraph
from pipelines.models.outputs import Output
from pipelines.models.spec import Engine, ModelSpec
from pipelines.models.torch_runtime import Foreign, GraphRunner, Runner, TorchRunner, bucket_sizes
from pipelines.protocol.errors import ModelUnavailable

log = logging.getLogger("trivid")

LEAST_AGREEMENT = 0.995
# The bound for the numbers of an engine that computes in fp32, as torch does.
MOST_DEVIATION = 1e-3
# Pictures to test another precision; and small batches to test another engine, whose numbers must agree too.
PICTURES = 32
FEW, FEW_CLIPS = (4, 3, 1), (3, 1)
OTHER_SIZE_PX = (160, 288)

Makers = Mapping[str, Callable[[], Runner]]


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """Pixels, and what the first engine, torch in fp32, gave for them: from the layers, and as outputs."""

    engine: str
    pixels: Sequence[Tensor]
    given: Sequence[Any]
    outputs: Sequence[Output]


Ask = Callable[[], _Known]


def load_model(spec: ModelSpec, device: str, threads: int = 0) -> Model:
    """The model with the engine and precision that its spec asks for; its own spec names what runs.

    Args:
        device: `cpu` or `cuda`.
        threads: how many the process's models may use on the CPU; 0: torch's own number.

    Raises:
        ModelUnavailable: as for `Model`; or what is asked for fails, or answers unlike torch in fp32.
    """
    model = Model(spec, device, threads)
    spec = _with_lengths(model, spec)
    torch_runner = model.runner
    if not isinstance(torch_runner, TorchRunner):
        return model
    plain = torch_runner
    shapes = _few_shapes(spec) if spec.precision == "fp32" else _all_shapes(spec)
    known = functools.cache(lambda: _known(model, plain, shapes))
    # A file that another engine runs only looks like a torch network.
    if isinstance(plain.layers, Foreign):
        _load_foreign(model, spec, plain, plain.layers, known)
        return model
    if spec.precision != "fp32":
        torch_runner = TorchRunner(plain.layers, model.device, precision=spec.precision, lanes=plain.lanes)
    makers = _makers(model, spec, torch_runner)
    if spec.engine in ("compile", "onnxruntime", "openvino"):
        _demand(model, spec, makers, known)
    else:
        _choose(model, spec, torch_runner, makers, known)
    return model


def _load_foreign(model: Model, spec: ModelSpec, plain: TorchRunner, layers: Foreign, known: Ask) -> None:
    """Run a file's graph with the engine asked for, or with the fastest that agrees with its first."""
    if spec.engine not in ("auto", *layers.engines):
        only = " or ".join(layers.engines)
        raise ModelUnavailable(f"{spec.name} runs only with {only}", hint=f"leave out --engine {spec.engine}")
    if spec.precision != "fp32":
        raise ModelUnavailable(
            f"{spec.name} computes in the precision of its file, not in {spec.precision}",
            hint="leave out --precision",
        )

    def maker(engine: Engine) -> Callable[[], Runner]:
        return lambda: TorchRunner(layers.by(engine), model.device)

    others: dict[str, Callable[[], Runner]] = {engine: maker(engine) for engine in layers.engines[1:]}
    if spec.engine in others:
        _demand(model, spec, {spec.engine: others[spec.engine]}, known)
    elif spec.engine == "auto" and model.device.type == "cpu":
        _choose(model, spec, plain, others, known)


def _with_lengths(model: Model, spec: ModelSpec) -> ModelSpec:
    """The spec, and the model's own, with `clip.fixed` if the network takes clips of only one length."""
    if spec.clip is None or spec.clip.fixed:
        return spec
    try:
        model(next(example_pixels([_other_length(spec, spec.example_shape())])))
    except Exception as error:  # noqa: BLE001 - a saved program may raise anything
        log.info(
            "%s takes clips of %d frames only: %s",
            spec.name,
            spec.clip.length,
            one_line(error) or type(error),
        )
        clip = replace(spec.clip, fixed=True)
        spec, model.spec = replace(spec, clip=clip), replace(model.spec, clip=clip)
    return spec


def _other_length(spec: ModelSpec, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a batch of clips with about half of the frames."""
    return (*shape[:2], (shape[2] + 1) // 2 if shape[2] > 1 else 2, *shape[3:])


def _makers(model: Model, spec: ModelSpec, torch_runner: TorchRunner) -> Makers:
    """What may replace torch, by name: the one engine asked for, or all that may be faster here."""
    layers, device = torch_runner.layers, model.device
    buckets = bucket_sizes(spec.max_batch)

    def compiled() -> Runner:
        return TorchRunner(layers, device, precision=spec.precision, compiled_for=buckets)

    def graphs() -> Runner:
        return GraphRunner(torch_runner, [spec.example_shape(count) for count in buckets], device)

    free = _free_dimensions(spec)

    @functools.cache
    def written() -> tuple[bytes, Any]:
        example = next(example_pixels([spec.example_shape(2)])).to(device)
        with torch.inference_mode():
            given = layers(example)
        return exported(layers, example, given, free=free), given

    def by_onnxruntime() -> Runner:
        if spec.precision != "fp32":
            raise ValueError(f"it computes in fp32, not in {spec.precision}")
        if device.type == "cuda" and not has_cuda():
            raise ValueError("the installed ONNX Runtime computes only on the CPU")
        graph, given = written()
        batches = None if free else (spec.example_shape(1), spec.example_shape(spec.max_batch))
        return ExportedRunner(OnnxGraph(graph, device, batches=batches), given)

    def by_openvino() -> Runner:
        if device.type == "cuda":
            raise ValueError("it computes only on the CPU")
        graph, given = written()
        return ExportedRunner(OpenvinoGraph(graph, spec.precision), given)

    foreign: Makers = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}
    if spec.engine == "compile":
        return {"compile": compiled}
    if spec.engine in foreign:
        return {spec.engine: foreign[spec.engine]}
    found: dict[str, Callable[[], Runner]] = {}
    if device.type == "cuda" and spec.preprocessing.fixed_hw:
        found["CUDA graphs"] = graphs
    if spec.engine == "auto" and spec.precision == "fp32" and (device.type != "cuda" or has_cuda()):
        found["onnxruntime"] = by_onnxruntime
    if spec.engine == "auto" and device.type == "cpu":
        found["openvino"] = by_openvino
    return found


def _free_dimensions(spec: ModelSpec) -> dict[int, str]:
    """Dimensions, besides the batch's own, in which the next batch may differ, by their place."""
    first = 3 if spec.clip else 2
    free = {} if spec.preprocessing.fixed_hw else {first: "height", first + 1: "width"}
    return {2: "frames", **free} if spec.clip and not spec.clip.fixed else free


def _demand(model: Model, spec: ModelSpec, makers: Makers, known: Ask) -> None:
    """Run with the one engine that was asked for."""
    for name, make in makers.items():
        try:
            _check(model, make(), known, spec)
        except FAILURES as error:
            raise ModelUnavailable(
                f"{spec.name} cannot run with engine {name}: {one_line(error)}",
                hint="leave out --engine; the server then picks one that works",
            ) from error


def _choose(model: Model, spec: ModelSpec, torch_runner: TorchRunner, makers: Makers, known: Ask) -> None:
    """Run with the fastest engine that agrees."""
    rivals: dict[str, Runner] = {torch_runner.engine: torch_runner} if spec.precision == "fp32" else {}
    faults: list[Exception] = []
    for name, make in {torch_runner.engine: lambda: torch_runner, **makers}.items():
        if name in rivals:  # all others are compared with it
            continue
        try:
            runner = make()
            _check(model, runner, known, spec)
        except (*FAILURES, ModelUnavailable) as error:
            log.info("%s: %s is left out: %s", spec.name, name, one_line(error))
            faults.append(error)
        else:
            rivals[name] = runner
    if not rivals:
        if isinstance(faults[0], ModelUnavailable):
            raise faults[0]
        raise ModelUnavailable(
            f"{spec.name} cannot run in {spec.precision}: {one_line(faults[0])}", hint="leave out --precision"
        ) from faults[0]
    model.run_by(rivals[fastest(model, spec, rivals) if len(rivals) > 1 else next(iter(rivals))])


def _check(model: Model, runner: Runner, known: Ask, spec: ModelSpec) -> None:
    """Let the model run with `runner`. Raises ModelUnavailable if it then answers differently."""
    plain = known()
    first = plain.engine
    model.run_by(runner)
    given = [model.compute(pixels) for pixels in plain.pixels]
    outputs = [model.read(one, pixels) for one, pixels in zip(given, plain.pixels, strict=True)]
    agreement = agreeing(plain.outputs, outputs)
    by = f"{spec.name} in {spec.precision} with {runner.engine}"
    if agreement < LEAST_AGREEMENT:
        raise ModelUnavailable(
            f"{by} agrees with {first} in only {100 * agreement:.2f} %, less than "
            f"{100 * LEAST_AGREEMENT:g} %",
            hint="leave out --precision and --engine",
        )
    if spec.precision == "fp32":
        worst = max(deviation(one, other) for one, other in zip(plain.given, given, strict=True))
        if not worst <= MOST_DEVIATION:
            raise ModelUnavailable(
                f"{by} gives numbers that differ from those of {first} by {worst:.1e} of their spread, over "
                f"{MOST_DEVIATION}",
                hint="leave out --engine",
            )


def _known(model: Model, plain: Runner, shapes: Sequence[tuple[int, ...]]) -> _Known:
    model.run_by(plain)
    pixels = list(example_pixels(shapes))
    given = [model.compute(batch) for batch in pixels]
    outputs = [model.read(one, batch) for one, batch in zip(given, pixels, strict=True)]
    return _Known("torch in fp32" if plain.engine == "torch" else plain.engine, pixels, given, outputs)


def _all_shapes(spec: ModelSpec) -> list[tuple[int, ...]]:
    starts = range(0, PICTURES, spec.max_batch)
    return [spec.example_shape(min(spec.max_batch, PICTURES - start)) for start in starts]


def _few_shapes(spec: ModelSpec) -> list[tuple[int, ...]]:
    """Batches of several counts, and of several sizes if they are free: a graph may fit only one of them."""
    counts = FEW_CLIPS if spec.clip else FEW
    shapes = [spec.example_shape(min(count, spec.max_batch)) for count in counts]
    if spec.preprocessing.fixed_hw is None:
        shapes[1] = (*shapes[1][:-2], *OTHER_SIZE_PX)
    if spec.clip and not spec.clip.fixed:
        shapes[1] = _other_length(spec, shapes[1])
    return shapes
