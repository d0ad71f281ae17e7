"""One logged step: what a step's gradients, weights and updates were, as columns.

`before_step` runs just before the optimizer moves the weights, `after_step` once it has. All results stay on the
device, are joined into one tensor, and cross to the host in one transfer: a logged step costs one synchronisation.
What does not exist is null, which is known without asking the device: a frozen parameter has neither gradient nor
update, and one that the loss did not reach has no gradient. Whether a parameter is frozen is asked at each step.

Refused: a selector that chooses nothing, and sharded or complex parameters, whose numbers would be wrong in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from builder.errors import Problem, did_you_mean, raise_all
from builder.names import Selector
from builder.stats.columns import COUNTS, GRADIENT_MEASURES, MEASURES, UPDATE_MEASURES, WEIGHT_MEASURES, Columns
from builder.stats.measure import change_rms, magnitudes, moments, ratio

_RMS = WEIGHT_MEASURES.index("rms")


@dataclass(frozen=True)
class _Entry:
    """A parameter as a selector sees it."""

    name: str
    kind: str
    ndim: int
    trainable: bool


def chosen_parameters(model: nn.Module, selector: Selector) -> dict[str, nn.Parameter]:
    """The parameters to watch, by name in the model's order; a tied one appears once, under its first name.

    Raises:
        BuilderError: If the selector chooses nothing, or a parameter that cannot be measured.
    """
    known = dict(model.named_parameters())
    chosen = {name: p for name, p in known.items() if selector.selects(_entry(model, name, p))}
    problems = [
        Problem("stats.select", f"'{name}' is {fault}, which is not measured", "leave it out with stats.select.except")
        for name, parameter in chosen.items()
        if (fault := _fault(parameter))
    ]
    if not chosen:
        hint = did_you_mean(selector.match, known)
        problems.append(Problem("stats.select", f"{selector!r} matches no parameter", hint))
    raise_all("statistics", problems)
    return chosen


def _entry(model: nn.Module, name: str, parameter: nn.Parameter) -> _Entry:
    owner = model.get_submodule(name.rpartition(".")[0])
    raw = owner is model or next(owner.children(), None) is not None
    kind = "Parameter" if raw else type(owner).__name__
    return _Entry(name, kind, parameter.ndim, parameter.requires_grad)


def _fault(parameter: nn.Parameter) -> str:
    if isinstance(parameter, DTensor):
        return "sharded"
    return "complex" if parameter.is_complex() else ""


class Recorder:
    """Measures a fixed set of parameters around one optimizer step.

    Copies of the weights are made at the first logged step and reused from then on.

    Args:
        parameters: Tensors by name; a second name of the same tensor is dropped.
    """

    def __init__(self, parameters: Mapping[str, Tensor]) -> None:
        first: dict[int, str] = {}
        for name, parameter in parameters.items():
            first.setdefault(id(parameter), name)
        self._parameters = {name: parameters[name] for name in first.values()}
        self._copies: dict[str, Tensor] = {}
        self._moved: list[str] = []
        self._reached: list[str] = []
        self._gradients = torch.zeros(0, len(GRADIENT_MEASURES))

    @torch.no_grad()
    def before_step(self) -> None:
        """Measures the gradients and copies the weights that the step may move."""
        trainable = {name: p for name, p in self._parameters.items() if p.requires_grad}
        gradients = {name: p.grad for name, p in trainable.items() if p.grad is not None}
        self._moved, self._reached = list(trainable), list(gradients)
        self._gradients = magnitudes([_dense(gradient) for gradient in gradients.values()])
        for name, parameter in trainable.items():
            if name not in self._copies:
                self._copies[name] = torch.empty_like(parameter, requires_grad=False)
            self._copies[name].copy_(parameter)

    @torch.no_grad()
    def after_step(self, step: int, epoch: int) -> Columns:
        """Measures weights and updates and returns one row per parameter, as columns."""
        names = list(self._parameters)
        weights = moments(list(self._parameters.values()))
        parts = [weights, self._gradients, self._updates(weights)]
        values = iter(_to_host(torch.cat([part.flatten() for part in parts if len(part)])))
        measured = {
            **_unpack(names, WEIGHT_MEASURES, values),
            **_unpack(self._reached, GRADIENT_MEASURES, values),
            **_unpack(self._moved, UPDATE_MEASURES, values),
        }
        columns: Columns = {"step": [step] * len(names), "epoch": [epoch] * len(names), "name": names}
        return columns | {measure: [measured.get((name, measure)) for name in names] for measure in MEASURES}

    def _updates(self, weights: Tensor) -> Tensor:
        """Rms of each update and its ratio to the rms that the weight has now, of shape (moved, 2)."""
        moved = [self._parameters[name] for name in self._moved]
        updates = change_rms(moved, [self._copies[name] for name in self._moved])
        # rows are taken one by one: a list as an index would be sent to the device, which waits
        rms = dict(zip(self._parameters, weights.unbind(), strict=True))
        now = torch.stack([rms[name][_RMS] for name in self._moved]) if moved else updates
        return torch.stack([updates, ratio(updates, now)], dim=1)


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def _to_host(results: Tensor) -> list[float]:
    """The one transfer of a logged step."""
    return results.cpu().tolist()


def _unpack(
    names: list[str], measures: tuple[str, ...], values: Iterator[float]
) -> dict[tuple[str, str], int | float | None]:
    return {(name, measure): _number(measure, next(values)) for name in names for measure in measures}


def _number(measure: str, value: float) -> int | float:
    return int(value) if measure in COUNTS else value
