"""Messages between Triton's stubs and the callables, by PyTriton's own classes of requests and answers."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pytriton.proxy.types import Request, Response

from pipelines.serving import pytriton_messages as messages
from pipelines.serving.pytriton_messages import WITHIN_MESSAGE_BYTES, Messages

COUNTS = pytest.mark.parametrize("count", [WITHIN_MESSAGE_BYTES, WITHIN_MESSAGE_BYTES + 1])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the files of messages lie."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def some_tensors(nbytes: int) -> dict[str, Any]:
    """Tensors of all kinds, with so many bytes in all."""
    return {
        "levels": np.arange(nbytes - 6, dtype=np.uint8)[None],
        "media": np.array([[b"a\0b"], [b""]], dtype=object),
        "labels": np.array([["\xe9", "12"]], dtype=object),
        "nothing": np.zeros((1, 0, 0), np.float32),
    }


def check_same(found: Any, expected: dict[str, Any]) -> None:
    assert found.data.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (found.data[name].dtype, found.data[name].shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found.data[name], tensor)


@COUNTS
def test_requests_come_whole_and_large_ones_by_a_file(folder: Path, count: int) -> None:
    serializer = Messages(Request, Response)
    given = [
        Request(some_tensors(count - 3), {"top_k": 5, "task": "x"}, requested_output_names=["a"]),
        Request({"levels": np.ones(3, np.uint8)}),
    ]
    message = serializer.serialize_requests(given)
    assert len(list(folder.iterdir())) == (count > WITHIN_MESSAGE_BYTES)
    found = serializer.deserialize_requests(message)
    assert list(folder.iterdir()) == []
    for one, expected in zip(found, given, strict=True):
        assert isinstance(one, Request)
        check_same(one, expected.data)
        assert one.parameters == expected.parameters
        assert one.requested_output_names == expected.requested_output_names
    serializer.free_requests_resources(message)


@COUNTS
def test_answers_come_whole_and_large_ones_by_a_file(folder: Path, count: int) -> None:
    serializer = Messages(Request, Response)
    given = [some_tensors(count - 3), {"levels": np.ones(3, np.uint8)}]
    message = serializer.serialize_responses(given)
    assert len(list(folder.iterdir())) == (count > WITHIN_MESSAGE_BYTES)
    found = serializer.deserialize_responses(message)
    assert list(folder.iterdir()) == []
    for one, expected in zip(found, given, strict=True):
        assert isinstance(one, Response)
        check_same(one, expected)
    serializer.free_responses_resources(message)


def test_what_is_received_may_be_written_to(folder: Path) -> None:
    """As torch asks of memory that it shares, and where the sender might write, as stubs may."""
    serializer = Messages(Request, Response)
    for count in (6, WITHIN_MESSAGE_BYTES + 1):
        (found,) = serializer.deserialize_requests(
            serializer.serialize_requests([Request({"levels": np.zeros(count, np.uint8)})])
        )
        found["levels"][0] = 1


def test_what_was_not_read_is_removed(folder: Path) -> None:
    serializer = Messages(Request, Response)
    large = {"levels": np.zeros(WITHIN_MESSAGE_BYTES + 1, np.uint8)}
    request = serializer.serialize_requests([Request(large)])
    answer = serializer.serialize_responses([large])
    assert len(list(folder.iterdir())) == 2
    serializer.free_requests_resources(request)
    serializer.free_responses_resources(answer)
    assert list(folder.iterdir()) == []


def test_the_end_of_a_stream_is_no_answer() -> None:
    serializer = Messages(Request, Response)
    assert serializer.deserialize_responses(b"") == []
    serializer.free_responses_resources(b"")


def test_without_room_for_a_file_large_ones_go_within_the_message(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`dump` fails as on a full disk; what it began is gone."""

    def full(_value: object, file: Any, _protocol: int) -> None:
        file.write(b"something")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("pickle.dump", full)
    serializer = Messages(Request, Response)
    given = {"levels": np.arange(WITHIN_MESSAGE_BYTES + 1, dtype=np.uint8)}
    message = serializer.serialize_responses([given])
    assert len(message) > WITHIN_MESSAGE_BYTES
    assert list(folder.iterdir()) == []
    check_same(serializer.deserialize_responses(message)[0], given)


def test_a_stub_needs_nothing_but_python(tmp_path: Path) -> None:
    (tmp_path / "messages.py").write_bytes(Path(messages.__file__).read_bytes())
    command = [sys.executable, "-S", "-c", "import messages; messages.Messages(dict, dict)"]
    subprocess.run(command, cwd=tmp_path, check=True, env={"PATH": os.environ["PATH"]})
