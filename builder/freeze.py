"""Freezing by named rules: whole parameters, rows of them, modules in eval mode; for ever or for a time.

Each rule selects with the project's one selector. What is frozen at a moment is the union of what its rules freeze
then, so that it is a function of epoch and step alone and their order does not matter. The plan is made on meta; a rule
that matches nothing, that names only the alias of a tied parameter, whose rows are not there, or that adds nothing to
the others is refused. `builder.hold` holds the plan against an optimizer.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from torch import nn

from builder.errors import Problem
from builder.evaluate import evaluate
from builder.language import LanguageError
from builder.module import Entry
from builder.names import Selector, matches, paths_to
from builder.spec import FreezeRule

Unit = Literal["epoch", "step"]
Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Hold:
    """Rows of one parameter (or, as row 0, one module in eval mode) that a rule freezes, and when.

    Attributes:
        rule: `freeze.NAME`.
        low: The first row.
        high: The row after the last.
        unit: What `start` and `end` count; None: for ever.
        start: Frozen from the start of this epoch or step on.
        end: Frozen until the start of this one.
    """

    rule: str
    low: int
    high: int
    unit: Unit | None = None
    start: int = 0
    end: float = math.inf

    def is_on(self, epoch: int, step: int) -> bool:
        """Whether it freezes at a moment."""
        return self.unit is None or self.start <= (epoch if self.unit == "epoch" else step) < self.end

    @property
    def period(self) -> str:
        """When it freezes, in words; nothing where it is for ever."""
        start = f"from {self.unit} {self.start}" if self.start else ""
        end = f"until {self.unit} {self.end:.0f}" if self.end < math.inf else ""
        return f"{start} {end}".strip()


@dataclass(frozen=True)
class FreezePlan:
    """What the freeze rules of a model come to.

    Attributes:
        shapes: The shape of every parameter, by owner name.
        parameters: Owner name → the holds on it, for those that have any.
        modules: Dotted path of a module → the holds that keep it in eval mode.
        eval_always: The topmost modules that stay in eval mode for ever, with all that they contain.
    """

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    parameters: Mapping[str, tuple[Hold, ...]] = field(default_factory=dict)
    modules: Mapping[str, tuple[Hold, ...]] = field(default_factory=dict)
    eval_always: tuple[str, ...] = ()

    @cached_property
    def forever(self) -> dict[str, str]:
        """Parameters that are frozen whole and for ever → the rules that do it."""
        found = {}
        for name, holds in self.parameters.items():
            lasting = [hold for hold in holds if hold.unit is None]
            if _merged(lasting) == self._all_rows(name):
                whole = [hold for hold in lasting if _merged([hold]) == self._all_rows(name)]
                found[name] = ", ".join(hold.rule for hold in whole[:1] or lasting)
        return found

    @cached_property
    def scheduled(self) -> tuple[str, ...]:
        """Parameters of which more is frozen at one time than at another."""
        lasting = self.forever
        return tuple(n for n, holds in self.parameters.items() if n not in lasting and any(h.unit for h in holds))

    def spans(self, name: str, epoch: int, step: int) -> Spans:
        """The rows of a parameter that are frozen at a moment: disjoint, in order, low and high."""
        return _merged(hold for hold in self.parameters.get(name, ()) if hold.is_on(epoch, step))

    def is_whole(self, name: str, spans: Spans) -> bool:
        """Whether spans are all rows of a parameter."""
        return spans == self._all_rows(name)

    def has_rows(self, name: str) -> bool:
        """Whether a rule freezes some rows of a parameter rather than the whole."""
        return any(_merged([hold]) != self._all_rows(name) for hold in self.parameters.get(name, ()))

    def frozen_values(self, name: str) -> int:
        """How many values of a parameter are frozen for ever."""
        lasting = _merged(hold for hold in self.parameters.get(name, ()) if hold.unit is None)
        return sum(high - low for low, high in lasting) * math.prod(self.shapes[name][1:])

    def times(self, unit: Unit) -> tuple[int, ...]:
        """The epochs or steps at whose start something freezes or thaws."""
        holds = [hold for held in (self.parameters, self.modules) for group in held.values() for hold in group]
        found = {time for hold in holds if hold.unit == unit for time in (hold.start, hold.end)}
        return tuple(sorted(int(time) for time in found if 0 < time < math.inf))

    def words(self, name: str) -> tuple[str, ...]:
        """What freezes a parameter in part or for a time: `rows 0:30000 (freeze.vocab)`."""
        whole = self._all_rows(name)
        found = []
        for hold in self.parameters.get(name, ()):
            rows = "" if _merged([hold]) == whole else f"rows {hold.low}:{hold.high}"
            found.append(" ".join(word for word in (rows, hold.period, f"({hold.rule})") if word))
        return tuple(found)

    def _all_rows(self, name: str) -> Spans:
        return ((0, _rows_of(self.shapes[name])),)


def _rows_of(shape: Sequence[int]) -> int:
    return shape[0] if shape else 1


def _merged(holds: Iterable[Hold]) -> Spans:
    found: list[tuple[int, int]] = []
    for low, high in sorted((hold.low, hold.high) for hold in holds):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


# ---- rules → plan --------------------------------------------------------------------------------------------------

Held = dict[tuple[str, str], Hold]  # ("parameter" or "module", name) → what one rule holds of it


def plan_freeze(
    rules: Mapping[str, FreezeRule],
    parameters: Sequence[Entry],
    ties: Mapping[str, str],
    module: nn.Module,
    args: Mapping[str, Any],
    outside: Collection[str] = (),
) -> tuple[FreezePlan, list[Problem]]:
    """The plan of the freeze rules, and what is wrong with them.

    Args:
        rules: The rules by name.
        parameters: Every parameter under every name.
        ties: Tied name → owner.
        module: The module, of which only the tree is read; it may be on meta, and untied.
        args: The model's args, for `rows`.
        outside: Rules that do not stand in the model file; they may make those of the file redundant.
    """
    problems: list[Problem] = []
    held: dict[str, Held] = {}
    for name, rule in rules.items():
        found, wrong = _held_by(f"freeze.{name}", rule, parameters, ties, module, args)
        problems += wrong
        held[name] = {} if wrong else found
    problems += _redundant(held, outside)
    problems = [replace(p, outside=p.address.split(".")[1] in outside) for p in problems]
    by_kind: dict[str, dict[str, tuple[Hold, ...]]] = {"parameter": {}, "module": {}}
    for found in held.values():
        for (kind, key), hold in found.items():
            by_kind[kind][key] = (*by_kind[kind].get(key, ()), hold)
    always = [path for path, holds in by_kind["module"].items() if any(hold.unit is None for hold in holds)]
    shapes = {entry.name: entry.shape for entry in parameters if entry.name not in ties}
    return FreezePlan(shapes, by_kind["parameter"], by_kind["module"], _topmost(always, module)), problems


def _held_by(
    address: str,
    rule: FreezeRule,
    parameters: Sequence[Entry],
    ties: Mapping[str, str],
    module: nn.Module,
    args: Mapping[str, Any],
) -> tuple[Held, list[Problem]]:
    chosen = [entry for entry in parameters if rule.selects(entry)]
    owned = [entry for entry in chosen if entry.name not in ties]
    paths = held_modules(rule, owned, module) if rule.eval else []
    problems = [] if paths and not chosen else check_matches(address, rule, [e.name for e in chosen], ties, parameters)
    if rule.eval and not paths and not problems:
        what = "holds no module: what it matches are raw Parameters"
        problems.append(Problem(f"{address}.eval", what, "leave eval out, or match the modules: backbone.*"))
    if paths and not owned and not problems and not any(map(_may_differ, map(module.get_submodule, paths))):
        what = "changes nothing: what it matches is alike in train and eval mode, and no parameter"
        problems.append(Problem(f"{address}.eval", what, _parameters_hint(paths, ties, parameters)))
    rows, wrong = _rows(address, rule, args)
    problems += wrong
    for entry in owned:
        problems += _fits(address, rows, entry)
    if problems:
        return {}, problems
    found: Held = {}
    for entry in owned:
        low, high = rows or (0, _rows_of(entry.shape))
        found["parameter", entry.name] = _hold(address, rule, low, high)
    for path in paths:
        found["module", path] = _hold(address, rule, 0, 1)
    return found, []


def _hold(address: str, rule: FreezeRule, low: int, high: int) -> Hold:
    start = rule.from_.count if rule.from_ else 0
    moment = rule.until or rule.from_
    if moment is None or (rule.until is None and start == 0):
        return Hold(address, low, high)
    return Hold(address, low, high, moment.unit, start, rule.until.count if rule.until else math.inf)


def _rows(address: str, rule: FreezeRule, args: Mapping[str, Any]) -> tuple[tuple[int, int] | None, list[Problem]]:
    if rule.rows is None:
        return None, []
    bounds: list[int] = []
    problems = []
    for i, given in enumerate(rule.rows):
        try:
            bound = evaluate(given, args) if isinstance(given, str) else given
        except LanguageError as err:
            problems.append(Problem(f"{address}.rows.{i}", err.what, err.hint))
            continue
        if isinstance(bound, bool) or not isinstance(bound, int):
            problems.append(Problem(f"{address}.rows.{i}", f"{given} is {bound!r}", "give a whole number"))
        bounds.append(bound)
    if problems:
        return None, problems
    low, high = bounds
    if low >= high:
        what = f"rows {low}:{high} are none: the first is {low}, and {high} is left out"
        return None, [Problem(f"{address}.rows", what, "give [low, high] with low below high")]
    return (low, high), []


def _fits(address: str, rows: tuple[int, int] | None, entry: Entry) -> list[Problem]:
    if entry.instance.values.get("max_norm") is not None:
        what = f"{entry.name!r} cannot be frozen: max_norm rewrites its rows in forward"
        return [Problem(address, what, f"take max_norm out of {entry.instance.address}")]
    if rows is None:
        return []
    if not entry.shape:
        what = f"{entry.name!r} is a single number, which has no rows"
        return [Problem(f"{address}.rows", what, "leave rows out, or except it")]
    low, high = rows
    if low < 0 or high > entry.shape[0]:
        what = f"rows {low}:{high} are not all there: {entry.name!r} of shape {entry.shape} has rows 0:{entry.shape[0]}"
        return [Problem(f"{address}.rows", what, f"stay within [0, {entry.shape[0]}], or except it")]
    return []


def check_matches(
    address: str, rule: Selector, chosen: Sequence[str], ties: Mapping[str, str], parameters: Sequence[Entry]
) -> list[Problem]:
    """Refuses a rule that chooses nothing, or only aliases of tied parameters."""
    if not chosen:
        shown = ", ".join(entry.name for entry in parameters[:8]) + (", ..." if len(parameters) > 8 else "")
        return [Problem(address, f"matches no parameter: {rule.words}", f"the model has: {shown}")]
    if all(name in ties for name in chosen):
        owner = ties[chosen[0]]
        return [
            Problem(address, f"{chosen[0]!r} is tied to {owner!r}, which owns the values", f"address {owner!r} instead")
        ]
    return []


# ---- modules in eval mode ------------------------------------------------------------------------------------------


def held_modules(rule: FreezeRule, owned: Sequence[Entry], module: nn.Module) -> list[str]:
    """Paths of the modules that a rule keeps in eval mode: all whose path it matches, and the layers of its parameters.

    `backbone.*` matches `backbone` itself as well. A module that contains one which is not held is not held, and
    neither is the model itself: either could not be without the others.
    """
    layers = {entry.owner for entry in owned if entry.kind != "Parameter"}
    paths = {path: type(sub).__name__ for path, sub in module.named_modules() if path}
    chosen = {path for path, kind in paths.items() if _covers(rule, path, kind) or _is_within(path, layers)}
    left = {prefix for path in paths.keys() - chosen for prefix in paths_to(path)}
    return [path for path in paths if path in chosen and path not in left]


def _may_differ(module: nn.Module) -> bool:
    """Whether a module, apart from its children, may do in train mode what it does not in eval mode."""
    return not type(module).__module__.startswith("torch.nn.modules.") or isinstance(module, _DIFFERENT)


_DIFFERENT = (
    nn.modules.dropout._DropoutNd, nn.modules.batchnorm._NormBase, nn.RReLU, nn.RNNBase, nn.MultiheadAttention,
    nn.TransformerEncoder, nn.TransformerEncoderLayer,
)  # fmt: skip


def _parameters_hint(paths: Sequence[str], ties: Mapping[str, str], parameters: Sequence[Entry]) -> str:
    """How to freeze what modules own."""
    own = next((entry for entry in parameters if _is_within(entry.name, paths)), None)
    if own is None:
        return "remove it"
    name = ties.get(own.name, f"{own.name.rpartition('.')[0]}.*")
    return f"to freeze its parameters, match them: {name}"


def _covers(rule: FreezeRule, path: str, kind: str) -> bool:
    if rule.model_fields_set & {"ndim", "min_ndim", "max_ndim", "trainable"}:
        return False  # these tell parameters apart, and a module has none of them
    both = (path, f"{path}.")
    return (
        any(matches(name, rule.match) for name in both)
        and not (rule.except_ and any(matches(name, rule.except_) for name in both))
        and (rule.kind is None or matches(kind, rule.kind))
    )


def _is_within(path: str, modules: Collection[str]) -> bool:
    return any(prefix in modules for prefix in paths_to(path))


def _topmost(paths: Sequence[str], module: nn.Module) -> tuple[str, ...]:
    chosen = set(paths)
    return tuple(
        path
        for path, _ in module.named_modules()
        if path in chosen and not any(prefix in chosen for prefix in paths_to(path)[:-1])
    )


# ---- rules that add nothing ----------------------------------------------------------------------------------------


def _redundant(held: Mapping[str, Held], outside: Collection[str]) -> list[Problem]:
    problems = []
    left = dict(held)
    for name, found in reversed(list(held.items())):
        others = {
            f"freeze.{other}": held_by_other
            for other, held_by_other in left.items()
            if other != name and (name in outside or other not in outside)
        }
        if found and all(
            _is_covered(hold, [o[key] for o in others.values() if key in o]) for key, hold in found.items()
        ):
            by = ", ".join(other for other, held_by_other in others.items() if held_by_other.keys() & found.keys())
            problems.append(Problem(f"freeze.{name}", f"decides nothing: {by} froze all that it matches", "remove it"))
            del left[name]
    return problems[::-1]


def _is_covered(hold: Hold, others: Sequence[Hold]) -> bool:
    """Whether others freeze all that a hold freezes, whenever it does."""
    units: list[Unit] = ["epoch", "step"] if hold.unit is None else [hold.unit]
    return any(_is_covered_in(unit, hold, [other for other in others if other.unit in (None, unit)]) for unit in units)


def _is_covered_in(unit: Unit, hold: Hold, others: Sequence[Hold]) -> bool:
    rows = [row for other in [hold, *others] for row in (other.low, other.high) if hold.low <= row < hold.high]
    times = [time for other in [hold, *others] for time in (other.start, other.end) if hold.start <= time < hold.end]
    return all(
        any(other.low <= row < other.high and other.start <= time < other.end for other in others)
        for row in rows
        for time in times
    )


# ---- on a module ---------------------------------------------------------------------------------------------------


def freeze(module: nn.Module, plan: FreezePlan) -> None:
    """Freezes what is frozen whole at the start of the training."""
    for name in plan.parameters:
        if plan.is_whole(name, plan.spans(name, 0, 0)):
            module.get_parameter(name).requires_grad_(False)


def check_something_trains(plan: FreezePlan) -> list[Problem]:
    """Refuses a plan under which at some time nothing is trained, as far as that is known before the data are."""
    epochs, steps = plan.times("epoch"), plan.times("step")
    moments = [(0, 0)]
    if not (epochs and steps):
        moments += [(epoch, 0) for epoch in epochs] + [(0, step) for step in steps]
    for epoch, step in moments:
        if is_idle(plan, epoch, step):
            return [idle_problem(plan, epoch, step)]
    return []


def is_idle(plan: FreezePlan, epoch: int, step: int) -> bool:
    """Whether everything is frozen at a moment."""
    return all(plan.is_whole(name, plan.spans(name, epoch, step)) for name in plan.shapes)


def idle_problem(plan: FreezePlan, epoch: int, step: int) -> Problem:
    """What is said of a moment at which everything is frozen."""
    on = {hold.rule for holds in plan.parameters.values() for hold in holds if hold.is_on(epoch, step)}
    values = sum(math.prod(shape) for shape in plan.shapes.values())
    when, hint = "", "leave something to train"
    if plan.scheduled:
        when, hint = f" at epoch {epoch}, step {step}", f"{hint} at any time"
    what = f"everything is frozen{when}: all {values:,} parameters (by {', '.join(sorted(on))})"
    if not plan.shapes:
        what, hint = "there is nothing to train: the model has no parameters", "give it a layer that has some"
    return Problem("freeze", what, hint)


def check_joint_state(plan: FreezePlan, optimizer: str) -> list[Problem]:
    """Refuses a schedule under an optimizer whose state is not kept by parameter, so that none can be cleared alone."""
    if optimizer != "LBFGS" or not plan.scheduled:
        return []
    rules = {hold.rule: hold for name in plan.scheduled for hold in plan.parameters[name] if hold.unit}
    what = "{}, which LBFGS cannot hold: it keeps one state for all parameters"
    return [
        Problem(rule, what.format(f"freezes {hold.period}"), "freeze for ever, or use another optimizer")
        for rule, hold in rules.items()
    ]
