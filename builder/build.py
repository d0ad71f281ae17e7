"""The pipeline as a table of contents: spec → source → module on meta → rules proved → materialised and initialised.

`prove` does all that needs no memory; `build` goes on to a real module. Each stage takes the value before it and
raises all of its problems at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from pydantic import ValidationError
from torch import nn

from builder.errors import BuilderError, Problem, did_you_mean, raise_all
from builder.expand import Expansion, expand
from builder.freeze import freeze as freeze_module
from builder.freeze import plan_freeze
from builder.initialize.fill import initialised
from builder.initialize.plan import Decision, plan_init
from builder.load import Loaded, Places, Source, load
from builder.module import Entry, check_kinds, construct, entries, on_meta
from builder.names import Selector
from builder.policies import POLICIES
from builder.shapes import check_shapes
from builder.source import ModelSource, render
from builder.spec import InitRule, problems_of
from builder.tie import check_ties, ordered
from builder.verify import check_module

Rule = TypeVar("Rule", bound=Selector)
Scheme = str | Mapping[str, Any] | None


@dataclass(frozen=True)
class Proof:
    """A model that was proved to build: all stages up to memory.

    Attributes:
        loaded: The spec and the places of its keys.
        expansion: Every layer instance with its values.
        source: The generated source.
        parameters: Every parameter under every name.
        ties: Tied name → owner.
        decisions: Owner → what decides its initial values.
        frozen: Owner → the rule that freezes it.
        meta: The module on meta.
    """

    loaded: Loaded
    expansion: Expansion
    source: ModelSource
    parameters: tuple[Entry, ...]
    ties: Mapping[str, str]
    decisions: Mapping[str, Decision]
    frozen: Mapping[str, str]
    meta: nn.Module

    def __deepcopy__(self, memo: dict[int, Any]) -> Proof:
        return self  # a proof is a value: copies of a model share it


def prove(
    source: Source,
    *,
    args: Mapping[str, Any] | None = None,
    init: Scheme = None,
    freeze: Mapping[str, Any] | None = None,
    places: Places | None = None,
    name: str = "",
    scheme_name: str = "init",
) -> Proof:
    """Proves that a model file builds, without memory for its parameters.

    Args:
        source: Path of a model file, a mapping, or a DictConfig.
        args: Values for the model's args.
        init: A policy for every matrix, a mapping of named init rules that win over the model's, or None.
        freeze: Named freeze rules in addition to the model's.
        places: Where the keys of a mapping stand, for messages.
        name: A name for the model, if it is not that of the file.
        scheme_name: What the parameter table calls the rules of `init`.

    Raises:
        BuilderError: The model is refused, with all problems of the stage that refused it.
    """
    loaded = load(source, args, places=places, name=name)
    scheme = read_scheme(init)
    freeze_rules = {**loaded.spec.freeze, **read_freeze(freeze or {})}
    expansion = expand(loaded.spec)
    loaded.refuse([*expansion.problems, *check_kinds(loaded.spec, expansion)])
    untied, problems = render(loaded.spec, loaded.name, ties=False)
    loaded.refuse(problems)
    assert untied is not None, "source without problems"
    ties = ordered(loaded.spec.tie)
    loaded.refuse(check_ties(loaded.spec.tie, construct(loaded, untied, expansion.args, on_meta)))
    tied, _ = render(loaded.spec.model_copy(update={"tie": ties}), loaded.name)
    assert tied is not None, "source without problems"
    meta = construct(loaded, tied, expansion.args, on_meta)
    parameters = entries(meta, expansion)
    decisions, init_problems = plan_init(meta, parameters, ties, expansion, scheme, scheme_name)
    frozen, freeze_problems = plan_freeze(freeze_rules, parameters, ties)
    loaded.refuse([*init_problems, *freeze_problems])
    check_shapes(loaded, expansion, tied, meta)
    return Proof(loaded, expansion, tied, tuple(parameters), ties, decisions, frozen, meta)


def build(
    source: Source,
    *,
    args: Mapping[str, Any] | None = None,
    init: Scheme = None,
    freeze: Mapping[str, Any] | None = None,
    seed: int = 0,
    rng: str = "keyed",
    device: str | torch.device | None = None,
) -> nn.Module:
    """An ordinary module from a model file, every parameter initialised.

    Args:
        source: Path of a model file, a mapping, or a DictConfig.
        args: Values for the model's args.
        init: A policy for every matrix, a mapping of named init rules that win over the model's, or None.
        freeze: Named freeze rules in addition to the model's.
        seed: The init seed.
        rng: `keyed`: a stream for each parameter; `torch`: the bits of the hand-written module after
            `torch.manual_seed`.
        device: Where the module goes; its values are drawn on the CPU, so that they are the same everywhere.

    Raises:
        BuilderError: The model is refused, before memory is allocated.
    """
    return materialise(prove(source, args=args, init=init, freeze=freeze), seed=seed, rng=rng, device=device)


def materialise(
    proof: Proof, *, seed: int = 0, rng: str = "keyed", device: str | torch.device | None = None
) -> nn.Module:
    """The module of a proof, with memory and initial values."""
    if rng not in ("keyed", "torch"):
        raise BuilderError("build", [Problem("rng", f"unknown rng {rng!r}", "known: keyed, torch")])
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise BuilderError("build", [Problem("init_seed", f"seed {seed!r}", "a whole number, zero or more")])
    module = initialised(
        lambda make: construct(proof.loaded, proof.source, proof.expansion.args, make),
        proof.decisions,
        proof.parameters,
        seed,
        rng,
    )
    freeze_module(module, proof.frozen)
    check_module(module, proof.ties, proof.frozen)
    module.__dict__["_builder_proof"] = proof
    return module if device is None else module.to(device)


def proof_of(module: nn.Module) -> Proof:
    """The proof that a built module carries.

    Raises:
        BuilderError: The module was not built by builder.
    """
    proof = module.__dict__.get("_builder_proof")
    if not isinstance(proof, Proof):
        raise BuilderError(
            "module", [Problem(type(module).__name__, "was not built by builder", "build it with builder.build(...)")]
        )
    return proof


def read_scheme(init: Scheme) -> dict[str, InitRule]:
    """The named rules of an init scheme from outside."""
    if init is None or init == "model":
        return {}
    if isinstance(init, str):
        if init not in POLICIES:
            raise BuilderError(
                "init", [Problem("init", f"unknown policy {init!r}", did_you_mean(init, POLICIES, most=20))]
            )
        return {init: InitRule(match="*", min_ndim=0 if init == "default" else 2, policy=init)}
    return _rules(init, InitRule, "init")


def read_freeze(rules: Mapping[str, Any]) -> dict[str, Selector]:
    """The named freeze rules from outside."""
    return _rules(rules, Selector, "freeze")


def _rules(rules: Mapping[str, Any], kind: type[Rule], section: str) -> dict[str, Rule]:
    if not isinstance(rules, Mapping):
        what = f"got a {type(rules).__name__}"
        raise BuilderError(section, [Problem(section, what, "give named rules: {NAME: {match: ..., ...}}")])
    found: dict[str, Rule] = {}
    problems: list[Problem] = []
    for name, rule in rules.items():
        try:
            found[name] = kind.model_validate(rule)
        except ValidationError as err:
            problems += [Problem(f"{section}.{name}.{p.address}", p.what, p.hint) for p in problems_of(err)]
    raise_all(section, problems)
    return found
