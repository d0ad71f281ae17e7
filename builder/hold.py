"""Holds what is frozen against an optimizer, bit for bit, for as long as its rules say.

A parameter that is frozen whole has neither gradient nor optimizer state, which every optimizer of torch but LBFGS
leaves alone. Of one that is frozen in part the rows' gradient is zero, so that norms and moments are those of the other
rows, and after each step the rows are put back, which undoes decay. What is frozen is a function of epoch and step; the
moment of the last switch goes into the optimizer's `state_dict`, so that a resumed run clears what a straight one does.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from builder.build import proof_of
from builder.errors import Problem, raise_all
from builder.freeze import FreezePlan, Spans, check_joint_state, idle_problem, is_idle
from builder.initialize.shards import is_shard

SWITCHED = "frozen_at"  # key of an optimizer's groups: epoch and step of the last switch


def hold_frozen(model: nn.Module, optimizer: torch.optim.Optimizer) -> Holding:
    """Holds the freeze rules of a built model against an optimizer of one's own.

        optimizer = torch.optim.AdamW(model.parameters())
        frozen = builder.hold_frozen(model, optimizer)
        for step, batch in enumerate(batches):
            frozen.at(epoch, step)  # before each batch; needed only where a rule has `until` or `from`
            ...

    The hold ends with `frozen.remove()`.

    Args:
        model: A module that builder built.
        optimizer: Over its parameters; one that thaws later has to be among them.

    Raises:
        BuilderError: Everything is frozen, and the optimizer has no parameters but the model's; a parameter that thaws
            later is not in the optimizer; the optimizer is LBFGS, whose state is not
            kept by parameter, and something is frozen for a time; or what is frozen in part or for a time is sharded.
    """
    plan = proof_of(model).freeze
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    problems = check_joint_state(plan, type(optimizer).__name__)
    problems += [
        Problem(name, f"is not in the optimizer, and frozen {plan.words(name)[0]} alone", "give it to the optimizer")
        for name in plan.scheduled
        if id(model.get_parameter(name)) not in held
    ]
    problems += [
        Problem(
            name, f"is sharded, and frozen {plan.words(name)[0]}", "freeze it whole and for ever, or do not shard it"
        )
        for name in plan.parameters
        if name not in plan.forever and is_shard(model.get_parameter(name))
    ]
    raise_all("freeze", problems)
    return Holding(plan, model, optimizer)


class Holding:
    """A freeze plan at work on a model and its optimizer.

    Attributes:
        is_scheduled: Whether what is frozen ever changes; if not, `at` need not be called.
    """

    def __init__(self, plan: FreezePlan, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._plan, self._model, self._optimizer = plan, model, optimizer
        lasting = plan.forever
        self._parameters = {name: model.get_parameter(name) for name in plan.parameters if name not in lasting}
        self._modules = {
            path: model.get_submodule(path) for path, holds in plan.modules.items() if all(hold.unit for hold in holds)
        }
        self._times = plan.times("epoch"), plan.times("step")
        self.is_scheduled = any(self._times)
        own = set(map(id, model.parameters()))
        self._is_alone = all(id(p) in own for group in optimizer.param_groups for p in group["params"])
        self._phase: tuple[int, int] | None = None
        self._switched: tuple[int, int] | None = None  # the last switch, where the optimizer's state does not tell
        self._spans: dict[str, Spans] = {}
        self._evals: dict[str, nn.Module] = {}
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._handles: list[RemovableHandle] = []
        self.at(*optimizer.param_groups[0].get(SWITCHED, (0, 0)))
        self._add_hooks()

    def at(self, epoch: int, step: int) -> None:
        """Freezes and thaws what the rules say of a moment; it costs next to nothing where nothing changes.

        Args:
            epoch: Epochs finished before.
            step: Optimizer steps taken before.

        Raises:
            BuilderError: Everything is frozen then, and the optimizer has no parameters but the model's.
        """
        phase = bisect_right(self._times[0], epoch), bisect_right(self._times[1], step)
        if phase != self._phase:
            self._switch(epoch, step)
            self._phase = phase
        for module in self._evals.values():  # each time, for model.train() undoes it
            module.training = False

    def restore(self) -> None:
        """Puts back the rows that a step has moved; of use by itself only where a step was broken off."""
        with torch.no_grad():
            for rows, kept in self._kept:
                rows.copy_(kept)
        self._kept = []

    def remove(self) -> None:
        """Ends the hold; what is frozen at this moment stays without a gradient."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---- switches ----

    def _switch(self, epoch: int, step: int) -> None:
        if self._is_alone and is_idle(self._plan, epoch, step):
            raise_all("freeze", [idle_problem(self._plan, epoch, step)])
        before = self._optimizer.param_groups[0].get(SWITCHED, self._switched)
        for name, parameter in self._parameters.items():
            spans = self._plan.spans(name, epoch, step)
            whole = self._plan.is_whole(name, spans)
            if whole or (before is not None and self._plan.spans(name, *before) != spans):
                parameter.grad = None
                self._optimizer.state.pop(parameter, None)
                if not whole:
                    self._join_fused(parameter)
            parameter.requires_grad_(not whole)
            self._spans[name] = () if whole else spans
        self._switched = epoch, step
        if self.is_scheduled:
            for group in self._optimizer.param_groups:
                group[SWITCHED] = [epoch, step]
        evals = {
            path: module
            for path, module in self._modules.items()
            if any(hold.is_on(epoch, step) for hold in self._plan.modules[path])
        }
        for path in self._evals.keys() - evals.keys():
            self._evals[path].training = self._model.training
        self._evals = evals

    def _join_fused(self, parameter: nn.Parameter) -> None:
        """Gives a parameter zero momentum: fused SGD (torch 2.13) takes none without beside others that have it."""
        for group in self._optimizer.param_groups:
            among = [self._optimizer.state[other] for other in group["params"] if other in self._optimizer.state]
            if (
                group.get("fused")
                and any(parameter is other for other in group["params"])
                and any(state.get("momentum_buffer") is not None for state in among)
            ):
                self._optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    # ---- rows ----

    def _add_hooks(self) -> None:
        in_part = [name for name in self._parameters if self._plan.has_rows(name)]
        for name in in_part:
            parameter = self._parameters[name]
            needed = parameter.requires_grad
            parameter.requires_grad_(True)  # torch registers no hook without
            self._handles.append(parameter.register_hook(partial(self._zeroed, name)))  # type: ignore[no-untyped-call]
            parameter.requires_grad_(needed)
        if in_part:
            self._handles.append(self._optimizer.register_step_pre_hook(self._keep))
            self._handles.append(self._optimizer.register_step_post_hook(lambda *_: self.restore()))

    def _zeroed(self, name: str, gradient: torch.Tensor) -> torch.Tensor:
        spans = self._spans[name]
        if not spans:
            return gradient
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows = gradient.indices()[0]
            others = torch.ones_like(rows, dtype=torch.bool)
            for low, high in spans:
                others &= (rows < low) | (rows >= high)
            return torch.sparse_coo_tensor(
                gradient.indices()[:, others], gradient.values()[others], gradient.shape, check_invariants=False
            )
        gradient = gradient.clone()  # autograd may have given the same tensor to others
        for low, high in spans:
            gradient[low:high] = 0
        return gradient

    def _keep(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = [self._parameters[name].detach()[low:high] for name, spans in self._spans.items() for low, high in spans]
        self._kept = [(part, part.clone()) for part in rows]
