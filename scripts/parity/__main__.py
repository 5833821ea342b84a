"""Is what is served equal to torchvision? Pixels and answers of many models, side by side with torchvision by
hand.

    python -m scripts.parity                             all models, about a quarter of an hour on one core
    python -m scripts.parity --quick                     a small model a task, under a minute
    python -m scripts.parity --task detection            one task
    python -m scripts.parity --model r3d_18 swin_t       these models
    python -m scripts.parity --write                     all, and write docs/parity.md

Exit code 1 where a bar is missed. Weights are random and seeded, nothing is downloaded.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pipelines.models.spec import TaskName
from pipelines.protocol.options import Options
from scripts import ROOT
from scripts.parity.answers import compare_answers, compare_pixels
from scripts.parity.clips import claimed_rate, resampled, served_index
from scripts.parity.measures import Measure, Row
from scripts.parity.media import decode, materials, present
from scripts.parity.report import FILE, Report, render
from scripts.parity.subject import subject

SEVERAL = Options(stride=12, max_frames=5)
FEW = Options(stride=12, max_frames=2)
ONE = Options(stride=12, max_frames=1)
PICTURES = (
    "baboon_1280px.jpg",
    "monkey_1920px.jpg",
    "odd 643x361",
    "portrait 359x641",
    "tiny 8x8",
    "4K",
    "grey",
    "alpha",
)
HEAVY = ("sintel_h264_720p.mp4", "portrait 359x641", "grey", "10 bits")
# Not the test patterns, nor a film that begins with a still title: where a picture is flat, neighbouring
# anchors are equally good, and which of them an R-CNN proposes is decided by rounding.
LIVELY = (*PICTURES, "sintel_h264_720p.mp4", "dog_h264_464p.mp4", "10 bits", "portrait video", "turned video")
# One video of many clips, one with few frames, turned, upright, of ten bits, and one slower than the model
# wants.
CLIPS = ("nasa_h264_two_streams.mp4", "dog_h264_464p.mp4", "turned video", "10 bits")
# Rates that torchvision's video weights were trained with, and one above those of most videos.
RATES = (7.5, 15.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A model, its media (all of them without names) and what is selected of each."""

    model: str
    task: TaskName
    media: tuple[str, ...] = ()
    select: Options = SEVERAL
    quick: bool = False


PLANS = (
    Plan(model="resnet18", task="classification", quick=True),
    Plan(model="resnet50", task="classification", select=FEW),
    Plan(model="mobilenet_v3_small", task="classification"),
    Plan(model="mobilenet_v3_large", task="classification"),
    Plan(model="efficientnet_b0", task="classification", select=FEW),
    Plan(model="efficientnet_b1", task="classification", select=FEW),
    Plan(model="swin_t", task="classification", select=FEW),
    Plan(model="vit_b_16", task="classification", select=ONE),
    Plan(model="convnext_tiny", task="classification", select=ONE),
    Plan(model="ssdlite320_mobilenet_v3_large", task="detection", select=FEW, quick=True),
    Plan(model="fasterrcnn_mobilenet_v3_large_320_fpn", task="detection", media=LIVELY, select=FEW),
    Plan(model="retinanet_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="fcos_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="maskrcnn_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="keypointrcnn_resnet50_fpn", task="detection", media=HEAVY, select=ONE),
    Plan(model="lraspp_mobilenet_v3_large", task="segmentation", select=FEW, quick=True),
    Plan(model="deeplabv3_mobilenet_v3_large", task="segmentation", select=ONE),
    Plan(model="fcn_resnet50", task="segmentation", media=HEAVY, select=ONE),
    Plan(model="r3d_18", task="action", media=CLIPS, select=Options(max_frames=48), quick=True),
    Plan(model="mc3_18", task="action", media=CLIPS, select=Options(max_frames=32)),
    Plan(model="r2plus1d_18", task="action", media=CLIPS, select=Options(max_frames=32)),
    Plan(model="s3d", task="action", media=CLIPS[:1], select=Options(max_frames=128)),
    Plan(model="swin3d_t", task="action", media=CLIPS[:2], select=Options(max_frames=32)),
    Plan(model="mvit_v2_s", task="action", media=CLIPS[:2], select=Options(max_frames=16)),
)
QUICK_MEDIA: dict[TaskName, tuple[str, ...]] = {
    "classification": (*PICTURES[:5], *PICTURES[6:], "dog_h264_464p.mp4", "10 bits"),
    "detection": ("baboon_1280px.jpg", "portrait 359x641", "tiny 8x8", "10 bits"),
    "segmentation": ("portrait 359x641", "grey", "10 bits"),
    "action": ("turned video", "10 bits"),
}


def run_plan(plan: Plan, *, quick: bool = False) -> tuple[Row, Row]:
    """A model's rows: of pixels, of answers."""
    media = [one for one in present(*plan.media) if one.kind == "video" or plan.task != "action"]
    if quick:
        media = present(*QUICK_MEDIA[plan.task])
    with subject(plan.model) as both:
        pixels = compare_pixels(both, media, FEW if plan.task == "action" else plan.select)
        return pixels, compare_answers(both, media, plan.select)


def clip_rows() -> Iterator[Row]:
    """Which frames make clips, at each rate: the server's, and `VideoClips._resample_video_idx` of
    torchvision's.
    """
    for material in materials():
        if material.kind != "video" or material.missing:
            continue
        count, rate = len(decode(material, Options())), claimed_rate(material)
        other, more = [], []
        for wanted in RATES:
            theirs, ours = resampled(count, rate, wanted), served_index(material, wanted)
            other.append(int((ours[: len(theirs)] != theirs).sum()) if len(ours) >= len(theirs) else count)
            more.append(len(ours) - len(theirs))
        measures = tuple(
            Measure(name=f"other frames at {wanted:g}/s", value=value, bar=0, digits=0)
            for wanted, value in zip(RATES, other, strict=True)
        )
        surplus = Measure(name="frames behind torchvision's last", value=max(more), bar=1, digits=0)
        yield Row(model=material.name, media=(material.name,), frames=count, measures=(*measures, surplus))


def chosen(names: Sequence[str], task: str | None, *, quick: bool) -> list[Plan]:
    """The plans of these models, or of the task, or all. Raises SystemExit at an unknown model."""
    known = {plan.model: plan for plan in PLANS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: no plan for {', '.join(unknown)}; there are: {', '.join(known)}")
    plans = [known[name] for name in names] if names else [plan for plan in PLANS if plan.quick or not quick]
    return [plan for plan in plans if task in (None, plan.task)]


def run(plans: Sequence[Plan], *, quick: bool) -> Report:
    """All rows; a line is printed for each as it is found."""
    torch.set_num_threads(1)
    report = Report(missing=[one.name for one in materials() if one.missing])
    for plan in plans:
        began = time.monotonic()
        pixels, answers = run_plan(plan, quick=quick)
        report.add(plan.task, pixels, answers)
        for kind, row in (("pixels", pixels), ("answers", answers)):
            shown = ", ".join(f"{one.name} {one.value:.4g}" for one in row.measures if np.isfinite(one.value))
            print(f"{'ok   ' if row.passed else 'FAILS'} {plan.model} {kind}: {shown}", flush=True)
        print(f"      {time.monotonic() - began:.0f} s", flush=True)
    if any(plan.task == "action" for plan in plans):
        report.clips = list(clip_rows())
    return report


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["classification", "detection", "segmentation", "action"])
    parser.add_argument("--model", nargs="+", default=[], metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="a small model a task, a few media")
    parser.add_argument(
        "--write", action="store_true", help=f"write {FILE.relative_to(ROOT)}; of a whole run only"
    )
    options = parser.parse_args(argv)
    if options.write and (options.task or options.model or options.quick):
        parser.error("--write goes with a whole run alone")
    report = run(chosen(options.model, options.task, quick=options.quick), quick=options.quick)
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
