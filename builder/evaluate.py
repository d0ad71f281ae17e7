"""`=` expressions over plain values, computed without `eval` and within bounds.

Numbers are bounded in bits, lists in items and the whole in steps, so that no expression of a model file costs time or
memory.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from builder.errors import did_you_mean
from builder.language import BUILTINS, MATH, LanguageError, names_read, parse_expression

MAX_BITS = 256  # of an integer that an expression may give
MAX_ITEMS = 10_000  # of a list, string or range that an expression may give, those of inner lists included
MAX_STEPS = 100_000  # of the evaluation of one expression

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
}
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
}


def evaluate(expression: ast.expr | str, values: Mapping[str, Any]) -> Any:
    """The value of an expression over plain values.

    Numbers are bounded to `MAX_BITS` bits and lists to `MAX_ITEMS` items, so that no expression costs memory.

    >>> evaluate("=2 * d if wide else d", {"d": 64, "wide": True})
    128

    Raises:
        LanguageError: An unknown name, a result out of bounds, or an error of arithmetic.
    """
    tree = _parsed(expression) if isinstance(expression, str) else expression
    try:
        return _Evaluation().value(tree, values)
    except (ArithmeticError, TypeError, ValueError, IndexError, KeyError) as err:
        given = ", ".join(f"{name} = {values[name]!r}" for name in sorted(names_read(tree)) if name in values)
        raise LanguageError(f"{ast.unparse(tree)}: {err}", hint=f"here {given}" if given else "mend it") from err


_parsed = lru_cache(4096)(parse_expression)  # an expression of a repeated layer is computed once a layer


class _Evaluation:
    """One evaluation, and the steps that it has taken; a loop cannot take more than `MAX_STEPS`."""

    def __init__(self) -> None:
        self.steps = 0

    def spend(self, steps: int) -> None:
        self.steps += steps
        if self.steps > MAX_STEPS:
            raise LanguageError(f"takes more than {MAX_STEPS} steps", hint="compute less")

    def value(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        self.spend(1)
        match node:
            case ast.Constant():
                return node.value
            case ast.Name():
                return _value_of(node, values)
            case ast.BinOp():
                result = _binary(type(node.op), self.value(node.left, values), self.value(node.right, values))
                self.spend(_weight(result))
                return result
            case ast.UnaryOp():
                if type(node.op) not in _UNARY:
                    raise LanguageError("operator `~` is for tensors")
                return _UNARY[type(node.op)](self.value(node.operand, values))
            case ast.BoolOp():
                stop = isinstance(node.op, ast.Or)
                result = None
                for part in node.values:
                    result = self.value(part, values)
                    if bool(result) == stop:
                        break
                return result
            case ast.Compare():
                left = self.value(node.left, values)
                for op, right_node in zip(node.ops, node.comparators, strict=True):
                    right = self.value(right_node, values)
                    if not _COMPARE[type(op)](left, right):
                        return False
                    left = right
                return True
            case ast.IfExp():
                return self.value(node.body if self.value(node.test, values) else node.orelse, values)
            case ast.Tuple() | ast.List():
                return [self.value(item, values) for item in node.elts]
            case ast.Subscript():
                return self.value(node.value, values)[self.index(node.slice, values)]
            case ast.ListComp():
                return _bounded(self.comprehend(node.elt, node.generators, values))
            case ast.Call():
                return self.call(node, values)
        raise LanguageError(f"{ast.unparse(node)}: only numbers, lists and arguments may stand here")

    def index(self, node: ast.expr, values: Mapping[str, Any]) -> Any:
        if isinstance(node, ast.Slice):
            parts = (node.lower, node.upper, node.step)
            return slice(*(None if part is None else self.value(part, values) for part in parts))
        return self.value(node, values)

    def comprehend(
        self, element: ast.expr, generators: list[ast.comprehension], values: Mapping[str, Any]
    ) -> list[Any]:
        first, rest = generators[0], generators[1:]
        found: list[Any] = []
        for item in self.value(first.iter, values):
            inner = {**values, **_bind(first.target, item)}
            if all(self.value(test, inner) for test in first.ifs):
                found.extend(self.comprehend(element, rest, inner) if rest else [self.value(element, inner)])
        return found

    def call(self, node: ast.Call, values: Mapping[str, Any]) -> Any:
        name = _function_name(node.func)
        if name not in MATH | BUILTINS or name == "pi":
            raise LanguageError(f"unknown function {name!r}", hint=did_you_mean(name, MATH | BUILTINS))
        if node.keywords:
            raise LanguageError(f"{name}: keywords are not allowed here")
        arguments = [self.value(argument, values) for argument in node.args]
        self.spend(sum(map(_weight, arguments)))
        if name == "range":
            if len(range(*arguments)) > MAX_ITEMS:
                raise LanguageError(f"range of more than {MAX_ITEMS} items")
            self.spend(len(range(*arguments)))
            return list(range(*arguments))
        if name in ("zip", "enumerate"):
            return _bounded([list(item) for item in {"zip": zip, "enumerate": enumerate}[name](*arguments)])
        return _bounded(_FUNCTIONS[name](*arguments))


def _value_of(node: ast.Name, values: Mapping[str, Any]) -> Any:
    if node.id in values:
        return values[node.id]
    if node.id == "pi":
        return math.pi
    raise LanguageError(f"unknown name {node.id!r}", hint=did_you_mean(node.id, {*values, *MATH, *BUILTINS}))


def _binary(op: type[ast.operator], left: Any, right: Any) -> Any:
    if op not in _BINARY:
        raise LanguageError(f"operator {op.__name__} is for tensors")
    if op is ast.Pow and isinstance(left, int) and isinstance(right, int) and abs(right) * left.bit_length() > MAX_BITS:
        raise LanguageError(f"{left} ** {right} has more than {MAX_BITS} bits")
    if op is ast.Mult and any(isinstance(side, str | list) for side in (left, right)):
        size = next(len(side) for side in (left, right) if isinstance(side, str | list))
        times = right if isinstance(right, int) else left
        if isinstance(times, int) and size * times > MAX_ITEMS:
            raise LanguageError(f"more than {MAX_ITEMS} items")
    if op is ast.Mod and isinstance(left, str):
        raise LanguageError("% formats no text here")
    return _bounded(_BINARY[op](left, right))


def _bounded(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_BITS:
        raise LanguageError(f"a number of more than {MAX_BITS} bits")
    if _weight(value) > MAX_ITEMS:
        raise LanguageError(f"more than {MAX_ITEMS} items")
    return value


def _weight(value: Any) -> int:
    """The items of a value, those of inner lists included; counting stops above `MAX_ITEMS`."""
    if not isinstance(value, list):
        return len(value) if isinstance(value, str) else 1
    count = len(value)
    for item in value:
        if count > MAX_ITEMS:
            break
        count += _weight(item) if isinstance(item, str | list) else 0
    return count


def _round(value: Any, digits: int = 0) -> Any:
    if abs(digits) > MAX_BITS:  # an int to a negative digit costs memory for each
        raise LanguageError(f"round to {digits} digits", hint=f"at most {MAX_BITS}")
    return round(value, digits) if digits else round(value)


def _bind(target: ast.expr, item: Any) -> dict[str, Any]:
    if isinstance(target, ast.Name):
        return {target.id: item}
    assert isinstance(target, ast.Tuple | ast.List)
    return {k: v for part, value in zip(target.elts, item, strict=True) for k, v in _bind(part, value).items()}


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(math, name) for name in MATH - {"pi"}},
    "abs": abs, "bool": bool, "float": float, "int": int, "len": len, "list": list, "max": max, "min": min,
    "round": _round, "sum": sum, "tuple": list, "dict": dict,
}  # fmt: skip


def _function_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr
    return ast.unparse(node)
