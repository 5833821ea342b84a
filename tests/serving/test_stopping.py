"""When a server that is to stop may kill Triton: no request waits, and none was answered just now."""

from __future__ import annotations

import math

import pytest

from pipelines.serving.endpoints import Calls
from pipelines.serving.triton import NONE_WAITS, Output


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_tritons_word_is_found_in_any_parts(size: int, capsys: pytest.CaptureFixture[str]) -> None:
    output, text = Output(), f'I1130 server.cc:336] "{NONE_WAITS}, unloading models"\n'
    for start in range(0, len(text), size):
        assert output.none_waits.is_set() == (NONE_WAITS in text[:start])
        output.write(text[start : start + size].encode())
    assert output.none_waits.is_set()
    assert capsys.readouterr().out == text


def test_quiet_is_the_time_since_the_last_call() -> None:
    calls = Calls()
    assert calls.quiet_s() == math.inf
    with calls.one():
        with calls.one():
            assert calls.quiet_s() == 0
        assert calls.quiet_s() == 0
    assert 0 <= calls.quiet_s() < 60
