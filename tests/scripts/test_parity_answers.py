"""Whole answers against torchvision by hand, a small model a task, by the functions of python -m
scripts.parity.

The comparison is tested too: whatever is wrong by a flag, a pixel or a frame must be seen by it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.models.spec import ModelSpec
from pipelines.protocol.options import Options
from scripts.parity.__main__ import PLANS, RATES
from scripts.parity.answers import compare_answers, compare_pixels
from scripts.parity.clips import claimed_rate, resampled, served_index
from scripts.parity.measures import Boxes, Matches, Measure, Row, Winners, table
from scripts.parity.media import Material, materials, present
from scripts.parity.subject import Subject, served_pipeline, subject
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "parity.md"
FEW = Options(stride=20, max_frames=2)
Change = Callable[[ModelSpec], ModelSpec]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def classifier() -> Iterator[Subject]:
    with subject("resnet18") as both:
        yield both


def prepared(**wrong: Any) -> Change:
    """A spec whose pixels are prepared otherwise."""
    return lambda spec: dataclasses.replace(
        spec, preprocessing=dataclasses.replace(spec.preprocessing, **wrong)
    )


def clipped(fps: float) -> Change:
    """A spec whose clips have another rate."""

    def change(spec: ModelSpec) -> ModelSpec:
        assert spec.clip is not None
        return dataclasses.replace(spec, clip=dataclasses.replace(spec.clip, fps=fps))

    return change


def spoilt(both: Subject, change: Change) -> Subject:
    """The same, but served otherwise; its engine is the caller's to close."""
    return dataclasses.replace(both, pipeline=served_pipeline(change(both.spec)))


PICTURES = ("odd 643x361", "portrait 359x641", "tiny 8x8", "grey", "alpha", "10 bits")


def test_classes_are_torchvisions(classifier: Subject) -> None:
    media = present(*PICTURES)
    assert compare_pixels(classifier, media, FEW).missed == []
    row = compare_answers(classifier, media, FEW)
    assert row.missed == []
    assert row.frames == len(PICTURES) + 1


WRONG: list[dict[str, Any]] = [
    {"interpolation": "nearest"},
    {"antialias": False},
    {"mean": (0.6, 0.456, 0.406)},
    {"std": (0.229, 0.224, 0.3)},
    {"channels": "BGR"},
    {"crop_px": (222, 222)},
    {"resize_px": 258},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: next(iter(wrong)))
def test_a_wrong_flag_is_seen_in_the_answers(classifier: Subject, wrong: dict[str, Any]) -> None:
    """`resize_px` moves the crop by one pixel."""
    other = spoilt(classifier, prepared(**wrong))
    try:
        assert not compare_answers(other, present("odd 643x361", "portrait 359x641"), FEW).passed
    finally:
        other.pipeline.batcher.close()


def test_a_wrong_interpolation_is_seen_in_the_pixels(classifier: Subject) -> None:
    other = spoilt(classifier, prepared(interpolation="nearest"))
    try:
        assert not compare_pixels(other, present("odd 643x361"), FEW).passed
    finally:
        other.pipeline.batcher.close()


def test_boxes_are_torchvisions_and_a_wrong_mean_is_seen() -> None:
    with subject("ssdlite320_mobilenet_v3_large") as both:
        media = present("portrait 359x641", "tiny 8x8", "10 bits")
        row = compare_answers(both, media, FEW)
        assert row.missed == []
        assert row.value("boxes") >= 60
        for wrong in ({"mean": (0.5, 0.45, 0.5)}, {"channels": "BGR"}, {"resize_px": (318, 320)}):
            other = spoilt(both, prepared(**wrong))
            assert not compare_answers(other, media[:1], FEW).passed, wrong
            other.pipeline.batcher.close()


def test_class_maps_are_torchvisions_and_a_wrong_mean_is_seen() -> None:
    with subject("lraspp_mobilenet_v3_large") as both:
        media = present("portrait 359x641", "10 bits")
        assert compare_answers(both, media, Options(max_frames=1)).missed == []
        for wrong in ({"interpolation": "nearest"}, {"channels": "BGR"}):
            other = spoilt(both, prepared(**wrong))
            assert not compare_answers(other, media[1:], Options(max_frames=1)).passed, wrong
            other.pipeline.batcher.close()


def test_clips_are_torchvisions_and_a_wrong_rate_is_seen() -> None:
    select = Options(clip_length=4, max_frames=8)
    with subject("r3d_18") as both:
        media = present("turned video", "10 bits")
        row = compare_answers(both, media[1:], select)
        assert row.missed == []
        assert row.value("clips") == 2
        other = spoilt(both, clipped(fps=16.0))
        assert not compare_answers(other, media[:1], select).passed
        other.pipeline.batcher.close()


@pytest.mark.parametrize(
    "material", [one for one in materials() if one.kind == "video"], ids=lambda one: one.name
)
@pytest.mark.parametrize("rate", RATES)
def test_frames_of_clips_are_torchvisions(material: Material, rate: float) -> None:
    if material.missing:
        pytest.skip(f"{material.name} is not there")
    from scripts.parity.media import decode

    theirs = resampled(len(decode(material, Options())), claimed_rate(material), rate)
    ours = served_index(material, rate)
    assert ours[: len(theirs)].tolist() == theirs.tolist()
    assert len(ours) - len(theirs) <= 1


def boxes(*rows: Sequence[float]) -> Boxes:
    """Of left, top, right, bottom, score, class each."""
    values = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Boxes(box_d4=values[:, :4], score_d=values[:, 4], class_id_d=values[:, 5].long())


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
    matches = Matches(0.5)
    matches.add(boxes(*ours), boxes(*THEIRS))
    failing = [one.name for one in matches.measures if not one.passed and one.name != "boxes"]
    assert failing[0].startswith(missed) if missed else failing == []


def test_one_other_winner_in_a_hundred_is_seen() -> None:
    theirs = np.eye(2, dtype=np.float32)[np.arange(100) % 2]
    ours = theirs.copy()
    same = Winners()
    same.add(ours, theirs)
    assert all(one.passed for one in same.measures)
    ours[7] = ours[7, ::-1]
    other = Winners()
    other.add(ours, theirs)
    assert [one.name for one in other.measures if not one.passed] == ["top-1 agreement %", "max Δp"]


def test_a_table_shows_what_fails() -> None:
    good, bad = (Measure(name="apart", value=value, bar=1.0) for value in (0.5, 2.0))
    rows = [
        Row(model=name, media=("one",), frames=3, measures=(one,)) for name, one in (("a", good), ("b", bad))
    ]
    assert table(rows).splitlines()[2:] == [
        "| `a` | 1 | 3 | 0.5000 | passes |",
        "| `b` | 1 | 3 | **2.0000** | **fails** |",
    ]


def test_the_page_has_every_model_and_none_fails() -> None:
    page = PAGE.read_text(encoding="utf-8")
    counts = {
        plan.model: len(re.findall(rf"^\| `{plan.model}` \|.*\| passes \|$", page, re.M)) for plan in PLANS
    }
    assert counts == {plan.model: 2 for plan in PLANS}
    assert not re.search(r"^\|.*fails\*\* \|$", page, re.M)
