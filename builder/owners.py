"""Ties → the one owner of each tied name.

`tie: {head.weight: wte.weight}` makes `head.weight` another name of `wte.weight`. Chains end at one owner, so that the
order in which ties stand does not matter; a cycle has no owner and is refused. A tie with `transpose` makes the name
stand for the owner's transpose; two in a chain cancel each other.
"""

from __future__ import annotations

from collections.abc import Mapping

from builder.errors import Problem
from builder.spec import ModelSpec, TieSpec


def owners(tie: Mapping[str, TieSpec]) -> tuple[dict[str, TieSpec], list[Problem]]:
    """Each tied name with its final owner, and the cycles.

    >>> chain = {"a.weight": TieSpec(source="b.weight"), "b.weight": TieSpec(source="c.weight")}
    >>> {name: found.source for name, found in owners(chain)[0].items()}
    {'a.weight': 'c.weight', 'b.weight': 'c.weight'}
    """
    found: dict[str, TieSpec] = {}
    problems: list[Problem] = []
    for target in tie:
        path, transpose = [target], False
        while path[-1] in tie and path[-1] not in path[:-1]:
            step = tie[path[-1]]
            path.append(step.source)
            transpose ^= step.transpose
        if path[-1] in path[:-1]:
            what = f"a cycle: {' -> '.join(path)}"
            problems.append(Problem(f"tie.{target}", what, "let one of them own the values: remove its tie"))
        else:
            found[target] = TieSpec(source=path[-1], transpose=transpose)
    return found, problems


def check_transposed(spec: ModelSpec, found: Mapping[str, TieSpec]) -> list[Problem]:
    """Refuses a transpose under any name but a raw Parameter's of the model itself: only that can be an expression."""
    problems = []
    for target, tie in found.items():
        layer = spec.layers.get(target)
        if tie.transpose and (layer is None or layer.kind != "Parameter" or layer.repeat is not None):
            what = f"{target!r} cannot be a transpose: only a raw Parameter of the model's own layers can"
            hint = f"write `x @ {tie.source}.T` in forward, or declare a raw Parameter and tie that"
            problems.append(Problem(f"tie.{target}", what, hint))
    return problems
