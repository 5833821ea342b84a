"""Is what is served equal to torchvision? Pixels and answers of many models, beside torchvision's by hand.

    python -m scripts.parity                             all models, about a quarter of an hour on one core
    python -m scripts.parity --quick                     a small model a task, a minute or two
    python -m scripts.parity --task detection            one task
    python -m scripts.parity --model r3d_18 swin_t       these models
    python -m scripts.parity --write                     all, and write docs/parity.md

Exit code 1 where a bar is missed. Weights are random and seeded, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pipelines.models.spec import TaskName
from pipelines.protocol.options import Options
from scripts import ROOT
from scripts.parity.answers import compare_answers, compare_pixels
from scripts.parity.clips import compare_frames
from scripts.parity.measures import Row
from scripts.parity.media import Material, present
from scripts.parity.report import FILE, TASKS, Report, render
from scripts.parity.subject import Subject, subject

SEVERAL = Options(stride=12, max_frames=5)
FEW = Options(stride=12, max_frames=2)
ONE = Options(stride=12, max_frames=1)
REAL = ("baboon_1280px.jpg", "monkey_1920px.jpg")
SMALL = ("odd 643x361", "portrait 359x641", "tiny 8x8", "grey", "alpha")
HEAVY = ("sintel_h264_720p.mp4", "portrait 359x641", "grey", "10 bits")
# Not the test patterns, nor a film that begins with a still title: where a picture is flat, neighbouring
# anchors are equally good, and which of them an R-CNN proposes is decided by rounding.
FILMS = ("sintel_h264_720p.mp4", "dog_h264_464p.mp4", "10 bits", "portrait video", "turned video")
LIVELY = (*REAL, "4K", *SMALL, *FILMS)
# Of many clips, with few frames, turned, and of ten bits.
CLIPS = ("nasa_h264_two_streams.mp4", "dog_h264_464p.mp4", "turned video", "10 bits")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model, its media (all of them without names) and what is selected of each."""

    model: str
    task: TaskName
    media: tuple[str, ...] = ()
    select: Options = SEVERAL

    @property
    def materials(self) -> list[Material]:
        """Those of the media that are there, and that the task takes."""
        return [one for one in present(*self.media) if one.kind == "video" or self.task != "action"]


PLANS = (
    Plan(model="resnet18", task="classification"),
    Plan(model="resnet50", task="classification", select=FEW),
    Plan(model="mobilenet_v3_small", task="classification"),
    Plan(model="mobilenet_v3_large", task="classification"),
    Plan(model="efficientnet_b0", task="classification", select=FEW),
    Plan(model="efficientnet_b1", task="classification", select=FEW),
    Plan(model="swin_t", task="classification", select=FEW),
    Plan(model="vit_b_16", task="classification", select=ONE),
    Plan(model="convnext_tiny", task="classification", select=ONE),
    Plan(model="ssdlite320_mobilenet_v3_large", task="detection", select=FEW),
    Plan(model="fasterrcnn_mobilenet_v3_large_320_fpn", task="detection", media=LIVELY, select=FEW),
    Plan(model="retinanet_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="fcos_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="maskrcnn_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="keypointrcnn_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="lraspp_mobilenet_v3_large", task="segmentation", select=FEW),
    Plan(model="deeplabv3_mobilenet_v3_large", task="segmentation", select=ONE),
    Plan(model="fcn_resnet50", task="segmentation", media=HEAVY, select=ONE),
    Plan(model="r3d_18", task="action", media=CLIPS, select=Options(max_frames=48)),
    Plan(model="mc3_18", task="action", media=CLIPS, select=Options(max_frames=32)),
    Plan(model="r2plus1d_18", task="action", media=CLIPS, select=Options(max_frames=32)),
    Plan(model="s3d", task="action", media=CLIPS[:1], select=Options(max_frames=128)),
    Plan(model="swin3d_t", task="action", media=CLIPS[:2], select=Options(max_frames=32)),
    Plan(model="mvit_v2_s", task="action", media=CLIPS[:2], select=Options(max_frames=16)),
)
# A small model a task, and a few media.
QUICK_MEDIA = {
    "resnet18": (*REAL, *SMALL, "dog_h264_464p.mp4", "10 bits"),
    "ssdlite320_mobilenet_v3_large": ("baboon_1280px.jpg", "portrait 359x641", "tiny 8x8", "10 bits"),
    "lraspp_mobilenet_v3_large": ("portrait 359x641", "grey", "10 bits"),
    "r3d_18": ("turned video", "10 bits"),
}
QUICK = [replace(plan, media=QUICK_MEDIA[plan.model]) for plan in PLANS if plan.model in QUICK_MEDIA]


def compare(both: Subject, plan: Plan) -> tuple[Row, Row]:
    """A model's rows: of pixels, of answers."""
    media = plan.materials
    pixels = compare_pixels(both, media, FEW if plan.task == "action" else plan.select)
    return pixels, compare_answers(both, media, plan.select)


def chosen(names: Sequence[str], task: str | None, *, quick: bool) -> list[Plan]:
    """The plans of these models, or of the task, or all. Raises SystemExit at an unknown model."""
    known = {plan.model: plan for plan in (QUICK if quick else PLANS)}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: no plan for {', '.join(unknown)}; there are: {', '.join(known)}")
    return [known[name] for name in names or known if task in (None, known[name].task)]


def run(plans: Sequence[Plan]) -> Report:
    """All rows; a line is printed for each as it is found."""
    torch.set_num_threads(1)
    report = Report()
    for plan in plans:
        began = time.monotonic()
        with subject(plan.model) as both:
            pair = compare(both, plan)
        report.pairs.setdefault(plan.task, []).append(pair)
        for kind, row in zip(("pixels", "answers"), pair, strict=True):
            shown = ", ".join(f"{one.name} {one.value:.4g}" for one in row.measures)
            print(f"{'FAILS' if row.missed else 'ok   '} {plan.model} {kind}: {shown}", flush=True)
        print(f"      {time.monotonic() - began:.0f} s", flush=True)
    if "action" in report.pairs:
        report.clips = [compare_frames(one) for one in present() if one.kind == "video"]
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a small model a task, a few media")
    page = FILE.relative_to(ROOT)
    parser.add_argument("--write", action="store_true", help=f"write {page}; of a whole run only")
    options = parser.parse_args(argv)
    if options.write and (options.task or options.model or options.quick):
        parser.error("--write goes only with a whole run")
    report = run(chosen(options.model, options.task, quick=options.quick))
    text = render(report)
    if options.write:
        FILE.write_text(text, encoding="utf-8")
    else:
        print(text)
    for line in report.missed:
        print(f"missed: {line}", file=sys.stderr)
    return 1 if report.missed else 0


if __name__ == "__main__":
    sys.exit(main())
