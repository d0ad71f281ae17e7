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


def function_fill(name: str, arguments: Mapping[str, Any]) -> Fill:
    """The fill of an allowed function; it is refused where it leaves a value unwritten."""
    module_name, _, last = name.rpartition(".")
    function = getattr(importlib.import_module(module_name), last)

    def draw(tensor: torch.Tensor, generator: torch.Generator | None, start: int) -> None:
        tensor.fill_(float("nan"))
        function(tensor, generator=generator, **arguments)
        left = int((~tensor.isfinite()).sum())
        if left:
            what = f"left {left} of {tensor.numel()} values unwritten, or not finite"
            raise BuilderError("init", [Problem(name, what, "write every value of the tensor, in place")])

    return Fill(draw, whole=True)
