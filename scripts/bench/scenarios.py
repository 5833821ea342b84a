"""What a plain load does not show: fairness, overload, slow readers, leaks, films, crowds, first requests.

Each scenario starts a server of its own and returns its numbers by name. Bars are not judged here; where
there is one the number's name says it.
"""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from client import Client
from pipelines.protocol.answers import ANSWERS, Answer
from scripts.bench.figures import median, percentile
from scripts.bench.jobs import Job
from scripts.bench.load import Load, Report
from scripts.bench.media import make_medium
from scripts.bench.meter import MIB, Meter, cpu_s, measured, rss_bytes, shm_bytes
from scripts.bench.runs import figures_of, load_of, measure_point, send, sending, url_of, window_of
from scripts.bench.turns import Comparison, in_turns
from scripts.servers import Server, start_server

T = TypeVar("T")
Numbers = dict[str, float]
OVERLOAD, WAITING = 3, 128
# Clients that keep it busy, and few enough for a short queue.
BUSY = 4
CROWD = 64
SETTLE_S = 5.0
SOAK_ROUNDS, PER_ROUND = 10, 100
AFTER_FIRST = 10
# Few, for a stream that is not read for half a minute expires, and two turns of the other's lie between two.
PER_TURN = 400
FILM_MEDIA_MB = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """What scenarios play on: the job, a folder for media, how long a turn is, and how many there are."""

    job: Job
    folder: Path
    seconds: float
    rounds: int

    def load(self, server: Server, kind: str, *, clients: int = 1, stream: bool = False) -> Load:
        """A closed loop of clients with another medium than the job's."""
        medium = make_medium(kind, self.folder)
        job = dataclasses.replace(self.job, medium=str(medium.path), frames=medium.frames, stream=stream)
        return load_of(job, server, clients, self.seconds)

    def rate(self, server: Server, clients: int) -> Callable[[], float]:
        """Measures frames a second of the job itself."""
        load = load_of(self.job, server, clients, self.seconds)
        return lambda: measure_point(server, load, self.job.frames).figures.frames_per_s

    @contextmanager
    def served(self) -> Iterator[Server]:
        flags = [*self.job.server_flags(), "--max-media-mb", str(FILM_MEDIA_MB)]
        with measured(start_server(self.folder, *flags)) as server:
            yield server


def _times(load: Load, requests: int = 1, pause_s: float = 0.0) -> Load:
    """The same, a number of times."""
    return dataclasses.replace(load, seconds=0, requests=requests, pause_s=pause_s)


def _beside(load: Load, measure: Callable[[], T]) -> Callable[[], T]:
    """Measures while other clients are at work, who vanish then."""

    def measure_beside() -> T:
        with sending(load):
            time.sleep(SETTLE_S)
            found = measure()
        # What they had asked for ahead is worked off by then.
        time.sleep(SETTLE_S)
        return found

    return measure_beside


def _latencies_ms(report: Report, seconds: float) -> list[float]:
    """Of all that were answered well, but those of the warm-up."""
    start_s = window_of(report, seconds).start_s
    return [1000 * one.latency_s for one in report.replies if not one.error and one.start_s > start_s]


def fairness(rig: Rig) -> Numbers:
    """Single pictures with nothing else to do, and while an hour of film is streamed, in turns."""
    with rig.served() as server:
        pictures, film = rig.load(server, "image"), _times(rig.load(server, "hour", stream=True))

        def latencies_ms() -> list[float]:
            return _latencies_ms(send(pictures), rig.seconds)

        found = in_turns({"beside a film": _beside(film, latencies_ms), "idle": latencies_ms}, rig.rounds)
    p95 = {name: [percentile(times, 95) for times in rounds] for name, rounds in found.items()}
    numbers = {f"{name}, p95 of a picture, ms": median(values) for name, values in p95.items()}
    for name, rounds in found.items():
        numbers[f"{name}, p50 of a picture, ms"] = median([median(times) for times in rounds])
    compared = Comparison.of(p95["beside a film"], p95["idle"])
    return numbers | compared.numbers("p95 beside a film / p95 idle", " (at most 3)")


def overload(rig: Rig) -> Numbers:
    """Pictures sent three times as fast as they can be answered, whether or not answers come."""
    with rig.served() as server:

        def light(clients: int, period_s: float = 0.0) -> Report:
            load = rig.load(server, "image", clients=clients)
            return send(dataclasses.replace(load, kind="light", url=server.http_url, period_s=period_s))

        alone = _latencies_ms(light(1), rig.seconds)
        capacity = figures_of(light(BUSY), rig.seconds, 1).frames_per_s
        flood = light(WAITING, 1 / (OVERLOAD * capacity))
        after = _latencies_ms(light(1), rig.seconds)
    accepted = _latencies_ms(flood, rig.seconds)
    refused = Counter(one.error for one in flood.replies if one.error)
    return {
        f"capacity, {BUSY} clients, pictures/s": capacity,
        "unloaded, p50, ms": median(alone),
        "unloaded, p99, ms": percentile(alone, 99),
        "offered / capacity": len(flood.replies) / rig.seconds / capacity,
        "the last was sent too late by, s": flood.waited_s,
        "refused, share": refused.total() / max(1, len(flood.replies)),
        **{f"refused, {code}": count for code, count in refused.items()},
        "accepted, pictures/s": figures_of(flood, rig.seconds, 1).frames_per_s,
        "accepted, p50, ms": median(accepted),
        "accepted, p99, ms": percentile(accepted, 99),
        "p99 accepted / p99 unloaded (at most 2)": percentile(accepted, 99) / percentile(alone, 99),
        "afterwards, p50, ms": median(after),
    }


def slow_reader(rig: Rig) -> Numbers:
    """The job's clients alone and beside one who takes an answer a second of an hour of film, in turns."""
    with rig.served() as server:
        reader = _times(rig.load(server, "hour", stream=True), pause_s=1.0)
        alone = rig.rate(server, BUSY)
        found = in_turns({"beside a slow reader": _beside(reader, alone), "alone": alone}, rig.rounds)

        def growth() -> list[float]:
            with Meter(server) as meter:
                time.sleep(rig.seconds)
            return [main / MIB for _, main, _ in meter.samples]

        sizes = _beside(reader, growth)()
    third = max(1, len(sizes) // 3)
    return {
        **{f"{name}, frames/s": median(rates) for name, rates in found.items()},
        **Comparison.of(*found.values()).numbers("beside / alone", " (near 1)"),
        "server's memory, first third, MiB": median(sizes[:third]),
        "server's memory, last third, MiB": median(sizes[-third:]),
        "growth, MiB (0)": median(sizes[-third:]) - median(sizes[:third]),
    }


def soak(rig: Rig) -> Numbers:
    """A thousand requests: pictures and clips, in one answer and streamed, both protocols, refused ones."""
    shm, rss, failed = [], [], 0
    with rig.served() as server:
        picture = rig.load(server, "image")
        kinds = [
            (picture, 50),
            (dataclasses.replace(picture, url=server.http_url), 20),
            (dataclasses.replace(picture, stream=True), 10),
            (dataclasses.replace(picture, options={"stride": 0}), 10),
            (rig.load(server, "short"), 5),
            (rig.load(server, "short", stream=True), 5),
        ]
        assert sum(count for _, count in kinds) == PER_ROUND
        for _ in range(SOAK_ROUNDS):
            sent = [(load, sending(_times(load, count))) for load, count in kinds]
            for load, clients in sent:
                replies = clients.answer().replies
                failed += sum(bool(one.error) for one in replies if "stride" not in load.options)
            shm.append(shm_bytes(server) / MIB)
            rss.append(rss_bytes(server)[0] / MIB)
    return {
        "requests": SOAK_ROUNDS * PER_ROUND,
        "failed (0)": failed,
        "/dev/shm after the first hundred, MiB": shm[0],
        "/dev/shm after all, MiB": shm[-1],
        "/dev/shm, growth from the second hundred, MiB (0)": shm[-1] - shm[1],
        "server's memory after the second hundred, MiB": rss[1],
        "server's memory after all, MiB": rss[-1],
    }


def steady(rig: Rig) -> Numbers:
    """What a frame costs after the 10 000th of one stream and near the first of another, in turns."""
    medium, kind = make_medium("film", rig.folder), ANSWERS[rig.job.task]
    with (
        rig.served() as server,
        Client(url_of(server, rig.job.protocol)) as client,
        closing(client.ask_stream(kind, medium.path, rig.job.options)) as late,
        closing(client.ask_stream(kind, medium.path, rig.job.options)) as early,
    ):

        def cost(answers: Iterator[Answer], start: int) -> Callable[[], tuple[float, float]]:
            """Reads on, and gives cpu-ms and ms a frame."""
            _read_to(answers, start)
            turns = iter(range(1, rig.rounds + 1))

            def read_on() -> tuple[float, float]:
                # What was asked for ahead is done by then.
                time.sleep(SETTLE_S)
                began_s, used_s = time.monotonic(), cpu_s(server)
                _read_to(answers, start + next(turns) * PER_TURN)
                scale = 1000 / PER_TURN
                return scale * (cpu_s(server) - used_s), scale * (time.monotonic() - began_s)

            return read_on

        # In this order: a stream that is not read for half a minute expires.
        found = in_turns({"10 000th": cost(late, 10_000), "100th": cost(early, 100)}, rig.rounds)
    costs = {name: [cpu_ms for cpu_ms, _ in turns] for name, turns in found.items()}
    return {
        **{f"cpu-ms a frame, after the {name}": median(values) for name, values in costs.items()},
        **{f"ms a frame, after the {name}": median([ms for _, ms in turns]) for name, turns in found.items()},
        **Comparison.of(*costs.values()).numbers("late / early", " (0.95 to 1.05)"),
    }


def _read_to(answers: Iterator[Answer], number: int) -> None:
    """Read a stream up to a frame."""
    for answer in answers:
        if len(answer) and int(answer.frame_index[-1]) >= number:
            return


def many(rig: Rig) -> Numbers:
    """Frames a second of many clients and of a few, in turns."""
    with rig.served() as server:
        rivals = {f"{clients} clients": rig.rate(server, clients) for clients in (CROWD, BUSY)}
        found = in_turns(rivals, rig.rounds)
    return {
        **{f"{name}, frames/s": median(rates) for name, rates in found.items()},
        **Comparison.of(*found.values()).numbers(f"{CROWD} to {BUSY} clients", " (at least 0.95)"),
    }


def first(rig: Rig) -> Numbers:
    """The first request of each kind to a server that has just become ready, over the next ones' median."""
    numbers: Numbers = {}
    with rig.served() as server:
        for kind, stream in (("image", False), ("image", True), ("short", False), ("short", True)):
            load = _times(rig.load(server, kind, stream=stream), 1 + AFTER_FIRST)
            times = [1000 * one.latency_s for one in send(load).replies]
            name = f"{kind}, {'streamed' if stream else 'one answer'}"
            numbers[f"{name}: first, ms"] = times[0]
            numbers[f"{name}: first / median"] = times[0] / median(times[1:])
    return numbers


def film(rig: Rig) -> Numbers:
    """Memory at its highest for a minute and for an hour of film, and for one that is read slowly."""
    numbers: Numbers = {}
    peaks = {}
    for name, kind, pause_s in (
        ("minute", "minute", 0.0),
        ("hour", "hour", 0.0),
        ("hour, slow reader", "hour", 1.0),
    ):
        with rig.served() as server:
            load = _times(rig.load(server, kind, stream=True), pause_s=pause_s)
            with Meter(server, shared_once=True) as meter, sending(load) as clients:
                if pause_s:
                    time.sleep(4 * rig.seconds)
                else:
                    numbers[f"{name}, errors (0)"] = sum(bool(one.error) for one in clients.answer().replies)
        peaks[name] = meter.usage.peak_rss_bytes / MIB
        numbers[f"{name}: peak of the server's memory, MiB"] = meter.usage.peak_main_rss_bytes / MIB
        numbers[f"{name}: peak with its children, shared memory once, MiB"] = peaks[name]
    for name in ("hour", "hour, slow reader"):
        numbers[f"{name} / minute (at most 1.10)"] = peaks[name] / peaks["minute"]
    return numbers


SCENARIOS: Mapping[str, Callable[[Rig], Numbers]] = {
    one.__name__.replace("_", "-"): one
    for one in (fairness, overload, slow_reader, soak, steady, many, first, film)
}
