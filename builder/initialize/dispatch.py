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
from builder.module import Entry
from builder.policies import is_function


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
            fill = default_fill(module.get_submodule(entry.owner), entry.local, shape)
            assert fill is not None, f"{entry.name} has a default that is not known"
            return fill, entry.name
        case "expression":
            return expression_fill(arguments, arguments["args"], shape), entry.name
        case "copy":
            return _copy(entry, plan, parameters, module, seed), entry.name
        case "pretrained":
            return pretrained_fill(arguments, shape), entry.name
        case "mup":
            return mup_fill(arguments, module.get_submodule(entry.owner), entry), entry.name
        case "lsuv":
            return fill_of("orthogonal", {}, shape), entry.name
        case policy if is_function(policy):
            return function_fill(policy, arguments), entry.name
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
            fill_range(values, keeping_padding(fill, source, plan, module), seed, stream, source.shape)
        tensor.copy_(values.T if decision.arguments.get("transpose") else values)

    return Fill(draw, whole=True)


def keeping_padding(fill: Fill, entry: Entry, plan: Mapping[str, Decision], module: nn.Module) -> Fill:
    """The fill of a parameter with the row of a `padding_idx` kept at zero, unless its policy names its own values."""
    owner = module.get_submodule(entry.owner)
    row = owner.padding_idx if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else None
    if row is None or plan[entry.name].policy in ("values", "empty", "pretrained"):
        return fill
    width = prod(entry.shape[1:])
    return zeroed(fill, row * width, (row + 1) * width)
