"""A decision → the fill that carries it out, and the stream that it draws from."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from builder.initialize.draws import Fill, default_fill, fill_of
from builder.initialize.plan import Decision
from builder.module import Entry


def fill_for(
    entry: Entry, plan: Mapping[str, Decision], parameters: Mapping[str, Entry], module: nn.Module
) -> tuple[Fill, str]:
    """What fills a parameter, and the name whose stream it draws from.

    Args:
        entry: The parameter; its decision is not `reset_parameters`.
        plan: Owner name → decision.
        parameters: Every entry by name.
        module: The module, of which only classes and settings are read; it may be on meta.
    """
    decision = plan[entry.name]
    owner = module.get_submodule(entry.owner)
    if decision.policy == "default":
        fill = default_fill(owner, entry.local, entry.shape)
        assert fill is not None, f"{entry.name} has a default that is not known"
        return fill, entry.name
    return fill_of(decision.policy, decision.arguments, entry.shape, decision.axes), entry.name
