"""Servers as processes, for bench, demo and tests: started, awaited, held in turns, ended. Knows no load.

Each is the first process of a session of its own; what it starts in turn is its family.
"""

from __future__ import annotations

import contextlib
import http.client
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from scripts import ROOT

T = TypeVar("T")
Env = Mapping[str, str] | None
START_S = 240.0
STOP_S = 60.0
SECOND_SIGNAL_S = 0.5
PORTS = ("http_port", "grpc_port", "metrics_port")


def free_ports(count: int) -> list[int]:
    """Ports that are free now, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def for_each(processes: Iterable[psutil.Process], read: Callable[[psutil.Process], T]) -> list[T]:
    """What a method of psutil's gives for each process; those that have ended are left out."""
    found = []
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.append(read(process))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server process and where it listens; its output goes to `log`."""

    process: subprocess.Popen[bytes]
    log: Path
    http_port: int
    grpc_port: int = 0
    metrics_port: int = 0

    def __enter__(self) -> Server:
        """Wait until it is ready; the end of the block stops it."""
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop it by two signals: the second ends ours at once, and it cleans up all the same."""
        self.go_on()
        if self.process.poll() is None:
            self.process.terminate()
            time.sleep(SECOND_SIGNAL_S)
        self.stop()

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def output(self) -> str:
        return self.log.read_text(errors="replace")

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=30)
        with contextlib.closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()

    def family(self) -> list[psutil.Process]:
        """The server's process, then all that it has started and that still run; empty once it has ended."""
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def check_alive(self) -> None:
        """End this program with the end of the server's log if the server has ended by itself."""
        if (code := self.process.poll()) is not None:
            raise SystemExit(f"error: the server ended by itself with {code}:\n{self.output()[-3000:]}")

    def wait_ready(self, health: str = "") -> None:
        """Wait for its own word that it is ready, or until a GET of the path `health` is answered with 200.

        Raises:
            SystemExit: it has ended, or took too long; the message has the end of its log.
        """
        deadline_s = time.monotonic() + START_S
        while not (self._answers(health) if health else "ready: " in self.output()):
            self.check_alive()
            if time.monotonic() > deadline_s:
                raise SystemExit(f"error: not ready in {START_S:g} s:\n{self.output()[-3000:]}")
            time.sleep(0.1)

    def _answers(self, path: str) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.get(path)[0] == http.client.OK
        return False

    def hold(self) -> None:
        """Let it use no time until `go_on`: another server is measured."""
        for_each(self.family(), psutil.Process.suspend)

    def go_on(self) -> None:
        for_each(self.family(), psutil.Process.resume)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait for the end: its exit code.

        Raises:
            subprocess.TimeoutExpired: it did not end, and was killed with all that it had started.
        """
        family = self.family()
        self.go_on()
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            for_each(family, psutil.Process.kill)
            self.process.wait(10)
            raise


def start(
    command: Sequence[str], log: Path, ports: Sequence[int], *, checkout: Path = ROOT, env: Env = None
) -> Server:
    """Start any server that listens on these ports (HTTP's, gRPC's, metrics'), in a folder. Does not wait."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=checkout,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Server(process=process, log=log, **dict(zip(PORTS, ports, strict=True)))


def start_server(
    folder: Path, *flags: str, name: str = "server", checkout: Path = ROOT, env: Env = None
) -> Server:
    """Start a checkout's server.py on free ports; its output is `name`.log in the folder. Does not wait."""
    ports = free_ports(len(PORTS))
    places = [f"--{flag.replace('_', '-')}={port}" for flag, port in zip(PORTS, ports, strict=True)]
    command = [sys.executable, "server.py", *places, *flags]
    return start(command, folder / f"{name}.log", ports, checkout=checkout, env=env)


@contextlib.contextmanager
def guarded(server: Server, health: str = "") -> Iterator[Server]:
    """A server, ready, that has to live to the end; then nothing of it is left, however badly it ends."""
    try:
        server.wait_ready(health)
        yield server
        server.check_alive()
    finally:
        family = server.family()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.end()
        for_each(family, psutil.Process.kill)


def in_turns(
    rivals: Mapping[str, Callable[[], T]],
    rounds: int,
    *,
    servers: Mapping[str, Server] | None = None,
    say: Callable[[str, T], None] = lambda name, found: None,
) -> dict[str, list[T]]:
    """Measure rivals one after the other, round after round: of each what was found, round by round.

    Machines change their pace by a factor of two within minutes, so only what was measured within the same
    seconds compares: every second round goes backwards (A B, B A), each round has a ratio of its own, and
    their median counts.

    Args:
        servers: a rival's own one, which goes on for its turns only, so that it uses no time of others'.
        say: is told of each turn.
    """
    servers = servers or {}
    found: dict[str, list[T]] = {name: [] for name in rivals}
    for server in servers.values():
        server.hold()
    try:
        for number in range(rounds):
            for name in list(rivals)[:: -1 if number % 2 else 1]:
                if name in servers:
                    servers[name].go_on()
                found[name].append(rivals[name]())
                if name in servers:
                    servers[name].hold()
                say(name, found[name][-1])
    finally:
        for server in servers.values():
            server.go_on()
    return found
