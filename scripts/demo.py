"""`make demo`: start the real server, send the bundled clip four ways, write pictures, compare with the truth.

Everything goes over the wire to a server process of its own; nothing of it is imported. The files are in
out/demo/, the last line says whether all is well, and the exit code too.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from client import Client  # noqa: E402 - a script finds the project beside itself
from pipelines import rle  # noqa: E402
from pipelines.results import SegmentationAnswer  # noqa: E402

CLIP = ROOT / "assets" / "demo.mp4"
TRUTH = ROOT / "assets" / "demo_truth.npz"
OUT = ROOT / "out" / "demo"
GOOD_IOU = 0.90
STOP_S = 40.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One way of sending the clip, and what came of it."""

    way: str
    answer: SegmentationAnswer
    seconds: float
    first_s: float
    iou: float


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running_server(ports: Sequence[int], log: Path) -> Iterator[None]:
    """server.py --demo as a process of its own; stopped as a supervisor would, by SIGTERM."""
    names = ("--http-port", "--grpc-port", "--metrics-port")
    flags = [text for name, port in zip(names, ports, strict=True) for text in (name, str(port))]
    command = [sys.executable, str(ROOT / "server.py"), "--demo", *flags]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        with Client(f"http://127.0.0.1:{ports[0]}", timeout_s=60) as client:
            while not client.ready():
                if process.poll() is not None:
                    sys.exit(f"error: the server ended with {process.returncode}:\n{log.read_text()}")
                time.sleep(0.2)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise


def mean_iou(answer: SegmentationAnswer, truth_nhw: npt.NDArray[np.uint8]) -> float:
    """Intersection over union of each class over the whole clip, averaged over the classes."""
    size = (answer.height_px, answer.width_px)
    found = np.stack([rle.decode(mask, size) for mask in answer.mask])
    truth = truth_nhw[answer.frame_index]
    classes = range(len(answer.class_names))
    overlaps = [
        np.sum((found == k) & (truth == k)) / max(1, np.sum((found == k) | (truth == k))) for k in classes
    ]
    return float(np.mean(overlaps))


def send(way: str, url: str, truth_nhw: npt.NDArray[np.uint8]) -> Run:
    """The whole clip by one of the four ways."""
    media = CLIP.read_bytes()
    start = time.perf_counter()
    with Client(url, timeout_s=60) as client:
        if way.endswith("stream"):
            parts = []
            first_s = 0.0
            for part in client.segment_stream(media):
                first_s = first_s or time.perf_counter() - start
                parts.append(part)
            answer = SegmentationAnswer.concatenate(parts)
        else:
            answer = client.segment(media)
            first_s = time.perf_counter() - start
    seconds = time.perf_counter() - start
    return Run(way=way, answer=answer, seconds=seconds, first_s=first_s, iou=mean_iou(answer, truth_nhw))


def write_pictures(url: str) -> None:
    """What a user would type: pictures of every 15th frame, the whole clip as an H.264 overlay, JSON lines."""
    base = [
        sys.executable,
        str(ROOT / "client.py"),
        "--url",
        url,
        "--video-paths",
        str(CLIP),
        "--output",
        str(OUT),
    ]
    subprocess.run([*base, "--dump-images", "--originals", "--stride", "15", "--overlay", "jpeg"], check=True)
    subprocess.run([*base, "--overlay", "mp4"], check=True)


def print_table(runs: Sequence[Run]) -> None:
    print(f"\n{'':14}{'frames':>8}{'frames/s':>10}{'first answer':>14}{'mean IoU':>10}")
    for run in runs:
        rate = len(run.answer) / run.seconds
        print(f"{run.way:14}{len(run.answer):8}{rate:10.1f}{run.first_s * 1000:11.0f} ms{run.iou:10.3f}")
    answer = runs[0].answer
    totals = zip(answer.class_names[1:], answer.class_pixels.sum(axis=0)[1:], strict=True)
    print(f"classes found: {', '.join(name for name, pixels in totals if pixels)}")
    print(f"decoder: {answer.decoder} ({answer.decoder_reason})")


def leftovers(before: set[Path]) -> list[Path]:
    """Files in /dev/shm and the temp folder that were not there before; unknown while another Triton runs here."""
    names = (path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists())
    return [] if "tritonserver" in names else sorted(watched_files() - before)


def watched_files() -> set[Path]:
    """What PyTriton and this project create there."""
    patterns = {
        Path("/dev/shm"): ("pytrtion*", "psm_*"),
        Path(tempfile.gettempdir()): ("trivid-*", "folder*", "python_env_*"),
    }
    return {path for folder, names in patterns.items() for name in names for path in folder.glob(name)}


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    before = watched_files()
    ports = free_ports(3)
    http_url, grpc_url = f"http://127.0.0.1:{ports[0]}", f"grpc://127.0.0.1:{ports[1]}"
    ways = {"gRPC": grpc_url, "HTTP": http_url, "gRPC stream": grpc_url, "HTTP stream": http_url}
    truth_nhw = np.load(TRUTH)["masks"]
    print(
        "starting server.py --demo (a small model that knows drawn shapes, to try the server out) ...",
        flush=True,
    )
    with running_server(ports, OUT / "server.log"):
        runs = [send(way, url, truth_nhw) for way, url in ways.items()]
        write_pictures(grpc_url)
    print_table(runs)
    (OUT / "summary.json").write_text(
        json.dumps({run.way: {"mean_iou": run.iou} for run in runs}, indent=1) + "\n"
    )
    problems = [
        f"mean IoU {run.iou:.3f} over {run.way} is below {GOOD_IOU}" for run in runs if run.iou < GOOD_IOU
    ]
    for path in leftovers(before):
        print(f"note: new since the start, of this server or of another: {path}", file=sys.stderr)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{'failed' if problems else 'ok'}: pictures, video and answers are in {OUT.relative_to(ROOT)}/")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
