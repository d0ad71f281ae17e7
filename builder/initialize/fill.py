"""Materialise a module and give every parameter its planned values.

`rng: keyed` (the default) draws each parameter from its own stream. `rng: torch` runs the generated source under
torch's global generator, then the rules in declaration order: the bits of the hand-written module after the same
`torch.manual_seed`. Either way the caller's generator is left as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from builder.initialize.draws import Fill, default_fill, fill_of
from builder.initialize.plan import RESET, Decision
from builder.initialize.streams import fill_chunks, generator, stream_seed
from builder.module import Entry, parameters_on_meta

Construct = Callable[[Callable[[], AbstractContextManager[Any]]], nn.Module]


def initialised(
    construct: Construct, plan: Mapping[str, Decision], parameters: Sequence[Entry], seed: int, rng: str
) -> nn.Module:
    """A real module on the CPU in which every parameter holds the values that its decision gives."""
    with torch.random.fork_rng(devices=[]):
        if rng == "torch":
            torch.manual_seed(seed)
            module = construct(nullcontext)
            _apply(module, plan, parameters, _draw_globally)
        else:
            torch.manual_seed(stream_seed(seed, ""))
            module = construct(parameters_on_meta)
            materialise(module)
            _reset_unknown(module, plan, parameters, seed)
            _apply(module, plan, parameters, _KeyedDraw(seed), defaults=True)
    return module


def materialise(module: nn.Module) -> None:
    """Gives every parameter on meta its memory; a parameter under several names stays one."""
    real: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in real:
                    real[id(parameter)] = nn.Parameter(
                        torch.empty_like(parameter, device="cpu"), parameter.requires_grad
                    )
                owner._parameters[name] = real[id(parameter)]
    retie(module)


def retie(module: nn.Module) -> None:
    """Points the list of weights that an RNN keeps for itself at its parameters."""
    for owner in module.modules():
        if isinstance(owner, nn.RNNBase):
            owner._init_flat_weights()


def _apply(
    module: nn.Module,
    plan: Mapping[str, Decision],
    parameters: Sequence[Entry],
    draw: Callable[[torch.Tensor, str, Fill], None],
    *,
    defaults: bool = False,
) -> None:
    for entry in parameters:
        decision = plan.get(entry.name)
        if decision is None or decision.policy == RESET:
            continue
        inline = entry.kind == "Parameter" and decision.rule.endswith(f"{entry.instance.address}.init")
        if not defaults and (decision.policy == "default" or inline):
            continue  # the generated source gave these when it was run
        tensor = module.get_parameter(entry.name).data
        owner = module.get_submodule(entry.owner)
        fill = (
            default_fill(owner, entry.local, entry.shape)
            if decision.policy == "default"
            else fill_of(decision.policy, decision.arguments, entry.shape, entry.instance.values.get("axes"))
        )
        assert fill is not None, f"{entry.name} has a default that is not known"
        draw(tensor, entry.name, fill)
        _zero_padding(owner, tensor, decision)


def _zero_padding(owner: nn.Module, tensor: torch.Tensor, decision: Decision) -> None:
    if (
        isinstance(owner, nn.Embedding | nn.EmbeddingBag)
        and owner.padding_idx is not None
        and decision.policy not in ("values", "empty")
    ):
        tensor[owner.padding_idx].zero_()


def _draw_globally(tensor: torch.Tensor, name: str, fill: Fill) -> None:
    with torch.no_grad():
        fill.draw(tensor, None)


class _KeyedDraw:
    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, tensor: torch.Tensor, name: str, fill: Fill) -> None:
        if not fill.whole and tensor.is_contiguous():
            fill_chunks(tensor, self.seed, name, fill.draw)
            return
        with torch.no_grad():
            fill.draw(tensor, generator(self.seed, name))


def _reset_unknown(module: nn.Module, plan: Mapping[str, Decision], parameters: Sequence[Entry], seed: int) -> None:
    """Runs a class's own `reset_parameters` under a generator seeded by the layer's name."""
    owners = {entry.owner for entry in parameters if entry.name in plan and plan[entry.name].policy == RESET}
    for path in sorted(owners):
        torch.manual_seed(stream_seed(seed, path))
        module.get_submodule(path).reset_parameters()  # type: ignore[operator]
