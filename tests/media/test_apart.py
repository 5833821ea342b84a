"""Pictures decoded in another process: the same pixels, and whatever happens there costs one request."""

from __future__ import annotations

import io
import logging
import os
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from pipelines.media import images
from pipelines.media.bounds.apart import Processes
from pipelines.media.bounds.pictures import Cost
from pipelines.media.decode import open_media
from pipelines.media.medium import Leave, Limits
from pipelines.protocol.errors import DeadlineExceeded, InvalidMedia, Overloaded, TooLarge
from pipelines.protocol.options import Options
from tests.support import media

NEVER = float("inf")


def _avif() -> bytes:
    sink = io.BytesIO()
    Image.fromarray(media.picture()).save(sink, "AVIF")
    return sink.getvalue()


AVIF = _avif()


def terms(
    *, memory_bytes: int = 512 << 20, max_decode_s: float = 60, deadline_s: float = NEVER
) -> dict[str, Any]:
    return {
        "memory_bytes": memory_bytes,
        "max_decode_s": max_decode_s,
        "leave": Leave(deadline_s=deadline_s),
    }


@pytest.fixture(scope="module")
def processes() -> Iterator[Processes]:
    made = Processes(most=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def slow() -> bytes:
    """A picture that takes seconds: one scan of a progressive JPEG many times."""
    sink = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(sink, "JPEG", progressive=True)
    encoded = sink.getvalue()
    last = encoded.rindex(b"\xff\xda")
    return encoded[:last] + encoded[last:-2] * 400 + encoded[-2:]


@pytest.mark.parametrize(
    ("name", "encoded"), [("AVIF", AVIF), ("JPEG", media.image("jpeg")), ("PNG", media.image("png"))]
)
def test_it_gives_the_pixels_that_pillow_gives(processes: Processes, name: str, encoded: bytes) -> None:
    with Image.open(io.BytesIO(encoded)) as image:
        decoded, damaged = processes.decode(encoded, name, **terms())
        assert not damaged
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image))
    assert len(processes.idle) == 1


def test_a_damaged_one_is_an_error_and_the_process_stays(processes: Processes) -> None:
    processes.decode(AVIF, "AVIF", **terms())
    before = processes.idle[0].pid
    with pytest.raises(InvalidMedia, match="the AVIF image cannot be decoded"):
        processes.decode(media.truncated(AVIF), "AVIF", **terms())
    assert processes.idle[0].pid == before


@pytest.mark.parametrize("name", ["JPEG", "PNG"])
def test_of_one_that_is_cut_the_rows_before_the_cut_are_kept(processes: Processes, name: str) -> None:
    sink = io.BytesIO()
    Image.effect_noise((64, 480), 100).save(sink, name)
    encoded = sink.getvalue()
    decoded, damaged = processes.decode(encoded[: len(encoded) // 2], name, **terms())
    assert damaged
    with Image.open(io.BytesIO(encoded)) as image:
        np.testing.assert_array_equal(np.asarray(decoded)[:200], np.asarray(image)[:200])
    with pytest.raises(InvalidMedia, match=f"the {name} image cannot be decoded"):
        processes.decode(
            encoded[: encoded.index({"JPEG": b"\xff\xda", "PNG": b"IDAT"}[name])], name, **terms()
        )


def test_the_answer_says_that_one_is_damaged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "cost", lambda *_: Cost(memory_bytes=64 << 20, apart="a test"))
    sink = io.BytesIO()
    Image.effect_noise((64, 480), 100).save(sink, "JPEG")
    for encoded, damaged in ((sink.getvalue(), False), (media.truncated(sink.getvalue()), True)):
        with open_media(encoded, options=Options(), limits=Limits(), device="cpu") as medium:
            assert [chunk.damaged.tolist() for chunk in medium.chunks()] == [[damaged]]


def test_time_and_memory_end_and_the_next_picture_is_decoded(processes: Processes, slow: bytes) -> None:
    with pytest.raises(TooLarge, match=r"no frame came .* for 0.2 s.*--max-decode-s"):
        processes.decode(slow, "JPEG", **terms(max_decode_s=0.2))
    with pytest.raises(DeadlineExceeded, match="deadline_ms passed"):
        processes.decode(slow, "JPEG", **terms(deadline_s=time.monotonic() + 0.2))
    with pytest.raises(TooLarge, match="more memory to decode than the 16 MiB"):
        processes.decode(slow, "JPEG", **terms(memory_bytes=16 << 20))
    assert processes.decode(AVIF, "AVIF", **terms())[0].size == (64, 48)


def test_a_process_that_was_killed_is_replaced(processes: Processes) -> None:
    processes.decode(AVIF, "AVIF", **terms())
    before = processes.idle[0]
    os.kill(before.pid, 9)
    end_s = time.monotonic() + 10
    while before.alive:
        assert time.monotonic() < end_s
    assert processes.decode(AVIF, "AVIF", **terms())[0].size == (64, 48)
    assert processes.idle[0].pid != before.pid


def test_one_that_ends_by_itself_costs_its_own_request(processes: Processes) -> None:
    processes.decode(AVIF, "AVIF", **terms())
    os.kill(processes.idle[0].pid, 19)
    pid = processes.idle[0].pid
    threading.Timer(0.2, os.kill, (pid, 9)).start()
    with pytest.raises(Overloaded, match="try again"):
        processes.decode(AVIF, "AVIF", **terms())
    assert processes.decode(AVIF, "AVIF", **terms())[0].size == (64, 48)


@pytest.mark.parametrize("more", range(8))
def test_without_free_descriptors_the_server_is_at_fault_and_none_leaks(more: int) -> None:
    bound = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = len(os.listdir("/proc/self/fd"))
    lowest = os.dup(0)
    os.close(lowest)
    mine = Processes(most=1)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + more, bound[1]))
        with pytest.raises(Overloaded, match=r"no process can be started .*open files"):
            mine.decode(AVIF, "AVIF", **terms())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, bound)
    assert len(os.listdir("/proc/self/fd")) == before
    assert mine.decode(AVIF, "AVIF", **terms())[0].size == (64, 48)
    mine.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_a_free_thread_the_server_is_at_fault(
    processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(_: threading.Timer) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Timer, "start", none_left)
    with pytest.raises(Overloaded, match="can't start new thread"):
        processes.decode(AVIF, "AVIF", **terms())


def test_waiting_for_a_process_is_bounded_and_no_time_of_decoding() -> None:
    mine = Processes(most=1, wait_s=30)
    mine.decode(AVIF, "AVIF", **terms())
    mine._room.acquire()
    late = terms(deadline_s=time.monotonic() + 0.1)
    with pytest.raises(DeadlineExceeded):
        mine.decode(AVIF, "AVIF", **late)
    threading.Timer(1.2, mine._room.release).start()
    assert mine.decode(AVIF, "AVIF", **terms(max_decode_s=1))[0].size == (64, 48)
    mine.close()
    full = Processes(most=0, wait_s=0.1)
    with pytest.raises(Overloaded, match="other pictures are being decoded"):
        full.decode(AVIF, "AVIF", **terms())


def test_of_the_environment_it_has_where_libraries_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("SECRET", "x")
    mine = Processes(most=1)
    mine.decode(AVIF, "AVIF", **terms())
    environment = Path(f"/proc/{mine.idle[0].pid}/environ").read_text()
    mine.close()
    assert f"LD_LIBRARY_PATH={tmp_path}" in environment
    assert "SECRET" not in environment


def test_what_ends_a_process_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # Pillow is taken from where this process has it, and from nowhere else.
    monkeypatch.setattr(PIL, "__file__", str(tmp_path / "PIL" / "__init__.py"))
    with caplog.at_level(logging.WARNING, "trivid"), pytest.raises(Overloaded, match="ended by itself"):
        Processes(most=1).decode(AVIF, "AVIF", **terms())
    assert "ended with 1: " in caplog.text
    assert "No module named 'PIL'" in caplog.text


def test_damaged_avif_is_a_typed_error() -> None:
    good = AVIF
    for seed in range(40):
        encoded = good[:12] + media.mutated(good[12:], seed)
        try:
            media.info_of(encoded)
        except (InvalidMedia, TooLarge):
            continue
