"""Invariants of a built module, callable at any time: after build, after load, after wrap.

A broken invariant is reported by the parameter's name; a module that passes has real memory everywhere, its ties
hold, and what was frozen is still frozen.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from torch import nn

from builder.errors import Problem, raise_all
from builder.module import carried


def verify(module: nn.Module) -> None:
    """Checks that a built module still is what its model file says, whatever it went through.

    Args:
        module: A built module, or one that holds it (a LightningModule, a compiled or data-parallel module); of
            several built ones that it holds, each is checked and addressed by its path.

    Raises:
        BuilderError: It was not built by builder; a parameter or buffer has no memory, a tie has parted, or a frozen
            parameter requires a gradient.
    """
    built = {path: part for path, part in module.named_modules() if "_builder_proof" in part.__dict__}
    problems = []
    for path, part in built.items() or [("", module)]:
        proof = carried(part)
        prefix = f"{path}." if path and len(built) > 1 else ""
        found = _broken(part, proof.ties, proof.frozen)
        problems += [replace(problem, address=f"{prefix}{problem.address}") for problem in found]
    raise_all("module", problems)


def check_module(module: nn.Module, ties: Mapping[str, str], frozen: Iterable[str]) -> None:
    """Checks that a module still is what its model file says.

    Raises:
        BuilderError: A parameter on meta, a broken tie, or a frozen parameter that requires a gradient.
    """
    raise_all("module", _broken(module, ties, frozen))


def _broken(module: nn.Module, ties: Mapping[str, str], frozen: Iterable[str]) -> Iterator[Problem]:
    parameters = dict(module.named_parameters(remove_duplicate=False))
    tensors = {**parameters, **dict(module.named_buffers())}
    for name, tensor in tensors.items():
        if tensor.is_meta:
            yield Problem(name, "has no memory: it is on meta", "build it with builder.build, or load its weights")
    for target, owner in ties.items():
        computed = isinstance(getattr(type(module), target, None), property)  # a transposed alias, which cannot part
        if not computed and parameters.get(target) is not parameters.get(owner):
            yield Problem(
                target, f"is no longer tied to {owner!r}", "assign it again: a copy or a load has parted them"
            )
    for name in frozen:
        if name in parameters and parameters[name].requires_grad:
            yield Problem(
                name, "is frozen in the model file but requires a gradient", "leave requires_grad to the freeze rules"
            )
