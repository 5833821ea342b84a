"""Expressions of sizes, as exported programs hold them: whether Python, evaluating one, would only compute.
stdlib only.

Torch evaluates them by sympy and as Python: what may stand in them is a list of its functions, of arithmetic
and of the sizes of inputs, and numbers stay so small that no evaluation takes long.
"""

from __future__ import annotations

import ast
import re

SYMBOL = re.compile(r"[a-z]{1,4}\d+")
NAMES = frozenset({"oo", "int_oo", "zoo", "nan", "true", "false"})
FUNCTIONS = re.compile(
    r"Abs|Add|And|CeilDiv|CeilToInt|CleanDiv|Eq|Equality|Float|FloatTrueDiv|FloorDiv|FloorToInt|Ge|GreaterThan|Gt"
    r"|Identity|IntTrueDiv|Integer|Le|LessThan|Lt|Max|Min|Mod|ModularIndexing|Mul|Ne|Not|Or|Piecewise|Pow|PythonMod"
    r"|Rational|RoundToInt|StrictGreaterThan|StrictLessThan|Symbol|ToFloat|TruncToInt|Unequality|Where|ceiling|floor|max|min"
)
MEASURES = ("size", "stride", "storage_offset", "dim")
ARITHMETIC = (
    *(
        ast.Expression,
        ast.BinOp,
        ast.BoolOp,
        ast.UnaryOp,
        ast.Compare,
        ast.Tuple,
        ast.keyword,
        ast.expr_context,
    ),
    *(ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.BitAnd, ast.BitOr),
    *(
        ast.USub,
        ast.UAdd,
        ast.Not,
        ast.Invert,
        ast.boolop,
        ast.Eq,
        ast.NotEq,
        ast.Lt,
        ast.LtE,
        ast.Gt,
        ast.GtE,
    ),
)
LONGEST_EXPRESSION = 20_000
LARGEST_NUMBER = 1 << 64
LARGEST_EXPONENT = 4


def is_arithmetic(text: str) -> bool:
    """Whether Python, evaluating it, would do no more than compute with sizes."""
    if len(text) > LONGEST_EXPRESSION:
        return False
    try:
        return _computes(ast.parse(text, mode="eval"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False


def _computes(node: ast.AST) -> bool:
    if _is_measure(node):
        return True
    match node:
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float) and abs(value) < LARGEST_NUMBER
        case ast.BinOp(left=base, op=ast.Pow(), right=exponent):
            return _is_power(base, exponent)
        case ast.Call(func=ast.Name(id="Pow"), args=[base, exponent], keywords=keywords):
            return _is_power(base, exponent) and all(map(_computes, keywords))
        case ast.Call(func=ast.Name(id="Pow")):
            return False
        case ast.Name(id=name):
            return bool(SYMBOL.fullmatch(name)) or name in NAMES
        case ast.Call(func=ast.Name(id="Symbol"), args=[ast.Constant(value=str(name))], keywords=keywords):
            return bool(SYMBOL.fullmatch(name)) and all(map(_computes, keywords))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=keywords):
            return bool(FUNCTIONS.fullmatch(name)) and all(map(_computes, [*arguments, *keywords]))
    return isinstance(node, ARITHMETIC) and all(map(_computes, ast.iter_child_nodes(node)))


def _is_power(base: ast.AST, exponent: ast.AST) -> bool:
    """Whether a power stays small: its exponent is a small number, and its base holds no power."""
    powers = (one for one in ast.walk(base) if isinstance(one, ast.Pow) or getattr(one, "id", "") == "Pow")
    return _is_small(exponent) and _computes(base) and not any(powers)


def _is_small(node: ast.AST) -> bool:
    match node:
        case ast.Constant(value=value):
            return isinstance(value, int | float) and abs(value) <= LARGEST_EXPONENT
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return _is_small(inner)
        case ast.Call(func=ast.Name(id="Integer" | "Rational"), args=[*numbers], keywords=[]):
            return bool(numbers) and all(map(_is_small, numbers))
    return False


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
