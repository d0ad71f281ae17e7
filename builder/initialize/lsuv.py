"""Policy `lsuv`: orthogonal weights, scaled layer by layer until each output has a given std on a real batch.

Layer-sequential unit-variance initialisation (Mishkin and Matas 2016, algorithm 1). The layers are taken in the order
in which the forward calls them, in eval mode, so that dropout adds no noise and running statistics stay as they are.
The result depends on the batch; everything else that init promises holds for the orthogonal start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from builder.errors import BuilderError, Problem, raise_all
from builder.module import Entry
from builder.policies import POLICIES

if TYPE_CHECKING:
    from builder.initialize.plan import Decision


def needs_batch(plan: Mapping[str, Decision]) -> list[str]:
    """The parameters that `lsuv` decides."""
    return [name for name, decision in plan.items() if decision.policy == "lsuv"]


def check_one_a_layer(plan: Mapping[str, Decision], parameters: Sequence[Entry]) -> list[Problem]:
    """Refuses `lsuv` for two weights of one layer: its output says nothing of either alone."""
    weights: dict[str, list[str]] = {}
    for entry in parameters:
        if entry.name in plan and plan[entry.name].policy == "lsuv":
            weights.setdefault(entry.owner, []).append(entry.name)
    hint = "let the rule match one of them, or use another policy for this layer"
    return [
        Problem(plan[names[0]].rule, f"lsuv scales one weight of a layer, and decides {' and '.join(names)}", hint)
        for names in weights.values()
        if len(names) > 1
    ]


def refuse_without_batch(plan: Mapping[str, Decision]) -> None:
    """Refuses a plan with `lsuv` where no batch is at hand.

    Raises:
        BuilderError: A parameter is decided by `lsuv`.
    """
    for name in needs_batch(plan)[:1]:
        hint = "give batch=... to build() or lightning_module(); train.py takes the first training batch"
        raise BuilderError("init", [Problem(plan[name].rule, f"lsuv scales {name!r} on a real batch", hint)])


def rescale(
    module: nn.Module, plan: Mapping[str, Decision], parameters: Sequence[Entry], forward: Callable[[], object]
) -> dict[str, float]:
    """Scales the weights that `lsuv` decides; returns the std that each one's layer ends with.

    Args:
        module: The module, filled.
        plan: Owner name → decision.
        parameters: Every parameter under every name.
        forward: Runs the module on the batch.

    Raises:
        BuilderError: A layer is never called, its output is constant or not finite, or the std is not reached.
    """
    if not needs_batch(plan):
        return {}
    chosen = {entry.owner: entry for entry in parameters if entry.name in set(needs_batch(plan))}
    with torch.no_grad(), _evaluating(module), _keeping_buffers(module):
        order = _order(module, chosen, forward)
        raise_all(
            "init",
            [
                Problem(
                    plan[entry.name].rule, f"layer {path!r} is not called on this batch", "use another policy for it"
                )
                for path, entry in chosen.items()
                if path not in order
            ],
        )
        return {chosen[path].name: _scale(module, chosen[path], plan[chosen[path].name], forward) for path in order}


def _scale(module: nn.Module, entry: Entry, decision: Decision, forward: Callable[[], object]) -> float:
    given = {**POLICIES["lsuv"].arguments, **decision.arguments}
    weight = module.get_parameter(entry.name)
    std = _output_std(module.get_submodule(entry.owner), forward)
    for _ in range(given["iterations"]):
        if not 0 < std < float("inf"):
            what = f"the output of {entry.owner!r} has std {std} on this batch"
            raise BuilderError("init", [Problem(decision.rule, what, "look at the layers before it, and at the data")])
        if abs(std / given["std"] - 1) <= given["tolerance"]:
            return std
        weight.mul_(given["std"] / std)
        std = _output_std(module.get_submodule(entry.owner), forward)
    if abs(std / given["std"] - 1) <= given["tolerance"]:
        return std
    what = (
        f"the output of {entry.owner!r} has std {std:.4g} after {given['iterations']} scalings, not {given['std']:.4g}"
    )
    hint = "a bias or a norm outweighs the weight: give it another policy, or raise tolerance"
    raise BuilderError("init", [Problem(decision.rule, what, hint)])


def _output_std(layer: nn.Module, forward: Callable[[], object]) -> float:
    """The std over all values that a layer gives; over all calls, where forward calls it several times."""
    outputs: list[Tensor] = []
    handle = layer.register_forward_hook(lambda layer, inputs, output: outputs.append(_first(output).flatten().float()))
    try:
        forward()
    finally:
        handle.remove()
    values = torch.cat(outputs)
    return float(values.std()) if values.numel() > 1 else math.nan


def _order(module: nn.Module, chosen: Mapping[str, Entry], forward: Callable[[], object]) -> list[str]:
    """The chosen layers in the order in which forward first calls them."""
    called: dict[str, None] = {}

    def note(path: str) -> Callable[..., None]:
        return lambda layer, inputs, output: called.setdefault(path)

    handles = [module.get_submodule(path).register_forward_hook(note(path)) for path in chosen]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return list(called)


def _first(output: Any) -> Tensor:
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


@contextmanager
def _keeping_buffers(module: nn.Module) -> Iterator[None]:
    """A context after which the buffers, which forward may update, are as they were."""
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    modes = {name: part.training for name, part in module.named_modules()}
    module.eval()
    try:
        yield
    finally:
        for name, part in module.named_modules():
            part.training = modes[name]
