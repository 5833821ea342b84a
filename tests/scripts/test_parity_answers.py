"""The comparisons of python -m scripts.parity: quick plans pass, and whatever is wrong by a flag is seen."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.assembly import make_pipeline
from pipelines.models.spec import ModelSpec, TaskName
from pipelines.protocol.options import Options
from scripts.parity.__main__ import PLANS, QUICK, Plan, compare
from scripts.parity.answers import compare_answers, compare_pixels
from scripts.parity.clips import compare_frames
from scripts.parity.measures import Boxes, Matches, Measure, Row, table, winner_measures
from scripts.parity.media import Material, materials, present
from scripts.parity.report import FILE
from scripts.parity.subject import Subject, subject

SubjectOf = Callable[[TaskName], Subject]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def subject_of() -> Iterator[SubjectOf]:
    """The small model of a task, loaded once."""
    models = {plan.task: plan.model for plan in QUICK}
    with ExitStack() as stack:
        yield functools.cache(lambda task: stack.enter_context(subject(models[task])))


# What has to be compared at least, besides frames.
COUNTED: dict[TaskName, tuple[str, int]] = {"detection": ("boxes", 60), "action": ("clips", 3)}


@pytest.mark.parametrize("plan", QUICK, ids=lambda plan: plan.task)
def test_pixels_and_answers_are_torchvisions(plan: Plan, subject_of: SubjectOf) -> None:
    pixels, answers = compare(subject_of(plan.task), plan)
    assert pixels.missed == []
    assert answers.missed == []
    assert min(pixels.frames, answers.frames) >= len(plan.materials) > 0
    if plan.task in COUNTED:
        name, least = COUNTED[plan.task]
        assert {one.name: one.value for one in answers.measures}[name] >= least


@contextmanager
def wrongly_served(both: Subject, spec: ModelSpec) -> Iterator[Subject]:
    """The same network served by another spec; by torch, since an engine's graph takes one size only."""
    pipeline = make_pipeline(dataclasses.replace(spec, engine="torch"), "cpu", limits=both.pipeline.limits)
    yield dataclasses.replace(both, pipeline=pipeline)
    pipeline.batcher.close()


WRONG: list[tuple[TaskName, str, dict[str, Any]]] = [
    ("classification", "odd 643x361", {"interpolation": "nearest"}),
    ("classification", "odd 643x361", {"antialias": False}),
    ("classification", "odd 643x361", {"mean": (0.6, 0.456, 0.406)}),
    ("classification", "odd 643x361", {"std": (0.229, 0.224, 0.3)}),
    ("classification", "odd 643x361", {"channels": "BGR"}),
    ("classification", "odd 643x361", {"crop_px": (222, 222)}),
    # Moves the crop by one pixel.
    ("classification", "odd 643x361", {"resize_px": 258}),
    ("detection", "portrait 359x641", {"mean": (0.5, 0.45, 0.5)}),
    ("detection", "portrait 359x641", {"channels": "BGR"}),
    ("detection", "portrait 359x641", {"resize_px": (318, 320)}),
    ("segmentation", "10 bits", {"interpolation": "nearest"}),
    ("segmentation", "10 bits", {"channels": "BGR"}),
]


def wrongly_prepared(both: Subject, wrong: dict[str, Any]) -> ModelSpec:
    return dataclasses.replace(both.spec, preprocessing=dataclasses.replace(both.spec.preprocessing, **wrong))


@pytest.mark.parametrize(
    ("task", "medium", "wrong"), WRONG, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_a_wrong_flag_is_seen_in_the_answers(
    task: TaskName, medium: str, wrong: dict[str, Any], subject_of: SubjectOf
) -> None:
    both = subject_of(task)
    with wrongly_served(both, wrongly_prepared(both, wrong)) as other:
        assert compare_answers(other, present(medium), Options(max_frames=1)).missed


def test_a_wrong_rate_of_clips_is_seen(subject_of: SubjectOf) -> None:
    both = subject_of("action")
    assert both.spec.clip is not None
    spec = dataclasses.replace(both.spec, clip=dataclasses.replace(both.spec.clip, fps=16.0))
    with wrongly_served(both, spec) as other:
        select = Options(clip_length=4, max_frames=8)
        assert compare_answers(other, present("turned video"), select).missed


@pytest.mark.parametrize("wrong", [{"interpolation": "nearest"}, {"crop_px": (222, 222)}], ids="-".join)
def test_a_wrong_flag_is_seen_in_the_pixels(wrong: dict[str, Any], subject_of: SubjectOf) -> None:
    both = subject_of("classification")
    with wrongly_served(both, wrongly_prepared(both, wrong)) as other:
        assert compare_pixels(other, present("odd 643x361"), Options(max_frames=1)).missed


@pytest.mark.parametrize(
    "material", [one for one in materials() if one.kind == "video"], ids=lambda one: one.name
)
def test_frames_of_clips_are_torchvisions(material: Material) -> None:
    if material.missing:
        pytest.skip(f"{material.name} is not there")
    assert compare_frames(material).missed == []


def boxes(*rows: Sequence[float]) -> Boxes:
    """Of left, top, right, bottom, score, class each."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return {"boxes": values[:, :4], "scores": values[:, 4], "labels": values[:, 5].long()}


THEIRS = ((0, 0, 100, 100, 0.9, 1), (50, 50, 90, 90, 0.8, 2))
MATCHED: list[tuple[str, tuple[tuple[float, ...], ...], str]] = [
    ("the same", THEIRS, ""),
    ("none at all", (), "missing"),
    ("one missing", THEIRS[:1], "missing"),
    ("another class", (THEIRS[0], (50, 50, 90, 90, 0.8, 3)), "missing"),
    ("one more", (*THEIRS, (0, 0, 9, 9, 0.7, 5)), "surplus"),
    ("one more, as good as at the threshold", (*THEIRS, (0, 0, 9, 9, 0.5005, 5)), ""),
    ("moved", (THEIRS[0], (53, 50, 93, 90, 0.8, 2)), "boxes of IoU"),
    ("less sure", (THEIRS[0], (50, 50, 90, 90, 0.7, 2)), "max Δscore"),
]


@pytest.mark.parametrize(
    ("ours", "missed"), [(ours, missed) for _, ours, missed in MATCHED], ids=[one[0] for one in MATCHED]
)
def test_boxes_are_matched(ours: tuple[tuple[float, ...], ...], missed: str) -> None:
    matches = Matches()
    matches.add(boxes(*ours), boxes(*THEIRS), threshold=0.5)
    failing = [one.name for one in matches.measures if not one.passed and one.name != "boxes"]
    assert failing[0].startswith(missed) if missed else failing == []


def test_one_other_winner_in_a_hundred_is_seen() -> None:
    theirs = np.eye(2, dtype=np.float32)[np.arange(100) % 2]
    ours = theirs.copy()
    assert all(one.passed for one in winner_measures(ours, theirs))
    ours[7] = ours[7, ::-1]
    missed = [one.name for one in winner_measures(ours, theirs) if not one.passed]
    assert missed == ["top-1 agreement %", "max Δp"]


def test_a_table_shows_what_fails() -> None:
    good, bad = (Measure(name="apart", value=value, bar=1.0) for value in (0.5, 2.0))
    rows = [Row(model=name, media=1, frames=3, measures=(one,)) for name, one in (("a", good), ("b", bad))]
    assert table(rows).splitlines()[2:] == [
        "| `a` | 1 | 3 | 0.5000 | passes |",
        "| `b` | 1 | 3 | **2.0000** | **fails** |",
    ]


def test_the_page_has_every_model_and_none_fails() -> None:
    page = FILE.read_text(encoding="utf-8")
    counts = {
        plan.model: len(re.findall(rf"^\| `{plan.model}` \|.*\| passes \|$", page, re.M)) for plan in PLANS
    }
    assert counts == {plan.model: 2 for plan in PLANS}
    assert not re.search(r"^\|.*fails\*\* \|$", page, re.M)
