"""The process that decodes pictures whose cost is known only afterwards. Started as a script, by its path.

It knows nothing of the project: it imports the standard library and Pillow, so that it starts fast. It reads
requests from its standard input, and answers each on its standard output: pixels as Pillow stores them.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import resource
import struct
import sys
import warnings

if __name__ == "__main__":
    # As a script it has the standard library only.
    sys.path.append(sys.argv[2])

from PIL import Image, ImageFile

# Format, page, bytes of memory, bytes of the file; answered by a status, Pillow's mode, width, height, bytes.
REQUEST = struct.Struct(">8sIQQ")
ANSWER = struct.Struct(">B8sIIQ")
DECODED, DAMAGED, NO_MEMORY, BEGUN = range(4)


def main(life: int) -> None:
    """Serve until the other process ends. Then the system sends SIGIO, which ends even a running decoder."""
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")
    warnings.simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = None  # the other process has checked the size
    Image.init()
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    while len(request := source.read(REQUEST.size)) == REQUEST.size:
        name, page, memory_bytes, size_bytes = REQUEST.unpack(request)
        encoded = source.read(size_bytes)
        head, content = _decode(encoded, name.rstrip(b"\0").decode(), page, memory_bytes)
        sink.write(head)
        sink.write(content)
        sink.flush()


def _decode(encoded: bytes, name: str, page: int, memory_bytes: int) -> tuple[bytes, bytes]:
    try:
        _allow(memory_bytes)
        status, plain = _load(encoded, name, page)
        pixels = plain.tobytes()
        return ANSWER.pack(status, plain.mode.encode(), *plain.size, len(pixels)), pixels
    except MemoryError:
        return ANSWER.pack(NO_MEMORY, b"", 0, 0, 0), b""
    except Exception as error:  # noqa: BLE001 - a border: the decoders of foreign forms raise anything
        text = (str(error) or type(error).__name__)[:500].encode(errors="replace")
        return ANSWER.pack(DAMAGED, b"", 0, 0, len(text)), text


def _load(encoded: bytes, name: str, page: int) -> tuple[int, Image.Image]:
    """The picture; if it is damaged, what there is of it."""
    try:
        return DECODED, _opened(encoded, name, page)
    except MemoryError:
        raise
    except Exception:
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            begun = _opened(encoded, name, page)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        extrema = begun.convert("L").getextrema()
        if extrema[0] == extrema[1]:
            raise
        return BEGUN, begun


def _opened(encoded: bytes, name: str, page: int) -> Image.Image:
    with Image.open(io.BytesIO(encoded), formats=(name,)) as image:
        if page:
            image.seek(page)
        image.load()
        return image.convert("RGB") if image.mode in ("P", "PA") else image


def _allow(memory_bytes: int) -> None:
    """Limit what this process may take from now on."""
    with open("/proc/self/statm") as text:
        now = int(text.read().split()[0]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    soft = now + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (soft if most < 0 else min(soft, most), most))


if __name__ == "__main__":
    main(int(sys.argv[1]))
