"""Decodes pictures in a process that can be killed: those whose header does not tell what they cost.

The process is started when it is first needed, and kept. It gets the file and gives pixels, as plain bytes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import PIL
from PIL import Image

from pipelines.machine.threads import Threads, cores
from pipelines.media.bounds import worker
from pipelines.media.medium import Leave
from pipelines.protocol.errors import InvalidMedia, Overloaded, TooLarge

# How long a picture waits for a process.
MOST_WAIT_S = 5.0
MOST_ERROR_BYTES = 4096
# Of the environment: some Pythons find their own libraries by it.
KEPT = ("LD_LIBRARY_PATH",)
MODES = ("1", "L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F")

log = logging.getLogger("trivid")


class Process:
    """One decoding process. Raises OSError if it cannot be started."""

    def __init__(self) -> None:
        ends: list[int] = []
        try:
            # By the first pipe it notices that this process ended. Of what it writes to the second, which
            # never waits, the beginning is kept.
            for flags in (os.O_CLOEXEC, os.O_CLOEXEC | os.O_NONBLOCK):
                ends += os.pipe2(flags)
            life, self._life, self._errors, errors = ends
            self._process = subprocess.Popen(
                # Without Python's own paths, but with the Pillow of this process, wherever it comes from.
                [sys.executable, "-I", "-S", worker.__file__, str(life), str(Path(PIL.__file__).parents[1])],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                pass_fds=(life,),
                env={
                    "MALLOC_ARENA_MAX": "1",
                    **{name: os.environ[name] for name in KEPT if name in os.environ},
                },
                cwd=Path(worker.__file__).parent,
                start_new_session=True,
            )
        except BaseException:
            _close(ends)
            raise
        _close((life, errors))
        self.pid = self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End it, whatever it does."""
        if self._life < 0:
            return
        self._process.kill()
        self._process.wait()
        for end in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                end.close() if end else None
        _close((self._life, self._errors))
        self._life = -1

    def ended(self, name: str) -> Overloaded:
        """The error for a process that ended by itself; the log says what it wrote."""
        self._process.kill()
        code, text = self._process.wait(), b""
        with contextlib.suppress(OSError):
            text = os.read(self._errors, MOST_ERROR_BYTES)
        said = text.decode(errors="replace").strip()
        log.warning("the process that decoded the %s image ended with %d: %s", name, code, said or "silently")
        return Overloaded(
            f"the process that decoded the {name} image ended by itself",
            hint="try again; if it happens again, save the picture anew",
        )

    def ask(self, request: bytes, encoded: bytes, seconds: float) -> tuple[bytes, bytes] | None:
        """The answer's head and content; None if the process ended, or was ended after some seconds.

        Raises:
            RuntimeError: there is no thread for the clock.
        """
        source, sink = self._process.stdout, self._process.stdin
        assert source is not None
        assert sink is not None
        timer = threading.Timer(max(0.0, seconds), self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            sink.write(request)
            sink.write(encoded)
            sink.flush()
            head = source.read(worker.ANSWER.size)
            if len(head) < worker.ANSWER.size:
                return None
            content = source.read(worker.ANSWER.unpack(head)[-1])
            return (head, content) if len(content) == worker.ANSWER.unpack(head)[-1] else None
        except OSError:
            return None
        finally:
            timer.cancel()


class Processes:
    """A few decoding processes. Each is lent to one picture at a time, and replaced when it has ended.

    Args:
        wait_s: how long a picture waits for one of them.
    """

    def __init__(self, most: int, wait_s: float = MOST_WAIT_S) -> None:
        self._room = threading.Semaphore(most)
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self.idle: list[Process] = []

    def decode(
        self,
        encoded: bytes,
        name: str,
        page: int = 0,
        *,
        memory_bytes: int,
        max_decode_s: float,
        leave: Leave,
    ) -> tuple[Image.Image, bool]:
        """A page of a picture, as Pillow stores it, and whether some of its pixels are missing.

        Args:
            name: Pillow's name of the format.
            memory_bytes: what the process may take, beyond what it holds already.
            max_decode_s: how long it may take, once there is a process for it.

        Raises:
            InvalidMedia: nothing of it can be decoded. TooLarge: it takes too much time or memory.
            DeadlineExceeded.
            Overloaded: no process is free, or can be started; or it ended by itself, and the next request
                gets another one.
        """
        request = worker.REQUEST.pack(name.encode(), page, memory_bytes, len(encoded))
        with self._lent(leave) as process:
            leave.restart()
            try:
                answer = process.ask(request, encoded, leave.left_s(max_decode_s))
            except RuntimeError as error:
                raise _no_means(error) from None
            if answer is None:
                leave.check(max_decode_s)
                raise process.ended(name)
        return _image(*answer, name, memory_bytes)

    @contextlib.contextmanager
    def _lent(self, leave: Leave) -> Iterator[Process]:
        left_s = leave.deadline_s - time.monotonic()
        if not self._room.acquire(timeout=max(0.0, min(self._wait_s, left_s))):
            leave.restart()
            leave.check(self._wait_s)
            raise Overloaded("other pictures are being decoded", hint="try again in a few seconds")
        try:
            process = self._take()
            try:
                yield process
            except BaseException:
                process.close()
                raise
            with self._lock:
                self.idle.append(process)
        finally:
            self._room.release()

    def _take(self) -> Process:
        with self._lock:
            process = self.idle.pop() if self.idle else None
        if process is not None and process.alive:
            return process
        if process is not None:
            process.close()
        try:
            return Process()
        except OSError as error:
            raise _no_means(error) from None

    def close(self) -> None:
        """End those that are idle."""
        with self._lock:
            idle, self.idle = self.idle, []
        for process in idle:
            process.close()


def _close(ends: Iterable[int]) -> None:
    for end in ends:
        os.close(end)


def _no_means(error: Exception) -> Overloaded:
    return Overloaded(
        f"no process can be started to decode the picture: {error}",
        hint="try again in a few seconds; if it lasts, allow the server more open files, processes or memory",
    )


def _image(head: bytes, content: bytes, name: str, memory_bytes: int) -> tuple[Image.Image, bool]:
    status, mode, width_px, height_px, _ = worker.ANSWER.unpack(head)
    if status == worker.NO_MEMORY:
        raise TooLarge(
            f"the {name} image takes more memory to decode than the {memory_bytes >> 20} MiB that "
            "its size stands for",
            hint="save it anew, e.g. as a plain JPEG or PNG",
        )
    if status not in (worker.DECODED, worker.BEGUN):
        raise InvalidMedia(
            f"the {name} image cannot be decoded: {content.decode(errors='replace')}", hint="check the upload"
        )
    text = mode.rstrip(b"\0").decode()
    try:
        if text not in MODES:
            raise ValueError(f"unknown mode {text!r}")
        return Image.frombytes(text, (width_px, height_px), content), status == worker.BEGUN
    except ValueError as error:
        raise InvalidMedia(
            f"the {name} image cannot be decoded: {error}", hint="save it as PNG or JPEG"
        ) from None


PROCESSES = Processes(Threads.of(cores()).workers)
