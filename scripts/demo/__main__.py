"""`make demo`: start the real server, send the bundled clips four ways for each task, compare with the truth.

Everything goes over the wire to a server process of its own; nothing of it is imported. The files are in
out/demo/TASK/, the last line says whether all is well, and the exit code too.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from client import Client
from pipelines.protocol.answers import ANSWERS, Answer
from scripts import ROOT
from scripts.demo.judging import MEASURES, Truth, read_truth
from scripts.servers import start_server

CLIPS = {task: ROOT / "assets" / ("demo_action.mp4" if task == "action" else "demo.mp4") for task in ANSWERS}
OUT = ROOT / "out" / "demo"
# What a user would type to see something: every 15th frame in pictures, and the whole clip as a film.
PICTURES = ["--dump-images", "--originals", "--overlay", "jpeg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way of sending a clip, and what came of it; `quality` is the task's measure."""

    task: str
    way: str
    answer: Answer
    frames: int
    seconds: float
    first_s: float
    quality: float


def send(task: str, way: str, url: str, truth: Truth) -> Run:
    """The whole clip of a task by one of the four ways."""
    kind, measure, media = ANSWERS[task], MEASURES[ANSWERS[task]], CLIPS[task].read_bytes()
    with Client(url, timeout_s=60) as client:
        # A program's first connection reads the protocol's library from disk, which is not the server's time.
        client.info()
        start = time.perf_counter()
        if way.endswith("stream"):
            parts, first_s = [], 0.0
            for part in client.ask_stream(kind, media, measure.options):
                first_s = first_s or time.perf_counter() - start
                parts.append(part)
            answer = kind.concatenate(parts)
        else:
            answer = client.ask(kind, media, measure.options)
            first_s = time.perf_counter() - start
    return Run(
        task=task,
        way=way,
        answer=answer,
        frames=len(truth["action_id" if task == "action" else "class_id"]),
        seconds=time.perf_counter() - start,
        first_s=first_s,
        quality=measure.judge(answer, truth),
    )


def write_pictures(task: str, url: str) -> None:
    """Pictures, JSON lines and a film of a task's clip."""
    folder = OUT / task
    base = [sys.executable, str(ROOT / "client.py"), "--url", url, "--task", task, "--output", str(folder)]
    base += ["--video-paths", str(CLIPS[task])]
    few = ["--clip-stride", "15"] if task == "action" else ["--stride", "15"]
    subprocess.run([*base, *PICTURES, *few], check=True)
    subprocess.run([*base, "--overlay", "mp4"], check=True, stdout=subprocess.DEVNULL)


def print_table(runs: Sequence[Run]) -> None:
    print(f"\n{'':31}{'frames':>8}{'frames/s':>10}{'first answer':>14}")
    for run in runs:
        rate, name = run.frames / run.seconds, MEASURES[ANSWERS[run.task]].name
        head = f"{run.task:16}{run.way:15}{run.frames:8}{rate:10.1f}{run.first_s * 1000:11.0f} ms"
        print(f"{head}   {name} {run.quality:.3f}")
    answer = runs[0].answer
    print(f"decoder: {answer.decoder} ({answer.decoder_reason})")


def leftovers(before: set[Path]) -> list[Path]:
    """New files in /dev/shm and the temp folder; none are named while another Triton runs here."""
    names = (process.info["name"] for process in psutil.process_iter(["name"]))
    return [] if "tritonserver" in names else sorted(watched_files() - before)


def watched_files() -> set[Path]:
    """What PyTriton and this project create there."""
    patterns = {
        Path("/dev/shm"): ("pytrtion*",),
        Path(tempfile.gettempdir()): ("trivid-*", "folder*", "python_env_*"),
    }
    return {path for folder, names in patterns.items() for name in names for path in folder.glob(name)}


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    before = watched_files()
    truths = {task: read_truth(clip.with_name(f"{clip.stem}_truth.npz")) for task, clip in CLIPS.items()}
    print(
        "starting server.py --demo (small models that know drawn shapes, to try the server out) ...",
        flush=True,
    )
    runs = []
    with start_server(OUT, "--demo") as server:
        grpc_url, http_url = server.grpc_url, server.http_url
        ways = {"gRPC": grpc_url, "HTTP": http_url, "gRPC stream": grpc_url, "HTTP stream": http_url}
        for task in CLIPS:
            runs += [send(task, way, url, truths[task]) for way, url in ways.items()]
            write_pictures(task, grpc_url)
    print_table(runs)
    summary = {task: {run.way: run.quality for run in runs if run.task == task} for task in CLIPS}
    (OUT / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    problems = [
        f"{run.task} over {run.way}: {measure.name} {run.quality:.3f} is below {measure.least}"
        for run in runs
        if run.quality < (measure := MEASURES[ANSWERS[run.task]]).least
    ]
    for path in leftovers(before):
        print(f"note: new since the start, of this server or of another: {path}", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{'failed' if problems else 'ok'}: pictures, films and answers are in {OUT.relative_to(ROOT)}/")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
