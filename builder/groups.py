"""Optimizer groups by named rules: with which settings each trainable parameter is stepped.

`optimizer.groups` holds rules that choose parameters with the project's one selector and give any argument of the
optimizer, or `lr_scale`, which multiplies the learning rate. Of all rules that choose a parameter the later ones win,
key by key; the multiplier of init policy `mup` comes on top. Parameters with equal settings form one group, so that
each trainable parameter is in exactly one, and a tied one once, under its owner's name.

A value may be an `=` expression over the model's args and `i`, the first whole number within the parameter's name
(`h.3.mlp.c_fc.weight` → 3): `lr_scale: =0.8 ** (depth - 1 - i)`. A rule that matches or decides nothing is refused.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pydantic import ConfigDict, ValidationError
from torch import nn

from builder.build import Proof
from builder.errors import Problem, did_you_mean, raise_all
from builder.evaluate import evaluate
from builder.freeze import check_matches
from builder.initialize.mup import LIKE_ADAM, LIKE_SGD, family
from builder.language import LanguageError, is_expression
from builder.module import Entry
from builder.names import FIELDS, Selector
from builder.optim import OPTIMIZERS, check_number, check_optimizer, make_optimizer
from builder.spec import problems_of

LR_SCALE = "lr_scale"


@dataclass(frozen=True)
class Group:
    """Parameters that an optimizer steps with equal settings.

    Attributes:
        names: Their owner names, in the module's order.
        settings: What differs from the optimizer's own arguments.
        rules: Name → the rules that decide one of its settings, in order; an init rule where `mup` scales its rate.
    """

    names: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


class GroupRule(Selector):
    """A named rule: a selector, and settings for the parameters that it chooses."""

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    @property
    def settings(self) -> dict[str, Any]:
        """The optimizer's arguments and `lr_scale`, as they stand in the config."""
        return dict(self.__pydantic_extra__ or {})


def group_of(groups: Sequence[Group], name: str) -> Group | None:
    """The group that a parameter is in, by its owner's name; None for a frozen one."""
    return next((group for group in groups if name in group.names), None)


def plan_groups(config: Mapping[str, Any], proof: Proof) -> tuple[list[Group], list[Problem]]:
    """The groups of a checked optimizer's config, and what is wrong with its rules.

    Args:
        config: `{_target_: torch.optim.AdamW, lr: 0.001, groups: {no_decay: {max_ndim: 1, weight_decay: 0}}}`.
        proof: The proved model; nothing is allocated.
    """
    own = own_settings(config)
    rules, problems = _read_rules(config.get("groups") or {}, _optimizer(config), own)
    entries = trained(proof)
    given: dict[str, dict[str, tuple[str, Any]]] = {entry.name: {} for entry in entries}
    for name, rule in rules.items():
        problems += _apply(name, rule, proof, given)
    problems += _dead_rules(rules, given, problems)
    multipliers, found = _multipliers(config, proof, list(given))
    problems += found
    if problems:
        return [], list(dict.fromkeys(problems))
    groups = _grouped({name: _settings(given[name], multipliers[name], own) for name in given}, given, proof)
    return groups, _rehearse(config, groups, given, proof)


def trained(proof: Proof) -> list[Entry]:
    """The parameters that an optimizer moves at some time, each once and under its owner's name, in module order."""
    entries = {entry.name: entry for entry in proof.parameters}
    names = [proof.ties.get(name, name) for name, _ in proof.meta.named_parameters(remove_duplicate=False)]
    frozen = proof.frozen
    return [entries[name] for name in dict.fromkeys(names) if name not in frozen]


def own_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an optimizer that each group may have its own of, with the values that they have without."""
    defaults = make_optimizer(config, [nn.Parameter(torch.zeros(1, 1))]).defaults
    accepted = inspect.signature(OPTIMIZERS[_optimizer(config)]).parameters
    return {key: value for key, value in defaults.items() if key in accepted}


def _optimizer(config: Mapping[str, Any]) -> str:
    return str(config["_target_"]).rpartition(".")[2]


# ---- rules ---------------------------------------------------------------------------------------------------------


def _read_rules(given: Any, optimizer: str, own: Mapping[str, Any]) -> tuple[dict[str, GroupRule], list[Problem]]:
    if not isinstance(given, Mapping):
        hint = "give named rules: {NAME: {match: ..., weight_decay: 0}}"
        return {}, [Problem("optimizer.groups", f"got a {type(given).__name__}", hint)]
    rules: dict[str, GroupRule] = {}
    problems: list[Problem] = []
    known = {*FIELDS, *own, LR_SCALE}
    for name, data in given.items():
        address = f"optimizer.groups.{name}"
        try:
            rule = GroupRule.model_validate(data)
        except ValidationError as err:
            found = [(p.address if p.address != "model" else "", p) for p in problems_of(err, GroupRule)]
            problems += [Problem(f"{address}.{inner}".rstrip("."), p.what, p.hint) for inner, p in found]
            continue
        problems += [
            Problem(
                f"{address}.{key}", f"neither a selector nor a setting of {optimizer}", did_you_mean(key, known, 30)
            )
            for key in rule.settings
            if key not in known
        ]
        if not rule.settings:
            problems.append(Problem(address, "sets nothing", "give a setting: weight_decay: 0, lr_scale: 0.1"))
        rules[str(name)] = rule
    return rules, problems


def _apply(name: str, rule: GroupRule, proof: Proof, given: dict[str, dict[str, tuple[str, Any]]]) -> list[Problem]:
    """Gives the settings of a rule to all trainable parameters that it chooses."""
    address = f"optimizer.groups.{name}"
    seen = [replace(entry, trainable=proof.ties.get(entry.name, entry.name) in given) for entry in proof.parameters]
    chosen = [entry.name for entry in seen if rule.selects(entry)]
    problems = check_matches(address, rule, chosen, proof.ties, proof.parameters)
    owned = [chosen_name for chosen_name in chosen if chosen_name not in proof.ties]
    moved = [chosen_name for chosen_name in owned if chosen_name in given]
    if owned and not moved:
        frozen = proof.frozen
        by = ", ".join(sorted({frozen[chosen_name] for chosen_name in owned}))
        problems.append(
            Problem(address, f"decides nothing: all that it matches is frozen by {by}", "remove it, or thaw something")
        )
    return problems + _give(name, rule, moved, proof.expansion.args, given)


def _give(
    name: str,
    rule: GroupRule,
    parameters: Sequence[str],
    args: Mapping[str, Any],
    given: dict[str, dict[str, tuple[str, Any]]],
) -> list[Problem]:
    """Computes the settings of a rule for each parameter; of each key that is wrong, the first problem."""
    address = f"optimizer.groups.{name}"
    wrong: dict[str, Problem] = {}
    unnumbered: dict[str, list[str]] = {}
    for parameter in parameters:
        index = next((int(part) for part in parameter.split(".") if part.isdecimal()), None)
        scope = {**args, **({} if index is None else {"i": index})}
        for key, value in rule.settings.items():
            try:
                computed = _computed(value, scope)
            except LanguageError as err:
                if err.what == "unknown name 'i'":
                    unnumbered.setdefault(key, []).append(parameter)
                else:
                    wrong.setdefault(key, Problem(f"{address}.{key}", err.what, err.hint))
                continue
            for problem in check_number(f"{address}.{key}", key, computed):
                wrong.setdefault(key, problem)
            given[parameter][key] = (name, computed)
    return [*wrong.values(), *_without_number(address, rule, unnumbered)]


def _computed(value: Any, scope: Mapping[str, Any]) -> Any:
    if isinstance(value, list | tuple):
        return [_computed(item, scope) for item in value]
    return evaluate(value, scope) if is_expression(value) else value


def _without_number(address: str, rule: GroupRule, unnumbered: Mapping[str, Sequence[str]]) -> Iterator[Problem]:
    for key, names in unnumbered.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        what = (
            f"{rule.settings[key]!r} needs `i`, the first whole number of a name: there is none in {names[0]!r}{others}"
        )
        yield Problem(f"{address}.{key}", what, "let the rule match repeated layers alone, as match: 'h.*' does")


def _dead_rules(
    rules: Mapping[str, GroupRule], given: Mapping[str, Mapping[str, tuple[str, Any]]], problems: Sequence[Problem]
) -> list[Problem]:
    deciding = {rule for settings in given.values() for rule, _ in settings.values()}
    what, hint = "decides nothing: later rules decide all that it sets", "remove it, or put it after them"
    addresses = [f"optimizer.groups.{name}" for name in rules if name not in deciding]
    wrong = [f"{problem.address}." for problem in problems]
    return [Problem(a, what, hint) for a in addresses if not any(other.startswith(f"{a}.") for other in wrong)]


# ---- settings ------------------------------------------------------------------------------------------------------


def _multipliers(
    config: Mapping[str, Any], proof: Proof, names: Sequence[str]
) -> tuple[dict[str, float], list[Problem]]:
    """What `mup` multiplies each parameter's learning rate by; 1 where another policy decides."""
    optimizer = _optimizer(config)
    kind = family(optimizer)
    found = dict.fromkeys(names, 1.0)
    for name in names:
        scales = proof.decisions[name].arguments.get("lr_scales")
        if scales is not None and kind is None:
            what = f"{proof.decisions[name].rule} is mup, which has no learning rates for {optimizer}"
            known = ", ".join([*sorted(LIKE_ADAM), *sorted(LIKE_SGD)])
            return found, [Problem("optimizer._target_", what, f"use one of {known}; or another init policy")]
        if scales is not None:
            found[name] = float(scales[kind])
    return found, []


def _settings(given: Mapping[str, tuple[str, Any]], multiplier: float, own: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the optimizer's own settings for one parameter."""
    values = {key: value for key, (_, value) in given.items() if key != LR_SCALE}
    scale = (given[LR_SCALE][1] if LR_SCALE in given else 1) * multiplier
    if scale != 1:
        values["lr"] = values.get("lr", own["lr"]) * scale
    return {key: value for key, value in values.items() if _plain(value) != _plain(own[key])}


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _grouped(
    settings: Mapping[str, Mapping[str, Any]], given: Mapping[str, Mapping[str, tuple[str, Any]]], proof: Proof
) -> list[Group]:
    """Parameters with equal settings together, in the order of their first ones."""
    found: list[tuple[Mapping[str, Any], list[str]]] = []
    for name, values in settings.items():
        group = next((names for other, names in found if other == values), None)
        if group is None:
            found.append((values, [name]))
        else:
            group.append(name)
    return [
        Group(tuple(names), dict(values), {name: tuple(_deciding(given[name], proof, name)) for name in names})
        for values, names in found
    ]


def _deciding(given: Mapping[str, tuple[str, Any]], proof: Proof, name: str) -> Iterator[str]:
    yield from dict.fromkeys(rule for rule, _ in given.values())
    decision = proof.decisions[name]
    if decision.arguments.get("lr_scales") is not None:
        yield decision.rule


def _rehearse(
    config: Mapping[str, Any],
    groups: Sequence[Group],
    given: Mapping[str, Mapping[str, tuple[str, Any]]],
    proof: Proof,
) -> list[Problem]:
    """What torch says of each group's settings, and of all groups of the real shapes together."""
    plain = {key: value for key, value in config.items() if key != "groups"}
    for group in groups:
        problems = check_optimizer({**plain, **group.settings}) if group.settings else []
        if problems:
            wrong = [key for key, value in group.settings.items() if check_optimizer({**plain, key: value})]
            address = _address(wrong or [*group.settings], given[group.names[0]])
            return [replace(problem, address=address) for problem in problems]
    settings = {key: value for key, value in config.items() if key != "fused"}  # of no matter here, and not for meta
    try:
        if groups:
            make_optimizer(settings, [{**made, "fused": None} for made in _as_torch(groups, proof.meta)])
    except ValueError as err:  # such as "Muon only supports 2D parameters"
        return [Problem("optimizer", f"{_optimizer(config)} does not take these parameters: {err}", "use another one")]
    return []


def _address(keys: Sequence[str], given: Mapping[str, tuple[str, Any]]) -> str:
    """Of the first of some settings that a rule of `optimizer.groups` gave a parameter."""
    for key in (*keys, LR_SCALE):
        if key in given:
            return f"optimizer.groups.{given[key][0]}.{key}"
    return "optimizer"


# ---- the optimizer's own form --------------------------------------------------------------------------------------


def parameter_groups(groups: Sequence[Group], module: nn.Module) -> list[dict[str, Any]]:
    """The groups as torch takes them, with the names of the parameters, which go into checkpoints.

    Raises:
        BuilderError: The module has a trainable parameter that is in no group.
    """
    made = _as_torch(groups, module)
    planned = {id(parameter) for group in made for _, parameter in group["params"]}
    what, hint = "is trainable and in no group of the optimizer: the model has changed since", "declare it in the model"
    stray = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in planned]
    raise_all("optimizer", [Problem(name, what, hint) for name in stray])
    return made


def _as_torch(groups: Sequence[Group], module: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [(name, module.get_parameter(name)) for name in group.names], **group.settings} for group in groups
    ]


def check_saved_groups(saved: Sequence[Mapping[str, Any]], groups: Sequence[Group]) -> list[Problem]:
    """Refuses to go on from a checkpoint whose optimizer had other groups: its state is kept by position."""
    before = [tuple(group.get("param_names", ())) for group in saved]
    if not all(before) or before == [group.names for group in groups]:
        return []
    now = {name: number for number, group in enumerate(groups) for name in group.names}
    then = {name: number for number, names in enumerate(before) for name in names}
    moved = [name for name in {**then, **now} if then.get(name) != now.get(name)] or list(now)
    what = f"its optimizer had {len(before)} groups of other parameters: {', '.join(moved[:4])}"
    return [
        Problem("ckpt_path", what, "use the optimizer.groups, freeze rules and init policies that it was made with")
    ]
