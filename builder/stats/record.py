"""One logged step: what a step's gradients, weights, updates and layer outputs were, as columns.

`before_step` runs just before the optimizer moves the weights, `after_step` once it has. All results stay on the
device, are joined into one tensor, and cross to the host in one transfer: a logged step costs one synchronisation.
Where several processes train together each measures its part (`builder.stats.parts`), and their sums are gathered
before that transfer; every process then comes to the same numbers.

What does not exist is null: a frozen parameter has neither gradient nor update, one that the loss did not reach has no
gradient, one without values has nothing. Whether a parameter is frozen is asked at each step.

Refused: a selector that chooses nothing, complex parameters, and partial sums.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.initialize.shards import is_shard
from builder.module import as_written, carried
from builder.names import Selector
from builder.stats.columns import (
    BASE_MEASURES,
    BINS,
    CLIPPED,
    COUNTS,
    GRADIENT_MEASURES,
    HISTOGRAM,
    HISTOGRAM_SHARE,
    MEASURES,
    SPECTRAL_MEASURES,
    START_MEASURES,
    UPDATE_MEASURES,
    Columns,
)
from builder.stats.distance import Start
from builder.stats.measure import (
    COUNTED,
    GRADIENT,
    OUTPUT,
    STEP,
    WEIGHT,
    gradient_measures,
    gradient_sums,
    histogram_counts,
    joined,
    output_measures,
    ratio,
    rms_of,
    square_sums,
    start_measures,
    step_sums,
    weight_measures,
    wide_type,
)
from builder.stats.outputs import Layer, OutputWatch, kind_of
from builder.stats.parts import Gather, alone, common, none_of, own_part, placement_fault, whole
from builder.stats.passes import CHANGE, START
from builder.stats.spectrum import effective_rank, spectral_norm, start_vector
from builder.stats.verdicts import layer_of

Tables = dict[str, tuple[tuple[str, ...], Tensor]]
"""Sums by what they are of: their columns, and the values (rows, columns)."""
Values = list[int | float | None] | list[list[int] | None]

_FOUND = ("there", "value")
_ROUNDS = 8  # of power iteration; at the first time four times as many
_RMS = BASE_MEASURES.index("rms")


@dataclass(frozen=True)
class _Entry:
    """A parameter as a selector sees it."""

    name: str
    kind: str
    ndim: int
    trainable: bool


def chosen_parameters(model: nn.Module, selector: Selector) -> dict[str, nn.Parameter]:
    """The parameters to watch, by name in the model's order; a tied one appears once, under its first name.

    One that a schedule freezes for a time is trainable, whatever it is at this moment.

    Raises:
        BuilderError: If the selector chooses nothing, or a parameter that cannot be measured.
    """
    known = {as_written(path): p for path, p in model.named_parameters()}
    every = {as_written(path): p for path, p in model.named_parameters(remove_duplicate=False)}
    paths = {as_written(path): path for path, _ in model.named_parameters(remove_duplicate=False)}
    proof = _proof(model)
    thawing: Collection[str] = proof.freeze.scheduled if proof else ()
    ties = proof.ties.items() if proof else ()
    every |= {name: known[owner] for name, owner in ties if owner in known}  # transposed ones are no parameters
    selected = {
        name: p for name, p in every.items() if selector.selects(_entry(model, name, paths.get(name, name), p, thawing))
    }
    chosen = {name: p for name, p in known.items() if name in selected}
    problems = [
        Problem("stats.select", f"'{name}' is {fault}, which is not measured", "leave it out with stats.select.except")
        for name, parameter in chosen.items()
        if (fault := _fault(parameter))
    ]
    if not chosen and selected:
        alias, owned = next(iter(selected.items()))
        owner = next(name for name, p in known.items() if p is owned)
        what = f"{alias!r} is tied to {owner!r}, which owns the values"
        problems.append(Problem("stats.select", what, f"select {owner!r} instead"))
    elif not chosen:
        hint = did_you_mean(selector.match, known)
        problems.append(Problem("stats.select", f"{selector.words} matches no parameter", hint))
    raise_all("statistics", problems)
    return chosen


def _fault(parameter: nn.Parameter) -> str:
    """Why a parameter cannot be measured; nothing where it can."""
    if torch.nn.parameter.is_lazy(parameter):
        return "lazy and has no values before the first batch"
    if parameter.is_complex():
        return "complex"
    if parameter.is_floating_point() and parameter.element_size() == 1:
        return "of one byte a value"
    return placement_fault(parameter)


def _proof(model: nn.Module) -> Any:
    """Of a model that builder built; None of any other."""
    try:
        return carried(model)
    except BuilderError:
        return None


def _entry(model: nn.Module, name: str, path: str, parameter: nn.Parameter, thawing: Collection[str]) -> _Entry:
    owner = model.get_submodule(layer_of(path))
    raw = owner is model or any(child != "parametrizations" for child, _ in owner.named_children())
    kind = "Parameter" if raw else kind_of(owner)
    return _Entry(name, kind, parameter.ndim, parameter.requires_grad or name in thawing)


@dataclass(frozen=True)
class Slower:
    """What is measured on a slower schedule than the rest.

    Attributes:
        start: The initial values, for distance and cosine; None: neither is measured.
        spectral_norm: Whether largest singular values are.
        effective_rank: The greatest smaller side of a matrix whose effective rank is; None: of none.
    """

    start: Start | None = None
    spectral_norm: bool = False
    effective_rank: int | None = None


@dataclass(frozen=True)
class Recorded:
    """A logged step.

    Attributes:
        parameters: A row for each parameter (and member).
        outputs: A row for each layer that ran while hooks were attached.
        clock: What the first process had booked, by the names that were given to `after_step`.
    """

    parameters: Columns
    outputs: Columns
    clock: list[float]


class Recorder:
    """Measures a fixed set of parameters around one optimizer step.

    Copies of the weights are made at the first logged step and reused from then on.

    Attributes:
        extra_seconds: What the slower measures took at the step recorded last; 0 where it had none.

    Args:
        parameters: Tensors by name; a second name of the same tensor is dropped.
        stacked: Whether the first axis of every tensor counts members; each then has a row of its own.
        slower: What `after_step` measures where it is told to measure more.
        outputs: Hooks whose findings belong to the step.
        rank: This process's rank.
        gather: Brings the numbers of all processes together; each then has to record each step.
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        stacked: bool = False,
        slower: Slower | None = None,
        outputs: OutputWatch | None = None,
        rank: int = 0,
        gather: Gather = alone,
    ) -> None:
        first: dict[int, str] = {}
        for name, parameter in parameters.items():
            first.setdefault(id(parameter), name)
        self._parameters = {name: parameters[name] for name in first.values()}
        self._stacked, self._slower, self._outputs = stacked, slower or Slower(), outputs
        self._rank, self._gather = rank, gather
        self._copies: dict[str, Tensor] = {}
        self._vectors: dict[tuple[str, int], Tensor] = {}
        self._moved: set[str] = set()
        self._gradients = torch.zeros(0)
        self.extra_seconds = 0.0

    @torch.no_grad()
    def before_step(self) -> None:
        """Measures the gradients and copies the weights that the step may move."""
        self._moved = {name for name, p in self._parameters.items() if p.requires_grad}
        self._gradients = gradient_sums(self._own_gradients(), stacked=self._stacked)
        for name in self._moved:
            own = own_part(self._parameters[name], self._rank)
            if name not in self._copies:
                self._copies[name] = torch.empty_like(own)
            self._copies[name].copy_(own)

    def no_step(self) -> None:
        """Takes the place of `before_step` where nothing moves the weights, which `after_step` then measures alone."""
        self._moved = set()
        self._gradients = gradient_sums(self._own_gradients(), stacked=self._stacked)

    @torch.no_grad()
    def after_step(
        self, step: int, epoch: int, *, more: bool = False, clips: bool = False, clock: tuple[float, ...] = ()
    ) -> Recorded:
        """Measures weights, updates and what hooks have seen.

        Args:
            step: The step's number.
            epoch: The epoch's.
            more: Whether the slower measures are due.
            clips: Whether something has clipped the gradients since `before_step`.
            clock: Numbers of which all processes get those of the first.
        """
        layers = self._common(self._outputs.take()) if self._outputs is not None else {}
        own = [own_part(parameter, self._rank) for parameter in self._parameters.values()]
        tables: Tables = {
            "weights": (STEP, step_sums(own, [*map(self._before, self._parameters)], stacked=self._stacked)),
            "gradients": (GRADIENT, self._gradients),
            "histograms": (COUNTED, histogram_counts(own, stacked=self._stacked)),
        }
        if clips:
            tables["clipped"] = (CHANGE, square_sums(self._own_gradients(), stacked=self._stacked))
        started = time.perf_counter()
        tables |= self._more() if more else {}
        self.extra_seconds = time.perf_counter() - started if more else 0.0
        for path, layer in layers.items():
            tables |= {f"{path} {kind}": table for kind, table in layer.tables().items()}
        tables["clock"] = (("seconds",), self._clock(clock))
        sums = _delivered(tables, self._gather)
        return Recorded(
            self._parameter_columns(step, epoch, sums),
            _output_columns(step, epoch, layers, sums),
            sums["clock"].flatten().tolist(),
        )

    def _common(self, layers: dict[str, Layer]) -> dict[str, Layer]:
        """The layers that ran in all processes, with as many units: what is gathered has one size."""
        if self._gather is alone:
            return layers
        sizes = {path: [len(table) for _, table in layer.tables().values()] for path, layer in layers.items()}
        return {path: layers[path] for path in common(sizes)}

    def _own_gradients(self) -> list[Tensor]:
        """This process's part of each gradient; nothing for a parameter that has no gradient, or is frozen."""
        return [
            own_part(_dense(parameter.grad), self._rank)
            if name in self._moved and parameter.grad is not None
            else self._nothing(parameter)
            for name, parameter in self._parameters.items()
        ]

    def _before(self, name: str) -> Tensor | None:
        """What a parameter was before the step; None of one that is frozen."""
        return self._copies[name] if name in self._moved else None

    def _nothing(self, parameter: Tensor) -> Tensor:
        """None of a parameter's values (of each member)."""
        return none_of(own_part(parameter, self._rank), stacked=self._stacked)

    def _more(self) -> Tables:
        """The slower measures."""
        tables: Tables = {}
        if self._slower.start is not None:
            tables["start"] = (START, self._slower.start.sums(self._parameters))
        if self._slower.spectral_norm:
            tables["spectral_norm"] = (_FOUND, torch.cat([*self._of_matrices(self._norm)]))
        if self._slower.effective_rank is not None:
            tables["effective_rank"] = (_FOUND, torch.cat([*self._of_matrices(self._rank_of)]))
        return tables

    def _of_matrices(self, measure: Any) -> Iterator[Tensor]:
        """A row for each parameter (and member): whether it was measured here, and the value."""
        for name, parameter in self._parameters.items():
            full = whole(parameter) if is_shard(parameter) else own_part(parameter, self._rank)
            here = self._rank == 0 and full.numel() > 0
            members = list(full) if self._stacked else [full]
            for number, member in enumerate(members):
                value = measure(name, number, member) if here and member.ndim >= 2 else None
                yield torch.stack(_found(value, full)).unsqueeze(0)

    def _norm(self, name: str, number: int, matrix: Tensor) -> Tensor:
        first = (name, number) not in self._vectors
        if first:
            self._vectors[name, number] = start_vector(f"{name} {number}", matrix)
        return spectral_norm(matrix, self._vectors[name, number], 4 * _ROUNDS if first else _ROUNDS)

    def _rank_of(self, name: str, number: int, matrix: Tensor) -> Tensor | None:
        most = self._slower.effective_rank or 0
        return effective_rank(matrix) if min(len(matrix), matrix[0].numel()) <= most else None

    def _clock(self, clock: tuple[float, ...]) -> Tensor:
        like = next(iter(self._parameters.values()))
        numbers = [value if self._rank == 0 else 0.0 for value in clock]
        parts = [torch.full((1, 1), number, dtype=wide_type(like), device=like.device) for number in numbers]
        return torch.cat(parts) if parts else torch.zeros(0, 1)

    def _parameter_columns(self, step: int, epoch: int, sums: Mapping[str, Tensor]) -> Columns:
        names = list(self._parameters)
        members: list[int | None] = [None]
        if self._stacked:
            members = list(range(len(sums["weights"]) // len(names)))
        columns: Columns = {
            "step": [step] * len(names) * len(members),
            "epoch": [epoch] * len(names) * len(members),
            "name": [name for name in names for _ in members],
            "member": members * len(names),
        }
        found = _measured(sums)
        nothing: list[int | float | None] = [None] * len(columns["name"])
        return columns | {measure: found.get(measure, nothing) for measure in MEASURES}


def _dense(gradient: Tensor) -> Tensor:
    return gradient.to_dense() if gradient.layout != torch.strided else gradient


def _found(value: Tensor | None, like: Tensor) -> list[Tensor]:
    there = torch.full((), float(value is not None), dtype=wide_type(like), device=like.device)
    return [there, there if value is None else value.to(there.dtype)]


# ---- across, and to the host ---------------------------------------------------------------------------------------


def _delivered(tables: Tables, gather: Gather) -> dict[str, Tensor]:
    """The sums of all processes, joined, on the host."""
    sizes = [table.numel() for _, table in tables.values()]
    flat = [table.flatten() for _, table in tables.values() if table.numel()]
    parts = torch.split(_to_host(gather(torch.cat(flat))), sizes, dim=1)
    found = {}
    for (name, (columns, table)), part in zip(tables.items(), parts, strict=True):
        found[name] = joined(part.reshape(len(part), len(table), len(columns)), columns)
    return found


def _to_host(results: Tensor) -> Tensor:
    """The one transfer of a logged step."""
    return results.cpu()


def _measured(sums: Mapping[str, Tensor]) -> dict[str, Values]:
    """Values by measure, from sums on the host."""
    gradients, step = sums["gradients"], sums["weights"]
    weights, updates = step[:, : len(WEIGHT)], step[:, len(WEIGHT) :]
    measures = weight_measures(weights)
    found = _named(BASE_MEASURES, measures, weights[:, 0])
    found |= _named(GRADIENT_MEASURES, gradient_measures(gradients), gradients[:, 0])
    update = rms_of(updates)
    found |= _named(UPDATE_MEASURES, torch.stack([update, ratio(update, measures[:, _RMS])], dim=1), updates[:, 0])
    if "clipped" in sums:
        found |= _named((CLIPPED,), rms_of(sums["clipped"]).unsqueeze(1), sums["clipped"][:, 0])
    if "start" in sums:
        start = sums["start"]
        found |= _named(START_MEASURES, start_measures(start), start[:, 0])
        undefined = start[:, 3] * start[:, 4] == 0
        found["cosine"] = _listed(start_measures(start)[:, 1], start[:, 0] * ~undefined)
    for measure in SPECTRAL_MEASURES:
        if measure in sums:
            found[measure] = _listed(sums[measure][:, 1], sums[measure][:, 0])
    counted = sums["histograms"]
    there = counted[:, BINS] > 0
    rows = counted[:, :BINS].long().tolist()
    found[HISTOGRAM] = [row if here else None for row, here in zip(rows, there.tolist(), strict=True)]
    found[HISTOGRAM_SHARE] = _listed(counted[:, BINS] / weights[:, 0], counted[:, BINS])
    return found


def _named(measures: tuple[str, ...], table: Tensor, count: Tensor) -> dict[str, Values]:
    return {
        measure: _listed(values, count, whole_numbers=measure in COUNTS)
        for measure, values in zip(measures, table.unbind(1), strict=True)
    }


def _listed(values: Tensor, count: Tensor, *, whole_numbers: bool = False) -> list[int | float | None]:
    """Values where something was counted, else None."""
    listed = values.long().tolist() if whole_numbers else values.tolist()
    return [value if here else None for value, here in zip(listed, (count > 0).tolist(), strict=True)]


def _output_columns(step: int, epoch: int, layers: Mapping[str, Layer], sums: Mapping[str, Tensor]) -> Columns:
    columns: Columns = {
        "step": [step] * len(layers),
        "epoch": [epoch] * len(layers),
        "layer": list(layers),
        "kind": [layer.kind for layer in layers.values()],
        "member": list[int | None]([None]) * len(layers),
    }
    table = torch.cat([sums[f"{path} sums"] for path in layers]) if layers else torch.zeros(0, len(OUTPUT))
    mean, std, rms, nonfinite = output_measures(table).T.tolist()
    return columns | {
        "mean": mean,
        "std": std,
        "rms": rms,
        "dead": [_share_of_zeros(sums.get(f"{path} alive")) for path in layers],
        "saturated": [_per(sums.get(f"{path} beyond"), sums[f"{path} sums"]) for path in layers],
        "nonfinite": [int(count) for count in nonfinite],
    }


def _share_of_zeros(alive: Tensor | None) -> float | None:
    return None if alive is None else (alive == 0).double().mean().item()


def _per(beyond: Tensor | None, of: Tensor) -> float | None:
    return None if beyond is None else (beyond[0, 0] / of[0, 0]).item()
