"""Models that people have, served under their names and asked over both protocols: as measured of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.tried.__main__ import page, served
from scripts.tried.cases import CASES, MODELS


@pytest.mark.slow
def test_the_models_that_were_tried_answer_as_measured(tmp_path: Path) -> None:
    if not MODELS.is_dir():
        pytest.skip(f"no folder {MODELS}")
    tried = served(tmp_path)
    assert [f"{one.case.name} {one.protocol} {one.picture}: {one.wrong}" for one in tried if one.wrong] == []
    assert {(one.case.name, one.protocol) for one in tried} == {
        (case.name, protocol) for case in CASES for protocol in ("gRPC", "HTTP")
    }
    text = page(tried, {case.name: "as measured" for case in CASES})
    assert f"{len(CASES)} of {len(CASES)} models answer as measured" in text
