"""Whether a policy can fill the parameter that it decides: dimensions, axes, dtype, and the size of its values.

All of it is seen on meta. A value that the parameter's dtype cannot hold would become infinite in silence.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from builder.errors import Problem
from builder.initialize.draws import basic
from builder.initialize.expression import constant_value
from builder.language import LanguageError, names_read, parse_expression
from builder.module import Entry, are_axes, dtype_name, is_continuous, numbers_in
from builder.policies import is_own, policy_of

REACH = 8  # standard deviations: a normal value lies farther out once in 10^15 draws
_FRACTIONS = frozenset(
    {
        "normal", "uniform", "trunc_normal", "xavier_normal", "xavier_uniform", "kaiming_normal", "kaiming_uniform",
        "orthogonal", "sparse", "lsuv", "mup",
    }
)  # fmt: skip
_REAL = frozenset({"orthogonal", "trunc_normal", "lsuv"})  # of no meaning for complex numbers, or not in torch


def check_fit(
    entry: Entry,
    dtype: torch.dtype,
    policy: str,
    arguments: Mapping[str, Any],
    axes: Sequence[str] | None,
    address: str,
) -> list[Problem]:
    """What keeps a policy from filling a parameter.

    Args:
        entry: The parameter.
        dtype: Its element type.
        policy: The policy, which is not `default`.
        arguments: The policy's, checked by themselves.
        axes: What the rule says of the parameter's axes.
        address: Of the rule.
    """
    problems = check_axes(entry, policy, axes, address)
    if problems:
        return problems
    if dtype.is_complex and policy in _REAL:
        what = f"{policy} cannot fill {entry.name!r}, which is {dtype_name(dtype)}"
        return [Problem(address, what, "use normal, uniform, xavier or kaiming")]
    if not is_continuous(dtype) and policy in _FRACTIONS:
        what = f"{policy} draws fractions, and {entry.name!r} is {dtype_name(dtype)}"
        return [Problem(address, what, "give its values, a constant or an expression, or except it")]
    if policy == "lsuv" and entry.kind == "Parameter":
        what = f"lsuv scales a layer's output, and raw Parameter {entry.name!r} is no layer"
        return [Problem(address, what, "use another policy, or a Linear")]
    if policy == "dirac" and entry.shape[0] % arguments.get("groups", 1):
        what = f"{entry.name!r} of shape {entry.shape} has no {arguments['groups']} equal groups along its first axis"
        return [Problem(f"{address}.groups", what, "give a divisor of the number of its output channels")]
    if policy == "expression":
        return [*_indices(entry, arguments, address), *_constant(entry, dtype, arguments, address)]
    if policy == "values":
        return _values(entry, dtype, arguments["values"], address)
    return _range(entry, dtype, policy, arguments, axes, address)


def check_axes(entry: Entry, policy: str, axes: Sequence[str] | None, address: str) -> list[Problem]:
    """What keeps a policy, `default` included, from a parameter of its dimensions and of the axes that a rule names."""
    return _dimensions(entry, policy, address) or _axes(entry, policy, axes, address)


def axes_of(entry: Entry) -> tuple[str, ...] | None:
    """Which axis is fan-in and which fan-out, as a raw Parameter declares it."""
    axes = entry.instance.values.get("axes") if entry.kind == "Parameter" else None
    return tuple(axes) if axes else None


# ---- dimensions and axes -------------------------------------------------------------------------------------------


def _dimensions(entry: Entry, policy: str, address: str) -> list[Problem]:
    needs = policy_of(policy)
    shown = f"{policy} cannot fill {entry.name!r} of shape {entry.shape}"
    if entry.ndim < needs.min_ndim:
        hint = f"add min_ndim: {needs.min_ndim} to the rule, or use another policy"
        return [Problem(address, f"{shown}: it needs {needs.min_ndim} dimensions", hint)]
    if needs.max_ndim is not None and entry.ndim > needs.max_ndim:
        hint = f"add max_ndim: {needs.max_ndim} to the rule"
        return [Problem(address, f"{shown}: it takes at most {needs.max_ndim} dimensions", hint)]
    return []


def _axes(entry: Entry, policy: str, axes: Sequence[str] | None, address: str) -> list[Problem]:
    if axes is not None and not are_axes(axes, entry.ndim):
        what = f"axes {list(axes)!r} for {entry.name!r} of shape {entry.shape}"
        return [Problem(f"{address}.axes", what, "name each axis: one `in`, one `out`, the others `field`")]
    if axes is not None and not policy_of(policy).needs_fans and policy != "mup":
        return [Problem(f"{address}.axes", f"{policy} reads no fan-in or fan-out", "leave axes out")]
    if policy_of(policy).needs_fans and entry.kind == "Parameter" and not (axes or axes_of(entry)):
        shown = f"raw Parameter {entry.name!r} of shape {entry.shape}"
        what = f"{policy} needs fan-in and fan-out, and {shown} does not say which axis is which"
        return [Problem(address, what, f"give {entry.instance.address} axes: [in, out] (for x @ W), or [out, in]")]
    return []


def _indices(entry: Entry, arguments: Mapping[str, Any], address: str) -> Iterator[Problem]:
    """Indices that an expression reads of axes that are not there."""
    try:
        read = names_read(parse_expression(arguments["value"])) - set(arguments["args"])
    except LanguageError:
        return  # said of the rule itself
    for name in sorted(read):
        if re.fullmatch(r"i\d+", name) and int(name[1:]) >= entry.ndim:
            known = ", ".join(f"i{axis}" for axis in range(entry.ndim)) or "none, for it is a single number"
            what = f"reads {name}, and {entry.name!r} of shape {entry.shape} has no such axis"
            yield Problem(f"{address}.value", what, f"its indices: {known}; another rule for it, or except, may help")


# ---- the size of values --------------------------------------------------------------------------------------------


def _constant(entry: Entry, dtype: torch.dtype, arguments: Mapping[str, Any], address: str) -> Iterator[Problem]:
    """An expression without draws and indices whose one value is not finite in the parameter's dtype."""
    value = constant_value(arguments, dtype)
    if value is not None and not math.isfinite(value):
        what = f"{arguments['value']} is {value} in {entry.name!r} of {dtype_name(dtype)}"
        yield Problem(f"{address}.value", what, f"give a finite number, of at most {_bounds(dtype)[1]:.4g}")


def _values(entry: Entry, dtype: torch.dtype, values: Any, address: str) -> list[Problem]:
    shape = _shape_of(values)
    declared = tuple(entry.instance.values["shape"]) if entry.kind == "Parameter" else entry.shape
    if shape is None:
        hint = f"give nested lists of shape {declared}"
        return [Problem(f"{address}.values", "not numbers in even rows", hint)]
    if shape != declared:
        what = f"values of shape {shape} for {entry.name!r} of shape {declared}"
        return [Problem(f"{address}.values", what, "give nested lists of that shape")]
    _, most = _bounds(dtype)
    wrong = next((value for value in numbers_in(values) if not _holds(dtype, value)), None)
    if wrong is None:
        return []
    shown = f"{wrong:.6g}" if isinstance(wrong, float) or abs(wrong) < 10**300 else "a number of 300 digits or more"
    what = f"{shown} is no value that {entry.name!r} of {dtype_name(dtype)} can hold"
    numbers = "finite" if is_continuous(dtype) else "whole"
    return [Problem(f"{address}.values", what, f"give {numbers} numbers, of at most {most:.4g}")]


def _bounds(dtype: torch.dtype) -> tuple[float, float]:
    """The least and the greatest number of a dtype."""
    if dtype == torch.bool:
        return 0, 1
    found = torch.finfo(dtype) if is_continuous(dtype) else torch.iinfo(dtype)
    return found.min, found.max


def _holds(dtype: torch.dtype, value: float) -> bool:
    least, most = _bounds(dtype)
    return least <= value <= most and (is_continuous(dtype) or value % 1 == 0)


def _shape_of(values: Any) -> tuple[int, ...] | None:
    """The shape of nested lists of numbers; None where rows differ or something is no number."""
    if not isinstance(values, list):
        return () if isinstance(values, int | float) and not isinstance(values, bool) else None
    inner = {_shape_of(item) for item in values}
    if len(inner) > 1 or None in inner:
        return None
    return (len(values), *(inner.pop() or () if inner else ()))


def _range(
    entry: Entry,
    dtype: torch.dtype,
    policy: str,
    arguments: Mapping[str, Any],
    axes: Sequence[str] | None,
    address: str,
) -> list[Problem]:
    """Refuses a policy whose values would be infinite in the parameter's dtype."""
    if is_own(policy) and policy != "mup":
        return []
    if not is_continuous(dtype):
        value = arguments.get("val", 0)
        what = f"{value:.6g} is no value that {entry.name!r} of {dtype_name(dtype)} can hold"
        return [] if _holds(dtype, value) else [Problem(f"{address}.val", what, "give a whole number that it can")]
    try:
        if policy == "mup":
            reach = REACH * (arguments.get("std") or 0.0)  # none where the rule itself is refused
        else:
            reach = _reach(*basic(policy, arguments, entry.shape, axes or axes_of(entry)))
    except OverflowError:
        reach = float("inf")
    _, most = _bounds(dtype)
    if reach <= most:
        return []
    what = f"{policy} would fill {entry.name!r} with values up to {reach:.4g}; {dtype_name(dtype)} ends at {most:.4g}"
    return [Problem(address, what, "give a smaller scale, or the parameter a wider dtype")]


def _reach(policy: str, given: Mapping[str, Any]) -> float:
    """How far from zero the values of a basic policy lie; of a uniform one also how wide, which torch asks for."""
    match policy:
        case "uniform":
            return float(max(abs(given["a"]), abs(given["b"]), given["b"] - given["a"]))
        case "normal":
            return float(abs(given["mean"]) + REACH * given["std"])
        case "trunc_normal":
            return float(min(max(abs(given["a"]), abs(given["b"])), abs(given["mean"]) + REACH * given["std"]))
        case "constant":
            return float(abs(given["val"]))
        case "sparse":
            return float(REACH * given["std"])
        case "orthogonal":
            return float(given["gain"])
    return 1.0  # eye, dirac
