"""Mends of the files that PyTriton 0.7 gives to Triton's stubs, made on their text before they are loaded, and of one
method of the server's own side.

These faults strike before any code of ours runs, so they cannot be caught: one client's option that is not UTF-8
fails the requests of all others in its batch; the second stub of an endpoint may connect to the first in the
moment before that one listens, which fails the start; a tensor of no elements fails its batch, and what of the
batch lies in shared memory by then stays there. Two mends are for speed alone. Imports no PyTriton.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.contract import Tensor, nbytes
from pipelines.errors import InternalError

# Through shared memory each column of an answer costs two questions to the process that keeps it; below this size
# that takes longer than copying.
WITHIN_MESSAGE_BYTES = 1 << 16

Serialize = Callable[[Any, Sequence[Mapping[str, Tensor]]], bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """One expression of a file and what stands for it, calling a function that is added at the file's end."""

    file: str
    expression: str
    instead: str
    function: str


MENDS = (
    Mend(
        file="model.py",
        expression="json.loads(triton_request.parameters())",
        instead="_read_parameters(triton_request)",
        function="""
def _read_parameters(request):
    try:
        return json.loads(request.parameters())
    except UnicodeDecodeError:
        return {"(not UTF-8)": ""}
""",
    ),
    Mend(
        file="communication.py",
        expression="sock.connect(socket_path.as_posix())",
        instead="_connect_patiently(sock, socket_path.as_posix(), should_stop_before_s)",
        function="""
def _connect_patiently(sock, path, deadline):
    while True:
        try:
            return sock.connect(path)
        except ConnectionRefusedError:
            if time.time() >= deadline:
                raise
            time.sleep(0.002)
""",
    ),
    # Python casts no memoryview of an array of no elements.
    Mend(
        file="data.py",
        expression='frame.cast("B")',
        instead="_bytes_of(frame)",
        function="""
def _bytes_of(view):
    return view.cast("B") if view.nbytes else b""
""",
    ),
    # Two blanks deeper the loop is the `with`'s, and the lines of its body, left as they are, still are its own.
    Mend(
        file="data.py",
        expression="        for tensor, block in zip(tensors, blocks):",
        instead="""\
        with _released_on_failure(self._remote_blocks_store, tensors_ids):
          for tensor, block in zip(tensors, blocks, strict=True):""",
        function="""
import contextlib


@contextlib.contextmanager
def _released_on_failure(store, tensors_ids):
    try:
        yield
    except BaseException:
        for tensor_id in tensors_ids:
            store.release_block(tensor_id)
        raise
""",
    ),
    # Small answers come within the message itself (`within_message`).
    Mend(
        file="data.py",
        expression="""\
            responses = json.loads(responses_payload)
            return [
""",
        instead="""\
            if responses_payload[:1] == _PICKLED:
                return [Response(data=data) for data in pickle.loads(responses_payload)]
            responses: dict = json.loads(responses_payload)
            return [
""",
        function="""
import pickle

_PICKLED = pickle.PROTO
""",
    ),
    # Each column is given back by a question to another process, which the answer need not wait for.
    Mend(
        file="data.py",
        expression="""\
            responses = json.loads(responses_payload)
            for response in responses["responses"]:
                for _, tensor_id in response.get("data", {}).items():
                    self._tensor_store.release_block(tensor_id)
""",
        instead="""\
            if responses_payload[:1] != _PICKLED:
                _RELEASING.submit(_release, self._tensor_store, responses_payload)
""",
        function="""
from concurrent.futures import ThreadPoolExecutor

_RELEASING = ThreadPoolExecutor(1)


def _release(store, payload):
    responses = json.loads(payload)["responses"]
    for block in [block for response in responses for block in response.get("data", {}).values()]:
        try:
            store.release_block(block)
        except Exception:
            LOGGER.exception("%s was not given back", block)
""",
    ),
)


def mend_stub_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files (name, ending in `/model.py` and so on → text) with all mends made.

    Raises:
        InternalError: a file is not the one that the mends were made for.
    """
    mended = dict(files)
    for mend in MENDS:
        names = [name for name in mended if name.endswith(f"/{mend.file}")]
        text = mended[names[0]].decode() if names else ""
        if text.count(mend.expression) != 1:
            raise InternalError(
                f"PyTriton's {mend.file} is another than expected: {text.count(mend.expression)} times "
                f"{mend.expression!r}",
                hint="install the locked version of nvidia-pytriton (uv sync --locked)",
            )
        mended[names[0]] = (text.replace(mend.expression, mend.instead) + "\n" + mend.function).encode()
    return mended


def within_message(serialize: Serialize) -> Serialize:
    """PyTriton's `serialize_responses` for the process of the callables, but small answers go within the message to
    the stub, pickled; the stub's mends read them."""

    def serialize_responses(serializer: Any, answers: Sequence[Mapping[str, Tensor]]) -> bytes:
        if sum(nbytes(tensor) for answer in answers for tensor in answer.values()) > WITHIN_MESSAGE_BYTES:
            return serialize(serializer, answers)
        return pickle.dumps([dict(answer) for answer in answers])

    return serialize_responses
