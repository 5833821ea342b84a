"""Memory goes back to the system once nothing runs that would use it again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from pipelines.assembly import Memory, give_back
from pipelines.machine.admission import Admission
from pipelines.machine.memory import MUCH_BYTES, QUIET_LOOKS, Idleness
from pipelines.telemetry.counters import Telemetry
from tests.conftest import ROOT

BLOCK_BYTES = 96 << 20
QUIET = [0] * QUIET_LOOKS


def test_memory_grows_by_what_is_held_and_not_by_what_is_free() -> None:
    before = Memory.now()
    block = torch.ones(BLOCK_BYTES, dtype=torch.uint8)
    grown = Memory.now().grown_since(before)
    assert BLOCK_BYTES * 0.9 < grown.host_bytes < BLOCK_BYTES * 1.3
    assert grown.gpu_bytes == 0
    whole = Memory.now()
    del block
    assert Memory.now().grown_since(before).host_bytes < BLOCK_BYTES // 4
    assert Memory.now().grown_since(whole) == Memory()


def looks(*held: int) -> list[int]:
    """At which looks idleness begins, if requests hold so many bytes before each, and below 0 during it."""
    admission = Admission(1 << 40, Telemetry())
    idleness, begun = Idleness(admission), []
    for look, size in enumerate(held):
        with admission.hold(abs(size)):
            now = size < 0 and idleness.begins()
        if now or (size >= 0 and idleness.begins()):
            begun.append(look)
    return begun


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([-MUCH_BYTES, *QUIET, 0, 0], [QUIET_LOOKS]),
        ([MUCH_BYTES, *QUIET], [QUIET_LOOKS - 1]),
        ([-MUCH_BYTES + 1, *QUIET, 0], []),
        ([-MUCH_BYTES, *QUIET[1:], -1, *QUIET], [2 * QUIET_LOOKS]),
        ([-MUCH_BYTES, *QUIET, -1, *QUIET, 0], [QUIET_LOOKS]),
        ([-MUCH_BYTES, *QUIET, -MUCH_BYTES, *QUIET], [QUIET_LOOKS, 2 * QUIET_LOOKS + 1]),
    ],
    ids=["once", "between two looks", "little", "interrupted", "little since", "again"],
)
def test_idleness_begins_once_behind_much(held: list[int], expected: list[int]) -> None:
    assert looks(*held) == expected


# Every second block stays, so that glibc can give nothing back by itself.
KEEPING = """
from pathlib import Path
from pipelines.machine.memory import trim_malloc, tune_malloc

def rss_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

tune_malloc()
blocks = [bytearray(1 << 20) for _ in range(400)]
for block in blocks:
    block[:] = bytes([1]) * len(block)
del blocks[::2]
before = rss_bytes()
trim_malloc()
print((before - rss_bytes()) >> 20)
"""


def test_what_was_freed_goes_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KEEPING],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


@pytest.mark.gpu
def test_what_was_freed_on_a_gpu_goes_back() -> None:
    kept = torch.ones(1 << 20, device="cuda")
    freed = torch.ones(100 << 20, device="cuda")
    before = torch.cuda.memory_reserved()
    del freed
    assert torch.cuda.memory_reserved() == before
    give_back("cuda")
    assert torch.cuda.memory_reserved() <= before - (400 << 20)
    assert kept.sum() == 1 << 20
