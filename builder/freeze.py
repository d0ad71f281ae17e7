"""Freezing by named rules: whole parameters that no optimizer will move.

Each rule selects with the project's one selector. A rule that matches nothing, or that names only the alias of a tied
parameter, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from builder.errors import Problem
from builder.module import Entry
from builder.names import Selector


def plan_freeze(
    rules: Mapping[str, Selector], parameters: Sequence[Entry], ties: Mapping[str, str]
) -> tuple[dict[str, str], list[Problem]]:
    """Owner name → the rule that freezes it, and what is wrong with the rules."""
    frozen: dict[str, str] = {}
    problems: list[Problem] = []
    for name, rule in rules.items():
        chosen = [entry.name for entry in parameters if rule.selects(entry)]
        owned = [chosen_name for chosen_name in chosen if chosen_name not in ties]
        problems += check_matches(f"freeze.{name}", rule, chosen, ties, parameters)
        if owned and all(owner in frozen for owner in owned):
            by = ", ".join(sorted({frozen[owner] for owner in owned}))
            problems.append(Problem(f"freeze.{name}", f"decides nothing: {by} froze all that it matches", "remove it"))
        for entry in parameters:
            if entry.name in owned and entry.instance.values.get("max_norm") is not None:
                what = f"{entry.name!r} cannot be frozen: max_norm rewrites its rows in forward"
                problems.append(Problem(f"freeze.{name}", what, f"take max_norm out of {entry.instance.address}"))
        for owner in owned:
            frozen.setdefault(owner, f"freeze.{name}")
    return frozen, problems


def check_matches(
    address: str, rule: Selector, chosen: Sequence[str], ties: Mapping[str, str], parameters: Sequence[Entry]
) -> list[Problem]:
    """Refuses a rule that chooses nothing, or only aliases of tied parameters."""
    if not chosen:
        shown = ", ".join(entry.name for entry in parameters[:8]) + (", ..." if len(parameters) > 8 else "")
        return [Problem(address, f"matches no parameter: {describe(rule)}", f"the model has: {shown}")]
    if all(name in ties for name in chosen):
        owner = ties[chosen[0]]
        return [
            Problem(address, f"{chosen[0]!r} is tied to {owner!r}, which owns the values", f"address {owner!r} instead")
        ]
    return []


def describe(rule: Selector) -> str:
    """The selector of a rule in a few words."""
    fields = {key: value for key, value in rule.model_dump(by_alias=True, exclude_unset=True).items() if key in _FIELDS}
    return ", ".join(f"{key}: {value!r}" for key, value in fields.items()) or "match: '*'"


_FIELDS = {field.alias or name for name, field in Selector.model_fields.items()}


def freeze(module: nn.Module, frozen: Mapping[str, str]) -> None:
    """Freezes the parameters of a plan."""
    for name in frozen:
        module.get_parameter(name).requires_grad_(False)
