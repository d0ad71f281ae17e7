"""Initial scale and learning rates that carry over from one width to another: the maximal update parametrization.

A model is tuned at a small base width; at any other width each parameter's standard deviation and learning rate follow
from how its fan-in and fan-out have grown since: Yang et al. 2022, *Tensor Programs V*, arXiv 2203.03466, Table 3, the
form that needs no multiplier in `forward`. With r = (size now) / (size at the base) of an axis:

| role   | what grows      | std          | learning rate, as Adam | as SGD         |
|--------|-----------------|--------------|------------------------|----------------|
| input  | fan-out         | std          | lr                     | lr r_out       |
| hidden | both            | std / √r_in  | lr / r_in              | lr r_out / r_in|
| output | fan-in          | std / r_in   | lr / r_in              | lr / r_in      |
| vector | its length      | as it was    | lr                     | lr r_out       |

At the base width all of these are what they would be without it. An Embedding's rows are looked up, not summed: its
columns are its fan-out, and nothing of it is a fan-in.

Refused: a tie of an input to an output (Table 3 has no one std and learning rate for both), a vector that is raw or of
a class that is not torch's (whether it is a gain or a bias cannot be seen, unless it is called `bias`), a base that
changes anything but widths.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from builder.errors import BuilderError, Problem, did_you_mean
from builder.initialize.draws import Fill, default_fill, default_policy, fill_of
from builder.module import Entry

Shape = Sequence[int]
LIKE_ADAM = frozenset({"Adam", "AdamW", "NAdam", "RAdam", "Adamax", "SparseAdam", "Adagrad", "RMSprop"})
LIKE_SGD = frozenset({"SGD", "ASGD"})


def family(optimizer: str) -> str | None:
    """`adam` for an optimizer of torch that divides each entry's gradient by its own size, `sgd` for one that does not.

    None for the others, of which Table 3 says nothing.

    >>> family("AdamW")
    'adam'
    """
    return "adam" if optimizer in LIKE_ADAM else "sgd" if optimizer in LIKE_SGD else None


@dataclass(frozen=True)
class Scaled:
    """What `mup` makes of one parameter.

    Attributes:
        role: `input`, `hidden`, `output`, `vector`, or `unchanged`.
        fill: `normal`, `zeros`, or `default` (the constant that its layer class gives it).
        std: Standard deviation of its initial values; 0 where they are constant.
        lr_scales: What its learning rate is multiplied by, under an optimizer like `adam` and like `sgd`.
    """

    role: str
    fill: str
    std: float
    lr_scales: Mapping[str, float]

    @property
    def arguments(self) -> dict[str, Any]:
        """These as the arguments of a decision."""
        return asdict(self)


@dataclass
class MupPlan:
    """What `mup` makes of the parameters that one rule matches.

    Attributes:
        scaled: Name → scale and learning rates.
        refused: Name → why `mup` cannot decide it; of no matter where another rule decides.
        problems: What is wrong with the rule itself.
    """

    scaled: dict[str, Scaled] = field(default_factory=dict)
    refused: dict[str, Problem] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def mup_decisions(
    matched: Sequence[Entry],
    parameters: Sequence[Entry],
    ties: Mapping[str, str],
    args: Mapping[str, Any],
    arguments: Mapping[str, Any],
    shapes_at: Callable[[Mapping[str, Any]], Mapping[str, Shape]],
    address: str,
    axes: Sequence[str] | None,
    module: nn.Module,
) -> MupPlan:
    """What one rule `{policy: mup, base: {d: 64}, std: 0.02}` makes of each parameter.

    Args:
        matched: The parameters that it matches, without aliases.
        parameters: Every parameter of the model under every name.
        ties: Tied name → owner.
        args: The values of the model's args.
        arguments: The rule's own: `base`, the args of the base model; `std` of its matrices at the base width, by
            default 1/√fan-in there (1 for an Embedding, of which each lookup reads one row).
        shapes_at: Shapes of all parameters of the model with some other args.
        address: Of the rule.
        axes: The rule's own reading of the axes.
        module: The model, whose layer classes say what vectors begin with; it may be on meta.
    """
    base, std = arguments["base"], arguments.get("std")
    problems = [*_check_base(base, args, f"{address}.base"), *_check_std(std, f"{address}.std")]
    if problems:
        return MupPlan(problems=problems)
    try:
        before = shapes_at(base)
    except BuilderError as err:
        shown = ", ".join(f"{key}: {value!r}" for key, value in base.items())
        return MupPlan(
            problems=[
                Problem(f"{address}.base", f"the model does not build with {shown}: {p.address}: {p.what}", p.hint)
                for p in err.problems
            ]
        )
    plan = MupPlan()
    names_of = {entry.name: [entry] for entry in matched}
    for entry in parameters:
        if ties.get(entry.name) in names_of:
            names_of[ties[entry.name]].append(entry)
    for entry in matched:
        found = [_scaled(name, before.get(name.name), std, axes, address, module) for name in names_of[entry.name]]
        decided = _one(names_of[entry.name], found, base, address)
        if isinstance(decided, Problem):
            plan.refused[entry.name] = decided
        else:
            plan.scaled[entry.name] = decided
    if all(args[key] == value for key, value in base.items()):
        return plan
    if not plan.refused and all(scaled.role == "unchanged" for scaled in plan.scaled.values()):
        what = "changes the shape of nothing that the rule matches"
        plan.problems.append(Problem(f"{address}.base", what, "name the args that are widths: base: {d: 64}"))
    return plan


def mup_fill(arguments: Mapping[str, Any], module: nn.Module, entry: Entry) -> Fill:
    """The fill of a parameter that `mup` decided, from the arguments of its decision."""
    if arguments["fill"] == "default":
        fill = default_fill(module, entry)
        assert fill is not None, f"{entry.kind} is listed as one with a constant default"
        return fill
    return fill_of("normal", {"std": arguments["std"]}, entry.shape) if arguments["std"] else _ZEROS


_ZEROS = fill_of("zeros", {}, ())


def _check_base(base: Any, args: Mapping[str, Any], address: str) -> list[Problem]:
    if not isinstance(base, Mapping) or not base:
        return [Problem(address, f"got {base!r}", "give the widths of the model that was tuned: base: {d: 64}")]
    return [
        Problem(f"{address}.{name}", f"the model has no argument {name!r}", did_you_mean(name, args))
        for name in base
        if name not in args
    ]


def _check_std(std: Any, address: str) -> list[Problem]:
    if std is None or (isinstance(std, int | float) and not isinstance(std, bool) and 0 <= std < math.inf):
        return []
    return [Problem(address, f"std is {std!r}", "a number, zero or more: the standard deviation at the base width")]


def _scaled(
    entry: Entry, before: Shape | None, std: float | None, axes: Sequence[str] | None, address: str, module: nn.Module
) -> Scaled | Problem:
    """The row of the table for one parameter, from its shape now and at the base."""
    if before is None or len(before) != entry.ndim:
        what = f"{entry.name!r} has no counterpart at the base, or one of other dimensions"
        return Problem(f"{address}.base", what, "name widths alone: a base has the same layers")
    owner = module.get_submodule(entry.owner)
    own = default_policy(module, entry)
    is_constant = own is not None and own[0] in ("zeros", "ones", "constant")
    if entry.ndim < 2 or is_constant:
        return _vector(entry, before, address, is_constant=is_constant, is_known=own is not None)
    named = _axes(entry, axes, owner)
    if named is None:
        what = f"raw Parameter {entry.name!r} of shape {entry.shape} does not say which axis is fan-in"
        return Problem(address, what, f"give {entry.instance.address} axes: [in, out] (for x @ W), or [out, in]")
    now, then = _sizes(entry.shape, named), _sizes(before, named)
    if now["field"] != then["field"]:
        what = f"{entry.name!r} is {tuple(before)} at the base, {entry.shape} now: an axis that is no fan has grown"
        return Problem(f"{address}.base", what, "name widths alone; or leave the parameter out by except")
    r_in, r_out = now["in"] / then["in"], now["out"] / then["out"]
    std = 1 / math.sqrt(then["in"] * then["field"]) if std is None else std
    role = _role(r_in, r_out)
    shrunk = {"hidden": math.sqrt(r_in), "output": r_in}.get(role, 1.0)
    return Scaled(role, "normal" if std else "zeros", std / shrunk, {"adam": 1 / r_in, "sgd": r_out / r_in})


def _vector(entry: Entry, before: Shape, address: str, *, is_constant: bool, is_known: bool) -> Scaled | Problem:
    if entry.kind == "Parameter" or not (is_known or entry.local == "bias"):
        of = "raw Parameter " if entry.kind == "Parameter" else f"{entry.kind}'s "
        what = f"cannot see what {of}{entry.name!r} of shape {entry.shape} begins with"
        hint = "leave it out: min_ndim: 2, or except; Adam and its like give it the plain learning rate anyway"
        return Problem(address, what, hint)
    grown = math.prod(entry.shape) / math.prod(before)
    fill = "default" if is_constant else "zeros"
    return Scaled("unchanged" if grown == 1 else "vector", fill, 0.0, {"adam": 1.0, "sgd": grown})


def _axes(entry: Entry, axes: Sequence[str] | None, owner: nn.Module) -> Sequence[str] | None:
    field = ["field"] * (entry.ndim - 2)
    if axes is not None or entry.kind == "Parameter":
        return axes or entry.instance.values.get("axes")
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return ["row", "out"]
    return ["in", "out", *field] if isinstance(owner, nn.modules.conv._ConvTransposeNd) else ["out", "in", *field]


def _sizes(shape: Shape, axes: Sequence[str]) -> dict[str, int]:
    """The sizes of a parameter along its fan-in, its fan-out, and what belongs to both."""
    return {
        kind: math.prod(size for size, axis in zip(shape, axes, strict=True) if axis == kind)
        for kind in ("in", "out", "field")
    }


def _role(r_in: float, r_out: float) -> str:
    if r_in == 1:
        return "unchanged" if r_out == 1 else "input"
    return "output" if r_out == 1 else "hidden"


def _one(
    names: Sequence[Entry], found: Sequence[Scaled | Problem], base: Mapping[str, Any], address: str
) -> Scaled | Problem:
    """What all the names of one parameter agree on."""
    for item in found:
        if isinstance(item, Problem):
            return item
    first = found[0]
    assert isinstance(first, Scaled), "problems were returned above"
    for entry, other in zip(names, found, strict=True):
        assert isinstance(other, Scaled), "problems were returned above"
        if other.role != first.role:
            what = f"{names[0].name!r} is {first.role} and, tied to it, {entry.name!r} is {other.role}"
            key, value = next(iter(base.items()))
            hint = (
                f"remove tie.{entry.name}; or leave {names[0].name!r} out of the rule (except) and, as Table 8 of the\n"
                f"paper does, multiply in forward: {entry.name.rpartition('.')[0] or entry.name}(...) * {value} / {key}"
            )
            return Problem(address, what, hint)
    return first
