"""What is said of answers in text: JSON lines, files, and the one line of a whole medium."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.protocol.answers import ANSWERS, ActionAnswer, Answer, ClassificationAnswer, answer_columns
from pipelines.protocol.columns import to_tensors
from pipelines.protocol.errors import InternalError
from pipelines.sdk.files import Dump
from pipelines.sdk.report import Summary, row_lines
from tests.support.toy_answers import answer, detected, ranked

RUNS = [{"class_id": 1, "class_name": "cat", "size": [2, 3], "counts": [0, 6]}]
MASK = json.dumps(RUNS).encode()
CLASSES = [
    {"class_id": 7, "class_name": "猫 Kätzchen", "probability": 0.75},
    {"class_id": 0, "class_name": "dog", "probability": 0.25},
]
MEAN = {"file": "f", "mean_classes": CLASSES}
BOX = {"class_id": 0, "class_name": "猫0", "score": 1.0, "box": [0.0, 0.25, 0.5, 0.75]}
JOINTS = {"keypoints": {"Gelenk 0 é": [0.0, 1.0, 0.0], "Gelenk 1 é": [3.0, 4.0, 0.003]}}
NOTHING = np.zeros(2, np.float32)


def head(frame: int) -> dict[str, Any]:
    return {"file": "f", "frame_index": frame, "pts_s": frame / 10}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer([]), []),
        (
            answer([0, 1]),
            [{"class_pixels": {"background": 6}}, {"class_pixels": {"background": 5, "cat": 1}}],
        ),
        (answer([0], mask=[MASK]), [{"class_pixels": {"background": 6}, "mask": RUNS}]),
        (ranked(ClassificationAnswer, [1], final=False), [{"classes": CLASSES}]),
        (ranked(ClassificationAnswer, [0, 1]), [{"classes": CLASSES}, {"classes": CLASSES}, MEAN]),
        (ranked(ClassificationAnswer, [], mean_probability=NOTHING), []),
        (
            ranked(ActionAnswer, [2]),
            [{"last_frame_index": 5, "last_pts_s": 0.5, "classes": CLASSES}, MEAN],
        ),
        (ranked(ActionAnswer, []), [MEAN]),  # the end of a film: clips were in the parts before
        (detected([0]), [{"boxes": []}]),
        (detected([1, 0]), [{"boxes": [BOX]}, {"boxes": []}]),
        (detected([1], mask=[MASK]), [{"boxes": [BOX | {"mask": RUNS}]}]),
        (detected([1], keypoints=2), [{"boxes": [BOX | JOINTS]}]),
    ],
)
def test_lines(given: Answer, expected: list[dict[str, Any]]) -> None:
    lines = [json.loads(line) for line in row_lines("f", given, with_mask=True)]
    frames: list[int] = given.frame_index.tolist()
    rows = [{**head(frame), **line, "decoder": "stub"} for frame, line in zip(frames, expected, strict=False)]
    assert lines == [*rows, *expected[len(frames) :]]


def test_lines_are_whole_and_keep_their_letters() -> None:
    (line,) = row_lines("Ä\n", detected([1]))
    assert ("\n" in line, "猫0" in line, line.startswith('{"file": "Ä\\n"')) == (False, True, True)
    assert "mask" not in json.loads(next(row_lines("f", answer([0], mask=[MASK]))))  # not asked for as text
    with pytest.raises(InternalError, match="mask is not JSON: b'PNG'"):
        list(row_lines("f", detected([1], mask=[b"PNG"]), with_mask=True))


@pytest.mark.parametrize(
    ("parts", "overlay", "mask", "files"),
    [
        ([answer([0], mask=[MASK])], "none", "rle", {}),
        (
            [answer([0, 7], mask=[b"A", b"B"], overlay=[b"C", b"D"])],
            "raw",
            "raw",
            {
                "s_000000_mask.pgm": b"P5\n3 2\n255\nA",
                "s_000007_mask.pgm": b"P5\n3 2\n255\nB",
                "s_000000_overlay.ppm": b"P6\n3 2\n255\nC",
                "s_000007_overlay.ppm": b"P6\n3 2\n255\nD",
            },
        ),
        (
            [detected([0, 2], mask=[b"A", b"B"]), detected([3], mask=[b"C", b"D", b"E"])],
            "none",
            "png",
            {
                "s_000002_000_mask.png": b"A",
                "s_000002_001_mask.png": b"B",
                "s_000003_000_mask.png": b"C",
                "s_000003_001_mask.png": b"D",
                "s_000003_002_mask.png": b"E",
            },
        ),
        ([detected([1], mask=[b"A"])], "none", "raw", {"s_000001_000_mask.pgm": b"P5\n3 2\n255\nA"}),
        ([answer([1], mask=[b"A"])], "none", "probability", {"s_000001_probability.png": b"A"}),
        (
            [ranked(ActionAnswer, [8], overlay=[b"A"], final=False), ranked(ActionAnswer, [])],
            "jpeg",
            "none",
            {"s_000008_overlay.jpg": b"A"},
        ),
        (
            [
                ranked(ClassificationAnswer, [0], video=b"1", final=False),
                ranked(ClassificationAnswer, video=b"2"),
            ],
            "mp4",
            "none",
            {"s_overlay.mp4": b"12"},
        ),
    ],
)
def test_files(parts: list[Answer], overlay: str, mask: str, files: dict[str, bytes], tmp_path: Path) -> None:
    with Dump(tmp_path / "new", "s", overlay=overlay, mask=mask) as dump:
        for part in parts:
            dump.write(part, [f"{len(part)}é"])
    written = {path.name: path.read_bytes() for path in (tmp_path / "new").iterdir()}
    assert written.pop("s.jsonl").decode() == "".join(f"{len(part)}é\n" for part in parts)
    assert written == files


def test_a_request_that_fails_leaves_what_an_earlier_one_wrote(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("earlier")
    with Dump(tmp_path, "s", overlay="none", mask="none"):
        pass
    assert (tmp_path / "s.jsonl").read_text() == "earlier"
    with Dump(tmp_path, "s", overlay="none", mask="none") as dump:
        dump.write_originals(ranked(ActionAnswer, [3], overlay=[b"J"]))
    assert (tmp_path / "s_000003_original.jpg").read_bytes() == b"J"


CAT = "猫 Kätzchen 75.00 %, dog 25.00 %"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], "0 frames: the options select none, or too few"),
        ([answer([])], "0 frames: the options select none, or too few"),
        ([answer([0])], "1 frame, nothing but background (stub)"),
        ([answer([0], final=False), answer([3, 3])], "3 frames, cat 33.3 % (stub)"),
        ([detected([])], "0 frames: the options select none, or too few"),
        ([detected([0])], "1 frame, 0 boxes (stub)"),
        ([detected([1])], "1 frame, 1 box, 猫0 1 (stub)"),
        ([detected([0, 2], final=False), detected([1])], "3 frames, 3 boxes, 猫0 2, 猫1 1 (stub)"),
        ([detected([7])], "1 frame, 7 boxes, 猫0 1, 猫1 1, 猫2 1, 猫3 1, 猫4 1 (stub)"),
        ([ranked(ClassificationAnswer, [0])], f"1 frame, {CAT} (stub)"),
        ([ranked(ActionAnswer, [])], "0 clips: the options select none, or too few"),
        (
            [answer([0], final=False), answer([3, 3], stretch=np.array([0, 1]))],
            "3 frames, cat 33.3 %, its clock breaks at frame 3 (stub)",
        ),
        (
            [answer([1], stretch=np.array([1])), answer([3], stretch=np.array([3]))],
            "2 frames, cat 33.3 %, its clock breaks 3 times, first at frame 1 (stub)",
        ),
        ([ranked(ActionAnswer, [0, 4], final=False), ranked(ActionAnswer, [])], f"2 clips, {CAT} (stub)"),
    ],
)
def test_summary(parts: list[Answer], expected: str) -> None:
    summary = Summary()
    for part in parts:
        summary.add(part)
    assert str(summary) == expected


@pytest.mark.parametrize("kind", list(ANSWERS.values()), ids=list(ANSWERS))
def test_no_frame_at_all_is_said(kind: type[Answer]) -> None:
    """As it comes off the wire: padded, and cut back to nothing."""
    columns = answer_columns(kind)
    padded = {
        name: value[0] for name, value in to_tensors(columns, [{"count": np.zeros(1, np.int64)}]).items()
    }
    summary = Summary()
    summary.add(kind.from_columns(padded))
    assert str(summary).startswith("0 ")
