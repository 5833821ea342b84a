"""docs/parity.md from the rows of a parity run. Knows no models, but how to word what was done with them."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass, field

from pipelines.models.spec import TaskName
from scripts import ROOT
from scripts.parity.measures import Row, table
from scripts.parity.media import materials
from scripts.parity.subject import MBCONV_WEIGHT, RESIDUAL_WEIGHT

FILE = ROOT / "docs" / "parity.md"
PACKAGES = ("torch", "torchvision", "nvidia-dali-cuda120", "av", "pillow", "numpy")
TASK_ORDER: tuple[TaskName, ...] = ("classification", "detection", "segmentation", "action")
HEAD = """# Parity with torchvision

Made by `python -m scripts.parity --write`; do not edit. Exit code 1 and **fails** below mean that a bar
was missed.

Both sides decode with the server's decoder (PyAV, Pillow). *Served* is `Pipeline.run`: bytes in,
preprocessing, batched model, postprocessing, answer out. *By hand* is torchvision alone, a frame at a
time: `weights.transforms()` on the frame as a Pillow picture (for clips, and for boxes, whose presets
leave the size alone, as a uint8 tensor), then `torchvision.models.get_model(…)` with the same state dict.

Weights are `random` with seed 0, batch-norm statistics calibrated on drawn pictures. What that cannot
show is how good a model is; what it does show is whether the same pixels go in and the same answer comes
out. Networks with random weights amplify rounding more than trained ones (with EfficientNet-B0's as
torchvision draws them, changing one pixel in a thousand by one level moves torchvision's own answer by
0.02). So the last norm of each residual branch of convolutions is {residual:g}, of EfficientNets
{mbconv:g} (torchvision: 1; its `zero_init_residual`: 0), and heads are scaled so that scores spread and
class maps have regions. It is done once, before the weights are copied to the other side.

{versions}. One thread, fp32, on a CPU.

Media: {media}.{missing}
"""
TEXTS: dict[TaskName, str] = {
    "classification": """All probabilities of all frames. A run is not degenerate if more than one class
wins.""",
    "detection": """The threshold of each medium lies between two of torchvision's scores so that 20 boxes
a frame, on average, are above it; a box nearer to it than 0.001 may be on either side. Boxes without any
area, which torchvision keeps and the server leaves out, do not count. Boxes are paired by class and
overlap; *missing* is a box of torchvision's without any of its class that overlaps by half, *surplus* one
of ours that is left over. Masks are compared as binary masks of the source's size, keypoints in source
pixels. R-CNNs are not asked about test patterns and still titles: in flat pictures neighbouring anchors
are equally good, and rounding decides which one is proposed. torchvision against itself, with noise of
0.005 levels of 255 on its pixels, then gives only 62 to 79 % of its boxes again
(`fasterrcnn_mobilenet_v3_large_320_fpn` on the three media left out; 100 % on the dog).""",
    "segmentation": """torchvision's answer has the size of the resized frame. Its winners are enlarged to
the source by the nearest pixel, which is how the server defines its class map; all source pixels are
compared. *Classes a frame* cover over half a per cent of it.""",
    "action": """Clips as torchvision's `VideoClips` cuts them: frames by `_resample_video_idx` at the
rate of the weights, one clip behind the other. *Equal pixels*: both networks are fed the same tensor;
largest difference by largest logit.""",
}
PIXELS = """### Pixels

Distances in levels of 255 before normalization: the mean and the 99.9th percentile, of the worst medium.
The last number is how far torchvision's own PIL and tensor paths lie apart{note}. """
CLIPS = """### Which frames make clips

The server takes the frame that is shown at each time k/rate; torchvision cuts the number of frames down
to a whole one, so the server may have one frame more at the end. """


@dataclass(slots=True, eq=False)
class Report:
    """All rows of a run, by task; `missing` are media that were not there."""

    pixels: dict[TaskName, list[Row]] = field(default_factory=dict)
    answers: dict[TaskName, list[Row]] = field(default_factory=dict)
    clips: list[Row] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def add(self, task: TaskName, pixels: Row, answers: Row) -> None:
        """A model's rows."""
        self.pixels.setdefault(task, []).append(pixels)
        self.answers.setdefault(task, []).append(answers)

    @property
    def missed(self) -> list[str]:
        """A line for each bar that was missed."""
        groups = [*self.pixels.values(), *self.answers.values(), self.clips]
        return [f"{row.model}: {line}" for rows in groups for row in rows for line in row.missed]


def render(report: Report) -> str:
    """The whole page."""
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    missing = f" Not there, so left out: {', '.join(report.missing)}." if report.missing else ""
    media = ", ".join(one.name for one in materials() if not one.missing)
    head = HEAD.format(
        residual=RESIDUAL_WEIGHT,
        mbconv=MBCONV_WEIGHT,
        versions=f"Python {platform.python_version()}, {versions}",
        media=media,
        missing=missing,
    )
    parts = [head]
    for task in TASK_ORDER:
        if task in report.answers:
            parts.append(f"## {task.capitalize()}\n\n{TEXTS[task]}\n\n{table(report.answers[task])}\n")
            note = "; the preset of video takes tensors alone" if task == "action" else ""
            parts.append(f"{PIXELS.format(note=note)}\n{table(report.pixels[task])}\n")
    if report.clips:
        parts.append(f"{CLIPS}\n{table(report.clips, first='video')}\n")
    return "\n".join(parts)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "?"
