"""Layers that fill themselves: a class's own `reset_parameters`, which may write what is in the layers within as well.

It runs under a generator that starts from the layer's name, over the defaults of the classes of torch within it. Of
several such layers in each other the inner ones come first, as their constructors do.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from builder.errors import BuilderError, Problem, raise_all
from builder.initialize.chunks import fill_tensors
from builder.initialize.draws import RESETS, default_fill, torch_class
from builder.initialize.streams import generator_state, stream_words
from builder.module import Entry, is_continuous
from builder.names import paths_to

if TYPE_CHECKING:
    from builder.initialize.plan import Decision

RESET = "reset_parameters"  # the policy of what only a class's own method knows how to fill


def method_of(layer: nn.Module) -> str:
    """The name of the method by which a layer fills itself in a way of its own; nothing where it has none."""
    for name in RESETS:
        own = getattr(type(layer), name, None)
        if callable(own) and own is not getattr(torch_class(layer), name, None):
            return name
    return ""


def resetting(module: nn.Module, owner: str) -> str:
    """Path of the outermost layer that fills itself, of a parameter's owner and those around it; nothing where none."""
    return next((path for path in paths_to(owner) if method_of(module.get_submodule(path))), "")


def told(layer: nn.Module) -> str:
    """The method of a layer in words."""
    return f"{type(layer).__name__}'s own {method_of(layer)}"


def check_resets(module: nn.Module, plan: Mapping[str, Decision]) -> None:
    """Refuses methods that cannot be called without arguments, before there is memory for what they would fill.

    Raises:
        BuilderError: Of all of them at once.
    """
    hint = "give it an init rule, or the method's arguments defaults; rng: torch keeps what the constructor draws"
    layers = {name: plan[name].arguments["layer"] for name in plan if plan[name].policy == RESET}
    faults = {path: _call_fault(module.get_submodule(path)) for path in layers.values()}
    raise_all("init", [Problem(name, faults[path], hint) for name, path in layers.items() if faults[path]])


def _call_fault(layer: nn.Module) -> str:
    """Why a layer's method cannot be called without arguments; nothing where it can."""
    try:
        inspect.signature(getattr(layer, method_of(layer))).bind()
    except TypeError as err:
        return f"{told(layer)} cannot be called without arguments: {err}"
    return ""


def reset_layers(module: nn.Module, plan: Mapping[str, Decision], parameters: Sequence[Entry], seed: int) -> None:
    """Lets all such layers of a module fill themselves.

    What of a layer, or of one in it, is tied to another one's parameter stays as that layer has left it.

    Raises:
        BuilderError: A method that fails, or that leaves a value unwritten.
    """
    layers: dict[str, list[Entry]] = {}
    for entry in parameters:
        if entry.name in plan and plan[entry.name].policy == RESET:
            layers.setdefault(plan[entry.name].arguments["layer"], []).append(entry)
    aliases = [entry.name for entry in parameters if entry.name not in plan]
    for path, own in layers.items():
        drawn = {module.get_parameter(entry.name) for entry in own}
        tied = {module.get_parameter(name) for name in aliases if name.startswith(f"{path}.")} - drawn
        kept = [(parameter.detach(), parameter.detach().clone()) for parameter in tied]
        _reset(module, path, own, seed)
        for parameter, values in kept:
            parameter.copy_(values)


def _reset(module: nn.Module, path: str, own: Sequence[Entry], seed: int) -> None:
    """Fills a layer, and looks whether that has written every value of the parameters that it decides.

    One that it leaves is still the NaN that was there before, as is one that it takes from a parameter that others
    fill later; a whole number, what another run over others leaves.
    """
    outer = module.get_submodule(path)

    def run(blank: int) -> list[torch.Tensor]:
        for parameter in outer.parameters():
            parameter.detach().fill_(float("nan") if is_continuous(parameter.dtype) else blank)
        known = ((entry, default_fill(module, entry)) for entry in own)
        parameters = {entry.name: module.get_parameter(entry.name).detach() for entry in own}
        fill_tensors([(parameters[entry.name], fill, entry.name, entry.shape) for entry, fill in known if fill], seed)
        for name, layer in reversed([*outer.named_modules(prefix=path)]):
            is_asked = method_of(layer) and any(entry.name.startswith(f"{name}.") for entry in own)
            if is_asked and not _call_fault(layer):  # an inner one may be called with arguments by an outer one
                _call(layer, name, own[0], seed)
        return [module.get_parameter(entry.name).detach() for entry in own]

    first = written = run(0)
    if not all(is_continuous(values.dtype) for values in first):
        first = [values.clone() for values in first]
        written = run(1)
    problems = []
    for entry, once, again in zip(own, first, written, strict=True):
        left = int((again.isnan() if is_continuous(again.dtype) else once != again).sum())
        if left:
            what = f"{told(outer)} left {left} of {again.numel()} values unwritten, or NaN"
            problems.append(Problem(entry.name, what, "give it an init rule, or write every value there"))
    raise_all("init", problems)


def _call(layer: nn.Module, name: str, entry: Entry, seed: int) -> None:
    torch.set_rng_state(generator_state(stream_words(seed, name)))
    try:
        with torch.no_grad():
            getattr(layer, method_of(layer))()
    except Exception as err:
        first = str(err).splitlines()[0] if str(err) else "no message"
        what = f"{told(layer)} raised {type(err).__name__}: {first}"
        hint = "mend the method, or give all of the layer's parameters init rules"
        raise BuilderError("init", [Problem(entry.instance.address, what, hint)]) from err
