"""Policy `copy`: the initial values of another parameter, which goes its own way afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from builder.errors import Problem, did_you_mean
from builder.module import Entry

if TYPE_CHECKING:
    from builder.initialize.plan import Decision


def check_copies(decisions: Mapping[str, Decision], entries: Mapping[str, Entry]) -> list[Problem]:
    """What is wrong with the copies of a plan: unknown names, unequal shapes, circles."""
    problems = []
    for name, decision in decisions.items():
        if decision.policy != "copy":
            continue
        of, address = str(decision.arguments["of"]), f"{decision.rule}.of"
        if of not in decisions:
            problems.append(Problem(address, f"no parameter {of!r}", did_you_mean(of, decisions, most=6)))
            continue
        shape, given = entries[name].shape, entries[of].shape
        if shape != (given[::-1] if decision.arguments.get("transpose") else given):
            what = f"{name!r} is {shape} but {of!r} is {given}"
            hint = "add transpose: true" if shape == given[::-1] else "a copy needs equal shapes"
            problems.append(Problem(address, what, hint))
        path = [name]
        while decisions[path[-1]].policy == "copy" and path[-1] not in path[:-1]:
            following = str(decisions[path[-1]].arguments["of"])
            if following not in decisions:
                break
            path.append(following)
        if path[-1] in path[:-1]:
            problems.append(Problem(address, f"a circle: {' -> '.join(path)}", "let one of them be drawn"))
        elif decisions[path[-1]].policy in ("reset_parameters", "lsuv"):
            what = f"{path[-1]!r} is filled by {decisions[path[-1]].policy}, after all others"
            problems.append(Problem(address, what, "give it another policy"))
    return problems
