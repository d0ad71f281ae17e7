"""A decision → the fill that carries it out, and the stream that it draws from."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import nn

from builder.initialize.chunks import fill_range
from builder.initialize.draws import Fill, default_fill, fill_of, zeroed
from builder.initialize.expression import expression_fill
from builder.initialize.function import function_fill
from builder.initialize.mup import mup_fill
from builder.initialize.plan import Decision
from builder.initialize.pretrained_values import fill as pretrained_fill
from builder.initialize.reset import RESET
from builder.module import Entry
from builder.policies import is_function, is_own


def fill_for(
    entry: Entry,
    plan: Mapping[str, Decision],
    parameters: Mapping[str, Entry],
    module: nn.Module,
    seed: int | None = None,
) -> tuple[Fill, str]:
    """What fills a parameter, and the name whose stream it draws from.

    Args:
        entry: The parameter; its decision is not `reset_parameters`.
        plan: Owner name → decision.
        parameters: Every entry by name.
        module: The module, of which only classes and settings are read; it may be on meta.
        seed: The init seed; None where values are drawn from torch's global generator, in order.
    """
    decision = plan[entry.name]
    arguments, shape = decision.arguments, entry.shape
    match decision.policy:
        case "default":
            fill = default_fill(module, entry)
            assert fill is not None, f"{entry.name} has a default that is not known"
            return fill, entry.name
        case "expression":
            return expression_fill(arguments, arguments["args"], shape, decision.rule, entry.name), entry.name
        case "copy":
            return _copy(entry, plan, parameters, module, seed), entry.name
        case "pretrained":
            return _pretrained(entry, plan, parameters, module, seed), entry.name
        case "mup":
            return mup_fill(arguments, module, entry), entry.name
        case "lsuv":
            return fill_of("orthogonal", {}, shape), entry.name
        case policy if is_function(policy):
            return function_fill(policy, arguments, decision.rule, entry.name), entry.name
    return fill_of(decision.policy, arguments, shape, decision.axes), entry.name


def _copy(
    entry: Entry, plan: Mapping[str, Decision], parameters: Mapping[str, Entry], module: nn.Module, seed: int | None
) -> Fill:
    decision = plan[entry.name]
    source = parameters[str(decision.arguments["of"])]

    def draw(tensor: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        if seed is None:
            values = module.get_parameter(source.name).detach()
        else:
            fill, stream = fill_for(source, plan, parameters, module, seed)
            values = torch.empty(source.shape, dtype=module.get_parameter(source.name).dtype)
            fill_range(values, keeping_padding(fill, source, plan[source.name]), seed, stream, source.shape)
        tensor.copy_(values.T if decision.arguments.get("transpose") else values)

    return Fill(draw, whole=True)


def _pretrained(
    entry: Entry, plan: Mapping[str, Decision], parameters: Mapping[str, Entry], module: nn.Module, seed: int | None
) -> Fill:
    """Values from a file; where that leaves rows to the rule below, over those that this rule gives."""
    decision = plan[entry.name]
    over = pretrained_fill(decision.arguments, entry.shape)
    below = decision.below
    if below is None:
        return over
    if seed is None and is_drawn_by_source(entry, below):
        drawn, stream = fill_of("empty", {}, entry.shape), entry.name
    else:
        drawn, stream = fill_for(entry, {**plan, entry.name: below}, parameters, module, seed)
    under = keeping_padding(drawn, entry, below)

    def draw(part: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        if over.whole and not under.whole and seed is not None:  # in chunks, as it would be drawn alone
            fill_range(part, under, seed, stream, entry.shape)
        else:
            under.draw(part, generator, start)
        over.draw(part, generator, start)

    return Fill(draw, whole=over.whole or under.whole)


def is_drawn_by_source(entry: Entry, decision: Decision) -> bool:
    """Whether the generated source itself gives a parameter its values when it runs with memory."""
    inline = entry.kind == "Parameter" and decision.rule.endswith(f"{entry.instance.address}.init")
    return decision.policy in ("default", RESET) or (inline and not is_own(decision.policy))


def keeping_padding(fill: Fill, entry: Entry, decision: Decision) -> Fill:
    """The fill of a parameter with its padding rows kept at zero."""
    width = prod(entry.shape[1:])
    for row in decision.padding:
        fill = zeroed(fill, row * width, (row + 1) * width)
    return fill
