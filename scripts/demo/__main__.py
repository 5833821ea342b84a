"""`make demo`: start the real server, send the bundled clips four ways for each task, compare with the truth.

Everything goes over the wire to a server process of its own; nothing of it is imported. The files are in
out/demo/TASK/, the last line says whether all is well, and the exit code too.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from client import Client
from pipelines.protocol.answers import ANSWERS, ActionAnswer, Answer
from scripts import ROOT
from scripts.demo.judging import MEASURES, Measure, TruthArrays, read_truth
from scripts.servers import start_server

CLIPS = {
    kind.task: ROOT / "assets" / ("demo_action.mp4" if kind is ActionAnswer else "demo.mp4")
    for kind in MEASURES
}
OUT = ROOT / "out" / "demo"
# What a user would type to see something: every 15th frame in pictures, and the whole clip as a film.
PICTURES = ["--dump-images", "--originals", "--overlay", "jpeg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way of sending a clip, and what came of it; `quality` is by the task's measure."""

    task: str
    way: str
    measure: Measure
    answer: Answer
    frames: int
    seconds: float
    first_s: float
    quality: float


def send(task: str, way: str, url: str, truth: TruthArrays) -> Run:
    """The whole clip of a task by one of the four ways."""
    kind, measure, media = ANSWERS[task], MEASURES[ANSWERS[task]], CLIPS[task].read_bytes()
    with Client(url, timeout_s=60) as client:
        # A program's first connection reads the protocol's library from disk, which is not the server's time.
        client.info()
        ask = client.ask_stream if way.endswith("stream") else lambda *asked: [client.ask(*asked)]
        start, times_s, parts = time.perf_counter(), list[float](), list[Answer]()
        for part in ask(kind, media, measure.options):
            times_s.append(time.perf_counter() - start)
            parts.append(part)
    answer = kind.concatenate(parts)
    return Run(
        task=task,
        way=way,
        measure=measure,
        answer=answer,
        frames=len(truth["action_id" if task == "action" else "class_id"]),
        seconds=times_s[-1],
        first_s=times_s[0],
        quality=measure.judge(answer, truth)[measure.name],
    )


def write_pictures(task: str, url: str) -> None:
    """Pictures, JSON lines and a film of a task's clip."""
    where = ["--url", url, "--task", task, "--output", str(OUT / task), "--video-paths", str(CLIPS[task])]
    base = [sys.executable, str(ROOT / "client.py"), *where]
    few = ["--clip-stride" if task == "action" else "--stride", "15"]
    subprocess.run([*base, *PICTURES, *few], check=True)
    subprocess.run([*base, "--overlay", "mp4"], check=True, stdout=subprocess.DEVNULL)


def ask_all() -> list[Run]:
    """Start a server, ask it in all ways, and have it paint."""
    runs = []
    with start_server(OUT, "--demo") as server:
        urls = {"gRPC": server.grpc_url, "HTTP": server.http_url}
        for task, clip in CLIPS.items():
            truth = read_truth(clip.with_name(f"{clip.stem}_truth.npz"))
            for kind in ("", " stream"):
                runs += [send(task, way + kind, url, truth) for way, url in urls.items()]
            write_pictures(task, server.grpc_url)
    return runs


def print_table(runs: Sequence[Run]) -> None:
    print(f"\n{'':31}{'frames':>8}{'frames/s':>10}{'first answer':>14}")
    for run in runs:
        head = f"{run.task:16}{run.way:15}{run.frames:8}{run.frames / run.seconds:10.1f}"
        print(f"{head}{run.first_s * 1000:11.0f} ms   {run.measure.name} {run.quality:.3f}")
    answer = runs[0].answer
    print(f"decoder: {answer.decoder} ({answer.decoder_reason})")


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    what = "small models that know drawn shapes, to try the server out"
    print(f"starting server.py --demo ({what}) ...", flush=True)
    runs = ask_all()
    print_table(runs)
    bad = [run for run in runs if run.quality < run.measure.least]
    for run in bad:
        said = f"{run.measure.name} {run.quality:.3f} is below {run.measure.least}"
        print(f"error: {run.task} over {run.way}: {said}", file=sys.stderr)
    print(f"{'failed' if bad else 'ok'}: pictures, videos and answers are in {OUT.relative_to(ROOT)}/")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
