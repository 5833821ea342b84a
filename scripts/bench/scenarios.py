"""What a plain load does not show: fairness, overload, slow readers, leaks, long films, crowds, first
requests.

Each scenario starts a server of its own and returns its numbers by name. Bars are not judged here; a name
says what its number should be where there is one.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client import Client
from pipelines.protocol.answers import ANSWERS, Answer
from scripts.bench import meter as meters
from scripts.bench.figures import figures, median, percentile
from scripts.bench.jobs import Job, Protocol
from scripts.bench.load import Load, Report
from scripts.bench.media import make_medium
from scripts.bench.meter import Meter, measured, rss_bytes, shm_bytes
from scripts.bench.runs import Sending, load_of, measure_point, send, window_of
from scripts.servers import Server, start_server

Numbers = dict[str, float]
MIB = 1 << 20
OVERLOAD = 3
WAITING = 128
# Clients that keep it busy, and few enough for a short queue.
BUSY = 4
CROWD = 64
SETTLE_S = 5.0
ROUNDS, PER_ROUND = 10, 100
AFTER_FIRST = 10
TURNS, PER_TURN = 4, 1000
FILM_MEDIA_MB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """What scenarios play on: the job, a folder for media, and how long a run is."""

    job: Job
    folder: Path
    seconds: float

    def load(self, served: Served, kind: str, *, clients: int = 1, stream: bool = False) -> Load:
        """A closed loop of clients with another medium than the job's."""
        medium = make_medium(kind, self.folder)
        job = dataclasses.replace(self.job, medium=str(medium.path), frames=medium.frames, stream=stream)
        return load_of(job, served.urls, clients, self.seconds)

    @contextmanager
    def served(self) -> Iterator[Served]:
        flags = [*self.job.server_flags(), "--max-media-mb", str(FILM_MEDIA_MB)]
        with measured(start_server(self.folder, *flags)) as server:
            yield Served(server=server, urls={"grpc": server.grpc_url, "http": server.http_url})


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The running server."""

    server: Server
    urls: Mapping[Protocol, str]


def _latencies_ms(report: Report, seconds: float) -> list[float]:
    """Of all that were answered well, but those of the warm-up."""
    start_s = window_of(report, seconds).start_s
    return [1000 * one.latency_s for one in report.replies if not one.error and one.start_s > start_s]


def fairness(rig: Rig) -> Numbers:
    """Single pictures with nothing else to do, then while an hour of film is streamed."""
    with rig.served() as served:
        pictures = rig.load(served, "image")
        idle = _latencies_ms(send(pictures), rig.seconds)
        film = Sending(dataclasses.replace(rig.load(served, "hour", stream=True), seconds=0, requests=1))
        time.sleep(SETTLE_S)
        beside = _latencies_ms(send(pictures), rig.seconds)
        film.kill()
    return {
        "idle, p50 of a picture, ms": median(idle),
        "idle, p95 of a picture, ms": percentile(idle, 95),
        "beside a film, p50, ms": median(beside),
        "beside a film, p95, ms": percentile(beside, 95),
        "p95 beside a film / p95 idle (at most 3)": percentile(beside, 95) / percentile(idle, 95),
    }


def overload(rig: Rig) -> Numbers:
    """Pictures sent three times as fast as they can be answered, whether or not answers come."""
    with rig.served() as served:

        def light(clients: int, period_s: float = 0.0) -> Report:
            load = rig.load(served, "image", clients=clients)
            return send(dataclasses.replace(load, kind="light", url=served.urls["http"], period_s=period_s))

        alone = _latencies_ms(light(1), rig.seconds)
        closed = light(BUSY)
        capacity = figures(closed.replies, window_of(closed, rig.seconds), 1).frames_per_s
        flood = light(WAITING, 1 / (OVERLOAD * capacity))
        after = _latencies_ms(light(1), rig.seconds)
    accepted = _latencies_ms(flood, rig.seconds)
    refused = [one for one in flood.replies if one.error]
    codes = Counter(one.error for one in refused)
    return {
        f"capacity, {BUSY} clients, pictures/s": capacity,
        "unloaded, p50, ms": median(alone),
        "unloaded, p99, ms": percentile(alone, 99),
        "offered / capacity": len(flood.replies) / rig.seconds / capacity,
        "the last was sent too late by, s": flood.waited_s,
        "refused, share": len(refused) / max(1, len(flood.replies)),
        **{f"refused, {code}": count for code, count in codes.items()},
        "accepted, pictures/s": figures(flood.replies, window_of(flood, rig.seconds), 1).frames_per_s,
        "accepted, p50, ms": median(accepted),
        "accepted, p99, ms": percentile(accepted, 99),
        "p99 accepted / p99 unloaded (at most 2)": percentile(accepted, 99) / percentile(alone, 99),
        "afterwards, p50, ms": median(after),
    }


def slow_reader(rig: Rig) -> Numbers:
    """The job's clients alone, then beside one who takes an answer a second of an hour of film."""
    with rig.served() as served:
        load = load_of(rig.job, served.urls, 4, rig.seconds)
        alone = measure_point(served.server, load, rig.job.frames).figures.frames_per_s
        film = rig.load(served, "hour", stream=True)
        reader = Sending(dataclasses.replace(film, seconds=0, requests=1, pause_s=1.0))
        time.sleep(SETTLE_S)
        beside = measure_point(served.server, load, rig.job.frames).figures.frames_per_s
        with Meter(served.server) as meter:
            time.sleep(rig.seconds)
        reader.kill()
    sizes = [size / MIB for _, size in meter.samples]
    third = max(1, len(sizes) // 3)
    return {
        "alone, frames/s": alone,
        "beside a slow reader, frames/s": beside,
        "beside / alone (near 1)": beside / alone,
        "server's memory, first third, MiB": median(sizes[:third]),
        "server's memory, last third, MiB": median(sizes[-third:]),
        "growth, MiB (0)": median(sizes[-third:]) - median(sizes[:third]),
    }


def soak(rig: Rig) -> Numbers:
    """A thousand requests of all kinds: pictures and clips, in one answer and streamed, both protocols,
    refused ones.
    """
    shm, rss = [], []
    failed = 0
    with rig.served() as served:
        kinds = [
            (rig.load(served, "image"), 50),
            (dataclasses.replace(rig.load(served, "image"), url=served.urls["http"]), 20),
            (rig.load(served, "image", stream=True), 10),
            (dataclasses.replace(rig.load(served, "image"), options={"stride": 0}), 10),
            (rig.load(served, "short"), 5),
            (rig.load(served, "short", stream=True), 5),
        ]
        assert sum(count for _, count in kinds) == PER_ROUND
        for _ in range(ROUNDS):
            sent = [
                (load, Sending(dataclasses.replace(load, seconds=0, requests=count))) for load, count in kinds
            ]
            for load, sending in sent:
                replies = sending.report().replies
                failed += sum(bool(one.error) for one in replies if "stride" not in load.options)
            shm.append(shm_bytes(served.server) / MIB)
            rss.append(rss_bytes(served.server)[0] / MIB)
    return {
        "requests": ROUNDS * PER_ROUND,
        "failed (0)": failed,
        "/dev/shm after the first hundred, MiB": shm[0],
        "/dev/shm after all, MiB": shm[-1],
        "/dev/shm, growth from the second hundred, MiB (0)": shm[-1] - shm[1],
        "server's memory after the second hundred, MiB": rss[1],
        "server's memory after all, MiB": rss[-1],
    }


def steady(rig: Rig) -> Numbers:
    """What a frame costs behind the 10 000th of one stream and near the first of another, in turns, for
    machines change their pace from minute to minute.
    """
    medium = make_medium("film", rig.folder)
    kind = ANSWERS[rig.job.task]
    cpu_s, wall_s = {"early": 0.0, "late": 0.0}, {"early": 0.0, "late": 0.0}
    with (
        rig.served() as served,
        Client(served.urls[rig.job.protocol]) as client,
        closing(client.ask_stream(kind, medium.path, rig.job.options)) as early,
        closing(client.ask_stream(kind, medium.path, rig.job.options)) as late,
    ):
        # In this order: a stream that is not read for half a minute expires.
        streams = {"late": (late, 10_000), "early": (early, 100)}
        for answers, start in streams.values():
            _read_to(answers, start)
        for turn in range(1, TURNS + 1):
            for name, (answers, start) in streams.items():
                # What was asked for ahead is done by then.
                time.sleep(SETTLE_S)
                began_s, used_s = time.monotonic(), meters.cpu_s(served.server)
                _read_to(answers, start + turn * PER_TURN)
                cpu_s[name] += meters.cpu_s(served.server) - used_s
                wall_s[name] += time.monotonic() - began_s
    frames = TURNS * PER_TURN / 1000
    return {
        "cpu-ms a frame, behind the 100th": cpu_s["early"] / frames,
        "cpu-ms a frame, behind the 10 000th": cpu_s["late"] / frames,
        "late / early (0.95 to 1.05)": cpu_s["late"] / cpu_s["early"],
        "ms a frame, early": wall_s["early"] / frames,
        "ms a frame, late": wall_s["late"] / frames,
    }


def _read_to(answers: Iterator[Answer], number: int) -> None:
    """Read a stream up to a frame."""
    for answer in answers:
        if len(answer) and int(answer.frame_index[-1]) >= number:
            return


def many(rig: Rig) -> Numbers:
    """Frames a second of many clients, each turn of theirs between two of a few."""
    with rig.served() as served:

        def rate(clients: int) -> float:
            load = load_of(rig.job, served.urls, clients, rig.seconds)
            return measure_point(served.server, load, rig.job.frames).figures.frames_per_s

        few, crowd = [rate(BUSY)], []
        for _ in range(TURNS):
            crowd.append(rate(CROWD))
            few.append(rate(BUSY))
    shares = [2 * ours / (before + behind) for ours, before, behind in zip(crowd, few, few[1:], strict=True)]
    return {
        f"{BUSY} clients, frames/s": median(few),
        f"{CROWD} clients, frames/s": median(crowd),
        **{f"{CROWD} to {BUSY} clients, turn {turn}": share for turn, share in enumerate(shares, 1)},
        f"{CROWD} to {BUSY} clients, median (at least 0.95)": median(shares),
    }


def first(rig: Rig) -> Numbers:
    """The first request of each kind after the server has said that it is ready, over the median of those
    behind it.
    """
    numbers: Numbers = {}
    with rig.served() as served:
        for kind, stream in (("image", False), ("image", True), ("short", False), ("short", True)):
            load = dataclasses.replace(
                rig.load(served, kind, stream=stream), seconds=0, requests=1 + AFTER_FIRST
            )
            times = [1000 * one.latency_s for one in send(load).replies]
            name = f"{kind}, {'streamed' if stream else 'one answer'}"
            numbers[f"{name}: first, ms"] = times[0]
            numbers[f"{name}: first / median"] = times[0] / median(times[1:])
    return numbers


def film(rig: Rig) -> Numbers:
    """Memory at its highest for a minute and for an hour of film, and for one that is read slowly."""
    numbers: Numbers = {}
    for kind, pause_s in (("minute", 0.0), ("hour", 0.0), ("hour", 1.0)):
        with rig.served() as served:
            load = dataclasses.replace(
                rig.load(served, kind, stream=True), seconds=0, requests=1, pause_s=pause_s
            )
            with Meter(served.server, shared_once=True) as meter:
                sending = Sending(load)
                if pause_s:
                    time.sleep(4 * rig.seconds)
                    sending.kill()
                else:
                    numbers[f"{kind}, errors (0)"] = sum(bool(one.error) for one in sending.report().replies)
        assert meter.usage is not None
        name = f"{kind}{', slow reader' if pause_s else ''}"
        numbers[f"{name}: peak of the server's memory, MiB"] = meter.usage.peak_main_rss_bytes / MIB
        numbers[f"{name}: peak with its children, shared memory once, MiB"] = meter.usage.peak_rss_bytes / MIB
    peaks = {
        name: numbers[f"{name}: peak with its children, shared memory once, MiB"]
        for name in ("minute", "hour", "hour, slow reader")
    }
    numbers["hour / minute (at most 1.10)"] = peaks["hour"] / peaks["minute"]
    numbers["hour, slow reader / minute (at most 1.10)"] = peaks["hour, slow reader"] / peaks["minute"]
    return numbers


SCENARIOS: Mapping[str, Callable[[Rig], Numbers]] = {
    "fairness": fairness,
    "overload": overload,
    "slow-reader": slow_reader,
    "soak": soak,
    "steady": steady,
    "many": many,
    "first": first,
    "film": film,
}
