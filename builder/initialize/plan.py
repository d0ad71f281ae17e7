"""Which rule decides which parameter, proved before any memory is spent.

Precedence: the layer class's default < the layer's inline `init` < the model's rules < the scheme from outside; later
rules win. A parameter that nothing decides, a rule that matches nothing or decides nothing, and a policy that does not
fit its parameter are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from builder.errors import Problem, did_you_mean
from builder.expand import Expansion
from builder.freeze import check_matches
from builder.initialize.copy import check_copies
from builder.initialize.draws import default_fill
from builder.initialize.expression import check_value
from builder.initialize.fits import axes_of, check_axes, check_fit
from builder.initialize.function import check_function
from builder.initialize.lsuv import check_one_a_layer
from builder.initialize.mup import mup_decisions
from builder.initialize.pretrained import PretrainedReport, may_keep, resolve
from builder.initialize.reset import RESET, resetting
from builder.module import Entry
from builder.names import FIELDS, Selector
from builder.policies import POLICIES, check_policy, is_function
from builder.spec import InitRule, PolicySpec


@dataclass(frozen=True)
class Decision:
    """What decides one parameter's initial values.

    Attributes:
        rule: The deciding rule, as the table shows it.
        policy: Its policy; `default` is the layer class's own, `reset_parameters` the class's own method.
        arguments: The policy's arguments, computed.
        overrides: The rules that this one overrode, nearest last.
        axes: Which axis is fan-in and which fan-out, where the rule or the Parameter says so.
        below: What decides the rows that this one keeps (`absent: keep` of `pretrained`).
        padding: Rows that are kept at zero: each `padding_idx` of an Embedding that has this parameter, under any name,
            unless the policy names its own values.
    """

    rule: str
    policy: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    axes: tuple[str, ...] | None = None
    below: Decision | None = None
    padding: tuple[int, ...] = ()


@dataclass
class _Candidate:
    rule: str
    address: str
    policy: str
    arguments: dict[str, Any]
    matched: list[str] = field(default_factory=list)
    outside: bool = False
    axes: tuple[str, ...] | None = None
    own: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # what differs from parameter to parameter
    scope: Mapping[str, Any] = field(default_factory=dict)
    selector: Selector | None = None
    refused: Mapping[str, Problem] = field(default_factory=dict)  # parameters that it must not decide
    globs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What policies ask for beyond their own parameter.

    Attributes:
        args: Values of the model's args.
        allow: Prefixes under which a function of the user's own may stand.
        shapes_at: Shapes of all parameters of the model with some other args, for `mup`.
        buffers: The buffers that a state_dict holds.
        transposed: Names that stand for their owner's transpose.
        reports: What `pretrained` rules took from their files; the plan adds to it.
        buffer_values: Buffer → arguments of the `pretrained` rule that fills it; the plan adds to it.
    """

    args: Mapping[str, Any]
    allow: Sequence[str]
    shapes_at: Callable[[Mapping[str, Any]], Mapping[str, Sequence[int]]]
    buffers: Sequence[Entry] = ()
    transposed: Collection[str] = ()
    reports: list[PretrainedReport] = field(default_factory=list)
    buffer_values: dict[str, Mapping[str, Any]] = field(default_factory=dict)


def plan_init(
    module: nn.Module,
    parameters: Sequence[Entry],
    ties: Mapping[str, str],
    expansion: Expansion,
    scheme: Mapping[str, InitRule],
    scheme_name: str,
    around: Surroundings,
) -> tuple[dict[str, Decision], list[Problem]]:
    """Owner name → decision for every parameter, and what is wrong with the rules."""
    problems: list[Problem] = []
    owned = [entry for entry in parameters if entry.name not in ties]
    layers: dict[str, list[_Candidate]] = {entry.name: [] for entry in owned}
    inline = _inline_candidates(parameters, expansion, problems)
    for candidate in inline:
        for name in candidate.matched:
            if name in ties:
                problems.append(
                    Problem(candidate.address, f"{name!r} is tied to {ties[name]!r}", f"give {ties[name]!r} the init")
                )
            elif name in layers:
                layers[name].append(candidate)
    rules = [
        *_rule_candidates(expansion.spec.init, "init.", "init.", expansion, parameters, ties, problems, outside=False)
    ]
    rules += _rule_candidates(scheme, "init.", f"{scheme_name}: ", expansion, parameters, ties, problems, outside=True)
    for candidate in [*inline, *rules]:
        problems += _look_around(module, candidate, parameters, ties, around)
    for candidate in rules:
        for name in candidate.matched:
            if name in layers:
                layers[name].append(candidate)
    decisions: dict[str, Decision] = {}
    padding = _padding_rows(module, parameters, ties)
    for entry in owned:
        decision, found = _decide(module, entry, layers[entry.name])
        problems += found
        if decision is not None:
            decisions[entry.name] = _padded(decision, padding.get(entry.name, ()))
    problems += _dead_rules(rules, layers)
    problems += check_copies(decisions, {entry.name: entry for entry in parameters}, module)
    problems += check_one_a_layer(decisions, owned)
    outside = tuple(f"init.{name}" for name in scheme)
    return decisions, [
        replace(problem, outside=True)
        if problem.address in outside or problem.address.startswith(tuple(f"{address}." for address in outside))
        else problem
        for problem in dict.fromkeys(problems)
    ]


def _look_around(
    module: nn.Module,
    candidate: _Candidate,
    parameters: Sequence[Entry],
    ties: Mapping[str, str],
    around: Surroundings,
) -> list[Problem]:
    """Completes a candidate whose policy depends on a file, on another parameter or on another width."""
    matched = [entry for entry in parameters if entry.name in candidate.matched]
    match candidate.policy:
        case "expression":
            problems = check_value(candidate.arguments, candidate.scope, candidate.address)
            candidate.arguments["args"] = dict(candidate.scope)
            return problems
        case "copy":
            of = candidate.arguments["of"]
            candidate.arguments["of"] = ties.get(of, of)
            if of in around.transposed:
                candidate.arguments["transpose"] = not candidate.arguments.get("transpose", False)
            return []
        case "pretrained":
            found = resolve(candidate.arguments, matched, candidate.globs, candidate.address)
            candidate.own = found.arguments
            if found.report is not None:
                around.reports.append(found.report)
                skipped = found.report.missing if not found.problems else ()
                candidate.matched = [name for name in candidate.matched if name not in skipped]
            return [*found.problems, *_take_buffers(candidate, around)]
        case "mup":
            given = (candidate.arguments, around.shapes_at, candidate.address, candidate.axes, module)
            plan = mup_decisions(matched, parameters, ties, around.args, *given)
            candidate.own = {name: scaled.arguments for name, scaled in plan.scaled.items()}
            candidate.refused = plan.refused
            return plan.problems
        case policy if is_function(policy):
            return check_function(policy, candidate.arguments, around.allow, candidate.address)
    return []


def _take_buffers(candidate: _Candidate, around: Surroundings) -> list[Problem]:
    """Lets a `pretrained` rule fill the saved buffers that it matches, as far as its file has them."""
    held = [entry for entry in around.buffers if candidate.selector is not None and candidate.selector.selects(entry)]
    given = {**candidate.arguments, "missing": "skip"}
    found = resolve(given, held, candidate.globs, candidate.address) if held else None
    if found is None or found.report is None or not found.report.matched:
        return []
    around.reports.append(found.report)
    around.buffer_values.update(found.arguments)
    return list(found.problems)


def _inline_candidates(parameters: Sequence[Entry], expansion: Expansion, problems: list[Problem]) -> list[_Candidate]:
    found = []
    for instance in expansion.instances:
        init, address = instance.layer.init, f"{instance.address}.init"
        if init is None:
            continue
        own = [entry for entry in parameters if entry.instance is instance]
        if isinstance(init, PolicySpec):
            if len(own) != 1:
                locals_ = ", ".join(entry.name.removeprefix(f"{instance.path}.") for entry in own) or "none"
                problems.append(
                    Problem(
                        address,
                        f"the layer has {len(own)} parameters of its own: {locals_}",
                        "say which: init: {weight: normal}",
                    )
                )
                continue
            named = {own[0].name: init}
        else:
            named = {f"{instance.path}.{local}": policy for local, policy in init.items()}
        for name, policy in named.items():
            local = name.removeprefix(f"{instance.path}.")
            if name not in {entry.name for entry in own}:
                known = [entry.name.removeprefix(f"{instance.path}.") for entry in own]
                problems.append(
                    Problem(f"{address}.{local}", f"the layer has no parameter {local!r}", did_you_mean(local, known))
                )
                continue
            where = address if isinstance(init, PolicySpec) else f"{address}.{local}"
            arguments, wrong = _arguments(policy.policy, policy.arguments, instance.scope, where, expansion)
            problems += wrong
            if not wrong:
                found.append(_Candidate(where, where, policy.policy, arguments, [name], scope=instance.scope))
    return found


def _rule_candidates(
    rules: Mapping[str, InitRule],
    section: str,
    label: str,
    expansion: Expansion,
    parameters: Sequence[Entry],
    ties: Mapping[str, str],
    problems: list[Problem],
    *,
    outside: bool,
) -> list[_Candidate]:
    found = []
    for name, rule in rules.items():
        address = f"{section}{name}"
        arguments, wrong = _arguments(rule.policy, rule.arguments, expansion.args, address, expansion)
        matched = [entry.name for entry in parameters if rule.selects(entry)]
        wrong += check_matches(address, rule, matched, ties, parameters)
        problems += wrong
        if not wrong:
            owned = [n for n in matched if n not in ties]
            found.append(
                _Candidate(
                    f"{label}{name}",
                    address,
                    rule.policy,
                    arguments,
                    owned,
                    outside,
                    axes=rule.axes,
                    scope=expansion.args,
                    globs=(rule.match,) if isinstance(rule.match, str) else rule.match,
                    selector=rule,
                )
            )
    return found


def _arguments(
    policy: str, given: Mapping[str, Any], scope: Mapping[str, Any], address: str, expansion: Expansion
) -> tuple[dict[str, Any], list[Problem]]:
    before = len(expansion.problems)
    values = {
        key: value if policy == "expression" and key == "value" else expansion.compute(value, scope, f"{address}.{key}")
        for key, value in given.items()
    }
    wrong = expansion.problems[before:]
    del expansion.problems[before:]
    known = {*FIELDS, *(POLICIES[policy].arguments if policy in POLICIES else ())}
    wrong = [*wrong, *(check_policy(policy, values, address) if not wrong else [])]
    hinted = [
        Problem(p.address, p.what, did_you_mean(p.address.rpartition(".")[2], known))
        if "has no argument" in p.what
        else p
        for p in wrong
    ]
    return values, hinted


def _decide(module: nn.Module, entry: Entry, candidates: Sequence[_Candidate]) -> tuple[Decision | None, list[Problem]]:
    overrides = tuple(candidate.rule for candidate in candidates[:-1])
    winner = candidates[-1] if candidates else None
    if winner is not None and (unread := check_axes(entry, winner.policy, winner.axes, winner.address)):
        return Decision(winner.rule, winner.policy, winner.arguments, overrides, winner.axes), unread
    if winner is not None and winner.policy == "default" and entry.kind == "Parameter":
        inline = next(
            (c for c in candidates if c.address == f"{entry.instance.address}.init" and c.policy != "default"), None
        )
        if inline is None:
            return None, [
                Problem(
                    entry.name,
                    f"{winner.rule} asks for the layer's default; a raw Parameter has none",
                    "give it init: ...",
                )
            ]
        winner = inline
    if winner is None or winner.policy == "default":
        rule = winner.rule if winner else ""
        return _default(module, entry, rule, overrides)
    arguments = {**winner.arguments, **winner.own.get(entry.name, {})}
    if arguments.get("keeps"):
        below, problems = _below(module, entry, candidates)
        return Decision(winner.rule, winner.policy, arguments, overrides, winner.axes, below), problems
    decision = Decision(winner.rule, winner.policy, arguments, overrides, winner.axes or axes_of(entry))
    if entry.name in winner.refused:
        return decision, [winner.refused[entry.name]]
    dtype = module.get_parameter(entry.name).dtype
    return decision, check_fit(entry, dtype, winner.policy, arguments, winner.axes, winner.address)


def _below(module: nn.Module, entry: Entry, candidates: Sequence[_Candidate]) -> tuple[Decision | None, list[Problem]]:
    """What decides the rows that the last candidate keeps."""
    address = f"{candidates[-1].address}.rows.absent"
    below, problems = _decide(module, entry, candidates[:-1])
    if below is None:
        what = f"keep: no rule below gives {entry.name!r} values for the rows of absent words"
        return None, [Problem(address, what, "give it one: init: normal; or write absent: zeros")]
    if below.policy in (RESET, "lsuv", "copy", "empty"):
        what = f"keep: {entry.name!r} is filled by {below.policy} otherwise, which fills no single rows"
        problems = [Problem(address, what, "give it another rule below; or write absent: zeros")]
    return below, problems


def _default(
    module: nn.Module, entry: Entry, rule: str, overrides: tuple[str, ...]
) -> tuple[Decision | None, list[Problem]]:
    if entry.kind == "Parameter":
        what = f"a raw Parameter of shape {entry.shape} without an init: it would hold whatever memory held"
        return None, [
            Problem(
                entry.instance.address,
                what,
                "give it init: normal (or zeros, ones, values, ...), or a rule that matches it;\n"
                "policy `empty` asks for raw memory",
            )
        ]
    if path := resetting(module, entry.owner):
        layer = module.get_submodule(path)
        label = f"{rule or 'default'} ({type(layer).__name__})"
        return Decision(label, RESET, {"layer": path}, overrides), []
    if default_fill(module, entry) is not None:
        return Decision(f"{rule or 'default'} ({entry.kind})", "default", {}, overrides), []
    return None, [
        Problem(entry.name, f"{entry.kind} has no default init that is known here", "give an init rule that matches it")
    ]


def _padding_rows(
    module: nn.Module, parameters: Sequence[Entry], ties: Mapping[str, str]
) -> dict[str, tuple[int, ...]]:
    """Owner name → each `padding_idx` of the Embeddings that have the parameter, under any of its names."""
    found: dict[str, tuple[int, ...]] = {}
    for entry in parameters:
        layer = module.get_submodule(entry.owner)
        if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.padding_idx is not None:
            name = ties.get(entry.name, entry.name)
            found[name] = (*found.get(name, ()), int(layer.padding_idx))
    return found


def _padded(decision: Decision, rows: tuple[int, ...]) -> Decision:
    below = decision.below and _padded(decision.below, rows)
    named = decision.policy in ("values", "empty", "pretrained")
    return replace(decision, below=below, padding=() if named else rows)


def _dead_rules(rules: Sequence[_Candidate], layers: Mapping[str, Sequence[_Candidate]]) -> list[Problem]:
    problems = []
    for rule in rules:
        winners = [winner for name in rule.matched for winner in _deciding(layers[name])]
        if not any(winner is rule for winner in winners) and not (
            not rule.outside and any(winner.outside for winner in winners)
        ):
            by = ", ".join(sorted({winner.rule for winner in winners}))
            problems.append(
                Problem(
                    rule.address, f"decides nothing: {by} decides all that it matches", "remove it, or put it after"
                )
            )
    return problems


def _deciding(candidates: Sequence[_Candidate]) -> Iterator[_Candidate]:
    """The last candidate, and those below it for as long as one leaves rows to the next."""
    for candidate in reversed(candidates):
        yield candidate
        if candidate.policy != "pretrained" or not may_keep(candidate.arguments):
            return
