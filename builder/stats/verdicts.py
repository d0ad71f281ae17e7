"""What the statistics of a run say in words: each verdict with the numbers behind it.

Pure functions from the rows of `columns` to verdicts, so that a run, a report and a probe say the same of the same
numbers. The bounds are wide on purpose: a verdict is for what a reader would change, not for what is merely unusual.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

import polars

from builder.stats.columns import COUNTS

MOST_CHANGE = 100.0  # of scale from the first layer to the last, up or down
LEAST_LAYERS = 4  # for a change over depth to be one
MOST_DEAD = MOST_SATURATED = 0.5  # of the units of a layer, of its values
MOST_WAITING = 0.5  # of the layers that start at zero and move only once another has
LEAST_UPDATE, MOST_UPDATE = 1e-6, 1e-1  # of the weight's rms in one step; about 1e-3 is common
GROWING = round(MOST_UPDATE**-2)  # steps of random signs from 0, of which the last is MOST_UPDATE of their sum

GRADIENT = "gradient_rms"  # of a parameter; a probe has it of the outputs as well

ALL_CLEAR = (
    "Nothing was found beyond the bounds of a verdict, which are wide: NaN or inf, layers that no gradient reaches, "
    f"scales that change more than {MOST_CHANGE:g}-fold over depth, layers over {MOST_DEAD:.0%} dead or saturated, "
    f"weights that no step moves, or that a step changes by more than {MOST_UPDATE:g} or less than {LEAST_UPDATE:g} "
    "of their size."
)

Severity = Literal["error", "warning", "info"]
SEVERITIES = get_args(Severity)  # the gravest first

_PARAMETRIZED = ".parametrizations."
_NOTHING_ELSE = 1e-9  # a weight that was 0 is its update, whose ratio is then 1


@dataclass(frozen=True)
class Verdict:
    """One thing that the numbers say.

    Attributes:
        kind: nonfinite, zero, vanishing, exploding, dead, saturated, update_ratio, still.
        severity: error where the run is lost, warning where it is likely to learn less than it could, or info.
        names: The parameters or layers that it is about, in the model's order; `name [3]` is member 3 of a stacked
            model.
        step: The logged step that shows it; None where a file that was read back names none.
        text: One sentence.
        numbers: What it was judged by.
    """

    kind: str
    severity: Severity
    names: tuple[str, ...]
    step: int | None
    text: str
    numbers: Mapping[str, Any] = field(default_factory=dict)

    def as_data(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return asdict(self) | {"names": list(self.names), "numbers": dict(self.numbers)}


def verdicts(
    parameters: polars.DataFrame, outputs: polars.DataFrame, table: Sequence[Mapping[str, Any]] = ()
) -> list[Verdict]:
    """All verdicts on some logged steps, the gravest first.

    Args:
        parameters: Rows of parameters, as `builder.read_stats` gives them.
        outputs: Rows of layer outputs, as `builder.stats.store.read_outputs` gives them.
        table: The parameter table as data; without it nothing is said of parameters that never move.

    Returns:
        None where all is well. Parameters keep the order of `table`, or that in which they were recorded.
    """
    members, layers = with_members(parameters, "name"), with_members(outputs, "layer")
    found = [
        *_nonfinite(members, "name"),
        *_nonfinite(layers, "layer"),
        *_zeros(outputs, parameters, table),
        *_scales_by_depth(outputs, parameters, table),
        *_shares(layers),
        *_update_ratios(members),
        *_still(parameters, table),
    ]
    return gravest_first(found)


def gravest_first(found: Iterable[Verdict]) -> list[Verdict]:
    """Errors, then warnings, then the rest, each in the order given."""
    return sorted(found, key=lambda verdict: SEVERITIES.index(verdict.severity))


def _nonfinite(rows: polars.DataFrame, by: str) -> Iterator[Verdict]:
    for measure in (measure for measure in COUNTS if measure in rows.columns):
        bad = rows.filter(polars.col(measure) > 0)
        if bad.is_empty():
            continue
        step = int(bad["step"].to_numpy().min())
        first = bad.filter(polars.col("step") == step)
        names = _distinct(first[by])
        of = {"name": "weights", "layer": "outputs"}[by] if measure == "nonfinite" else "gradients"
        text = f"NaN or infinite {of} of {listed(names)} at step {step}."
        yield Verdict("nonfinite", "error", names, step, text, dict(zip(names, first[measure].to_list(), strict=False)))


def layer_of(name: str) -> str:
    """The path of the layer that owns a parameter, also where `torch.nn.utils.parametrizations` keeps its parts."""
    owner, parametrized, _ = f".{name}".partition(_PARAMETRIZED)
    return owner[1:] if parametrized else name.rpartition(".")[0]


def with_members(rows: polars.DataFrame, by: str) -> polars.DataFrame:
    """Rows whose names tell the members of a stacked model apart."""
    named = polars.format("{} [{}]", by, "member")
    return rows.with_columns(polars.when(polars.col("member").is_null()).then(by).otherwise(named).alias(by))


# ---- exact zeros ---------------------------------------------------------------------------------------------------


def _zeros(
    outputs: polars.DataFrame, parameters: polars.DataFrame, table: Sequence[Mapping[str, Any]]
) -> Iterator[Verdict]:
    """Layers with weights that give out exactly 0, and those that no gradient reaches.

    A head or a residual branch that starts at zero is meant to: a gradient reaches it, and what no gradient reaches
    waits until it has moved. It is a warning where nothing starts like that, or where most layers start at zero and
    wait for another.
    """
    layers = _layers(parameters, table)
    every, at_zero = layers["layer"].to_list(), polars.col("at_zero")
    starting = layers.filter(at_zero & polars.col("moves"))["layer"].to_list()
    is_common = layers.filter(at_zero & ~polars.col("moves")).height > MOST_WAITING * layers.height

    without = layers.filter(~polars.col("reached"))["layer"].to_list()
    if without:
        raw = {*parameters["name"]}  # of the model itself: it owns every layer
        owned = {layer: "" if layer in raw else f"{layer}." for layer in starting}
        before = [
            layer
            for layer in starting
            if every.index(layer) > every.index(without[0]) or any(name.startswith(owned[layer]) for name in without)
        ]
        yield _zero(f"No gradient reaches {len(without)} of {len(every)}", without, before, parameters, is_common)

    given = _weighted(outputs, parameters).filter(polars.col("step") == polars.col("step").max())
    silent = [*_distinct(given.filter(polars.col("rms") == 0)["layer"])]
    first = [layer for layer in starting if layer in silent] if silent and silent[0] in starting else []
    if set(silent) - set(first):
        what = f"The outputs are exactly 0 in {len(silent)} of {given['layer'].n_unique()}"
        yield _zero(what, silent, first, outputs, is_common)


def _zero(what: str, names: list[str], causes: list[str], rows: polars.DataFrame, is_common: bool) -> Verdict:
    does = ("starts", "it does") if len(causes) == 1 else ("start", "these do")
    until = f"; {listed(causes)} {does[0]} at zero, and they move only once {does[1]}" if causes else ""
    severity: Severity = "info" if causes and not is_common else "warning"
    step = int(rows["step"].to_numpy().max())
    return Verdict("zero", severity, tuple(names), step, f"{what} layers: {listed(names)}{until}.")


def _layers(parameters: polars.DataFrame, table: Sequence[Mapping[str, Any]]) -> polars.DataFrame:
    """Layers that are trained, in the model's order.

    `reached`: whether a logged step had a gradient of any of its parameters; `moves`: of its weights, which are its
    matrices or, where it has none, all of it; `at_zero`: whether those were 0 before the last step.
    """
    ratio, step = polars.col("update_ratio"), polars.col("step")
    was_zero = (polars.col("rms") == 0) | ((ratio - 1).abs() < _NOTHING_ELSE)
    trained = parameters.filter(polars.col(GRADIENT).is_not_null()).group_by("name", maintain_order=True)
    each = trained.agg(
        at_zero=was_zero.fill_null(False).filter(step == step.max()).all(), gradient=(polars.col(GRADIENT) != 0).any()
    )
    matrices = [row["name"] for row in table if len(row["shape"]) >= 2]
    is_matrix, layer = polars.col("name").is_in(matrices), polars.col("layer")
    each = each.with_columns(layer=_layers_of(each["name"]))
    each = each.with_columns(weight=is_matrix | ~is_matrix.any().over("layer"))
    weight = polars.col("weight")
    return each.group_by(layer, maintain_order=True).agg(
        at_zero=polars.col("at_zero").filter(weight).all(),
        moves=polars.col("gradient").filter(weight).any(),
        reached=polars.col("gradient").any(),
    )


def _layers_of(names: polars.Series) -> polars.Series:
    """Of raw Parameters of the model itself, which no layer owns, their own names."""
    return polars.Series([layer_of(name) or name for name in names], dtype=polars.String)


# ---- scales over depth ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Depth:
    """Whether numbers can be judged over depth.

    Attributes:
        is_judged: Whether enough layers have one that is finite and not 0.
        zeros: How many layers have one that is exactly 0 at the last step.
    """

    is_judged: bool
    zeros: int


def depths_judged(
    parameters: polars.DataFrame, outputs: polars.DataFrame, table: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Depth]:
    """Whether there were enough layers to judge how each kind of number changes over depth."""
    step = polars.col("step")
    return {
        of: Depth(
            _at_last(rows, by, measure) is not None,
            len(rows.filter(step == step.max()).filter(polars.col(measure) == 0)),
        )
        for rows, by, measure, of in _depths(outputs, parameters, table)
    }


def _scales_by_depth(
    outputs: polars.DataFrame, parameters: polars.DataFrame, table: Sequence[Mapping[str, Any]]
) -> Iterator[Verdict]:
    for depth in _depths(outputs, parameters, table):
        yield from _change_by_depth(*depth)


def _depths(
    outputs: polars.DataFrame, parameters: polars.DataFrame, table: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[polars.DataFrame, str, str, str]]:
    """Of the outputs of layers with a weight: those that only pass on, such as a ReLU, would be counted twice."""
    layers = _weighted(outputs, parameters)
    yield layers, "layer", "rms", "outputs of the layers"
    if GRADIENT in outputs.columns:
        yield layers, "layer", GRADIENT, "gradients of the outputs"
    else:
        # of an Embedding a batch reaches a few rows, and the rms is over all of them
        matrices = [row["name"] for row in table if len(row["shape"]) >= 2 and row.get("kind") != "Embedding"]
        rows = parameters.filter(polars.col("name").is_in(matrices)) if matrices else parameters.clear()
        yield rows, "name", GRADIENT, "gradients of the matrices"


def _weighted(outputs: polars.DataFrame, parameters: polars.DataFrame) -> polars.DataFrame:
    weighted = {layer_of(name) for name in parameters["name"].unique()}
    return outputs.filter(polars.col("layer").is_in(sorted(weighted)))


def _change_by_depth(rows: polars.DataFrame, by: str, measure: str, of: str) -> Iterator[Verdict]:
    """The factor by which a line through the logarithms changes: from the first layer, of gradients from the last."""
    last = _at_last(rows, by, measure)
    if last is None:
        return
    step, names, values = last
    logs = [math.log(value) for value in values]
    change = math.exp(_slope(logs) * (len(logs) - 1))
    if 1 / MOST_CHANGE <= change <= MOST_CHANGE:
        return
    kind, word = ("vanishing", "vanish") if change < 1 else ("exploding", "explode")
    factor = f"{float(f'{max(change, 1 / change):.2g}'):,g}"
    ends = f"from {values[0]:.2g} in {names[0]} to {values[-1]:.2g} in {names[-1]}"
    text = f"The {of} {word} by a factor of {factor} over {len(names)} layers: {ends}."
    numbers = {"from": values[0], "to": values[-1], "factor": change}
    yield Verdict(kind, "warning", (names[0], names[-1]), step, text, numbers)


def _at_last(rows: polars.DataFrame, by: str, measure: str) -> tuple[int, tuple[str, ...], list[float]] | None:
    """The last step, and names and values in the order of the signal; None where they are too few to compare."""
    rows = rows.filter(
        polars.col(measure).is_finite() & (polars.col(measure) > 0)
    )  # a head that starts at zero gives 0
    if rows.is_empty():
        return None
    step = int(rows["step"].to_numpy().max())
    last = rows.filter(polars.col("step") == step)
    if measure == GRADIENT:
        last = last.reverse()
    names, values = _distinct(last[by]), last[measure].to_list()
    return None if len(values) < LEAST_LAYERS or len(names) != len(values) else (step, names, values)


def _slope(values: Sequence[float]) -> float:
    """Of the line of least squares through values at 0, 1, 2, ..."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    return sum((i - middle) * (value - mean) for i, value in enumerate(values)) / sum(
        (i - middle) ** 2 for i in range(len(values))
    )


def _shares(outputs: polars.DataFrame) -> Iterator[Verdict]:
    kinds = {"dead": (MOST_DEAD, "units are zero for a whole batch"), "saturated": (MOST_SATURATED, "values saturate")}
    for measure, (most, what) in kinds.items():
        rows = outputs.filter(polars.col(measure).is_not_null())
        if rows.is_empty():
            continue
        step = int(rows["step"].to_numpy().max())
        beyond = rows.filter((polars.col("step") == step) & (polars.col(measure) > most))
        if len(beyond):
            names, shares = _distinct(beyond["layer"]), beyond[measure].to_list()
            most_of = f"{'Up to ' if len(names) > 1 else ''}{max(shares):.0%}"
            text = f"{most_of} of the {what} in {listed(names)} at step {step}."
            numbers = dict(zip(beyond["layer"].to_list(), shares, strict=True))
            yield Verdict(measure, "warning", names, step, text, numbers)


def _update_ratios(parameters: polars.DataFrame) -> Iterator[Verdict]:
    """By the median over the last third of the steps: the first steps of a schedule are not judged.

    Nor are the first of a parameter that started at zero: it consists of the steps it took, and whatever
    the learning rate the n-th is about 1 / n of their sum, or 1 / sqrt(n) where they go to and fro. Only where it is
    more than `MOST_UPDATE` after `GROWING` steps as well are the steps too large.
    """
    steps = sorted(parameters["step"].unique())
    late = steps[-(len(steps) // 3) :]  # of fewer than three, all
    rows = parameters.filter(polars.col("step").is_in(late) & polars.col("update_ratio").is_finite())
    rows = rows.join(_started_at_zero(parameters), "name", "left", maintain_order="left")
    rows = rows.filter(polars.col("since").is_null() | (polars.col("step") - polars.col("since") >= GROWING))
    medians = rows.group_by("name", maintain_order=True).agg(polars.col("update_ratio").median())
    ratio = polars.col("update_ratio")
    kinds: dict[Severity, tuple[polars.Expr, str]] = {
        "warning": (ratio > MOST_UPDATE, f"more than {MOST_UPDATE:g}"),
        "info": ((ratio > 0) & (ratio < LEAST_UPDATE), f"less than {LEAST_UPDATE:g}"),
    }
    for severity, (beyond, how_much) in kinds.items():
        ratios = dict(medians.filter(beyond).iter_rows())
        if ratios:
            names = tuple(ratios)
            text = f"Each step changes {listed(names)} by {how_much} of their size."
            yield Verdict("update_ratio", severity, names, late[-1], text, ratios)


def _started_at_zero(parameters: polars.DataFrame) -> polars.DataFrame:
    """Parameters without a direction at their start, by the first step that shows a size."""
    moved = parameters.filter(polars.col("distance") > 0).group_by("name", maintain_order=True)
    undirected = moved.agg(polars.col("cosine").first()).filter(polars.col("cosine").is_null())
    there = parameters.filter(polars.col("rms") > 0).group_by("name", maintain_order=True)
    since = there.agg(polars.col("step").first().alias("since"))
    return since.join(undirected, "name", "semi", maintain_order="left")


def _still(parameters: polars.DataFrame, table: Sequence[Mapping[str, Any]]) -> Iterator[Verdict]:
    """Trainable parameters that no logged step moved."""
    stepped = parameters.filter(polars.col("update_rms").is_not_null())  # null: frozen, or its optimizer did not step
    watched = stepped.group_by("name", "member", maintain_order=True).agg(
        polars.col("update_rms").max(), polars.col("gradient_rms").is_not_null().any()
    )
    layers = _layers(parameters, table)
    told = layers.filter(~polars.col("reached"))["layer"].to_list()  # by `_zeros`
    trainable = [row["name"] for row in table if row["trainable"] and not row["tied_to"] and not row.get("held")]
    still = watched.filter(polars.col("name").is_in(trainable) & (polars.col("update_rms") == 0))
    still = with_members(still.filter(~_layers_of(still["name"]).is_in(told)), "name")
    for reached, why in ((False, "the loss does not reach"), (True, "no logged step moved")):
        names = _distinct(still.filter(polars.col("gradient_rms") == reached)["name"])
        if names:
            step = int(parameters["step"].to_numpy().max())
            yield Verdict("still", "warning", names, step, f"Though trainable, {why} {listed(names)}.", {})


def _distinct(names: polars.Series) -> tuple[str, ...]:
    return tuple(names.unique(maintain_order=True))


def listed(names: Sequence[str], most: int = 4) -> str:
    """Names in a sentence, the first of them where there are many."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
