"""Policy by dotted name: a function of the user's own, under a prefix that the caller allows.

It is called as `function(tensor, generator=..., **arguments)` and writes into the tensor in place, as those of
`torch.nn.init` do; it draws from the generator alone, so that init stays a function of seed and name.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from builder.allowed import allowed_object
from builder.errors import BuilderError, Problem
from builder.initialize.draws import Fill


def check_function(name: str, arguments: Mapping[str, Any], allow: Sequence[str], address: str) -> list[Problem]:
    """What is wrong with a function of the user's own, or with its arguments."""
    found, problems = allowed_object(name, allow, f"{address}.policy", "function", inspect.isfunction)
    if problems:
        return problems
    try:
        inspect.signature(found).bind(torch.empty(0), generator=None, **arguments)
    except TypeError as err:
        called = f"{found.__name__}(tensor, generator=..., **arguments)"
        what = f"{name} cannot be called as {called}: {err}"
        return [Problem(f"{address}.policy", what, "mend the arguments, or the function's signature")]
    return []


def function_fill(name: str, arguments: Mapping[str, Any], rule: str, parameter: str) -> Fill:
    """The fill of an allowed function; it is refused where it raises, leaves a value unwritten or draws elsewhere.

    Args:
        name: Its dotted name.
        arguments: What it is called with.
        rule: The rule that asks for it, for messages.
        parameter: The name of the parameter, for messages.
    """
    module_name, _, last = name.rpartition(".")
    function = getattr(importlib.import_module(module_name), last)

    def refused(what: str, hint: str) -> BuilderError:
        return BuilderError("init", [Problem(rule, f"{name} {what}", hint)])

    def draw(tensor: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        tensor.fill_(float("nan"))
        state = None if generator is None else torch.get_rng_state()
        try:
            function(tensor.detach(), generator=generator, **arguments)  # another view: it may be resized or replaced
        except Exception as err:
            first = str(err).splitlines()[0] if str(err) else "no message"
            what = f"raised {type(err).__name__} for {parameter!r} of shape {tuple(tensor.shape)}: {first}"
            raise refused(what, "mend the function, or its arguments") from err
        left = int((~tensor.isfinite()).sum())
        if left:
            what = f"left {left} of {tensor.numel()} values of {parameter!r} unwritten, or not finite"
            raise refused(what, "write every value of the tensor, in place")
        if state is not None and not torch.equal(state, torch.get_rng_state()):
            what = f"drew {parameter!r} from torch's global generator, so that it depends on what was drawn before"
            raise refused(what, "pass the generator on, as in tensor.normal_(generator=generator)")

    return Fill(draw, whole=True)
