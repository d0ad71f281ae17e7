"""Policy `expression`: values computed from declared draws, `=where(abs(u) >= 5, u, 0)`.

The expression is elementwise: over draws (from the parameter's own stream, in the order of their declaration), the
model's args, and `i0`, `i1`, ... (each value's index along each axis, as a float). So it can be computed for any part
of a parameter alone. Half precision is computed in float32.
"""

# ruff: noqa: SIM905 (words in a block of text read better than a list of a hundred strings)

from __future__ import annotations

import ast
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from builder.errors import BuilderError, Problem, did_you_mean
from builder.initialize.draws import Fill, fill_of
from builder.language import LanguageError, is_expression, names_read, parse_expression
from builder.policies import POLICIES, check_policy
from builder.rendering import Renderer, Scope

ELEMENTWISE = frozenset(
    """
    abs acos asin atan atan2 ceil clamp cos cosh eq erf exp expm1 floor ge gelu gt hypot le lerp log log1p log2
    logical_and logical_not logical_or lt maximum minimum ne pow relu round rsqrt sigmoid sign silu sin sinh softplus
    sqrt square tan tanh where
    """.split()
)
_DRAWS = frozenset({"uniform", "normal", "trunc_normal"})


def check_value(arguments: Mapping[str, Any], scope: Mapping[str, Any], address: str) -> list[Problem]:
    """What is wrong with the arguments of an `expression`.

    Args:
        arguments: `value`, and `draws` by name.
        scope: Values of the args that the expression may read.
        address: Of the rule.
    """
    problems = _check_draws(arguments.get("draws") or {}, scope, f"{address}.draws")
    value = arguments["value"]
    if problems:
        return problems
    try:
        if not is_expression(value):
            raise LanguageError(f"{value!r} is not an expression", hint="begin with =, as in =2 * u - 1")
        tree = parse_expression(value)
        _check_elementwise(tree)
        _compute(tree, arguments, scope, torch.zeros(2), torch.Generator(), 0, (1, 2))
    except LanguageError as err:
        return [Problem(f"{address}.value", err.what, err.hint)]
    except Exception as err:  # torch raises anything for arguments that do not fit a function
        what = f"{value}: {str(err).splitlines()[0] if str(err) else type(err).__name__}"
        return [Problem(f"{address}.value", what, "compute one number for each value of the parameter")]
    return []


def _check_draws(draws: Any, scope: Mapping[str, Any], address: str) -> list[Problem]:
    if not isinstance(draws, Mapping):
        return [Problem(address, f"got {draws!r}", "name each draw: {u: {policy: uniform, a: -10, b: 10}}")]
    problems = []
    for name, draw in draws.items():
        given = {"policy": draw} if isinstance(draw, str) else draw
        if not isinstance(given, Mapping) or given.get("policy") not in _DRAWS:
            what = f"got {draw!r}" if not isinstance(given, Mapping) else f"policy {given.get('policy')!r} is no draw"
            problems.append(Problem(f"{address}.{name}", what, did_you_mean("", _DRAWS)))
        elif name in scope:
            problems.append(Problem(f"{address}.{name}", f"{name!r} is an argument as well", "use another name"))
        else:
            arguments = {key: value for key, value in given.items() if key != "policy"}
            problems += check_policy(given["policy"], arguments, f"{address}.{name}")
    return problems


def _check_elementwise(tree: ast.expr) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            if name not in ELEMENTWISE | {"float", "int", "min", "max", "len"}:
                hint = did_you_mean(name, ELEMENTWISE, most=20)
                raise LanguageError(f"{name} is not a function of each value alone", node.lineno, hint)
        elif isinstance(node, ast.ListComp | ast.Attribute | ast.Dict):
            raise LanguageError(
                f"{ast.unparse(node)}: an init expression is made of numbers and functions", node.lineno
            )


def expression_fill(arguments: Mapping[str, Any], scope: Mapping[str, Any], shape: Sequence[int]) -> Fill:
    """The fill of checked arguments for a parameter of a shape; it refuses values that are not finite."""
    tree = parse_expression(arguments["value"])

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        values = _compute(tree, arguments, scope, part.view(-1), generator, start, shape)
        part.copy_(values.view_as(part) if values.ndim else values)
        if not bool(part.isfinite().all()):
            where = start + int((~part.view(-1).isfinite()).nonzero()[0, 0])
            what = f"{arguments['value']} is {part.view(-1)[where - start].item()} at value {where}"
            raise BuilderError("init", [Problem("expression", what, "keep logarithms, roots and quotients in range")])

    return Fill(draw)


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
