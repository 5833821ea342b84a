"""The mends of PyTriton's stub files, against the files of the installed version."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from pipelines.protocol.errors import InternalError
from pipelines.serving.pytriton_patches import MENDS, mend_stub_files


def stub_files() -> dict[str, bytes]:
    spec = importlib.util.find_spec("pytriton")
    assert spec is not None
    assert spec.origin is not None
    return {
        f"file:1/{path.name}": path.read_bytes() for path in (Path(spec.origin).parent / "proxy").glob("*.py")
    }


def test_each_mend_is_made_once_and_the_files_stay_python() -> None:
    files = stub_files()
    mended = mend_stub_files(files)
    assert {name for name in mended if mended[name] != files.get(name)} == {
        "file:1/messages.py",
        *(f"file:1/{mend.file}" for mend in MENDS),
    }
    for mend in MENDS:
        text = mended[f"file:1/{mend.file}"].decode()
        ast.parse(text)
        assert text.count(mend.instead) == 1
        assert mend.expression not in text


def test_another_version_is_refused() -> None:
    files = {**stub_files(), "file:1/model.py": b"pass"}
    with pytest.raises(InternalError, match=re.escape("0 times 'json.loads(triton_request.parameters())'")):
        mend_stub_files(files)
