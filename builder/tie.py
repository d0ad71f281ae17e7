"""Tied parameters: compared before anything is tied, and held whatever is loaded later.

`tie: {head.weight: wte.weight}` makes `head.weight` another name of `wte.weight`; `builder.owners` resolves chains.
Unknown names, unequal shapes and unequal dtypes are refused.

A built module carries two hooks. Before `load_state_dict` looks for its keys, a name that the file lacks gets the value
of the name that it is tied to (safetensors writes a tie once), and two names with different values are refused. After
it, the names are one parameter again (`assign=True` parts them) and buffers that no file holds are recomputed. The
hooks are functions of this module, so that pickle and deepcopy keep them.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import nn

from builder.buffers import restore_buffers, unsaved_buffers
from builder.errors import Problem, did_you_mean, raise_all
from builder.owners import check_transposed, owners
from builder.spec import ModelSpec, TieSpec

# ---- before anything is tied ---------------------------------------------------------------------------------------


def check_ties(spec: ModelSpec, untied: nn.Module) -> list[Problem]:
    """What is wrong with the ties of a model, seen on a module in which nothing is tied yet."""
    found, problems = owners(spec.tie)
    problems += check_transposed(spec, found)
    parameters = dict(untied.named_parameters(remove_duplicate=False))
    for target, tie in found.items():
        missing = [name for name in (target, tie.source) if name not in parameters]
        problems += [
            Problem(f"tie.{target}", f"no parameter {name!r}", did_you_mean(name, parameters, most=6))
            for name in missing
        ]
        if not missing:
            problems += _compare(target, tie, parameters[target], parameters[tie.source])
    return problems


def _compare(target: str, tie: TieSpec, alias: torch.Tensor, owner: torch.Tensor) -> list[Problem]:
    shape, shown = tuple(owner.shape), repr(tie.source)
    if tie.transpose:
        shape, shown = shape[::-1], f"the transpose of {tie.source!r}"
    if tie.transpose and owner.ndim != 2:
        what = f"{tie.source!r} of shape {tuple(owner.shape)} has no transpose"
        return [Problem(f"tie.{target}", what, "a transposed tie needs two dimensions")]
    if tuple(alias.shape) != shape:
        what = f"{target!r} is {tuple(alias.shape)} but {shown} is {shape}"
        return [Problem(f"tie.{target}", what, "a tie needs equal shapes")]
    if alias.dtype != owner.dtype:
        what = f"{target!r} is {alias.dtype} but {tie.source!r} is {owner.dtype}"
        return [Problem(f"tie.{target}", what, "a tie needs equal dtypes")]
    return []


# ---- held afterwards -----------------------------------------------------------------------------------------------


def retie(module: nn.Module, ties: Mapping[str, str]) -> None:
    """Makes every alias its owner's parameter again; a transposed alias is computed and cannot part."""
    for alias, owner in ties.items():
        path, _, local = alias.rpartition(".")
        holder = module.get_submodule(path)
        if local in holder._parameters and holder._parameters[local] is not module.get_parameter(owner):
            setattr(holder, local, module.get_parameter(owner))


def hold(module: nn.Module) -> None:
    """Registers the hooks by which a built module keeps its ties and buffers when a state_dict is loaded."""
    # The handles travel with the module: where they are unpickled, torch counts its next handle from theirs, and a hook
    # that is added later does not take the place of one of these.
    module.__dict__["_builder_handles"] = (
        module.register_load_state_dict_pre_hook(_before_load),  # type: ignore[no-untyped-call]
        module.register_load_state_dict_post_hook(_after_load),  # type: ignore[no-untyped-call]
    )


def _before_load(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    problems = []
    for alias, owner in _registered_ties(module).items():
        names = prefix + alias, prefix + owner
        if names[0] in state and names[1] in state:
            if not _equal(state[names[0]], state[names[1]]):
                what = f"is tied to {names[1]!r}, and the state_dict has other values for it"
                problems.append(Problem(names[0], what, f"take {names[0]!r} out, if {names[1]!r} has the right ones"))
        elif names[0] in state or names[1] in state:
            state.update(dict.fromkeys(names, state[names[0] if names[0] in state else names[1]]))
    raise_all("state_dict", problems)


def _after_load(module: nn.Module, incompatible: Any) -> None:
    retie(module, module.__dict__["_builder_proof"].ties)
    restore_buffers(module, unsaved_buffers(module))


def _registered_ties(module: nn.Module) -> dict[str, str]:
    ties: Mapping[str, str] = module.__dict__["_builder_proof"].ties
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {alias: owner for alias, owner in ties.items() if alias in parameters}


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors hold the same values; without memory, whether they have the same shape."""
    if a is b:
        return True
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.is_meta or b.is_meta:
        return a.is_meta == b.is_meta
    if hasattr(a, "to_local") and hasattr(b, "to_local"):  # sharded over processes: each compares its own part
        a, b = a.to_local(), b.to_local()
    return a.device == b.device and torch.allclose(a, b, rtol=0.0, atol=0.0, equal_nan=True)
