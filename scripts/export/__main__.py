"""Exports models to ONNX and proves the files against torch with ONNX Runtime and OpenCV's DNN module.

    python -m scripts.export resnet50 r3d_18 --output out/onnx --opset 18 --report onnx.md
    python -m scripts.export --all-tutorial --weights random --output out/onnx --report-only

MODEL is a torchvision name; weights of your own come with `--weights FILE`. A file that is written says how
its pixels are prepared, so `server.py --model out/onnx/resnet50.onnx` is enough. Exits with 1 if any model
misses the bar that the report states.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.models.export import FAILURES
from pipelines.models.onnx_runtime import one_line
from pipelines.models.spec import ModelSpec
from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.facts import MODEL_FACTS_KEY, facts_to_json
from scripts.export.checks import Sample, check_onnxruntime, samples
from scripts.export.graph import Exporter, Plain, Way, describe, spell_out, write_graph
from scripts.export.report import Row, write_report
from scripts.parity.subject import tame

# Of its tutorial "Conversion of PyTorch Classification Models and Launch with OpenCV Python".
TUTORIAL = (
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("squeezenet1_0", "squeezenet1_1", "resnext50_32x4d", "resnext101_32x8d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
PACKAGES = ("torch", "torchvision", "onnx", "onnxscript", "onnxruntime", "opencv-python-headless")
# A detector of any size is exported for frames of 4:3, in whole strides of its pyramid.
ASPECT, STRIDE_PX = 4 / 3, 32
REASON_CHARS = 140


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """A file that was written and agrees with torch under ONNX Runtime.

    Attributes:
        known: the pictures that it was compared on, with torch's answers.
        row: of the report; its notes say why the file was not exported in the first way that was tried.
    """

    path: Path
    known: Sequence[Sample]
    row: Row


def export_model(
    spec: ModelSpec, path: Path, *, opset: int | None = None, ways: Sequence[Way] = ()
) -> Exported:
    """Export the network of `spec` to `path` with its facts, in the first of `ways` that agrees with torch.

    Args:
        opset: of ONNX's operators; None: the exporter's own.
        ways: what to try; empty: both exporters with a free batch, then both with a fixed one.

    Raises:
        ModelUnavailable: no way leads to a file that agrees.
    """
    spec = _with_fixed_size(spec) if spec.task == "detection" else spec
    network = spec.build().eval().requires_grad_(requires_grad=False)
    known = samples(spec, network)
    spell_out(network)
    plain = Plain(network, spec.task)
    facts = {MODEL_FACTS_KEY: facts_to_json(spec), "labels": "\n".join(spec.labels)}
    notes: list[str] = []
    for way in ways or _ways(spec):
        try:
            write_graph(plain, known[0].pixels, path, way, opset)
            written = describe(path, facts)
            agreement = check_onnxruntime(path, known, spec)
        except (*FAILURES, ModelUnavailable) as error:
            notes.append(f"{way}: {_reason(error)}")
            continue
        if agreement.good:
            row = Row(
                model=spec.name,
                task=spec.task,
                good=True,
                exporter=way.exporter,
                opset=written,
                dynamic_batch=0 in way.free,
                input=way.shape_of(known[0].pixels),
                size_mb=sum(one.stat().st_size for one in _files(path)) / 1e6,
                ort_max_delta=agreement.max_delta,
                ort_relative=agreement.relative,
                top1_equal=agreement.top1,
                notes=tuple(notes),
            )
            return Exported(path=path, known=known, row=row)
        notes.append(f"{way}: differs by {agreement.max_delta:.1e} from torch")
    raise ModelUnavailable(f"{spec.name} cannot be exported: {'; '.join(notes)}", hint="try another --opset")


def _ways(spec: ModelSpec) -> list[Way]:
    if spec.task == "detection":
        # torch.export (2.10) stops at the suppression of boxes, whose number it cannot know.
        return [Way(exporter="TorchScript", free={})]
    free = {} if spec.preprocessing.fixed_hw or spec.clip else {2: "height", 3: "width"}
    exporters: tuple[Exporter, ...] = ("torch.export", "TorchScript")
    dynamic = [Way(exporter=exporter, free={0: "batch", **free}) for exporter in exporters]
    return [*dynamic, *(Way(exporter=exporter, free=free) for exporter in exporters)]


def _with_fixed_size(spec: ModelSpec) -> ModelSpec:
    """Frames are fitted into one size; bars of the mean colour replace those that torchvision adds."""
    short = spec.preprocessing.resize_px
    if not isinstance(short, int):
        return spec
    rows, columns = (-(-int(side) // STRIDE_PX) * STRIDE_PX for side in (short, short * ASPECT))
    grey = round(255 * sum(spec.preprocessing.mean) / 3)
    fixed = replace(
        spec.preprocessing, resize_px=(rows, columns), max_px=None, fit="letterbox", pad_value=grey
    )
    return replace(spec, preprocessing=fixed)


def _reason(error: Exception) -> str:
    """One line: the exporters' messages are long, and theirs names the cause behind a headline."""
    found = re.search(r"<class '[\w.]*?(\w+)'>: (.+)", str(error))
    line = f"{found[1]}: {found[2]}" if found else f"{type(error).__name__}: {one_line(error)}"
    return line if len(line) <= REASON_CHARS else f"{line[:REASON_CHARS]}…"


def _files(path: Path) -> list[Path]:
    """What an export has written: weights that are too large for one file stand in another."""
    return [one for one in (path, path.with_name(f"{path.name}.data")) if one.is_file()]


def examine(name: str, args: argparse.Namespace) -> Row:
    """Export and check one model: its row of the report. Deletes the file with --report-only."""
    from pipelines.settings.model import ModelSettings
    from pipelines.zoo import resolve

    path: Path = args.output / f"{Path(name).stem.rpartition('.')[2]}.onnx"
    task, label = "", path.stem
    try:
        spec = resolve(ModelSettings(source=name, weights=args.weights), allow_code=False)
        task, label = spec.task, spec.name
        if args.weights == "random":
            network = spec.build().eval()
            tame(network, spec)
            spec = replace(spec, build=lambda: network)
        exported = export_model(spec, path, opset=args.opset)
        return replace(_with_opencv(exported), weights=args.weights)
    except ModelUnavailable as error:
        return Row(model=label, task=task, weights=args.weights, good=False, notes=(str(error),))
    finally:
        if args.report_only:
            for written in _files(path):
                written.unlink()


def _with_opencv(exported: Exported) -> Row:
    """The row with what OpenCV makes of the file."""
    from scripts.export.opencv import check_opencv

    opencv, note = check_opencv(exported.path, exported.known)
    agreed = opencv is not None and opencv.good
    return replace(
        exported.row,
        good=agreed or exported.row.model not in TUTORIAL,
        opencv_max_delta=opencv.max_delta if opencv else None,
        notes=(*exported.row.notes, *([f"OpenCV: {note}"] if note else [])),
    )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--all-tutorial", action="store_true", help="also the sixteen of OpenCV's tutorial")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--weights", default="DEFAULT", help="DEFAULT, random, a file, or a name of their enum"
    )
    parser.add_argument("--opset", type=int, metavar="N", help="default: the exporter's own")
    parser.add_argument("--report", type=Path, metavar="FILE.md", help="default: DIR/report.md")
    parser.add_argument(
        "--report-only", action="store_true", help="delete each .onnx file once it is checked"
    )
    args = parser.parse_args(argv)
    args.models += TUTORIAL if args.all_tutorial else ()
    if not args.models:
        parser.error("name a model, or --all-tutorial")
    return args


def main(argv: Sequence[str]) -> int:
    """Export and report; a row is written as soon as its model is done."""
    args = _arguments(argv)
    args.output.mkdir(parents=True, exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    command = " ".join(["python -m scripts.export", *argv])
    rows = []
    for name in args.models:
        rows.append(examine(name, args))
        print(rows[-1].line(), flush=True)
        report = args.report or args.output / "report.md"
        write_report(rows, report, args.output / "report.json", command, versions)
    return 0 if all(row.good for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
