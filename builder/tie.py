"""Tied parameters: one owner each, resolved and compared before anything is tied.

`tie: {head.weight: wte.weight}` makes `head.weight` another name of `wte.weight`. Chains end at one owner; a cycle, an
unknown name or unequal shapes are refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from builder.errors import Problem, did_you_mean


def owners(tie: Mapping[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """The final owner of each tied name.

    >>> owners({"a.weight": "b.weight", "b.weight": "c.weight"})[0]
    {'a.weight': 'c.weight', 'b.weight': 'c.weight'}
    """
    found: dict[str, str] = {}
    problems: list[Problem] = []
    for target in tie:
        path = [target]
        while path[-1] in tie:
            path.append(tie[path[-1]])
            if path[-1] in path[:-1]:
                problems.append(
                    Problem(
                        f"tie.{target}",
                        f"a cycle: {' -> '.join(path)}",
                        "let one of them own the values: remove its tie",
                    )
                )
                break
        found[target] = path[-1]
    return found, problems


def check_ties(tie: Mapping[str, str], untied: nn.Module) -> list[Problem]:
    """What is wrong with the ties of a model, seen on a module in which nothing is tied yet."""
    final, problems = owners(tie)
    parameters = dict(untied.named_parameters(remove_duplicate=False))
    for target, source in final.items():
        for name in (target, source):
            if name not in parameters:
                problems.append(
                    Problem(f"tie.{target}", f"no parameter {name!r}", did_you_mean(name, parameters, most=6))
                )
        if target in parameters and source in parameters:
            a, b = parameters[target], parameters[source]
            if a.shape != b.shape:
                what = f"{target!r} is {tuple(a.shape)} but {source!r} is {tuple(b.shape)}"
                problems.append(Problem(f"tie.{target}", what, "a tie needs equal shapes"))
            elif a.dtype != b.dtype:
                problems.append(
                    Problem(
                        f"tie.{target}",
                        f"{target!r} is {a.dtype} but {source!r} is {b.dtype}",
                        "a tie needs equal dtypes",
                    )
                )
    return problems


def ordered(tie: Mapping[str, str]) -> dict[str, str]:
    """The ties with every target pointing at its final owner, so that their order does not matter."""
    return owners(tie)[0]
