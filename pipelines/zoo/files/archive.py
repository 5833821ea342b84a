"""What is in a saved model's archive, looked through before anything of it is loaded. Knows no network.

With PyTorch 2.10 `torch.export.load` is no reader of data alone. It falls back to the plain unpickler for
pickles that `weights_only` refuses, evaluates expressions of sizes (by sympy) and guards as Python, calls any
function below `torch` that a graph names, and starts native code that lies in the archive (AOTInductor).
TorchScript is compiled for an interpreter of its own and unpickled in C++, so no Python runs, but its
language has operators that write files. What is checked must be what is loaded: archives that two readers
could read in two ways are refused.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.protocol.errors import ModelUnavailable
from pipelines.zoo.files.expressions import is_arithmetic

# What torch.export.save and torch.jit.save write, below the one folder that holds all.
EXTRA = r"extra/[\w.-]+"
COMMON = r"version|byteorder|\.data/(version|serialization_id)"
EXPORTED = re.compile(
    rf"{COMMON}|{EXTRA}|archive_(format|version)|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json|model\.pt)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json|model\.pt)",
    re.ASCII,
)
CODE = re.compile(r"code/[\w./-]+\.py(\.debug_pkl)?", re.ASCII)
SCRIPT = re.compile(
    rf"{COMMON}|{EXTRA}|{CODE.pattern}|\.format_version|\.storage_alignment"
    r"|(data|constants|traced_inputs)(\.pkl|/\d+)",
    re.ASCII,
)
NATIVE = "data/aotinductor/"
LARGEST_TEXT = 64 << 20
# What Python's reader raises at damaged members.
DAMAGE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, KeyError, NotImplementedError, RuntimeError)
# The end of an archive: its list's place and size, in an older record and, before it, in one of 64 bits.
END, END64, LOCATOR = "<4s4xHHIIH", "<4sQ2H2I4Q", "<4sIQI"
# Operators that reach beyond a computation, as TorchScript and torch.export name them: of files, and of
# others.
FILE_OPERATORS = re.compile(r"\b(save|from_file|rpc_\w+)\b")
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|prim|torchvision)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|torch\.sym_[a-z]+|math\.(trunc|ceil|floor|sqrt)"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
# In TorchScript `ops` and `torch` are all that operators are reached by. Other forms than these, such as
# another name for them or `getattr` with a text of escapes, would hide which operator it is. Members may have
# their names.
ROOTS = re.compile(r"(?<![.\w])(ops|torch)(?!\w)", re.ASCII)
NAMED = re.compile(
    r"ops\.(aten|prims|prim|torchvision)\.[a-zA-Z_]\w*"
    r"|torch\.(?!ops\b|autograd\b)[a-zA-Z_]\w*|(ops|torch) : ",
    re.ASCII,
)
# TorchScript is written with strings of this form and without comments, so that it is clear what is code.
STRING = re.compile(r'"(?:[^"\\\n]|\\[^\n])*"')
UNCLEAR = re.compile(r"""['"#\\]""")
# Objects of C++ classes, some of which open files; a pickle has the name in one piece or in two lines.
CLASSES = re.compile(rb"\btorch[.\n]classes[.\n]")
# Names stand in the Python code that a graph becomes.
PLAIN_NAME = re.compile(r"[\w.]*")
NAME_KEYS = ("name", "parameter_name", "buffer_name", "tensor_constant_name")
TRUST = "if you trust the file, add --allow-code"
HINT = f"save it anew with torch.export.save; {TRUST}"


def members(path: Path) -> list[str]:
    """The names in an archive. Raises ModelUnavailable where it is none."""
    return [info.filename for info in _listed(path)]


def _listed(path: Path) -> list[zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise ModelUnavailable(
            f"cannot read {path}: {error}", hint="is it complete, and a saved model?"
        ) from error


def read_member(path: Path, member: str, most: int | None = LARGEST_TEXT) -> bytes:
    """One file of an archive, of at most `most` bytes. Raises ModelUnavailable where it is damaged or
    larger.
    """
    return next(_read(path, [member], most))


def _read(path: Path, names: Iterable[str], most: int | None = LARGEST_TEXT) -> Iterator[bytes]:
    """Files of an archive that is opened once: the list of its members may be long."""
    member = ""
    try:
        with zipfile.ZipFile(path) as archive:
            for member in names:
                size = archive.getinfo(member).file_size
                if most is not None and size > most:
                    raise ModelUnavailable(f"{path}: {member} has {size} bytes, more than {most}", hint=HINT)
                with archive.open(member) as file:
                    yield file.read(size)
    except DAMAGE as error:
        raise ModelUnavailable(f"cannot read {member} in {path}: {error}", hint="is it complete?") from error


def read_json(path: Path, member: str) -> Any:
    """One JSON file of an archive. Raises ModelUnavailable where it is damaged."""
    try:
        return json.loads(read_member(path, member).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"cannot read {member} in {path}: {error}", hint="is it complete?") from error


def _checked_members(path: Path, allowed: re.Pattern[str]) -> list[str]:
    """The names in an archive that Python's reader and torch's are sure to read alike.

    Torch finds names whatever their case, and takes the last of equal ones; it reads the list of members
    where the archive's end says that it lies, Python where it ends. Torch compresses nothing but code.
    """
    infos = _listed(path)
    roots = sorted({info.orig_filename.partition("/")[0] for info in infos})
    if any("/" not in info.orig_filename for info in infos):
        raise ModelUnavailable(f"{path} is of an old format, or no saved model", hint=HINT)
    if len(roots) != 1 or not _one_list(path, infos):
        raise ModelUnavailable(f"{path} is more than one archive: {roots[:3]}", hint=HINT)
    seen: set[str] = set()
    for info in infos:
        inner = info.orig_filename.partition("/")[2]
        if inner.lower() in seen:
            raise ModelUnavailable(f"{path} has two members {inner!r}", hint=HINT)
        seen.add(inner.lower())
        if inner.startswith(NATIVE):
            raise ModelUnavailable(f"{path} holds native code ({inner!r})", hint=HINT)
        if info.filename != info.orig_filename or not allowed.fullmatch(inner):
            raise ModelUnavailable(f"{path} holds {inner!r}, which is no part of a saved model", hint=HINT)
        packed = info.compress_type == zipfile.ZIP_DEFLATED and CODE.fullmatch(inner)
        if not packed and (info.compress_type or info.compress_size != info.file_size):
            raise ModelUnavailable(f"{path}: {inner!r} is compressed, as torch does not do it", hint=HINT)
    check_sizes(path, infos)
    return [info.filename for info in infos]


def check_sizes(path: Path, infos: list[zipfile.ZipInfo]) -> None:
    """Raise ModelUnavailable where the members of an archive would fill much more memory than the file has
    bytes.
    """
    packed = sum(info.file_size for info in infos if info.compress_type)
    stored = sum(info.file_size for info in infos if not info.compress_type)
    if packed > LARGEST_TEXT or stored > path.stat().st_size:
        raise ModelUnavailable(f"{path} is small and holds {packed + stored} bytes", hint="take no such file")


def _one_list(path: Path, infos: list[zipfile.ZipInfo]) -> bool:
    """Whether the list of members lies right before the end of the file, and the end says the same."""
    with path.open("rb") as file:
        file.seek(0, 2)
        size = file.tell()
        file.seek(-min(size, 98), 2)
        tail = file.read().rjust(98, b"\0")
    mark, _here, total, length, offset, comment = struct.unpack(END, tail[76:])
    start, short = size - 22, (total, length, offset)
    if tail[56:60] == b"PK\6\7":
        start -= 76
        mark64, left, _, _, _, _, _, total, length, offset = struct.unpack(END64, tail[:56])
        place = struct.unpack(LOCATOR, tail[56:76])[2]
        if (mark64, left, place) != (b"PK\6\6", 44, start):
            return False
    # Each entry has at most one field of sizes of 64 bits, so that it is clear which is meant.
    if any(len(info.extra) not in (0, 4 + int.from_bytes(info.extra[2:4], "little")) for info in infos):
        return False
    limits = (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    same = short == tuple(map(min, (total, length, offset), limits))
    return same and (mark, comment, total, offset + length) == (b"PK\5\6", 0, len(infos), start)


def check_script(path: Path) -> None:
    """Raise ModelUnavailable where TorchScript names an operator that does more than compute."""
    names = [name for name in _checked_members(path, SCRIPT) if name.endswith((".pkl", ".py"))]
    for name, data in zip(names, _read(path, names, most=None), strict=True):
        if CLASSES.search(data):
            raise ModelUnavailable(f"{path} holds an object that is no tensor ({name})", hint=TRUST)
        if name.endswith(".py"):
            _check_code(path, data.decode("utf-8", "replace"))


def _check_code(path: Path, code: str) -> None:
    plain = STRING.sub('""', code)
    if '"""' in code or UNCLEAR.search(plain.replace('""', "")):
        raise ModelUnavailable(f"{path}: its code is not as torch.jit.save writes it", hint=TRUST)
    if found := FILE_OPERATORS.search(plain):
        raise ModelUnavailable(
            f"{path}: its code names {found[0]}, an operator that touches files", hint=TRUST
        )
    for root in ROOTS.finditer(plain):
        if not NAMED.match(plain, root.start()):
            text = plain[root.start() : root.start() + 40].split("(")[0]
            raise ModelUnavailable(f"{path}: its code has {text!r}, no operator of PyTorch's", hint=TRUST)


def check_exported(path: Path) -> None:
    """Raise ModelUnavailable where a `.pt2` holds more than a graph of operators and its tensors."""
    for name in _checked_members(path, EXPORTED):
        if name.endswith(".pt"):
            _check_pickle(path, name)
        elif name.endswith("/models/model.json"):
            _check_graph(path, read_json(path, name))
        elif name.endswith("_config.json"):
            _check_payloads(path, name)


def _check_payloads(path: Path, config: str) -> None:
    """Tensors are bytes; those of unusual kinds are pickles, and objects of C++ classes are neither."""
    folder = config.rpartition("/")[0]
    entries = read_json(path, config)
    config_of = entries.get("config") if isinstance(entries, dict) else None
    for entry in config_of.values() if isinstance(config_of, dict) else ():
        if not isinstance(entry, dict):
            raise ModelUnavailable(f"cannot read {config} in {path}", hint="is it complete?")
        payload = str(entry.get("path_name"))
        if not payload.startswith(("weight_", "tensor_")):
            raise ModelUnavailable(f"{path} holds an object that is no tensor ({payload[:80]!r})", hint=HINT)
        if entry.get("use_pickle"):
            _check_pickle(path, f"{folder}/{payload}")


def _check_pickle(path: Path, member: str) -> None:
    data = read_member(path, member, None)
    if not data:
        return
    try:
        torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelUnavailable(f"{path} holds a pickle that carries code ({member})", hint=HINT) from error
    except Exception as error:  # readers raise anything at damaged files
        raise ModelUnavailable(f"cannot read {member} in {path}", hint="is it complete?") from error


def _check_graph(path: Path, graph: Any) -> None:
    for key, value in _strings(graph):
        if key in ("target", "as_operator") and not _is_operator(value):
            raise ModelUnavailable(
                f"{path}: its graph calls {value[:80]!r}, no operator of PyTorch's", hint=HINT
            )
        if key in NAME_KEYS and not PLAIN_NAME.fullmatch(value):
            raise ModelUnavailable(f"{path}: {value[:80]!r} is no name", hint=HINT)
        if key in ("expr_str", "guards_code") and not is_arithmetic(value):
            raise ModelUnavailable(f"{path}: {value[:80]!r} is no expression of sizes", hint=HINT)
        if key in ("in_spec", "out_spec") and ("factory_module" in value or "__enum__" in value):
            raise ModelUnavailable(f"{path}: {key} names modules of Python's", hint=HINT)


def _strings(value: Any) -> Iterator[tuple[str, str]]:
    """Every text with the key that it stands under, at any depth."""
    left = [("", value)]
    while left:
        key, one = left.pop()
        if isinstance(one, str):
            yield key, one
        elif isinstance(one, dict):
            left += one.items()
        elif isinstance(one, list):
            left += ((key, inner) for inner in one)


def _is_operator(target: str) -> bool:
    return bool(OPERATORS.fullmatch(target)) and not FILE_OPERATORS.search(target)
