"""The bench: its arithmetic on tables, a whole run on a toy medium, and peers that answer as we do."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.assembly import make_pipeline
from pipelines.loading.agreement import agreeing, example_pixels
from pipelines.media.medium import Limits
from pipelines.models.outputs import LogitOutput
from pipelines.protocol.answers import ClassificationAnswer
from pipelines.protocol.options import Options
from pipelines.settings.model import ModelSettings
from pipelines.zoo import resolve
from pipelines.zoo.demo.specs import demo_specs
from scripts.bench.figures import Reply, Report, Stage, ceiling, compared, frames_within, percentiles
from scripts.bench.jobs import DEMO, Job, save_random_weights
from scripts.bench.media import HEIGHT_PX, WIDTH_PX, film_second
from scripts.bench.peers import asking, starting
from scripts.bench.report import say
from scripts.bench.stages import Bench
from scripts.servers import guarded, in_turns, start
from tests.conftest import ROOT
from tests.support.media import clip, image

INF, NAN = math.inf, math.nan
SMALL = "mobilenet_v3_small"
QUICK_START = ("--", "--engine", "torch")


@pytest.mark.parametrize(
    ("rates", "shared", "expected"),
    [
        ({"decode": 100.0}, True, 100),
        ({"decode": 100.0, "model": 100.0}, True, 50),
        ({"decode": 900.0, "preprocess": 981.0, "model": 300.0, "postprocess": INF}, True, 183.022),
        ({"decode": 900.0, "preprocess": 981.0, "model": 300.0, "postprocess": INF}, False, 300),
        ({"decode": INF}, True, NAN),
        ({"decode": 0.0, "model": 10.0}, True, NAN),
        ({}, False, NAN),
    ],
)
def test_the_ceiling(rates: Mapping[str, float], shared: bool, expected: float) -> None:
    assert ceiling(rates, shared=shared) == pytest.approx(expected, abs=1e-3, nan_ok=True)


def test_a_stage_measured_twice_takes_the_mean_of_both_times() -> None:
    slow = Stage(frames_per_s=100.0, cpu_ms=20.0, alone_ms=10.0, callers=2)
    fast = Stage(frames_per_s=300.0, cpu_ms=8.0, alone_ms=4.0, callers=2)
    assert slow.mean(fast) == Stage(frames_per_s=150.0, cpu_ms=14.0, alone_ms=7.0, callers=2)


def test_what_was_not_measured_is_blank(capsys: pytest.CaptureFixture[str]) -> None:
    say("name", NAN, 0.25, 31.0, INF, width=6)
    assert capsys.readouterr().out == f"name  {'':10}{0.25:10.3f}{31.0:10.1f}{'inf':>10}\n"


def test_nothing_has_no_percentile() -> None:
    assert all(math.isnan(value) for value in percentiles([]).values())


WINDOW = (10.0, 20.0)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply(start_s=10, end_s=20, at_s=[20], rows=[5]), 100),
        (Reply(start_s=5, end_s=15, at_s=[15], rows=[100]), 50),
        (Reply(start_s=0, end_s=40, at_s=[40], rows=[1]), 25),
        (Reply(start_s=0, end_s=10, at_s=[10], rows=[1]), 0),
        (Reply(start_s=12, end_s=14, at_s=[12, 13, 14], rows=[0, 8, 8]), 100),
        # Answers before the window count for nothing, however many rows they have.
        (Reply(start_s=8, end_s=12, at_s=[10, 12], rows=[9, 1]), 10),
        (Reply(start_s=12, end_s=14), 0),
    ],
)
def test_frames_count_where_they_were_worked_on(reply: Reply, expected: float) -> None:
    assert frames_within(reply, WINDOW, 100) == pytest.approx(expected)


def test_figures_of_a_run() -> None:
    replies = (
        Reply(start_s=8, end_s=12, at_s=[9, 12], rows=[1, 1]),
        Reply(start_s=12, end_s=18, at_s=[14, 18], rows=[1, 1]),
        Reply(start_s=18, end_s=22, at_s=[20, 22], rows=[1, 1]),
        Reply(start_s=2, end_s=4, at_s=[4], rows=[2]),
        Reply(start_s=12, end_s=13, error="overloaded"),
    )
    report = Report(replies=replies, start_s=7.5, end_s=20, cpu_s=0)
    assert report.window(12.5) == WINDOW
    assert report.latencies_ms(12.5) == [6000, 4000]
    assert report.errors() == {"overloaded": 1}
    assert report.frames_per_s(12.5, 10) == pytest.approx((5 * 2 / 3 + 10 + 5) / 10)
    good = report.good(12.5)
    assert [one.latency_ms for one in good] == [4000, 6000, 4000]
    assert [one.first_answer_ms for one in good] == [1000, 2000, 2000]
    assert percentiles([one.latency_ms for one in good])["p50"] == pytest.approx(4000)


def bench(*flags: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "scripts.bench", *flags]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=250)
    finally:
        with contextlib.suppress(ProcessLookupError):  # its children would hold the pipe open
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, said
    return said


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random ones of SMALL."""
    return save_random_weights("classification", SMALL, tmp_path_factory.mktemp("weights"))


def short_job(folder: Path, weights: Path) -> list[str]:
    """Flags of a job that starts quickly: its record is in `folder`, and the server's own flags come last."""
    medium = folder / "toy.mp4"
    medium.write_bytes(clip(frames=20))
    files = ["--medium", str(medium), "--json", str(folder / "record.json")]
    return ["--model", SMALL, "--weights", str(weights), *files]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_whole_run(tmp_path: Path, weights: Path) -> None:
    turn = ["--clients", "1", "2", "--duration", "0.5", "--stage-seconds", "0.05"]
    text = bench(*short_job(tmp_path, weights), *turn, *QUICK_START)
    found = json.loads((tmp_path / "record.json").read_text())
    # A CPU prepares a video's frames as it decodes them.
    assert found["stages"].keys() == {"decode", "model", "postprocess", "together"}
    for stage in found["stages"].values():
        assert stage["frames_per_s"] > 0
        assert stage["alone_ms"] > 0
    rates = [stage["frames_per_s"] for name, stage in found["stages"].items() if name != "together"]
    assert 0 < found["ceiling"] < min(rates)
    assert [point["clients"] for point in found["points"]] == [1, 2]
    for point in found["points"]:
        assert not point["errors"]
        assert point["frames_per_s"] > 0
        assert point["latency_ms"].keys() == {"p50", "p95", "p99", "mean"}
        assert point["first_answer_ms"]["p50"] <= point["latency_ms"]["p50"]
        assert point["memory_mib"]["RSS"] > point["memory_mib"]["main"] > 0
        sizes = [count for name, count in point["counters"].items() if name.startswith("batches of ")]
        assert sum(sizes) > 0
        assert point["cpu_ms"]["server"] > 0
        assert f"{point['frames_per_s']:.1f}" in text
    assert found["boundary"]["bare, ms a call"] > 0
    assert found["ratios"].keys() >= {"share of the ceiling, 1 clients", "share of the ceiling, 2 clients"}
    assert found["machine"]["versions"]["torch"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_servers_in_turns(tmp_path: Path, weights: Path) -> None:
    other = ["--against", str(ROOT), "--against-flags=--chunk-frames 2"]
    turn = ["--clients", "1", "--rounds", "3", "--turn-s", "0.3"]
    drawing = ["--plot", str(tmp_path / "new" / "plot.svg")] if importlib.util.find_spec("matplotlib") else []
    text = bench(*short_job(tmp_path, weights), *other, *turn, *drawing, *QUICK_START)
    name = "ours to the other, 1 clients"
    assert name in text
    assert "nan" not in text
    assert not drawing or "<svg" in Path(drawing[1]).read_text()
    found = json.loads((tmp_path / "record.json").read_text())
    turns = found["turns"]["1"]
    for point in itertools.chain(*turns.values()):
        assert point["clients"] == 1
        assert not point["errors"]
        assert point["frames_per_s"] > 0, point
    rates = [[point["frames_per_s"] for point in turns[name]] for name in ("trivid", "the other")]
    ratios = [one / other for one, other in zip(*rates, strict=True)]
    assert [found["comparisons"][name][f"frames/s, round {number}"] for number in (1, 2, 3)] == ratios
    assert found["comparisons"][name]["frames/s, median"] == sorted(ratios)[1]


def test_turns_go_back_and_forth_and_hold_the_other_servers(tmp_path: Path) -> None:
    waiting = [sys.executable, "-c", "import time; print('ready: ', flush=True); time.sleep(60)"]
    said: list[str] = []
    with contextlib.ExitStack() as stack:
        servers = {
            name: stack.enter_context(guarded(start(waiting, tmp_path / name, (0, 0, 0)))) for name in "AB"
        }

        def held() -> list[str]:
            time.sleep(0.2)
            states = {name: one.family()[0].status() for name, one in servers.items()}
            return [name for name, state in states.items() if state == psutil.STATUS_STOPPED]

        rivals = {"A": held, "B": held}
        found = in_turns(rivals, 3, servers=servers, say=lambda name, _: said.append(name))
        assert not held()
    assert said == ["A", "B", "B", "A", "A", "B"]
    assert found == {"A": [["B"]] * 3, "B": [["A"]] * 3}


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        ([2.0, 3.0, 8.0], [1.0, 1.0, 2.0], ([2, 3, 4], 3, 2, 4)),
        ([2.0, 3.0], [0.0, 1.0], ([NAN, 3], 3, 3, 3)),
        ([2.0], [0.0], ([NAN], NAN, NAN, NAN)),
    ],
)
def test_comparisons_are_of_rounds(
    ours: Sequence[float], theirs: Sequence[float], expected: tuple[Sequence[float], float, float, float]
) -> None:
    *ratios, least, most, median = compared(ours, theirs, "x").values()
    assert ratios == pytest.approx(expected[0], nan_ok=True)
    assert (median, least, most) == pytest.approx(expected[1:], nan_ok=True)
    assert "x, median (1)" in compared(ours, theirs, "x", " (1)")


@pytest.mark.parametrize(
    ("name", "media", "frames", "prepared"),
    [("clip.mp4", clip(frames=20), 20, True), ("picture.png", image("png"), 1, False)],
)
def test_each_stage_does_all_frames(
    name: str, media: bytes, frames: int, prepared: bool, tmp_path: Path
) -> None:
    medium = tmp_path / name
    medium.write_bytes(media)
    job = Job(task="segmentation", model=DEMO, medium=str(medium), frames=frames)
    pipeline = make_pipeline(demo_specs()["segmentation"], "cpu", limits=Limits(chunk_frames=8))
    stages = Bench(pipeline, job).stages()
    assert ("preprocess" in stages) is not prepared
    for stage, passes in stages.items():
        assert sum(passes[0]()) == pytest.approx(frames), stage
    pipeline.batcher.close()


def test_wrong_usage_is_said(tmp_path: Path) -> None:
    assert "no medium 'nowhere.mp4'" in bench("--medium", "nowhere.mp4", code=1)
    assert "no server.py there" in bench("--against", str(tmp_path), code=2)
    assert "scenarios have nothing to draw" in bench("--plot", "a.png", "--scenario", "many", code=2)
    assert "end in .png or .svg" in bench("--plot", "a.txt", code=2)
    assert "brings its own" in bench("--weights", "a.pth", "--model", "net.onnx", code=2)
    assert "no peer does classification with demo" in starting.missing("classification", "demo")
    assert "no peer does action" in starting.missing("action", "r3d_18")


def test_tamed_weights_agree_in_bf16_where_random_ones_do_not(tmp_path: Path) -> None:
    """By torch itself, which computes in bf16 on any processor."""
    shares = []
    (pixels,) = example_pixels([(256, 3, 96, 96)])
    for tamed in (False, True):
        weights = save_random_weights("classification", SMALL, tmp_path, tamed=tamed)
        spec = resolve(ModelSettings(source=SMALL, weights=str(weights)), allow_code=False)
        network = spec.build().eval()
        with torch.inference_mode():
            plain = LogitOutput({"logits": network(pixels)}, "logits")
            with torch.autocast("cpu", torch.bfloat16):
                short = LogitOutput({"logits": network(pixels).float()}, "logits")
        shares.append(agreeing([plain], [short]))
    assert shares[0] < 0.98
    assert shares[1] > 0.99


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_peers_answer_as_we_do(tmp_path: Path, weights: Path) -> None:
    if reason := starting.missing("classification", SMALL):
        pytest.skip(reason)
    medium = tmp_path / "clip.mp4"
    # Random weights are sure of film, and of pictures as rich as film, but not of a test pattern.
    pictures = list(film_second())[::3]
    medium.write_bytes(clip(pictures=pictures, width=WIDTH_PX, height=HEIGHT_PX))
    job = Job(task="classification", model=SMALL, weights=str(weights), medium=str(medium), frames=8)
    spec = resolve(ModelSettings(source=SMALL, weights=str(weights)), allow_code=False)
    pipeline = make_pipeline(spec, "cpu", limits=Limits())
    ours = []
    for answer in pipeline.run(job.media, Options()):
        assert isinstance(answer, ClassificationAnswer)
        ours += [int(row[0]) for row in answer.class_id]
    pipeline.batcher.close()
    with starting.peers(job, tmp_path) as others:
        assert others.keys() == {"seed_pytriton", "fastapi_app", "litserve_app"}
        rows = {}
        for peer, (_, load) in others.items():
            with asking.asker(load.url, 60) as ask:
                rows[peer] = ask(job.media)
    theirs = {
        peer: [row["class_id"][0] for row in found] for peer, found in rows.items() if peer != "seed_pytriton"
    }
    theirs["seed_pytriton"] = [int(row[0]) for row in rows["seed_pytriton"]]
    for peer, classes in theirs.items():
        assert sum(one == other for one, other in zip(classes, ours, strict=True)) >= 6, (peer, classes, ours)
