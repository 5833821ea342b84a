"""Corrects the files that PyTriton 0.7 gives to Triton's stubs, in their text, before they are loaded.

Some faults occur where none of Trivid's code runs, so they cannot be caught. One client's option that is not
UTF-8 fails all requests in its batch. The second stub of an endpoint may connect before the first listens, or
find it slower than a second; then the start fails. An answer that cannot be read leaves its stub waiting for
ever. And tensors travel within messages (`messages`), not through PyTriton's store. Imports no PyTriton.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipelines.protocol.errors import InternalError
from pipelines.serving import pytriton_messages as messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Mend:
    """One expression of a file and its replacement, which calls code that is added at the file's end."""

    file: str
    expression: str
    instead: str
    added: str


MENDS = (
    Mend(
        file="model.py",
        expression="json.loads(triton_request.parameters())",
        instead="_read_parameters(triton_request)",
        added="""
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
        added="""
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
    Mend(
        file="communication.py",
        expression="def get_config_from_handshake_server(socket_path: pathlib.Path, timeout_s: float = 1.0)",
        instead="def get_config_from_handshake_server(socket_path: pathlib.Path, timeout_s: float = 20.0)",
        added="",
    ),
    Mend(
        file="model.py",
        expression="""\
                responses_handle_fn=handler_class(
                    self._requests, self._serializer_deserializer, self._model_outputs
                ).handle_responses,
""",
        instead="""\
                responses_handle_fn=_Answering(
                    handler_class(self._requests, self._serializer_deserializer, self._model_outputs)
                ).handle_responses,
""",
        added="""
class _Answering:
    def __init__(self, handler):
        self._handler = handler

    async def handle_responses(self, scope, responses_queue, responses_future):
        try:
            return await self._handler.handle_responses(scope, responses_queue, responses_future)
        except Exception as error:
            text = f"an answer could not be read: {type(error).__name__}: {error}"
            LOGGER.error(text)
            requests = self._handler._requests_map.pop(scope["requests_id"], [])
            if isinstance(self._handler, BatchResponsesHandler):
                responses_future.set_result(pb_utils.TritonModelException(text))
                return
            failed = pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
            for request in requests:
                request.get_response_sender().send(failed, pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
""",
    ),
    Mend(
        file="model.py",
        expression="""\
            if os.environ.get("PYTRITON_NO_TENSORSTORE"):
                self._serializer_deserializer = Base64SerializerDeserializer()
            else:
                self._serializer_deserializer = TensorStoreSerializerDeserializer()
""",
        instead="""\
            self._serializer_deserializer = Messages(Request, Response)
""",
        added="""
from .messages import Messages
""",
    ),
)


def mend_stub_files(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files (a path that ends in `/model.py` and so on → text), mended, and `messages.py` beside them.

    Raises:
        InternalError: a file is not the one that the mends were made for.
    """
    mended = dict(files)
    for mend in MENDS:
        names = [name for name in mended if name.endswith(f"/{mend.file}")]
        text = mended[names[0]].decode() if names else ""
        if text.count(mend.expression) != 1:
            raise InternalError(
                f"PyTriton's {mend.file} differs from the expected one: {text.count(mend.expression)} times "
                f"{mend.expression!r}",
                hint="install the locked version of nvidia-pytriton (uv sync --locked)",
            )
        mended[names[0]] = (text.replace(mend.expression, mend.instead) + "\n" + mend.added).encode()
    folder = next(iter(files)).rpartition("/")[0]
    mended[f"{folder}/messages.py"] = Path(messages.__file__).read_bytes()
    return mended
