"""Policy `expression`: values computed from declared draws, `=where(abs(u) >= 5, u, 0)`.

The expression is elementwise: over draws (from the parameter's own stream, in the order of their declaration), the
model's args, and `i0`, `i1`, ... (each value's index along each axis, as a float). So it can be computed for any part
of a parameter alone. Half precision is computed in float32.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import ast
import math
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from builder.errors import BuilderError, Problem, did_you_mean
from builder.initialize.draws import Fill, fill_of
from builder.language import RESERVED, LanguageError, is_expression, names_read, parse_expression
from builder.policies import POLICIES, check_policy
from builder.rendering import Renderer, Scope

ELEMENTWISE = frozenset(
    """
    abs acos asin atan atan2 ceil clamp cos cosh eq erf exp expm1 floor ge gelu gt hypot le lerp log log1p log2
    logical_and logical_not logical_or lt maximum minimum ne pow relu round rsqrt sigmoid sign silu sin sinh softplus
    sqrt square tan tanh where
    """.split()
)
MOST_AXES = 8  # i0 to i7 may be read; a parameter that has fewer axes is refused by `fits`
_DRAWS = frozenset({"uniform", "normal", "trunc_normal"})
_NUMBERS = frozenset({"float", "int", "min", "max", "len"})  # functions of plain arguments
_INDEX = re.compile(r"i\d+")
_CONSTANTS = frozenset({"pi", "inf"})
_TAKEN = RESERVED | ELEMENTWISE | _NUMBERS | _CONSTANTS
_ONE_EACH = "compute one number for each value of the parameter"
_CHOICES = "for values that differ write where, minimum, maximum, logical_and, logical_or"


def check_value(arguments: Mapping[str, Any], scope: Mapping[str, Any], address: str) -> list[Problem]:
    """What is wrong with the arguments of an `expression`.

    Args:
        arguments: `value`, and `draws` by name.
        scope: Values of the args that the expression may read.
        address: Of the rule.
    """
    draws = arguments.get("draws") or {}
    problems = _check_draws(draws, scope, f"{address}.draws")
    value = arguments["value"]
    if problems:
        return problems
    try:
        if not is_expression(value):
            raise LanguageError(f"{value!r} is not an expression", hint="begin with =, as in =2 * u - 1")
        tree = parse_expression(value)
        _check_elementwise(tree, draws, scope)
        _check_names(tree, {*draws, *scope})
        for size in (2, 3):  # what gives two numbers for two values could still be a list of two
            given = _compute(tree, arguments, scope, torch.zeros(size), torch.Generator(), 0, (*[1] * MOST_AXES, size))
            if given.shape not in ((), (size,)):
                raise LanguageError(f"{value} gives {tuple(given.shape)} numbers for {size} values", hint=_ONE_EACH)
    except LanguageError as err:
        return [Problem(f"{address}.value", err.what, err.hint)]
    except Exception as err:  # torch raises anything for arguments that do not fit a function
        what = f"{value}: {str(err).splitlines()[0] if str(err) else type(err).__name__}"
        hint = _CHOICES if "Boolean value of Tensor" in str(err) else _ONE_EACH
        return [Problem(f"{address}.value", what, hint)]
    unread = sorted(set(draws) - names_read(tree))
    return [Problem(f"{address}.draws.{name}", f"{value} does not read it", "remove it") for name in unread]


def _check_draws(draws: Any, scope: Mapping[str, Any], address: str) -> list[Problem]:
    if not isinstance(draws, Mapping):
        return [Problem(address, f"got {draws!r}", "name each draw: {u: {policy: uniform, a: -10, b: 10}}")]
    problems = []
    for name, draw in draws.items():
        given = {"policy": draw} if isinstance(draw, str) else draw
        if not isinstance(given, Mapping) or given.get("policy") not in _DRAWS:
            what = f"got {draw!r}" if not isinstance(given, Mapping) else f"policy {given.get('policy')!r} is no draw"
            problems.append(Problem(f"{address}.{name}", what, did_you_mean("", _DRAWS)))
        elif not isinstance(name, str) or not name.isidentifier() or name in _TAKEN or _INDEX.fullmatch(name):
            problems.append(Problem(f"{address}.{name}", f"{name!r} cannot be a draw's name", "use a word as u or v"))
        elif name in scope:
            problems.append(Problem(f"{address}.{name}", f"{name!r} is an argument as well", "use another name"))
        else:
            arguments = {key: value for key, value in given.items() if key != "policy"}
            problems += check_policy(given["policy"], arguments, f"{address}.{name}")
    return problems


def _check_elementwise(tree: ast.expr, draws: Mapping[str, Any], scope: Mapping[str, Any]) -> None:
    for node in ast.walk(tree):
        name = ""
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            if name not in ELEMENTWISE | _NUMBERS:
                hint = did_you_mean(name, ELEMENTWISE, most=20)
                raise LanguageError(f"{name} is not a function of each value alone", node.lineno, hint)
        if isinstance(node, ast.MatMult):
            raise LanguageError("@ is not of each value alone", hint=_ONE_EACH)
        is_choice = name in ("min", "max") or (
            isinstance(node, ast.Compare) and any(isinstance(op, ast.In | ast.NotIn) for op in node.ops)
        )
        if isinstance(node, ast.expr) and (isinstance(node, ast.Subscript) or name == "len" or is_choice):
            whole = node.value if isinstance(node, ast.Subscript) else node
            if any(read in draws or (_INDEX.fullmatch(read) and read not in scope) for read in names_read(whole)):
                what = f"{ast.unparse(node)} is not of each value alone: values are drawn in pieces"
                raise LanguageError(what, node.lineno, _CHOICES if is_choice else _ONE_EACH)
        elif isinstance(node, ast.ListComp | ast.Attribute | ast.Dict):
            raise LanguageError(
                f"{ast.unparse(node)}: an init expression is made of numbers and functions", node.lineno
            )


def _check_names(tree: ast.expr, given: Collection[str]) -> None:
    known = {*given, *_CONSTANTS, *(f"i{axis}" for axis in range(MOST_AXES))}
    for name in sorted(names_read(tree) - known - ELEMENTWISE - _NUMBERS):
        hint = did_you_mean(name, {*given, *_CONSTANTS, "i0", "i1", *ELEMENTWISE}, most=20)
        raise LanguageError(f"unknown name {name!r}", hint=f"{hint}\ndeclare a draw: draws: {{{name}: normal}}")


def expression_fill(
    arguments: Mapping[str, Any], scope: Mapping[str, Any], shape: Sequence[int], rule: str, name: str
) -> Fill:
    """The fill of checked arguments for a parameter of a shape; it refuses values that are not finite.

    Args:
        arguments: `value`, and `draws` by name.
        scope: Values of the args that the expression may read.
        shape: Of the parameter.
        rule: The rule that stands behind it, for messages.
        name: The parameter's, for messages.
    """
    tree = parse_expression(arguments["value"])

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        values = _compute(tree, arguments, scope, part.view(-1), generator, start, shape)
        part.copy_(values.view_as(part) if values.ndim else values)
        if not bool(part.isfinite().all()):
            at = int((~part.view(-1).isfinite()).nonzero()[0, 0])
            place = ", ".join(str(int(i)) for i in np.unravel_index(start + at, tuple(shape)))
            what = f"{arguments['value']} is {part.view(-1)[at].item()} at [{place}] of {name!r}"
            raise BuilderError("init", [Problem(rule, what, "keep logarithms, roots and quotients in range")])

    return Fill(draw)


def constant_value(arguments: Mapping[str, Any], dtype: torch.dtype) -> float | None:
    """The one value that an expression gives a whole parameter; None where it reads draws or indices, or is wrong."""
    scope = arguments["args"]
    try:
        tree = parse_expression(arguments["value"])
        read = names_read(tree)
        if any(
            name in (arguments.get("draws") or {}) or (_INDEX.fullmatch(name) and name not in scope) for name in read
        ):
            return None
        found = _compute(tree, arguments, scope, torch.empty(1, dtype=dtype), None, 0, (1,))
        return float(found.to(dtype)) if found.ndim == 0 else None
    except Exception:  # said of the rule itself
        return None


def _compute(
    tree: ast.expr,
    arguments: Mapping[str, Any],
    scope: Mapping[str, Any],
    part: torch.Tensor,
    generator: torch.Generator | None,
    start: int,
    shape: Sequence[int],
) -> torch.Tensor:
    dtype = part.dtype if part.dtype in (torch.float32, torch.float64) else torch.float32
    tensors: dict[str, torch.Tensor] = {}
    for name, given in (arguments.get("draws") or {}).items():
        draw = {"policy": given} if isinstance(given, str) else dict(given)
        tensors[name] = torch.empty(part.numel(), dtype=dtype)
        fill_of(draw.pop("policy"), draw, shape).draw(tensors[name], generator, start)
    read = names_read(tree)
    for axis in range(len(shape)):
        if f"i{axis}" in read and f"i{axis}" not in scope:
            flat = torch.arange(start, start + part.numel())
            inner = math.prod(shape[axis + 1 :])
            tensors[f"i{axis}"] = (flat // inner % shape[axis]).to(dtype)
    names = Scope(arguments={name: name for name in scope}, tensors={name: name for name in tensors})
    text = Renderer(names).expression(parse_expression(ast.unparse(tree)))
    known = {"torch": torch, "F": F, "math": math, **scope, **tensors}
    return torch.as_tensor(eval(compile(text, "<init expression>", "eval"), known), dtype=dtype)


assert set(POLICIES) >= _DRAWS, "draws are policies"
