"""Policy `copy`: the initial values of another parameter, which goes its own way afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from builder.errors import Problem, did_you_mean
from builder.module import Entry, dtype_name

if TYPE_CHECKING:
    from builder.initialize.plan import Decision


def check_copies(decisions: Mapping[str, Decision], entries: Mapping[str, Entry], module: nn.Module) -> list[Problem]:
    """What is wrong with the copies of a plan: unknown names, unequal shapes or dtypes, circles, no values to copy."""
    problems = []
    for name, decision in decisions.items():
        if decision.policy != "copy":
            continue
        of, address = str(decision.arguments["of"]), f"{decision.rule}.of"
        if of not in decisions:
            problems.append(Problem(address, f"no parameter {of!r}", did_you_mean(of, decisions, most=6)))
            continue
        dtypes = module.get_parameter(name).dtype, module.get_parameter(of).dtype
        transpose = bool(decision.arguments.get("transpose"))
        problems += _compare(entries[name], entries[of], transpose, dtypes, address)
        problems += _end(name, decisions, address)
    return problems


def copies_to(name: str, decisions: Mapping[str, Decision]) -> int:
    """How many copies, one of another, lead from the values that are drawn to those of a parameter."""
    decision = decisions[name]
    return 1 + copies_to(str(decision.arguments["of"]), decisions) if decision.policy == "copy" else 0


def _compare(
    copy: Entry, source: Entry, transpose: bool, dtypes: tuple[torch.dtype, torch.dtype], address: str
) -> list[Problem]:
    if transpose and source.ndim != 2:
        what = f"{source.name!r} of shape {source.shape} has no transpose"
        return [Problem(address, what, "a transposed copy needs two dimensions")]
    if copy.shape != (source.shape[::-1] if transpose else source.shape):
        what = f"{copy.name!r} is {copy.shape} but {source.name!r} is {source.shape}"
        hint = "add transpose: true" if copy.shape == source.shape[::-1] else "a copy needs equal shapes"
        return [Problem(address, what, hint)]
    if dtypes[0] != dtypes[1]:
        what = f"{copy.name!r} is {dtype_name(dtypes[0])} but {source.name!r} is {dtype_name(dtypes[1])}"
        return [Problem(address, what, "a copy needs equal dtypes")]
    return []


def _end(name: str, decisions: Mapping[str, Decision], address: str) -> list[Problem]:
    """What is wrong with the parameter from which a copy, or a chain of them, has its values in the end."""
    path = [name]
    while decisions[path[-1]].policy == "copy" and path[-1] not in path[:-1]:
        following = str(decisions[path[-1]].arguments["of"])
        if following not in decisions:
            return []  # said of that copy
        path.append(following)
    last, policy = path[-1], decisions[path[-1]].policy
    if last in path[:-1]:
        return [Problem(address, f"a circle: {' -> '.join(path)}", "let one of them be drawn")]
    if policy in ("reset_parameters", "lsuv"):
        return [Problem(address, f"{last!r} is filled by {policy}, after all others", "give it another policy")]
    if policy == "empty":
        return [Problem(address, f"{last!r} is empty: it has no values to copy", "give it a policy that fills it")]
    return []
