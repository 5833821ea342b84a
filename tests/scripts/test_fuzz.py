"""The fuzz script finds planted faults, makes each medium again by its name, and its seeds are whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.protocol.errors import TrividError
from scripts.fuzz.__main__ import READER, main
from scripts.fuzz.mutations import mutated
from scripts.fuzz.reader import read_medium
from scripts.fuzz.rig import Bounds, Finding, Worker, run
from scripts.fuzz.seeds import seeds

SAID = ("fine", "sleep", "typed", "spin", "signal", "exit", "untyped", "internal", "memory", "pixels", "fine")
FAULTS = {
    "sleep": ("hang", "over 0.5 s"),
    "spin": ("hang", "over 0.5 s"),
    "signal": ("crash", "signal 11"),
    "exit": ("crash", "exit code 3"),
    "untyped": ("untyped", "ZeroDivisionError: planted"),
    "internal": ("untyped", "InternalError: planted"),
    "memory": ("memory", "MiB more than its pixels"),
}


def test_planted_faults_are_found_and_nothing_else() -> None:
    findings: list[Finding] = []
    tried = run(
        lambda number: (SAID[number], SAID[number].encode()),
        iter(range(len(SAID))),
        reader="tests.support.faulty_reader:by_name",
        workers=2,
        bounds=Bounds(seconds=0.5, more_bytes=100 << 20),
        found=findings.append,
    )
    assert tried == len(SAID)
    assert {one.made_of: one.kind for one in findings} == {said: kind for said, (kind, _) in FAULTS.items()}
    for one in findings:
        assert FAULTS[one.made_of][1] in one.what
        assert one.data == one.made_of.encode()


def test_a_finding_is_kept_and_found_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    planted = ["--reader", "tests.support.faulty_reader:of_some", "--keep", str(tmp_path)]
    assert main(["--files", "12", "--seed", "5", "--workers", "1", *planted]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("seed 5: 12 media of ")
    name = lines[0].split()[1]
    kept = tmp_path / f"untyped-{name}"
    data = kept.read_bytes()
    kept.unlink()
    assert main(["--again", name, *planted]) == 1
    assert capsys.readouterr().out.splitlines()[0] == lines[0]
    assert kept.read_bytes() == data


def test_media_are_the_same_for_the_same_seed_and_all_others_differ() -> None:
    media = {"a": bytes(range(256)) * 4, "b": b"ftypmoovtrakstsz" * 20}
    made = [mutated(3, number, media) for number in range(200)]
    assert made == [mutated(3, number, media) for number in range(200)]
    assert all(data for _, data in made)
    changed = [data for _, data in made if data not in media.values()]
    assert len(set(changed)) > 180
    assert mutated(4, 0, media) != made[0]


def test_seeds_are_whole_media_of_many_kinds() -> None:
    read, refused = set(), {}
    for name, data in seeds().items():
        try:
            assert max(read_medium(data)) > 0
            read.add(name.split(".", 1)[1])
        except TrividError as error:
            refused[name] = str(error)
    assert {"mp4.libx264", "webm.libvpx-vp9", "mpegts.libx264", "avi.mjpeg", "jpeg", "png", "gif"} <= read
    assert list(refused) == ["tone.mp4"]


def test_a_whole_medium_is_no_finding() -> None:
    worker = Worker(READER, Bounds())
    try:
        assert worker(next(iter(seeds().values()))) == ("", "")
    finally:
        worker.close()


def test_a_reader_that_does_not_start_is_said() -> None:
    with pytest.raises(SystemExit, match="no worker starts"):
        Worker("tests.support.faulty_reader:nothing", Bounds())(b"")
