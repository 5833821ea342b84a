"""What a plain load does not show: fairness, overload, slow readers, leaks, films, crowds, first requests.

Each scenario starts a server of its own and returns its numbers by name. Bars are not judged here; where
there is one the number's name says it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from client import Client
from pipelines.protocol.answers import ANSWERS, Answer
from scripts.bench.figures import Report, compared, median, percentile
from scripts.bench.jobs import Job
from scripts.bench.load import Load
from scripts.bench.media import make_medium
from scripts.bench.runs import MIB, Meter, cpu_s, measure_point, memory_bytes, send, sending, shm_bytes
from scripts.servers import Server, guarded, in_turns, start_server

Numbers = dict[str, float]
OVERLOAD, WAITING = 3, 128
# Clients that keep it busy, and few enough for a short queue; and many.
BUSY, CROWD = 4, 64
SETTLE_S = 5.0
SOAK_ROUNDS, AFTER_FIRST = 10, 10
# Few, for a stream that is not read for half a minute expires, and two turns of the other's lie between two.
PER_TURN = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Rig:
    """What scenarios play on: the job, a folder for media, how long a turn is, and how many there are."""

    job: Job
    folder: Path
    seconds: float
    rounds: int

    def load(self, server: Server, medium: str, /, **changes: Any) -> Load:
        """One client of another medium than the job's, in one answer, or as `changes` say."""
        load = self.job.load(server, 1, self.seconds)
        given = {"medium": str(make_medium(medium, self.folder).path), "stream": False, **changes}
        return dataclasses.replace(load, **given)

    def rate(self, server: Server, clients: int) -> Callable[[], Numbers]:
        """Measures frames a second of the job itself."""
        load, frames = self.job.load(server, clients, self.seconds), self.job.frames
        return lambda: {"frames/s": measure_point(server, load, frames).frames_per_s}

    def served(self) -> AbstractContextManager[Server]:
        return guarded(start_server(self.folder, *self.job.server_flags(), "--max-media-mb", "256"))

    def compare(self, two: Mapping[str, Callable[[], Numbers]], ratio: str, bar: str) -> Numbers:
        """Two things in turns: medians of their numbers, and the one's first number to the other's."""
        found = in_turns(two, self.rounds)
        numbers = Numbers()
        for name, turns in found.items():
            numbers |= {f"{name}, {what}": median([turn[what] for turn in turns]) for what in turns[0]}
        ours, theirs = ([next(iter(turn.values())) for turn in turns] for turns in found.values())
        return numbers | compared(ours, theirs, ratio, bar)


def _beside(load: Load, measure: Callable[[], Numbers]) -> Callable[[], Numbers]:
    """Measures while other clients are at work, who vanish then."""

    def measure_beside() -> Numbers:
        with sending(load):
            time.sleep(SETTLE_S)
            found = measure()
        # What they had asked for ahead is worked off by then.
        time.sleep(SETTLE_S)
        return found

    return measure_beside


def fairness(rig: Rig) -> Numbers:
    """Single pictures with nothing else to do, and while an hour of film is streamed, in turns."""
    with rig.served() as server:
        pictures, film = rig.load(server, "image"), rig.load(server, "hour", stream=True, requests=1)

        def alone() -> Numbers:
            times = send(pictures).latencies_ms(rig.seconds)
            return {"p95 of a picture, ms": percentile(times, 95), "p50 of a picture, ms": median(times)}

        two = {"beside a film": _beside(film, alone), "idle": alone}
        return rig.compare(two, "p95 beside a film / p95 idle", " (at most 3)")


def overload(rig: Rig) -> Numbers:
    """Pictures sent three times as fast as they can be answered, whether or not answers come."""
    with rig.served() as server:

        def light(clients: int, period_s: float = 0.0) -> Report:
            how = {"kind": "light", "url": server.http_url, "period_s": period_s}
            return send(rig.load(server, "image", clients=clients, **how))

        alone = light(1).latencies_ms(rig.seconds)
        capacity = light(BUSY).frames_per_s(rig.seconds, 1)
        flood = light(WAITING, 1 / (OVERLOAD * capacity))
        after = light(1).latencies_ms(rig.seconds)
    accepted = flood.latencies_ms(rig.seconds)
    refused = flood.errors()
    return {
        f"capacity, {BUSY} clients, pictures/s": capacity,
        "unloaded, p50, ms": median(alone),
        "unloaded, p99, ms": percentile(alone, 99),
        "offered / capacity": len(flood.replies) / rig.seconds / capacity,
        "the last was sent too late by, s": flood.waited_s,
        "refused, share": refused.total() / max(1, len(flood.replies)),
        **{f"refused, {code}": count for code, count in refused.items()},
        "accepted, pictures/s": flood.frames_per_s(rig.seconds, 1),
        "accepted, p50, ms": median(accepted),
        "accepted, p99, ms": percentile(accepted, 99),
        "p99 accepted / p99 unloaded (at most 2)": percentile(accepted, 99) / percentile(alone, 99),
        "afterwards, p50, ms": median(after),
    }


def slow_reader(rig: Rig) -> Numbers:
    """The job's clients alone and beside one who takes an answer a second of an hour of film, in turns."""
    with rig.served() as server:
        reader = rig.load(server, "hour", stream=True, requests=1, pause_s=1.0)
        alone = rig.rate(server, BUSY)
        two = {"beside a slow reader": _beside(reader, alone), "alone": alone}
        numbers = rig.compare(two, "beside / alone", " (near 1)")

        def growth() -> Numbers:
            with Meter(server) as meter:
                time.sleep(rig.seconds)
            thirds = np.array_split([main for _, main, _ in meter.samples_mib], 3)
            first, _, last = (float(np.median(third)) for third in thirds)
            return {
                "memory, first third, MiB": first,
                "last third, MiB": last,
                "growth, MiB (0)": last - first,
            }

        return numbers | _beside(reader, growth)()


def soak(rig: Rig) -> Numbers:
    """A thousand requests: pictures and clips, in one answer and streamed, both protocols, refused ones."""
    shm, rss, failed = [], [], 0
    with rig.served() as server:
        loads = [
            rig.load(server, "image", requests=50),
            rig.load(server, "image", requests=20, url=server.http_url),
            rig.load(server, "image", requests=10, stream=True),
            rig.load(server, "image", requests=10, options={"stride": 0}),
            rig.load(server, "short", requests=5),
            rig.load(server, "short", requests=5, stream=True),
        ]
        for _ in range(SOAK_ROUNDS):
            with ExitStack() as stack:
                sent = [(load, stack.enter_context(sending(load))) for load in loads]
                errors = [(load, answer().errors().total()) for load, answer in sent]
            failed += sum(count for load, count in errors if "stride" not in load.options)
            shm.append(shm_bytes(server) / MIB)
            rss.append(memory_bytes(server)[0] / MIB)
    return {
        "requests": SOAK_ROUNDS * sum(load.requests for load in loads),
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
        Client(rig.job.load(server).url) as client,
        closing(client.ask_stream(kind, medium.path, rig.job.options)) as late,
        closing(client.ask_stream(kind, medium.path, rig.job.options)) as early,
    ):

        def cost(answers: Iterator[Answer], start: int) -> Callable[[], Numbers]:
            """Reads on, and gives cpu-ms and ms a frame."""
            shown = (int(number) for answer in answers for number in answer.frame_index)
            ends = itertools.count(start, PER_TURN)

            def read() -> None:
                end = next(ends)
                next(number for number in shown if number >= end)

            def read_on() -> Numbers:
                # What was asked for ahead is done by then.
                time.sleep(SETTLE_S)
                began_s, used_s = time.monotonic(), cpu_s(server)
                read()
                used_s, took_s = cpu_s(server) - used_s, time.monotonic() - began_s
                return {"cpu-ms a frame": 1000 * used_s / PER_TURN, "ms a frame": 1000 * took_s / PER_TURN}

            read()
            return read_on

        # In this order: a stream that is not read for half a minute expires.
        two = {"after the 10 000th": cost(late, 10_000), "after the 100th": cost(early, 100)}
        return rig.compare(two, "late / early", " (0.95 to 1.05)")


def many(rig: Rig) -> Numbers:
    """Frames a second of many clients and of a few, in turns."""
    with rig.served() as server:
        two = {f"{clients} clients": rig.rate(server, clients) for clients in (CROWD, BUSY)}
        return rig.compare(two, f"{CROWD} to {BUSY} clients", " (at least 0.95)")


def first(rig: Rig) -> Numbers:
    """The first request of each kind to a server that has just become ready, over the next ones' median."""
    numbers: Numbers = {}
    with rig.served() as server:
        for kind, stream in itertools.product(("image", "short"), (False, True)):
            load = rig.load(server, kind, stream=stream, requests=1 + AFTER_FIRST)
            begun, *later = (one.latency_ms for one in send(load).replies)
            name = f"{kind}, {'streamed' if stream else 'one answer'}: first"
            numbers |= {f"{name}, ms": begun, f"{name} / median": begun / median(later)}
    return numbers


def film(rig: Rig) -> Numbers:
    """Memory at its highest for a minute and for an hour of film, and for one that is read slowly."""
    numbers, peaks = Numbers(), Numbers()
    for name, pause_s in (("minute", 0.0), ("hour", 0.0), ("hour, slow reader", 1.0)):
        with rig.served() as server:
            load = rig.load(server, name.split(",")[0], stream=True, requests=1, pause_s=pause_s)
            with Meter(server, shared_once=True) as meter, sending(load) as answer:
                if pause_s:
                    time.sleep(4 * rig.seconds)
                else:
                    numbers[f"{name}, errors (0)"] = answer().errors().total()
        numbers[f"{name}: peak of the server's memory, MiB"] = meter.memory_mib["main"]
        peaks[name] = meter.memory_mib["RSS"]
        numbers[f"{name}: peak with its children, shared memory once, MiB"] = peaks[name]
        if name != "minute":
            numbers[f"{name} / minute (at most 1.10)"] = peaks[name] / peaks["minute"]
    return numbers


SCENARIOS: Mapping[str, Callable[[Rig], Numbers]] = {
    one.__name__.replace("_", "-"): one
    for one in (fairness, overload, slow_reader, soak, steady, many, first, film)
}
