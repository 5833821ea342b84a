"""The mends of PyTriton's stub files, against the files of the installed version."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.errors import InternalError
from pipelines.stub_mends import MENDS, WITHIN_MESSAGE_BYTES, mend_stub_files, within_message


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
    assert {name for name in files if files[name] != mended[name]} == {
        f"file:1/{mend.file}" for mend in MENDS
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


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The store of a stub: tensors in shared memory, handed out by a process of its own."""
    package = tmp_path / "mended_proxy"
    package.mkdir()
    for name, text in mend_stub_files(stub_files()).items():
        (package / name.rpartition("/")[2]).write_bytes(text)
    monkeypatch.syspath_prepend(tmp_path)
    # What the store's own process unpickles must be found there too.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    data = importlib.import_module("mended_proxy.data")
    opened = data.TensorStore(tmp_path / "store.sock", b"key")
    opened.start()
    yield opened
    opened.close()
    for name in [name for name in sys.modules if name.startswith("mended_proxy")]:
        del sys.modules[name]


def used(store: Any) -> list[str]:
    """Blocks of shared memory that hold a tensor."""
    status = importlib.import_module("mended_proxy.data").get_debug_status(store)
    return [block for segment in status["segments"] for block in segment["used_blocks"]]


def test_tensors_of_no_elements_are_kept_as_others_are(store: Any) -> None:
    given = [np.arange(6.0).reshape(2, 3), np.zeros((1, 0, 0), np.float32), np.zeros((0,), np.uint8)]
    names = store.put(given)
    found = [store.get(name) for name in names]
    for tensor, expected in zip(found, given, strict=True):
        assert (tensor.shape, tensor.dtype) == (expected.shape, expected.dtype)
        np.testing.assert_array_equal(tensor, expected)
    for name in names:
        store.release_block(name)
    assert used(store) == []


def test_tensors_that_cannot_be_kept_leave_nothing_behind(store: Any) -> None:
    kept = store.put([np.ones(3)])
    without_buffer = np.zeros(3, "datetime64[s]")
    for _ in range(3):
        with pytest.raises(ValueError, match="buffer"):
            store.put([np.ones(5), without_buffer])
    assert len(used(store)) == len(kept)


def test_what_was_answered_is_given_back_without_waiting_for_it(store: Any) -> None:
    data = importlib.import_module("mended_proxy.data")
    serializer = data.TensorStoreSerializerDeserializer()
    serializer._tensor_store = store
    payload = serializer.serialize_responses([{"a": np.arange(5), "b": np.ones(3)}, {"a": np.arange(2)}])
    answers = serializer.deserialize_responses(payload)
    assert answers[0].data["a"].tolist() == [0, 1, 2, 3, 4]
    assert len(used(store)) == 3
    serializer.free_responses_resources(payload)
    data._RELEASING.submit(int).result(timeout=10)
    assert used(store) == []


@pytest.mark.parametrize("count", [WITHIN_MESSAGE_BYTES, WITHIN_MESSAGE_BYTES + 1])
def test_small_answers_go_within_the_message_and_large_ones_through_shared_memory(
    store: Any, count: int
) -> None:
    data = importlib.import_module("mended_proxy.data")
    serializer = data.TensorStoreSerializerDeserializer()
    serializer._tensor_store = store
    serialize = within_message(data.TensorStoreSerializerDeserializer.serialize_responses)
    given = [
        {"levels": np.zeros(count - 5, np.uint8), "labels": np.array([[b"a\0b"], [b""]], dtype=object)},
        {"levels": np.ones((1, 0), np.float32), "labels": np.array([[b"\xc3\xa9"]], dtype=object)},
    ]
    payload = serialize(serializer, given)
    assert bool(used(store)) == (count > WITHIN_MESSAGE_BYTES)
    answers = serializer.deserialize_responses(payload)
    for answer, expected in zip(answers, given, strict=True):
        assert answer.data.keys() == expected.keys()
        for name, tensor in expected.items():
            assert (answer.data[name].dtype, answer.data[name].shape) == (tensor.dtype, tensor.shape)
    assert answers[0].data["labels"].tolist() == [[b"a\0b"], [b""]]
    np.testing.assert_array_equal(answers[0].data["levels"], given[0]["levels"])
    serializer.free_responses_resources(payload)
    data._RELEASING.submit(int).result(timeout=10)
    assert used(store) == []
