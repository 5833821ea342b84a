"""What is in a saved model's archive, looked through before anything of it is loaded. Knows no network.

With PyTorch 2.10 `torch.export.load` is no reader of data alone. It falls back to the plain unpickler for pickles
that `weights_only` refuses, evaluates expressions of sizes (by sympy) and guards as Python, calls any function below
`torch` that a graph names, and starts native code that lies in the archive (AOTInductor). TorchScript is compiled
for an interpreter of its own and unpickled in C++, so no Python runs, but its language has operators that write files.
"""

from __future__ import annotations

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pipelines.errors import ModelUnavailable

# Operators that write or map files, as TorchScript and torch.export name them.
FILE_OPERATORS = re.compile(r"\b(save|from_file)\b")
OPERATORS = re.compile(
    r"torch\.ops\.(aten|prims|prim|torchvision)\.\w+(\.\w+)?"
    r"|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
    r"|torch\.sym_[a-z]+|math\.[a-z]\w*"
    r"|_operator\.(getitem|add|sub|mul|truediv|floordiv|mod|pow|neg|pos|abs|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
# Names stand in the Python code that a graph becomes.
PLAIN_NAME = re.compile(r"[\w.]*")
NAME_KEYS = ("name", "parameter_name", "buffer_name", "tensor_constant_name")
SYMBOL = re.compile(r"[a-z]{1,4}\d+")
NAMES = frozenset({"oo", "int_oo", "zoo", "nan", "true", "false"})
FUNCTIONS = re.compile(
    r"Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|Float|FloatTrueDiv|FloorDiv|FloorToInt|Ge|GreaterThan|Gt"
    r"|Identity|IntTrueDiv|Integer|Le|LessThan|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|Piecewise|Pow|PythonMod"
    r"|Rational|RoundToInt|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToInt|Unequality|Where|ceiling|floor|max|min"
)
MEASURES = ("size", "stride", "storage_offset", "dim")
ARITHMETIC = (
    ast.Expression,
    ast.BinOp,
    ast.BoolOp,
    ast.UnaryOp,
    ast.Compare,
    ast.Tuple,
    ast.keyword,
    ast.operator,
    ast.boolop,
    ast.unaryop,
    ast.cmpop,
    ast.expr_context,
)
LONGEST_EXPRESSION = 20_000
HINT = "save it anew with torch.export.save; if you trust the file, add --allow-code"


def members(path: Path) -> list[str]:
    """The names in an archive. Raises ModelUnavailable where it is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelUnavailable(
            f"cannot read {path}: {error}", hint="is it complete, and a saved model?"
        ) from error


def read_member(path: Path, member: str) -> bytes:
    """One file of an archive. Raises ModelUnavailable where it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.read(member)
    except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise ModelUnavailable(f"cannot read {member} in {path}: {error}", hint="is it complete?") from error


def read_json(path: Path, member: str) -> Any:
    """One JSON file of an archive. Raises ModelUnavailable where it is damaged."""
    try:
        return json.loads(read_member(path, member))
    except (ValueError, RecursionError) as error:
        raise ModelUnavailable(f"cannot read {member} in {path}: {error}", hint="is it complete?") from error


def check_script(path: Path) -> None:
    """Raise ModelUnavailable where TorchScript names an operator that touches files."""
    for name in members(path):
        if "/code/" in name and name.endswith(".py"):
            found = FILE_OPERATORS.search(read_member(path, name).decode("utf-8", "replace"))
            if found:
                raise ModelUnavailable(
                    f"{path}: its code names {found[0]}, an operator that touches files",
                    hint="if you trust the file, add --allow-code",
                )


def check_exported(path: Path) -> None:
    """Raise ModelUnavailable where a `.pt2` holds more than a graph of operators and its tensors."""
    for name in members(path):
        inner = name.partition("/")[2]
        if inner.startswith("data/aotinductor/"):
            raise ModelUnavailable(f"{path} holds native code ({inner})", hint=HINT)
        if name.endswith(".pt"):
            _check_pickle(path, name)
        elif inner.startswith("models/"):
            _check_graph(path, read_json(path, name))
        elif name.endswith("_config.json"):
            _check_payloads(path, name)


def _check_payloads(path: Path, config: str) -> None:
    """Tensors are bytes; those of unusual kinds are pickles, and objects of C++ classes are neither."""
    folder = config.rpartition("/")[0]
    entries = read_json(path, config)
    for entry in entries.get("config", {}).values() if isinstance(entries, dict) else ():
        payload = str(entry.get("path_name"))
        if not payload.startswith(("weight_", "tensor_")):
            raise ModelUnavailable(f"{path} holds an object that is no tensor ({payload})", hint=HINT)
        if entry.get("use_pickle"):
            _check_pickle(path, f"{folder}/{payload}")


def _check_pickle(path: Path, member: str) -> None:
    data = read_member(path, member)
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
            raise ModelUnavailable(f"{path}: its graph calls {value!r}, no operator of PyTorch's", hint=HINT)
        if key in NAME_KEYS and not PLAIN_NAME.fullmatch(value):
            raise ModelUnavailable(f"{path}: {value[:80]!r} is no name", hint=HINT)
        if key in ("expr_str", "guards_code") and not _is_arithmetic(value):
            raise ModelUnavailable(f"{path}: {value[:80]!r} is no expression of sizes", hint=HINT)
        if key in ("in_spec", "out_spec") and ("factory_module" in value or "__enum__" in value):
            raise ModelUnavailable(f"{path}: {key} names modules of Python's", hint=HINT)


def _strings(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text with the key that it stands under, at any depth."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _strings(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner, key)


def _is_operator(target: str) -> bool:
    return bool(OPERATORS.fullmatch(target)) and not FILE_OPERATORS.search(target)


def _is_arithmetic(text: str) -> bool:
    """Whether Python, evaluating it, would do no more than compute with sizes."""
    if len(text) > LONGEST_EXPRESSION:
        return False
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return _computes(tree)


def _computes(node: ast.AST) -> bool:
    if _is_measure(node):
        return True
    match node:
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float)
        case ast.Name(id=name):
            return bool(SYMBOL.fullmatch(name)) or name in NAMES
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            return bool(SYMBOL.fullmatch(name)) and all(map(_computes, keywords))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            return bool(FUNCTIONS.fullmatch(name)) and all(map(_computes, [*arguments, *keywords]))
    return isinstance(node, ARITHMETIC) and all(map(_computes, ast.iter_child_nodes(node)))


def _is_measure(node: ast.AST) -> bool:
    """`L['x'].size()[2]` and the like, of guards: a size of an input."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        node = node.value
    match node:
        case ast.Call(func=ast.Attribute(value=owner, attr=name), args=[], keywords=[]):
            while isinstance(owner, ast.Subscript) and isinstance(owner.slice, ast.Constant):
                owner = owner.value
            return name in MEASURES and isinstance(owner, ast.Name) and owner.id == "L"
    return False
